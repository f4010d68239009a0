"""Padding changes nothing in models for which a column's place matters: sliding windows, convolutions."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, Lfm2Config, MistralConfig

from tests import tiny
from utils.dataloader import Encoded
from utils.model import adapters
from utils.model.architecture import Backbone
from utils.model.generation import generate, verify

SIZE = {
    "vocab_size": tiny.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 64, "head_dim": 16, "max_position_embeddings": 128,
    "bos_token_id": None, "eos_token_id": tiny.EOS, "pad_token_id": tiny.PAD, "initializer_range": 0.2,
}  # fmt: skip
SHAPES = {
    "mistral": lambda: MistralConfig(**SIZE, sliding_window=6),
    "gemma2": lambda: Gemma2Config(**SIZE, sliding_window=6),
    "gemma3": lambda: Gemma3TextConfig(**SIZE, sliding_window=6),
    "lfm2": lambda: Lfm2Config(**SIZE, layer_types=["conv", "full_attention"]),
}
ROWS = [Encoded([5 + i + k for k in range(2 + 3 * i)], [11, 12, 0]) for i in range(5)]


def backbone(shape, kind):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SHAPES[shape]()).eval()
    from utils.backbone import _make_greedy

    model = adapters.wrap(model, tiny.make_config(PEFT_type=kind, PEFT_num_virtual_tokens=4))
    for name, w in model.named_parameters():
        if adapters.owner(name):
            w.data += 0.5 * torch.randn_like(w)
    _make_greedy(model, tiny.PAD, [tiny.EOS])
    return Backbone(model.eval(), tiny.tokenizer(), tiny.PAD, [tiny.EOS])


@pytest.mark.parametrize(
    ("shape", "kind"),
    [(shape, kind) for shape in SHAPES for kind in (None, "PromptTuning", "PrefixTuning")][:-1],
)
def test_answers_do_not_depend_on_the_batch(shape, kind):
    made = backbone(shape, kind)
    together = generate(made, ROWS, 8)
    assert together == [generate(made, [row], 8)[0] for row in ROWS]
    assert len(set(together)) > 1
    answers = verify(made, ROWS, [[text] for text in together], 8)
    assert answers == [verify(made, [row], [[text]], 8)[0] for row, text in zip(ROWS, together, strict=True)]
