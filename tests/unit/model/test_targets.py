"""Layers that get LoRA and IA3, on architectures that peft's tables do not have or have as they once were."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from tests import tiny
from utils.errors import UserError
from utils.model import adapters, targets

SIZE = {
    "vocab_size": tiny.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 64, "pad_token_id": tiny.PAD,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "num_key_value_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 12, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 32,
}  # fmt: skip
Q, MLP = ["k_proj", "o_proj", "q_proj", "v_proj"], ["down_proj", "gate_proj", "up_proj"]
SHAPES = {  # type -> further values, the layers with LoRA, those whose input IA3 scales
    "phi3": ({}, ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"], ["down_proj"]),
    "olmo2": ({}, [*Q, *MLP], ["down_proj"]),
    "smollm3": ({}, [*Q, *MLP], ["down_proj"]),
    "granite": ({}, [*Q, *MLP], ["down_proj"]),
    "cohere": ({}, [*Q, *MLP], ["down_proj"]),
    "modernbert": ({"cls_token_id": 0, "sep_token_id": 0}, ["Wi", "Wo", "Wqkv"], ["Wo"]),
    "gpt_oss": (EXPERTS, Q, []),
    "qwen3_moe": (EXPERTS, Q, []),
    "mixtral": (EXPERTS, ["q_proj", "v_proj"], []),
    "deepseek_v3": (
        EXPERTS | LATENT, ["kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_a_proj", "q_b_proj"], [],
    ),
}  # fmt: skip


def model_of(kind, **more):
    shape = AutoConfig.for_model(kind, **SIZE | more)
    family = AutoModelForMaskedLM if kind == "modernbert" else AutoModelForCausalLM
    model = family.from_config(shape, dtype=torch.float32).eval()
    return model.base_model if kind == "modernbert" else model


def wrapped(model, **options):
    return adapters.wrap(model, tiny.make_config(**options))


def adapted(model, part):
    """Last parts of the names of the layers that have this parameter."""
    names = [name for name, _ in model.named_parameters() if f".{part}." in name]
    return sorted({name.split(f".{part}.")[0].rpartition(".")[2] for name in names})


@pytest.mark.parametrize("kind", SHAPES)
def test_defaults_fit_every_architecture(kind):
    more, lora, inputs = SHAPES[kind]
    made = wrapped(model_of(kind, **more), PEFT_type="LoRA")
    assert adapted(made, "lora_A") == sorted(lora)
    scaled = wrapped(model_of(kind, **more), PEFT_type="IA3")
    forward = {n.rpartition(".")[2] for n, m in scaled.named_modules() if getattr(m, "is_feedforward", False)}
    assert sorted(forward) == inputs
    assert {"k_proj", "v_proj"} & set(adapted(scaled, "ia3_l")) or "k_proj" not in lora


def test_a_row_of_the_table_that_names_layers_of_another_version_does_not_count():
    model = model_of("mixtral", **EXPERTS)
    assert {name.rpartition(".")[2] for name in targets.ia3(None, model)[0]} == set(Q)  # the row names w2
    assert targets.ia3(None, tiny.make_model("neox"))[1] == ["dense_4h_to_h"]  # as in the table


def test_layers_that_ia3_scales_are_an_option():
    model = model_of("olmo2")
    layers, inputs = targets.ia3(("v_proj", "mlp.down_proj"), model)
    assert layers == [f"model.layers.{i}.{name}" for i in (0, 1) for name in ("self_attn.v_proj", "mlp.down_proj")]
    assert inputs == [f"model.layers.{i}.mlp.down_proj" for i in (0, 1)]
    assert len(targets.ia3(targets.ALL, model)[0]) == 2 * 7
    with pytest.raises(UserError, match=r"no linear layer named proj or x, but .*v_proj; see PEFT_ia3_target_modules$"):
        wrapped(model, PEFT_type="IA3", PEFT_ia3_target_modules=("proj", "x"))


def test_each_name_of_a_layer_must_be_one_of_the_model():
    for kind, option in (("LoRA", "PEFT_lora_target_modules"), ("IA3", "PEFT_ia3_target_modules")):
        with pytest.raises(UserError, match=rf"no linear layer named vproj, but .*v_proj; see {option}$"):
            wrapped(tiny.make_model("llama"), PEFT_type=kind, **{option: ("q_proj", "vproj")})


def test_experts_get_lora_without_dropout_and_only_if_they_are_named():
    everything = {"PEFT_type": "LoRA", "PEFT_lora_target_modules": targets.ALL}
    with pytest.raises(UserError, match=r"LoRA on experts needs PEFT_lora_dropout: 0, or name other layers"):
        wrapped(model_of("qwen3_moe", **EXPERTS), **everything)
    made = wrapped(model_of("qwen3_moe", **EXPERTS), **everything, PEFT_lora_dropout=0.0)
    assert "experts" in adapted(made, "lora_A") or "base_layer" in adapted(made, "lora_A")
    with pytest.raises(UserError, match=r"^PEFT_lora_target_modules: SLAO needs LoRA on layers, not on experts"):
        adapters.refuse_experts(made, "SLAO")
    adapters.refuse_experts(wrapped(model_of("qwen3_moe", **EXPERTS), PEFT_type="LoRA"), "SLAO")
    with pytest.raises(UserError, match="its feed-forward part is a mixture of experts"):
        wrapped(model_of("qwen3_moe", **EXPERTS), PEFT_type="Bottleneck")


def test_a_prefix_is_as_wide_as_what_the_model_stores():
    falcon = wrapped(model_of("falcon", multi_query=True), PEFT_type="PrefixTuning")
    assert falcon.prompt_encoder["default"].embedding.weight.shape == (10, 2 * 2 * 16)  # one head of keys and values
    for kind, more in {"deepseek_v3": EXPERTS | LATENT, "lfm2": {"layer_types": ["conv", "full_attention"]}}.items():
        with pytest.raises(UserError, match=r"needs keys and values of one shape in all layers; use PromptTuning$"):
            wrapped(model_of(kind, **more), PEFT_type="PrefixTuning")
