"""Backbones whose folder holds a SentencePiece file and no tokenizer.json, as T5, DeBERTa-v3 and Llama publish them."""

import pytest
import sentencepiece
from transformers import DebertaV2Config, DebertaV2ForMaskedLM

from tests.tiny import VOCABULARY, make_config, make_model, micro_stream
from utils.backbone import load_backbone

# family -> name of the file, ids of the special pieces
FILES = {
    "llama": ("tokenizer.model", {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}),
    "t5": ("spiece.model", {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}),
    "deberta-v2": ("spm.model", {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}),
}
DEBERTA_PIECES = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
TEXTS = [f"{e.input} {e.target}" for task in micro_stream().tasks for e in task.train]


@pytest.fixture(scope="module", params=FILES)
def folder(request, tmp_path_factory):
    """A tiny model with a vocabulary trained by the package sentencepiece."""
    family, path = request.param, tmp_path_factory.mktemp("backbone")
    name, ids = FILES[family]
    pieces = DEBERTA_PIECES if family == "deberta-v2" else {}
    with (path / name).open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS * 3), model_writer=file, vocab_size=80, hard_vocab_limit=False,
            model_type="bpe" if family == "llama" else "unigram", minloglevel=2, **ids, **pieces,
        )  # fmt: skip
    make(family).save_pretrained(path)
    return path


def make(family: str):
    if family != "deberta-v2":
        return make_model(family)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return DebertaV2ForMaskedLM(DebertaV2Config(vocab_size=VOCABULARY, max_position_embeddings=256, **size))


def test_it_loads_and_its_texts_come_back(folder):
    backbone = load_backbone(make_config(backbone=str(folder)))
    for text in TEXTS[:5]:
        ids = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert 1 < len(ids) < len(text) and max(ids) < VOCABULARY
        assert backbone.tokenizer.decode(ids) == text
