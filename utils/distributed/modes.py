"""The processes of a run: the mode of `accelerate launch`, and whether method and options support it.

DDP            every process holds everything; gradients are averaged
ZeRO-1, -2     DeepSpeed: each process keeps a part of AdamW's tensors (ZeRO-2: also of the gradients)
ZeRO-3, FSDP2  DeepSpeed, torch: also of the weights, during the training of a task (utils/distributed/placement.py)
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch

from utils.config import Config
from utils.dataloader import parts_of, rows_at_once
from utils.distributed import deepspeed_internals
from utils.errors import UserError
from utils.storage.files import read_json

if TYPE_CHECKING:
    from accelerate import Accelerator  # seconds to import: not for --help

WHOLE_GRADIENTS = frozenset({"DDP"})
WHOLE_WEIGHTS = frozenset({"DDP", "ZeRO-1", "ZeRO-2"})
ALL = frozenset({"DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3", "FSDP2"})
DIVIDED = {"ZeRO-1": 1, "ZeRO-2": 2, "ZeRO-3": 3, "FSDP2": 3}  # of AdamW, gradients, weights: the first so many
PATIENCE = timedelta(hours=2)  # for the process that writes a checkpoint; one that fails leaves at once
ON_CPUS = "on CPUs use --config_file config/accelerate/cpu_2.yaml"
DEEPSPEED = "ACCELERATE_DEEPSPEED_"  # prefix of the variables that accelerate launch sets for DeepSpeed
PRECISION = "ACCELERATE_MIXED_PRECISION"
REFUSED = [  # variable of accelerate launch, value, what to do instead; in all modes but DDP
    (PRECISION, "fp16", "use bf16"),
    ("FSDP_OFFLOAD_PARAMS", "true", "use config/accelerate/zero_3_offload.yaml"),
    ("FSDP_ACTIVATION_CHECKPOINTING", "true", "use the option gradient_checkpointing"),
]


class Parallel(Protocol):
    """What a class of methods declares about its training."""

    trains: ClassVar[bool]
    parallel: ClassVar[frozenset[str]]


def mode() -> str | None:
    """The mode in which the processes share the work; None: a single process.

    Raises:
        UserError: a mode that is not supported.
    """
    if _asked_for("DEEPSPEED"):
        stage = deepspeed_file().get("zero_optimization", {}).get("stage", os.environ.get(DEEPSPEED + "ZERO_STAGE", 2))
        if f"ZeRO-{stage}" not in ALL:
            raise UserError(f"accelerate launch: expected zero_stage 1, 2 or 3, got {stage}")
        return f"ZeRO-{stage}"
    if _asked_for("FSDP"):
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise UserError("accelerate launch: FSDP 1 is not supported; set fsdp_version: 2")
        return "FSDP2"
    return "DDP" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


def divides_weights() -> bool:
    """True if each process has only a part of the weights while a task is trained."""
    return mode() in ALL - WHOLE_WEIGHTS


def check_parallel(config: Config, method: type[Parallel], launched: str | None) -> list[str]:
    """Why this method cannot run in the launched mode; empty if it can. Nothing is loaded."""
    problems = []
    if launched is not None and method.trains and launched not in method.parallel:
        lack = "weights" if method.parallel >= WHOLE_WEIGHTS else "gradients"
        problems.append(
            f"accelerate launch: method {config.method} works on whole {lack} during a task, but with {launched} each "
            f"process has only a part of them; it can run with {', '.join(sorted(method.parallel))}"
        )
    if launched is not None and launched != "DDP":
        problems += _check_sharing(config, launched)
        problems += _contradictions(config) if launched.startswith("ZeRO") else []
    return problems


def _check_sharing(config: Config, launched: str) -> list[str]:
    """Settings of the launch that are supported only with DDP."""
    problems = [
        f"accelerate launch: {name.removeprefix('ACCELERATE_').lower()} {value} is not supported; {instead}"
        for name, value, instead in REFUSED
        if os.environ.get(name, "").lower() == value
    ]
    zero = deepspeed_file().get("zero_optimization", {})
    problems += [
        f"accelerate launch: {part} to nvme is not supported; use cpu"
        for part in ("offload_optimizer", "offload_param")
        if "nvme" in (os.environ.get(f"{DEEPSPEED}{part.upper()}_DEVICE"), zero.get(part, {}).get("device"))
    ]
    if config.classifier is not None and launched not in WHOLE_WEIGHTS:
        problems.append(f"classifier: heads are not divided among processes with {launched}; use DDP or ZeRO-2")
    if config.keep_frozen_states is not None and launched not in WHOLE_WEIGHTS:
        problems.append(f"keep_frozen_states: layers are divided among processes with {launched}; use DDP or ZeRO-2")
    if config.torch_compile and launched not in WHOLE_WEIGHTS:
        problems.append(f"torch_compile: layers are divided among processes with {launched}; use DDP or ZeRO-2")
    if config.backbone_quantization is not None:
        problems.append(
            f"backbone_quantization: quantised weights can't be divided among processes with {launched}; use DDP"
        )
    if config.adam_states != "float32":
        problems.append(f"adam_states: int8 is not divided among processes with {launched}; use DDP")
    if launched.startswith("ZeRO") and config.backbone_dtype == "bfloat16":
        problems.append("backbone_dtype: float32 with DeepSpeed, got bfloat16; use mixed_precision: bfloat16")
    return problems


def _contradictions(config: Config) -> list[str]:
    """Settings of DeepSpeed that contradict the options, which DeepSpeed would silently ignore."""
    file, own = deepspeed_file(), deepspeed_numbers(config, int(os.environ.get("WORLD_SIZE", "1")))
    problems = [
        f"accelerate launch: {name} {value} contradicts {SOURCES[name]}, which requires {right:g}; leave it out"
        for name, right in own.items()
        for value in (os.environ.get(f"ACCELERATE_{name.upper()}", "auto"), file.get(name, "auto"))
        if value != "auto" and float(value) != right
    ]
    problems += [
        f"accelerate launch: {name} in DeepSpeed's file would replace this program's; leave it out"
        for name in ("optimizer", "scheduler", "fp16", "bf16", "torch_autocast")
        if name in file and file[name].get("enabled", True) not in (False, "auto")
    ]
    return problems


SOURCES = {  # setting of DeepSpeed -> the option that determines it
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
    "train_micro_batch_size_per_gpu": "batch_size",
    "train_batch_size": "batch_size",
}


def deepspeed_numbers(config: Config, processes: int) -> dict[str, float]:
    """The options as settings of DeepSpeed; rows per process, which it only reports, are rounded up."""
    parts = parts_of(config.batch_size, processes, config.gradient_accumulation_steps)
    rows = rows_at_once(config.batch_size, processes, config.gradient_accumulation_steps)
    return {
        "gradient_accumulation_steps": parts,
        "gradient_clipping": config.max_grad_norm or 0.0,
        "train_micro_batch_size_per_gpu": rows,
        "train_batch_size": rows * parts * processes,
    }


def describe(config: Config, processes: int) -> str:
    """How a step is divided among the processes, for the log."""
    own = deepspeed_numbers(config, processes)
    rows, parts = own["train_micro_batch_size_per_gpu"], own["gradient_accumulation_steps"]
    return f"{processes} processes ({mode()}): {config.batch_size} examples per step, {parts} x {rows} in each"


def deepspeed_file() -> dict[str, Any]:
    """DeepSpeed's configuration file, if the launch names one."""
    path = os.environ.get(DEEPSPEED + "CONFIG_FILE", "none")
    return {} if path == "none" else read_json(Path(path))


