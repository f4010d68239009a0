"""What accelerate launch may ask for, and what is refused before a weight is loaded."""

import json
import os

import pytest
import torch

from tests import tiny
from utils.distributed import modes
from utils.distributed.modes import PATIENCE, check_parallel, deepspeed_numbers, make_accelerator, mode
from utils.errors import UserError
from utils.factory import load_method

TWO = {"WORLD_SIZE": "2"}
ZERO_2 = TWO | {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
FSDP = TWO | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.fixture
def told(monkeypatch):
    """Set what accelerate launch would."""

    def tell(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return tell


@pytest.fixture
def file(tmp_path):
    """Variables of a launch with a file of DeepSpeed's own."""

    def write(**entries) -> dict[str, str]:
        path = tmp_path / "deepspeed.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": 2}} | entries))
        return ZERO_2 | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)}

    return write


def problems(name: str = "SEQ", **options) -> list[str]:
    return check_parallel(tiny.make_config(name, **options), load_method(name), mode())


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"WORLD_SIZE": "1"}, None),
        (TWO, "DDP"),
        (ZERO_2, "ZeRO-2"),
        (ZERO_2 | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "ZeRO-3"),
        (FSDP, "FSDP2"),
    ],
)
def test_modes(variables, expected, told):
    told(variables)
    assert mode() == expected


def test_the_stage_in_deepspeeds_own_file_counts(told, file):
    told(file(zero_optimization={"stage": 1}) | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"})
    assert mode() == "ZeRO-1"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (ZERO_2 | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, "expected zero_stage 1, 2 or 3, got 0"),
        (FSDP | {"FSDP_VERSION": "1"}, "FSDP 1 is not supported"),
    ],
)
def test_modes_that_do_not_exist_here(variables, message, told):
    told(variables)
    with pytest.raises(UserError, match=message):
        mode()


@pytest.mark.parametrize(
    ("name", "variables", "expected"),
    [
        (
            "GEM",
            ZERO_2,
            "method GEM works on whole gradients during a task, but with ZeRO-2 each process has only",
        ),
        ("AGEM", FSDP, "method AGEM works on whole gradients"),
        ("GradientProjection", ZERO_2, "method GradientProjection works on whole gradients"),
        ("DERpp", FSDP, "method DERpp works on whole weights during a task"),
        ("OLoRA", FSDP, "method OLoRA works on whole weights"),
        ("L2KD", FSDP, "method L2KD works on whole weights"),
    ],
)
def test_methods_are_refused_where_they_lack_what_they_work_on(name, variables, expected, told):
    told(variables)
    (problem,) = problems(name)
    assert expected in problem and "; it can run with DDP" in problem


@pytest.mark.parametrize("variables", [{}, TWO, ZERO_2, FSDP])
def test_supported_modes_have_no_problems(variables, told):
    told(variables)
    assert problems("SEQ") == problems("ICL") == problems("LAMOL") == []


def test_options_become_deepspeeds_numbers():
    config = tiny.make_config(batch_size=10, gradient_accumulation_steps=2, max_grad_norm=0.5)
    assert deepspeed_numbers(config, 2) == {
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.5,
        "train_micro_batch_size_per_gpu": 3,
        "train_batch_size": 12,
    }


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"gradient_accumulation_steps": 8}, "gradient_accumulation_steps 8 contradicts gradient_accumulation_steps"),
        ({"gradient_clipping": 1.0}, "gradient_clipping 1.0 contradicts max_grad_norm, which requires 0"),
        ({"train_micro_batch_size_per_gpu": 16}, "train_micro_batch_size_per_gpu 16 contradicts batch_size"),
        ({"train_batch_size": 16}, "train_batch_size 16 contradicts batch_size, which requires 4"),
        ({"optimizer": {"type": "Adam"}}, "optimizer in DeepSpeed's file would replace this program's"),
        ({"bf16": {"enabled": True}}, "bf16 in DeepSpeed's file"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}},
            "offload_optimizer to nvme is not supported; use cpu",
        ),
    ],
)
def test_a_file_of_deepspeed_cannot_override_the_options(entries, expected, told, file):
    told(file(**entries))
    (problem,) = problems(batch_size=4)
    assert problem.startswith("accelerate launch: ") and expected in problem


