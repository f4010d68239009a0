"""States that heads read: of encoders, decoders and encoder-decoders, in batches and behind virtual tokens."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from utils.backbone import kind, load_model
from utils.dataloader import IGNORE, Encoded, collate
from utils.dataset import Example
from utils.errors import UserError
from utils.model.architecture import kind_of
from utils.model.forward import features, labelled_states, token_states

ROWS = [[5, 6, 7, 8, 9, 10], [20], [30, 31, 32]]


def batch_of(rows, classes=None):
    places = classes or [()] * len(rows)
    encoded = [Encoded(row, (), (), marks) for row, marks in zip(rows, places, strict=True)]
    return collate(encoded, [Example("", "")] * len(rows), tiny.PAD)


@pytest.mark.parametrize("family", ["neox", "llama", "gpt2", "bert", "t5", "bart", *tiny.ENCODERS])
def test_the_kind_is_in_the_configuration(family):
    encoder_decoder = "encoder-decoder" if family in tiny.ENCODER_DECODERS else "decoder"
    assert kind_of(tiny.shape(family)) == ("encoder" if family in tiny.ENCODERS else encoder_decoder)


@pytest.mark.parametrize("family", tiny.ENCODERS)
def test_an_encoder_reads_a_batch_as_it_reads_one_text(family):
    model, batch = tiny.make_model(family), batch_of(ROWS)
    assert kind(tiny.make_config(backbone=tiny.backbone_folder(family))) == "encoder"
    with torch.no_grad():
        states = token_states(model, batch)
        for i, row in enumerate(ROWS):
            alone = model(input_ids=torch.tensor([row])).last_hidden_state[0]
            assert torch.allclose(states[i, -len(row) :], alone, atol=1e-4)
            for extract, place in (("last_token", -1), ("cls_token", 0)):
                assert torch.allclose(features(model, batch, extract)[i], alone[place], atol=1e-4)


@pytest.mark.parametrize("family", [*tiny.ENCODERS, "neox", "gpt2"])
def test_virtual_tokens_before_a_text_are_words_before_it(family):
    model = tiny.make_model(family)
    virtual = model.get_input_embeddings().weight[[40, 41]]
    with torch.no_grad():
        expected = token_states(model, batch_of([[40, 41, *row] for row in ROWS]))
        found = token_states(model, batch_of(ROWS), virtual)
    for i, row in enumerate(ROWS):
        assert torch.allclose(found[i, -len(row) :], expected[i, -len(row) :], atol=1e-4)


@pytest.mark.parametrize("family", ["bert_encoder", "neox", "t5"])
def test_states_are_those_of_the_marked_places_and_have_gradients(family):
    model, marks = tiny.make_model(family), [[(0, 4), (5, 2)], [(0, 3)], [(2, 1)]]
    one = [[(len(row) - 1, label)] for row, label in zip(ROWS, (4, 3, 1), strict=True)]
    batch = batch_of(ROWS, one if family == "t5" else marks)
    states, labels = labelled_states(model, batch)
    if family == "t5":
        assert labels.tolist() == [[4], [3], [1]]
    else:
        assert labels.tolist() == [[4, 2], [IGNORE, 3], [IGNORE, 1]]
        whole = token_states(model, batch)
        gap = batch.input_ids.shape[1] - len(ROWS[2])
        assert torch.equal(states[2, 1], whole[2, gap + 2])
    states[..., 0].sum().backward()  # the sum over all units of a normalised state is constant
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_an_encoder_is_loaded_without_parts_that_never_learn():
    names = [
        name
        for name, _ in load_model(tiny.make_config(backbone=tiny.backbone_folder("bert_encoder"))).named_parameters()
    ]
    assert names and not any(word in name for name in names for word in ("pooler", "cls.", "predictions"))


def test_an_encoder_without_all_its_weights_is_refused(tmp_path):
    folder = shutil.copytree(tiny.backbone_folder("bert_encoder"), tmp_path / "half")
    weights = load_file(folder / "model.safetensors")
    save_file({k: w for k, w in weights.items() if "layer.1" not in k}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"half lacks weights of the encoder, such as .*layer\.1\."):
        load_model(tiny.make_config(backbone=str(folder)))