def make_accelerator(config: Config) -> Accelerator:
    """The accelerator of this run.

    Raises:
        UserError: the launched processes would not train together.
    """
    if {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
        raise UserError(f"accelerate launch: several processes were asked for, but this mode starts one; {ON_CPUS}")
    accelerator = _deepspeed(config) if (mode() or "").startswith("ZeRO") else _data_parallel(config)
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != wanted:
        raise UserError(
            f"accelerate launch: {wanted} processes were started, but {accelerator.num_processes} would train "
            f"together; {ON_CPUS}"
        )
    return accelerator


def _data_parallel(config: Config) -> Accelerator:
    """For one process, DDP and FSDP2, which accelerate treats as DDP because it has no FSDP without a GPU."""
    from accelerate import Accelerator
    from accelerate.utils import (
        DistributedDataParallelKwargs,
        GradientAccumulationPlugin,
        InitProcessGroupKwargs,
        patch_environment,
    )

    # Gradients are views of what is reduced, not copies; tables such as rotary ones are equal everywhere.
    replicated = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
    with patch_environment(accelerate_use_fsdp="false"):
        return Accelerator(
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE), replicated],
            cpu=not torch.accelerator.is_available(),
            mixed_precision={"float32": "no", "bfloat16": "bf16", None: None}[config.mixed_precision],
            # As a plugin: a plain number is overridden by the variable that accelerate launch sets.
            gradient_accumulation_plugin=GradientAccumulationPlugin(config.gradient_accumulation_steps),
        )


