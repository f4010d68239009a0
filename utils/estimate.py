"""How long a run takes on GPUs of 80 GB, estimated before it starts (`--dry_run`).

With N parameters in the layers, a token costs 2 N FLOP forward, 2 N backward to the states of the layers above the
lowest trainable one, and 2 N for the gradients of what is trainable (Kaplan et al. 2020, appendix B): 6 N in full
training, about 4 N for adapters on a frozen base, 2 N in evaluation. The output layer counts on answers alone. A device
reaches USE of its peak, and a pass through a layer takes at least LAUNCH, as Python starts its kernels: a written token
is such a pass. Products inside attention, teachers and texts that a method makes itself are not counted.

Not checked on a GPU. On one core of a busy CPU, where a product of matrices reached 19 GFLOP/s before the run and 45
after it, an epoch of SmolLM2-135M took 157 s; with USE of these rates the formula gives 160 and 66 s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from models.Base import Method, Task
from utils.dataloader import parts_of
from utils.dataset import Example, metric_of, spaced
from utils.distributed.modes import DIVIDED, autocast_type, check_parallel
from utils.model import adapters
from utils.model.architecture import Model, kind_of
from utils.model.freeze import blocks
from utils.model.shortcuts.kept_states import frozen_below
from utils.scoring import find

USE = 0.4  # of the peak; usual in training of large models
LAUNCH = 0.7e-3  # seconds; 32 layers of a 7B model then write 45 tokens of each row a second
PEAK = {"bfloat16": 989e12, "tf32": 494e12, "float32": 67e12}  # FLOP per second of an H100, dense, by its data sheet
DEVICES = 8
GB, SHARE = 80e9, 0.8  # of a device; for weights, gradients and AdamW: the rest is for activations
LEAST = 100_000_000  # parameters of a model for which a GPU is planned
SAMPLE = 64  # texts of a task whose tokens are counted
MODES = {"DDP": "gpu_8", "ZeRO-2": "zero_2", "FSDP2": "fsdp_2"}  # mode -> file of config/accelerate

ASSUMED = (
    f"for H100s at {100 * USE:.0f} % of 989 TFLOP/s (bfloat16; float32: 67, tf32: 494), with at least "
    f"{1000 * LAUNCH:g} ms for a pass through a layer"
)


class Work(NamedTuple):
    """A part of a run."""

    flops: float  # of all devices together
    rows: float  # texts that go through the model
    at_once: tuple[float, float]  # rows of one pass on one device: with one device, with DEVICES
    passes: float  # of each row through the layers


class Net(NamedTuple):
    """Parameters of a model by what goes through them."""

    prompt: int  # tokens of prompts
    answer: int  # tokens of answers
    head: int  # the output layer: tokens of answers
    layers: int


class Estimate(NamedTuple):
    """Hours and memory of a run."""

    hours: tuple[float, float]  # on one device, on DEVICES
    bytes: tuple[float, float]  # of each device
    launch: str | None  # file of config/accelerate for DEVICES; None: it fits into none

    @property
    def fits(self) -> bool:
        """True if one device is enough."""
        return self.bytes[0] <= SHARE * GB


def is_large(method: Method) -> bool:
    """True for a model that is trained on a GPU."""
    return sum(w.numel() for w in method.model.parameters()) >= LEAST


def net_of(model: Model) -> Net:
    """Sizes of a model."""
    net = adapters.innermost(model)
    table, output = net.get_input_embeddings().get_parameter("weight"), net.get_output_embeddings()
    head = 0 if output is None else output.get_parameter("weight").numel()
    separate = output is not None and output.get_parameter("weight") is not table
    body = sum(w.numel() for w in model.parameters()) - table.numel() - (head if separate else 0)
    if kind_of(net.config) != "encoder-decoder":
        return Net(body, body, head, len(blocks(net)))
    reader = sum(w.numel() for w in net.get_encoder().parameters() if w is not table)
    return Net(reader, body - reader, head, len(blocks(net)))


def training(method: Method, task: Task, examples: int, steps: int) -> Work:
    """The work of a task that takes so many optimizer steps; examples: of an epoch."""
    net, learning = net_of(method.model), method.learning(task)
    total = sum(w.numel() for w in method.named().values())
    above = 1 - frozen_below(method.model, learning) / net.layers
    trained = min(1.0, sum(w.numel() for w in learning.values()) / total)
    rows = steps * method.config.batch_size if method.memory_rows() else examples * task.epochs
    at_once = (_rows_at_once(method, 1), _rows_at_once(method, DEVICES))
    flops = rows * _forward(net, *_tokens(method, task.train, task.index)) * (1 + above + trained)
    return Work(flops, rows, at_once, 3)


def _rows_at_once(method: Method, devices: int) -> float:
    config = method.config
    parts = parts_of(config.batch_size, devices, config.gradient_accumulation_steps)
    return config.batch_size / devices / parts


def answering(method: Method, index: int, questions: Sequence[Example], rows: int) -> Work:
    """The work of that many answers to the questions of a task."""
    config, size = method.config, float(method.config.evaluate_batch_size)
    prompt, answer = _tokens(method, questions, index)
    checked = config.evaluation_mode == "verify" and find(metric_of(config, method.stream, index)).compared is not None
    passes = 1 if config.classifier else 2 if checked else 1 + answer  # checked: the prompt, then the target
    return Work(rows * _forward(net_of(method.model), prompt, answer), rows, (size, size), passes)


def _forward(net: Net, prompt: float, answer: float) -> float:
    """FLOP of one text."""
    return 2 * (net.prompt * prompt + (net.answer + net.head) * answer)


def _tokens(method: Method, examples: Sequence[Example], index: int) -> tuple[float, float]:
    """Mean tokens of prompt and answer, by evenly spaced examples."""
    if not examples:
        return 0.0, 0.0
    rows = method.encoder(spaced(examples, SAMPLE), method.max_length(index))
    answers = [0 if method.config.classifier else len(row.answer) for row in rows]
    return fmean(len(row.prompt) for row in rows), fmean(answers)


def seconds(work: Sequence[Work], layers: int, device: int, peak: float) -> float:
    """Time on one device (device 0) or on DEVICES (device 1) of this peak, in FLOP per second."""
    count = (1, DEVICES)[device]
    return sum(
        max(
            one.flops / (USE * peak * count),
            math.ceil(one.rows / count / max(1.0, one.at_once[device])) * one.passes * layers * LAUNCH,
        )
        for one in work
    )


def estimate(method: Method, work: Sequence[Work], memory: Sequence[float]) -> Estimate:
    """The estimate for H100s; memory: bytes of weights, of gradients and of AdamW on one device."""
    layers, peak = net_of(method.model).layers, _peak(method)
    hours = (seconds(work, layers, 0, peak) / 3600, seconds(work, layers, 1, peak) / 3600)
    for mode, name in MODES.items():
        whole = len(memory) - DIVIDED.get(mode, 0)  # the first so many are not divided
        parts = [count / (1 if k < whole else DEVICES) for k, count in enumerate(memory)]
        if sum(parts) <= SHARE * GB and not check_parallel(method.config, type(method), mode):
            return Estimate(hours, (sum(memory), sum(parts)), name)
    return Estimate(hours, (sum(memory), sum(memory) / DEVICES), None)


def _peak(method: Method) -> float:
    config = method.config
    half = autocast_type(config) is not None or config.backbone_dtype == "bfloat16"
    return PEAK["bfloat16" if half else "tf32" if config.tf32 else "float32"]


def lines(found: Estimate) -> list[str]:
    """The estimate in words."""
    fits = "fits" if found.fits else "does not fit"
    one = f"1 x 80 GB: {in_hours(found.hours[0])}; weights, gradients and AdamW {found.bytes[0] / 1e9:.1f} GB: {fits}"
    how = "does not fit" if found.launch is None else f"config/accelerate/{found.launch}.yaml"
    return [one, f"8 x 80 GB: {in_hours(found.hours[1])}; {found.bytes[1] / 1e9:.1f} GB each: {how}"]


def in_hours(hours: float) -> str:
    """A number of hours, or of minutes below one.

    >>> in_hours(2.34), in_hours(0.1)
    ('about 2.3 hours', 'about 6 min')
    """
    return f"about {hours:.1f} hours" if hours >= 1 else f"about {math.ceil(60 * hours)} min"
