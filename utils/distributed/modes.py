"""The processes of a run: what `accelerate launch` asked for, and what a method must be fit for to run like that.

DDP            every process holds everything; gradients are averaged
ZeRO-1, -2     DeepSpeed: each process keeps a part of AdamW's tensors (2: and of the gradients)
ZeRO-3, FSDP2  DeepSpeed, torch: and of the weights, while a task is trained (utils/distributed/placement.py)
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from utils.config import Config
from utils.errors import UserError
from utils.storage.files import read_json

if TYPE_CHECKING:
    from accelerate import Accelerator  # seconds to import: not for --help

WHOLE_GRADIENTS = frozenset({"DDP"})
WHOLE_WEIGHTS = frozenset({"DDP", "ZeRO-1", "ZeRO-2"})
ALL = frozenset({"DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3", "FSDP2"})
ON_CPUS = "on CPUs use --config_file config/accelerate/cpu_2.yaml"
DEEPSPEED = "ACCELERATE_DEEPSPEED_"  # what accelerate launch tells of DeepSpeed begins so
PRECISION = "ACCELERATE_MIXED_PRECISION"
REFUSED = [  # what accelerate launch tells, a value, what to do instead; in all modes but DDP
    (PRECISION, "fp16", "use bf16"),
    ("FSDP_OFFLOAD_PARAMS", "true", "use config/accelerate/zero_3_offload.yaml"),
    ("FSDP_ACTIVATION_CHECKPOINTING", "true", "use the option gradient_checkpointing"),
]


def mode() -> str | None:
    """How the processes share the work; None: there is one.

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


def check_parallel(config: Config, method: type, launched: str | None) -> list[str]:
    """Why this method can't run in the processes that were launched; empty if it can. Nothing is loaded for that."""
    problems = []
    if launched is not None and method.trains and launched not in method.parallel:
        lack = "weights" if method.parallel >= WHOLE_WEIGHTS else "gradients"
        problems.append(
            f"accelerate launch: method {config.method} works on whole {lack} during a task, of which each process has "
            f"a part with {launched}; it can run with {', '.join(sorted(method.parallel))}"
        )
    if launched not in (None, "DDP"):
        problems += _check_sharing(config, launched)
    if (launched or "").startswith("ZeRO"):
        problems += _contradictions(config)
    return problems


def _check_sharing(config: Config, launched: str) -> list[str]:
    """Settings of the launch that other modes than DDP are not made for."""
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
        problems.append(f"classifier: heads are not shared out with {launched}; use DDP or ZeRO-2")
    if launched.startswith("ZeRO") and config.backbone_dtype == "bfloat16":
        problems.append("backbone_dtype: float32 with DeepSpeed, got bfloat16; use mixed_precision: bfloat16")
    return problems


def _contradictions(config: Config) -> list[str]:
    """What DeepSpeed would do otherwise than the options say; it does not ask."""
    file, own = deepspeed_file(), deepspeed_numbers(config, int(os.environ.get("WORLD_SIZE", "1")))
    problems = [
        f"accelerate launch: {name} {value} contradicts {SOURCES[name]}, by which it is {right:g}; leave it out"
        for name, right in own.items()
        for value in (os.environ.get(f"ACCELERATE_{name.upper()}", "auto"), file.get(name, "auto"))
        if value != "auto" and float(value) != right
    ]
    problems += [
        f"accelerate launch: {name} in DeepSpeed's file would take the place of this program's; leave it out"
        for name in ("optimizer", "scheduler", "fp16", "bf16", "torch_autocast")
        if name in file and file[name].get("enabled", True) not in (False, "auto")
    ]
    return problems


SOURCES = {  # numbers of DeepSpeed -> the option that decides
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
    "train_micro_batch_size_per_gpu": "batch_size",
    "train_batch_size": "batch_size",
}


def deepspeed_numbers(config: Config, processes: int) -> dict[str, float]:
    """What the options mean in DeepSpeed's words; rows per process are rounded up, and DeepSpeed only reports them."""
    parts = config.gradient_accumulation_steps
    rows = math.ceil(config.batch_size / (processes * parts))
    return {
        "gradient_accumulation_steps": parts,
        "gradient_clipping": config.max_grad_norm or 0.0,
        "train_micro_batch_size_per_gpu": rows,
        "train_batch_size": rows * parts * processes,
    }


def describe(config: Config, processes: int) -> str:
    """How a step is shared out, for people."""
    own = deepspeed_numbers(config, processes)
    rows, parts = own["train_micro_batch_size_per_gpu"], config.gradient_accumulation_steps
    return f"{processes} processes ({mode()}): {config.batch_size} examples per step, {parts} x {rows} in each"


def deepspeed_file() -> dict[str, Any]:
    """DeepSpeed's own file, if the launch names one."""
    path = os.environ.get(DEEPSPEED + "CONFIG_FILE", "none")
    return {} if path == "none" else read_json(Path(path))


def make_accelerator(config: Config) -> Accelerator:
    """The processes of this run.

    Raises:
        UserError: a launch in which they would not train together.
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
    """Of one process, DDP and FSDP2: for accelerate that is DDP, as it does not know FSDP without a GPU."""
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin, patch_environment

    with patch_environment(accelerate_use_fsdp="false"):
        return Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision={"float32": "no", "bfloat16": "bf16", None: None}[config.mixed_precision],
            # As a plugin: a plain number would lose against the variable that accelerate launch sets.
            gradient_accumulation_plugin=GradientAccumulationPlugin(config.gradient_accumulation_steps),
        )


def _deepspeed(config: Config) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
    from deepspeed.ops import __compatible_ops__
    from transformers.integrations import unset_hf_deepspeed_config

    on_cpu = not torch.accelerator.is_available()
    if on_cpu:
        __compatible_ops__["deepspeed_shm_comm"] = False  # three minutes of compiling, to save nothing here
    accelerator = Accelerator(
        # Not cpu=True: accelerate would silently make it DDP.
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")] if on_cpu else [],
        mixed_precision="no",  # the weights stay in float32, and placement.py runs the model in autocast, as DDP does
        gradient_accumulation_plugin=GradientAccumulationPlugin(config.gradient_accumulation_steps),
    )
    unset_hf_deepspeed_config()  # or transformers would load models in parts, by all processes or not at all
    own = deepspeed_numbers(config, accelerator.num_processes)
    # Ours is torch's AdamW everywhere: DeepSpeed's for the CPU would be another one, compiled at first use.
    accelerator.state.deepspeed_plugin.deepspeed_config.update(own, zero_force_ds_cpu_optimizer=False)
    return accelerator


def autocast_type(config: Config) -> torch.dtype | None:
    """Type in which the model computes in training; None: that of its weights."""
    told = os.environ.get(PRECISION, "no")
    name = {"float32": "no", "bfloat16": "bf16", None: told}[config.mixed_precision]
    return torch.bfloat16 if name == "bf16" else None


def _asked_for(library: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{library}", "").lower() in ("1", "true")
