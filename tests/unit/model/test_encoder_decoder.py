"""Backbones of which an encoder reads the prompts and a decoder writes the answers."""

import random

import pytest
import torch

from models.Base import Method
from models.common.losses import answer_loss
from tests import tiny
from tests.unit.model.test_generation import random_text, sharpened, wish
from utils import backbone as backbone_module
from utils.backbone import kind, load_backbone, load_model
from utils.dataloader import IGNORE, Encoded, Encoder, collate, micro_batches
from utils.dataset import Example
from utils.model import freeze
from utils.model.forward import answer_logits, features, split
from utils.model.generation import generate, verify
from utils.options.checks import backbone_fits
from utils.scoring import score

FAMILIES = tiny.ENCODER_DECODERS
ROWS = [Encoded([5, 6, 7, 8, 9, 0], [11, 0]), Encoded([20, 0], [21, 22, 23, 0]), Encoded([30, 31, 0], [33, 0])]


def batch_of(rows):
    return collate(rows, [Example("", "")] * len(rows), tiny.PAD)


def test_split_gives_prompts_and_labels_padded_on_the_right():
    ids, mask, labels = split(batch_of(ROWS))
    assert [row[kept].tolist() for row, kept in zip(ids, mask.bool(), strict=True)] == [list(r.prompt) for r in ROWS]
    assert mask.tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert labels.tolist() == [[11, 0, IGNORE, IGNORE], [21, 22, 23, 0], [33, 0, IGNORE, IGNORE]]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_the_models_own_labels(family):
    backbone = tiny.make_backbone(family)
    for row in ROWS:
        with torch.no_grad():
            own = backbone.model(input_ids=torch.tensor([row.prompt]), labels=torch.tensor([row.answer])).loss
            ours = answer_loss(*answer_logits(backbone.model, batch_of([row])), len(row.answer))
        assert ours.item() == pytest.approx(own.item(), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_matter(family):
    model = tiny.make_model(family)
    with torch.no_grad():
        together, labels = answer_logits(model, batch_of(ROWS))
        for i, row in enumerate(ROWS):
            alone, _ = answer_logits(model, batch_of([row]))
            assert torch.allclose(together[i, labels[i] != IGNORE], alone[0], atol=1e-4)
    for i, row in enumerate(ROWS):
        assert torch.allclose(features(model, batch_of(ROWS))[i], features(model, batch_of([row]))[0], atol=1e-4)


def test_a_part_without_labels_costs_nothing_and_has_a_graph():
    model = tiny.make_model("t5")
    (empty,) = micro_batches(ROWS[:1], [Example("", "")], tiny.PAD, 1, 2, 1)
    loss = answer_loss(*answer_logits(model, empty), 1.0)
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_virtual_tokens_are_between_padding_and_text(family):
    """Embeddings of real tokens as virtual ones: the same as if these tokens were in the text."""
    backbone = tiny.make_backbone(family)
    virtual = backbone.model.get_input_embeddings().weight[[40, 41, 42]]
    longer = [Encoded([40, 41, 42, *row.prompt], row.answer) for row in ROWS]
    with torch.no_grad():
        expected, _ = answer_logits(backbone.model, batch_of(longer))
        found, _ = answer_logits(backbone.model, batch_of(ROWS), virtual)
    assert torch.allclose(found, expected, atol=1e-4)
    assert generate(backbone, ROWS, 6, virtual) == generate(backbone, longer, 6)


@pytest.mark.parametrize("seed", range(12))
def test_verification_scores_as_generation_does(seed):
    rng = random.Random(seed)
    backbone = sharpened(seed, FAMILIES[seed % 2], False)
    limit, encoder = rng.choice([1, 2, 3, 5, 8]), Encoder(backbone.tokenizer, "none", True)
    prompts = [random_text(rng) for _ in range(12)]
    targets = wish(backbone, encoder([Example(p, "") for p in prompts], None), rng, limit)
    rows = encoder([Example(p, t) for p, t in zip(prompts, targets, strict=True)], None)
    generated = generate(backbone, rows, limit)
    expected = score("exact_match", generated, targets)
    answers = verify(backbone, rows, [[t] for t in targets], limit)
    for answer, text, target, points in zip(answers, generated, targets, expected, strict=True):
        if answer is not None:
            assert score("exact_match", [answer.text], [target]) == [points], (answer, text, target)
            assert answer.text == text if answer.decided == "verified" else text.startswith(answer.text)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_equals_a_plain_loop(family):
    backbone = sharpened(5, family, False)
    for row in ROWS:
        written = [tiny.PAD]  # the start token of these models
        for _ in range(6):
            with torch.no_grad():
                ids = {"input_ids": torch.tensor([row.prompt]), "decoder_input_ids": torch.tensor([written])}
                written.append(int(backbone.model(**ids).logits[0, -1].argmax()))
            if written[-1] == tiny.EOS:
                break
        text = backbone.tokenizer.decode([i for i in written[1:] if i != tiny.EOS]).strip()
        assert generate(backbone, [row], 6) == [text]
        assert generate(backbone, ROWS, 6)[ROWS.index(row)] == text


def test_a_prompt_ends_as_the_tokenizer_ends_a_text():
    words, example = tiny.tokenizer(end=True), Example("cat a", "meow")
    encoder = Encoder(words, "none", True)
    (row,) = encoder([example], None)
    assert row.prompt == words("cat a")["input_ids"]
    assert row.prompt[-1] == row.answer[-1] == tiny.EOS
    assert encoder.lengths([example]) == [len(row.prompt) + len(row.answer)]
    (cut,) = encoder([example], len(row.answer) + 2)
    assert cut == (row.prompt[-2:], row.answer, [], ())  # it loses words, not its end
    assert Encoder(words, "none")([example], None)[0].prompt == row.prompt[:-1]  # a decoder continues with the answer


def test_the_kind_is_known_without_weights(monkeypatch):
    config = tiny.make_config(backbone=tiny.backbone_folder("t5"))
    assert type(load_model(config)).__name__ == "T5ForConditionalGeneration"
    assert load_backbone(config).kind == "encoder-decoder" and load_backbone(tiny.make_config()).kind == "decoder"
    assert load_model(config.model_copy(update={"backbone_random_init": True})).config.is_encoder_decoder
    for loader in ("load_model", "load_backbone"):
        monkeypatch.setattr(backbone_module, loader, lambda *_: pytest.fail("loaded"))
    assert (kind(config), kind(tiny.make_config())) == ("encoder-decoder", "decoder")


def test_a_method_that_cannot_refuses():
    class DecodersOnly(Method):
        backbones = frozenset({"decoder"})

    folder = tiny.backbone_folder("t5")
    assert backbone_fits(tiny.plan(tiny.make_config(), DecodersOnly)) == []
    assert backbone_fits(tiny.plan(tiny.make_config(backbone=folder), DecodersOnly)) == [
        f"backbone: method SEQ works with decoder models; {folder} is encoder-decoder"
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_counted_from_the_encoders_first_to_the_decoders_last(family):
    model, name = tiny.make_model(family), {"t5": "block", "bart": "layers"}[family]
    assert len(freeze.blocks(model)) == 4
    where = {0: f"encoder.{name}.0.", 1: f"encoder.{name}.1.", 2: f"decoder.{name}.0.", 3: f"decoder.{name}.1."}
    for number, prefix in where.items():
        everything = {n for n, _ in model.named_parameters() if prefix in n}
        assert freeze.select(model, (f"layers {number}",)) == everything
        attention, mlp = (freeze.select(model, (f"{part} {number}",)) for part in ("attention", "mlp"))
        assert attention and mlp and not attention & mlp
        assert all("norm" in n for n in everything - attention - mlp)
        assert any("EncDecAttention" in n or "encoder_attn" in n for n in attention) is (number > 1)


@pytest.mark.slow
def test_learns_a_task_by_heart(tmp_path):
    config = tiny.make_config(backbone=tiny.backbone_folder("t5"), training_epochs=90, lr=8e-3, batch_size=12)
    made = tiny.run(tmp_path, config, tiny.micro_stream(1))
    assert made.results["R"] == [[1.0]]
    assert made.results["cost"]["train_sequences"] == [90 * 12]
    assert made.results["cost"]["evaluate_sequences"][0] >= 6


def test_what_generation_reads_is_counted(tmp_path):
    counts = []
    for family in ("neox", "t5"):
        (tmp_path / family).mkdir()
        config = tiny.make_config(backbone=tiny.backbone_folder(family), evaluation_mode="generate")
        counts.append(tiny.run(tmp_path / family, config, tiny.micro_stream(1)).results["cost"]["evaluate_sequences"])
    assert counts == [[6], [6]]