def test_a_file_with_the_same_values_or_auto_is_accepted(told, file):
    told(file(gradient_accumulation_steps=1, gradient_clipping="auto", train_batch_size=4, bf16={"enabled": "auto"}))
    assert problems(batch_size=4) == []


@pytest.mark.parametrize(
    ("variables", "options", "expected"),
    [
        (ZERO_2 | {"ACCELERATE_GRADIENT_CLIPPING": "1.0"}, {}, "gradient_clipping 1.0 contradicts max_grad_norm"),
        (ZERO_2 | {"ACCELERATE_MIXED_PRECISION": "fp16"}, {}, "mixed_precision fp16 is not supported; use bf16"),
        (ZERO_2, {"backbone_dtype": "bfloat16"}, "backbone_dtype: float32 with DeepSpeed"),
        (FSDP, {"backbone_quantization": "nf4", "PEFT_type": "LoRA"}, "quantised weights can't be divided among"),
        (ZERO_2, {"adam_states": "int8"}, "adam_states: int8 is not divided"),
        (FSDP | {"FSDP_OFFLOAD_PARAMS": "true"}, {}, "fsdp_offload_params true is not supported"),
        (FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "use the option gradient_checkpointing"),
    ],
)
def test_settings_of_the_launch_that_are_refused(variables, options, expected, told):
    told(variables)
    (problem,) = problems(**options)
    assert expected in problem


def test_modes_contain_each_other():
    """What runs without whole weights runs with them, and so on: that is how the reason of a refusal is found."""
    assert modes.WHOLE_GRADIENTS < modes.WHOLE_WEIGHTS < modes.ALL
    allowed = {load_method(name).parallel for name in tiny.METHODS}
    teacher_apart = modes.WHOLE_WEIGHTS | {"FSDP2"}
    assert allowed == {modes.WHOLE_GRADIENTS, modes.WHOLE_WEIGHTS, teacher_apart, modes.ALL}


def test_deepspeed_does_not_become_ddp_by_a_variable(monkeypatch):
    """With ACCELERATE_USE_CPU accelerate would make an accelerator without DeepSpeed."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    class Seen(Exception):
        """What the variable is when the accelerator is made."""

    def accelerator(**_):
        raise Seen(os.environ["ACCELERATE_USE_CPU"])

    monkeypatch.setattr("accelerate.Accelerator", accelerator)
    monkeypatch.setattr(modes.deepspeed_internals, "skip_shared_memory", lambda: None)  # imports DeepSpeed
    with pytest.raises(Seen, match="false"):
        modes._deepspeed(tiny.make_config())


def test_gradients_are_not_copied_and_a_checkpoint_may_take_its_time():
    tiny.forget_processes()
    accelerator = make_accelerator(tiny.make_config())
    assert accelerator.ddp_handler.gradient_as_bucket_view
    assert not accelerator.ddp_handler.broadcast_buffers
    assert accelerator.init_handler.timeout == PATIENCE


X86 = {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}


@pytest.mark.parametrize(
    ("options", "device", "known", "count"),
    [
        ({"mixed_precision": "bfloat16"}, "cpu", X86, 1),
        ({"backbone_dtype": "bfloat16"}, "cpu", X86, 1),
        ({}, "cpu", X86, 0),
        ({"mixed_precision": "bfloat16"}, "cuda", X86, 0),
        ({"mixed_precision": "bfloat16"}, "cpu", X86 | {"amx_bf16": True}, 0),
        ({"mixed_precision": "bfloat16"}, "cpu", {"architecture": "aarch64"}, 0),
    ],
)
def test_a_type_without_instructions_is_pointed_out(options, device, known, count, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    monkeypatch.delenv(modes.PRECISION, raising=False)
    config = tiny.make_config(**options)
    dtype = getattr(torch, config.backbone_dtype, torch.float32)
    assert len(modes.remarks(config, dtype, torch.device(device))) == count
