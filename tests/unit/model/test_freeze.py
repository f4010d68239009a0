"""What is frozen: exactly what was named, in every architecture."""

import pytest
import torch

from tests import tiny
from utils.errors import UserError
from utils.model import adapters
from utils.model.freeze import blocks, describe, matches, select, unread


def model(family="neox", layers=2, **more):
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_config(tiny.shape(family, layers, width=8, **more))


def learning_layers(net, frozen):
    """Layers with at least one trainable parameter, and whether all of each are trainable."""
    of = {}
    prefix = next(name for name, module in net.named_modules() if module is blocks(net)) + "."
    for name, _ in net.named_parameters():
        if name.startswith(prefix):
            of.setdefault(int(name.removeprefix(prefix).split(".")[0]), set()).add(name in frozen)
    assert all(len(kinds) == 1 for kinds in of.values()), "a layer is half frozen"
    return [layer for layer, kinds in of.items() if kinds == {False}]


EMBED = {"llama": ["embed_tokens"], "neox": ["embed_in"]}


@pytest.mark.parametrize(
    ("last", "learn_32", "learn_12"),
    [
        (0, [*range(1, 32)], [*range(1, 12)]),
        (1, [*range(2, 10), *range(20, 32)], [*range(2, 10)]),
        (2, [*range(3, 10), 30, 31], [*range(3, 10)]),
        (5, [6, 7, 8, 9], [6, 7, 8, 9]),
        (6, [7, 8, 9], [7, 8, 9]),
        (8, [9], [9]),
    ],
)
def test_substring_reproduces_the_published_tables(last, learn_32, learn_12):
    for family, layers, expected in (("llama", 32, learn_32), ("neox", 12, learn_12)):
        net = model(family, layers)
        frozen = select(net, (*EMBED[family], *(f"layers.{i}" for i in range(last + 1))), "substring")
        assert learning_layers(net, frozen) == expected
        assert {n for n, w in net.named_parameters() if w is net.get_input_embeddings().weight} <= frozen
        assert not {n for n, w in net.named_parameters() if w is net.get_output_embeddings().weight} & frozen


def test_substring_default_of_the_published_code():
    for family, layers, expected in (
        ("llama", 32, [0, *range(2, 10), *range(20, 32)]),
        ("neox", 12, [0, *range(2, 10)]),
    ):
        net = model(family, layers)
        frozen = select(net, ("layers.1",), "substring")
        assert learning_layers(net, frozen) == expected


FAMILIES = ["neox", "llama", "gpt2", "bert"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("part", "expected"), [("layers 0-2", {0, 1, 2}), ("layers 1", {1}), ("layers 11", {11})])
def test_ranges_are_exact(family, part, expected):
    net = model(family, 12)
    frozen = select(net, (part,))
    assert learning_layers(net, frozen) == [i for i in range(12) if i not in expected]
    assert frozen == {f"{name(net)}{i}.{rest}" for i in expected for rest, _ in blocks(net)[i].named_parameters()}


def name(net):
    return next(name for name, module in net.named_modules() if module is blocks(net)) + "."


