"""Bottleneck adapters; tests/unit/model/test_adapters.py and test_peft.py run over them as over every kind."""

import pytest
import torch
from torch import nn

from tests import tiny
from utils.backbone import load_model
from utils.errors import UserError
from utils.model import adapters, bottleneck
from utils.options import consistency
from utils.run import checkpoint

LAST = {
    "neox": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    "llama": "model.layers.{}.mlp.down_proj",
    "gpt2": "transformer.h.{}.mlp.c_proj",
    "bert": "bert.encoder.layer.{}.output.dense",
}


@pytest.mark.parametrize("family", LAST)
def test_one_adapter_follows_each_feed_forward_part(family):
    assert bottleneck.places(tiny.make_model(family)) == [LAST[family].format(i) for i in range(2)]


def test_in_an_encoder_decoder_in_both_halves():
    t5 = ("encoder.block.{}.layer.1.DenseReluDense.wo", "decoder.block.{}.layer.2.DenseReluDense.wo")
    bart = ("model.encoder.layers.{}.fc2", "model.decoder.layers.{}.fc2")
    for family, names in (("t5", t5), ("bart", bart)):
        assert bottleneck.places(tiny.make_model(family)) == [name.format(i) for name in names for i in range(2)]


@pytest.mark.parametrize("change", ["width", "none"])
def test_a_block_without_such_a_layer_is_reported(change):
    base = tiny.make_model()
    base.gpt_neox.layers[1].mlp.dense_4h_to_h = nn.Linear(64, 31) if change == "width" else nn.Identity()
    with pytest.raises(
        UserError, match=r"^PEFT_type: Bottleneck does not fit GPTNeoXForCausalLM: expected blocks .* 32$"
    ):
        adapters.wrap(base, tiny.make_config(PEFT_type="Bottleneck"))


@pytest.mark.parametrize("family", [*LAST, *tiny.ENCODER_DECODERS])
@torch.no_grad()  # with gradients some kernels round in another way
def test_a_fresh_one_changes_nothing(family):
    base, ids = tiny.make_model(family), torch.tensor([[5, 6, 7], [9, 8, 4]])
    given = {"input_ids": ids} | ({"decoder_input_ids": ids} if family in tiny.ENCODER_DECODERS else {})
    before = base(**given).logits
    model = adapters.wrap(base, tiny.make_config(PEFT_type="Bottleneck")).eval()
    assert torch.equal(before, model(**given).logits)
    for name, w in model.named_parameters():
        w.data += torch.randn_like(w) if "bottleneck_up" in name else 0
    assert not torch.allclose(before, model(**given).logits, atol=1e-3)


def test_the_formula():
    layer = bottleneck.Bottleneck(nn.Linear(3, 2), "one", 2)
    base, down, up = layer.base_layer, layer.bottleneck_down["one"], layer.bottleneck_up["one"]
    for w, value in (
        (base.weight, [[1.0, 0, 0], [0, 1, 0]]), (base.bias, [0.0, 0]),
        (down.weight, [[1.0, -1], [2, 0]]), (down.bias, [0.0, 1]),
        (up.weight, [[1.0, 10], [100, 1000]]), (up.bias, [0.5, 0]),
    ):  # fmt: skip
        w.data = torch.tensor(value)
    # h = (1, 2); D h + a = (-1, 3), of which relu leaves (0, 3)
    assert layer(torch.tensor([1.0, 2, 9])).tolist() == [1 + 30.5, 2 + 3000]
    layer.enable_adapters(False)
    assert layer(torch.tensor([1.0, 2, 9])).tolist() == [1, 2]


def test_several_are_summed():
    torch.manual_seed(0)
    layer, x = bottleneck.Bottleneck(nn.Linear(3, 2), "one", 4), torch.randn(5, 3)
    layer.add("two", 4)
    for w in layer.bottleneck_up.parameters():
        nn.init.normal_(w)
    h, changes = layer.base_layer(x), []
    for name in ("one", "two"):
        layer.set_adapter(name)
        changes.append(layer(x) - h)
    layer.set_adapter(["one", "two"])
    torch.testing.assert_close(layer(x), h + changes[0] + changes[1])


def test_its_size_is_an_option():
    def learned(size):
        model = load_model(tiny.make_config(PEFT_type="Bottleneck", PEFT_bottleneck_size=size))
        return sum(w.numel() for name, w in model.named_parameters() if adapters.owner(name))

    assert learned(7) == 2 * (7 * (32 + 32) + 7 + 32)  # layers x (D, U, a, b)
    config = tiny.make_config(PEFT_type="LoRA", PEFT_bottleneck_size=9)
    (problem,) = consistency.check(config)
    assert problem == "PEFT_bottleneck_size: has no effect with PEFT_type LoRA; it belongs to Bottleneck"


@pytest.mark.parametrize("family", tiny.ENCODER_DECODERS)
def test_an_encoder_decoder_learns_and_is_loaded_again(family, tmp_path):
    config = tiny.make_config(PEFT_type="Bottleneck", lr=1e-2, backbone=tiny.backbone_folder(family))
    made, first = tiny.run(tmp_path, config, tiny.micro_stream(2)), load_model(config)
    for name, w in first.named_parameters():
        assert torch.equal(w, made.weights[name]) is (adapters.owner(name) is None), name
    checkpoint.load_weights(first, tmp_path / "checkpoints/task_1")
    assert tiny.same(made.weights, dict(first.named_parameters()))
