"""The memory of one device in training, counted in a step without values (`--dry_run`).

The model becomes one of fake tensors, which have shapes and types alone; a batch of the longest texts goes forward and
backward through it as in training, and the bytes of all tensors that exist at a time are counted: those of a real step
within 2 % (tests/unit/run/test_memory.py). What the allocator, Python and the kernels take comes on top.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from models.Base import Method, Task
from utils.dataloader import parts_of, rows_at_once
from utils.dataset import Example
from utils.distributed.modes import DIVIDED, autocast, autocast_type
from utils.model import adapters
from utils.model.architecture import kind_of
from utils.model.forward import has_plain_head
from utils.model.freeze import blocks
from utils.optimizer import moment_bytes
from utils.quantization import saved_bytes

CPU = torch.device("cpu")
READ, RUNS = 20_000, 100  # examples of a task whose tokens are counted; runs of a larger task
PASS, UNCOUNTED = "gradients, activations, logits", "gradients (activations cannot be counted for this method)"


def memory_of(method: Method, task: Task, processes: int, launched: str | None) -> dict[str, float]:
    """Bytes on each device in the training of a task, by what they are for. Empties the model.

    A single process drops gradients after a step; DDP keeps them in its buckets, and so do several parts of a batch.
    ZeRO-2, ZeRO-3 and FSDP2 keep a share of each as soon as it is there. ZeRO has a float32 copy of what is trained.

    Args:
        method: Before or in place of training.
        task: With at least one optimizer step.
        processes: That share the work.
        launched: The mode in which they do.
    """
    config, divided = method.config, DIVIDED.get(launched or "", 0)
    learning = {name: w.numel() for name, w in method.learning(task).items()}
    whole = state_bytes(method, list(learning.values()))
    parts = parts_of(config.batch_size, processes, config.gradient_accumulation_steps)
    rows = rows_at_once(config.batch_size, processes, config.gradient_accumulation_steps)
    keeps = parts > 1 or launched in ("DDP", "ZeRO-1")
    found: dict[str, float] = {
        "weights": whole["weights"] / (processes if divided == 3 else 1),
        "AdamW": whole["AdamW"] / (processes if divided else 1),
    }
    try:
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        empty(method, fake)
        for name, w in method.named().items():
            w.requires_grad_(name in learning)
        found[PASS] = pass_bytes(method, task, rows, fake, keeps, divided >= 2)
    except (RuntimeError, ValueError):  # it asks for values, or learns what it makes before a task; or is quantized
        found[UNCOUNTED] = 0 if divided >= 2 else whole["gradients"]
    if divided >= 2:
        found["share of the gradients"] = whole["gradients"] / processes
    if launched is not None and launched.startswith("ZeRO"):
        found["float32 copy"] = 4 * sum(learning.values()) / processes
    if divided == 3:
        size = 2 if autocast_type(config) is not None else 4
        largest = max(sum(w.numel() for w in block.parameters()) for block in blocks(adapters.innermost(method.model)))
        found["two collected layers"] = 2 * largest * size
    return found


def state_bytes(method: Method, learning: Sequence[int]) -> dict[str, int]:
    """Weights, gradients and AdamW where a process holds all of them; learning: sizes of the trainable tensors."""
    config, weights = method.config, method.named().values()
    size = max((w.element_size() for w in weights), default=4)
    saved = saved_bytes(method.model, config.backbone_quantization)
    return {
        "weights": sum(w.numel() * w.element_size() for w in weights) - saved,
        "gradients": sum(learning) * size,
        "AdamW": moment_bytes(learning, config, size),
    }


def longest(method: Method, task: Task, rows: int) -> list[Example]:
    """The batch that takes most; of a large task, among evenly spaced runs of examples."""
    some = _some(task.train)
    lengths = method.session.encoder.lengths(some)
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [some[i] for i in order[:rows]]


def _some(examples: Sequence[Example]) -> Sequence[Example]:
    """All examples or READ of them, in runs: each place in a mapped file brings 64 kB of it into memory."""
    if len(examples) <= READ:
        return examples
    starts = range(0, len(examples) - READ // RUNS, len(examples) // RUNS)
    return [example for start in starts for example in examples[start : start + READ // RUNS]]


def empty(method: Method, fake: FakeTensorMode) -> None:
    """Replace the values of the model by fake tensors on the CPU."""
    modules: tuple[nn.Module, ...] = (method.model, method.extra)
    for module in modules:
        module.to("meta")
    net = adapters.innermost(method.model)
    if kind_of(net.config) != "encoder":
        has_plain_head(net)  # the answer is remembered: it cannot be found without values
    with fake:
        for module in modules:
            module.to_empty(device="cpu")
    net.tie_weights()


def pass_bytes(method: Method, task: Task, rows: int, fake: FakeTensorMode, keeps: bool, drops: bool) -> int:
    """The most bytes of a pass forward and backward that are there at a time.

    Args:
        method: With an empty model.
        task: Has the texts.
        rows: Of the batch: the longest texts.
        fake: Mode that made the model empty.
        keeps: Gradients of an earlier pass are there.
        drops: Each gradient leaves as soon as it is there.
    """
    batch = method.collated(longest(method, task, rows), task)
    weights = [w for w in (*method.model.parameters(), *method.extra.parameters()) if w.requires_grad]
    hooks = [w.register_post_accumulate_grad_hook(_drop) for w in weights] if drops else []
    method.model.train()
    with fake, Live(method.model, method.extra) as live:
        for _ in range(2 if keeps else 1):
            live.most = live.now
            with autocast(method.config, CPU):
                terms = Method.loss(method, method.model, batch, task)
            sum(terms.values(), torch.zeros(())).backward()
            del terms
    for hook in hooks:
        hook.remove()
    return live.most


def _drop(w: Tensor) -> None:
    w.grad = None


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside, as long as they exist."""

    def __init__(self, *modules: nn.Module):
        super().__init__()
        own = [w.untyped_storage() for m in modules for w in (*m.parameters(), *m.buffers())]
        self.fixed = own  # as long as these live, no other storage has their identity
        self.known = {id(storage) for storage in own}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note what it returns."""
        found = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._note, found)
        return found

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size