ATTENTION = {"neox": "attention", "llama": "self_attn", "gpt2": "attn", "bert": "attention"}
MLP = {"neox": ["mlp"], "llama": ["mlp"], "gpt2": ["mlp"], "bert": ["intermediate", "output"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_and_mlp_are_these_modules_and_no_norms_between_them(family):
    net = model(family, 3)
    start = name(net)
    for part, children in (("attention 0-1", [ATTENTION[family]]), ("mlp 0-1", MLP[family])):
        expected = {
            n
            for n, _ in net.named_parameters()
            if any(n.startswith(f"{start}{i}.{child}.") for i in (0, 1) for child in children)
        }
        assert expected
        assert select(net, (part,)) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_and_head(family):
    net = model(family, tie_word_embeddings=False)
    ends = {"embeddings": net.get_input_embeddings(), "head": net.get_output_embeddings()}
    for part, module in ends.items():
        inside = {id(w) for w in module.parameters()}
        assert select(net, (part,)) == {n for n, w in net.named_parameters() if id(w) in inside} != set()
    assert not select(net, ("embeddings",)) & select(net, ("head",))


def test_tied_weights_are_one_parameter():
    net = tiny.make_model("gpt2", tie_word_embeddings=True)
    assert net.lm_head.weight is net.transformer.wte.weight
    assert select(net, ("head",)) == select(net, ("embeddings",)) == {"transformer.wte.weight"}


def test_whole_parts_of_names():
    net = model("llama", 12)
    assert select(net, ("layers.1",)) == select(net, ("layers 1",))
    assert select(net, ("q_proj",)) == {n for n, _ in net.named_parameters() if ".q_proj." in n}
    assert select(net, ("lm_head.weight",)) == {"lm_head.weight"}
    assert select(net, ("lm_head", "layers 0")) == select(net, ("lm_head",)) | select(net, ("layers 0",))
    assert select(net, ()) == set()
    assert not matches("model.layers.11.x", "layers.1")
    assert not matches("model.sublayers.1.x", "layers.1")


@pytest.mark.parametrize("part", ["layers 2", "layers 1-2", "layers 1-0", "layers -1", "layer 0", "mlp 5", "", "q_pro"])
def test_a_part_that_matches_nothing_is_an_error(part):
    with pytest.raises(UserError) as caught:
        select(model("llama", 2), ("embeddings", part))
    assert str(caught.value).startswith(f"freeze_parts: {part!r} matches no parameter (freeze_match component); ")
    assert "2 layers" in str(caught.value)


def test_substring_that_matches_nothing_is_an_error():
    with pytest.raises(UserError, match="freeze_match substring"):
        select(model(), ("layers 0",), "substring")


def test_describe_lists_trainable_parts():
    net = tiny.make_model("neox", layers=5)
    total = sum(w.numel() for w in net.parameters())
    assert describe(net) == f"trainable: embeddings, layers 0-4 of 5, head ({total:,} parameters)"
    for n, w in net.named_parameters():
        w.requires_grad_(n not in select(net, ("embeddings", "layers 0-1", "mlp 3")))
    learning = sum(w.numel() for w in net.parameters() if w.requires_grad)
    assert describe(net) == f"trainable: layers 2, 4 of 5, parts of layers 3, head ({learning:,} parameters)"
    net.requires_grad_(False)
    assert describe(net) == "trainable: nothing (0 parameters)"


def test_blocks_are_the_model_s_layers():
    for family in FAMILIES:
        assert len(blocks(model(family, 7))) == 7
    with pytest.raises(UserError, match="has no list of layers"):
        blocks(torch.nn.Linear(2, 2))


def test_of_a_model_that_reads_images_too_the_text_part_alone_is_meant():
    from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3TextConfig, SiglipVisionConfig

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = Gemma3TextConfig(**size, vocab_size=320, num_key_value_heads=1, head_dim=16)
    vision = SiglipVisionConfig(**size | {"num_hidden_layers": 9}, image_size=28, patch_size=14)
    model = AutoModelForCausalLM.from_config(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=300)
    )
    assert all(".language_model.layers.0." in name for name in select(model, ("layers 0",)))
    assert len(blocks(model)) == 2
    unused = unread(model)
    assert unused == {name for name, _ in model.named_parameters() if "vision" in name or "multi_modal" in name}
    assert unused
    assert not unread(tiny.make_model())
    adapted = adapters.wrap(model, tiny.make_config(PEFT_type="LoRA"))
    assert adapted.words == 320
    named = [name for name, _ in adapted.named_parameters() if "lora" in name]
    assert named and not any("vision" in name or "multi_modal" in name for name in named)
    prefixed = adapters.wrap(adapted.unload(), tiny.make_config(PEFT_type="PrefixTuning"))
    assert any("prompt_encoder" in name for name, _ in prefixed.named_parameters())
    assert not any("prompt_encoder" in name for name in unread(prefixed))