def _deepspeed(config: Config) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, patch_environment
    from transformers.integrations import unset_hf_deepspeed_config

    on_cpu = not torch.accelerator.is_available()
    if on_cpu:
        deepspeed_internals.skip_shared_memory()
    with patch_environment(accelerate_use_cpu="false"):  # and not cpu=True: accelerate would silently make it DDP
        accelerator = Accelerator(
            kwargs_handlers=[InitProcessGroupKwargs(backend="gloo" if on_cpu else "nccl", timeout=PATIENCE)],
            mixed_precision="no",  # weights in float32; placement.py runs the model in autocast, as with DDP
            gradient_accumulation_plugin=GradientAccumulationPlugin(config.gradient_accumulation_steps),
        )
    unset_hf_deepspeed_config()  # otherwise transformers would load models in parts
    own = deepspeed_numbers(config, accelerator.num_processes)
    accelerator.gradient_accumulation_steps = own["gradient_accumulation_steps"]
    # torch's AdamW in every mode: DeepSpeed's AdamW for CPUs differs, and is compiled at first use.
    accelerator.state.deepspeed_plugin.deepspeed_config.update(own, zero_force_ds_cpu_optimizer=False)
    return accelerator


def autocast_type(config: Config) -> torch.dtype | None:
    """Type in which the model computes during training; None: that of its weights."""
    launched = os.environ.get(PRECISION, "no")
    name = {"float32": "no", "bfloat16": "bf16", None: launched}[config.mixed_precision]
    return torch.bfloat16 if name == "bf16" else None


def autocast(config: Config, device: torch.device) -> AbstractContextManager[Any]:
    """The type of training, for passes outside of its steps."""
    kind = autocast_type(config)
    return nullcontext() if kind is None else torch.autocast(device.type, kind)


def remarks(config: Config, dtype: torch.dtype, device: torch.device) -> list[str]:
    """A warning about a type that the CPU has no instructions for: products took six times as long on one without.

    Args:
        config: Options.
        dtype: Of the weights.
        device: Of the model.
    """
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 has no such function
    is_short = torch.bfloat16 in (autocast_type(config), dtype)
    if device.type != "cpu" or not is_short or known.get("architecture") != "x86_64":
        return []
    if known["avx512_bf16"] or known["amx_bf16"]:
        return []
    return [
        "bfloat16: this CPU has no instructions for it (avx512_bf16, amx_bf16), so a step can take several times as "
        "long as in float32; set mixed_precision: float32 and backbone_dtype: float32"
    ]


def _asked_for(library: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{library}", "").lower() in ("1", "true")
