"""The cost of a run: time, memory, passes through the model, and what is kept from task to task."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.Base import Method, Task
from utils.distributed.collectives import sum_over_processes
from utils.model.adapters import innermost
from utils.run.checkpoint import split

PER_TASK = {
    "train_seconds": 0.0,  # hooks included: teachers, pseudo-samples, Fisher
    "train_examples": 0,  # of one epoch, with memory and pseudo-samples
    "train_visits": 0,  # to the task's own examples, over all epochs
    "train_sequences": 0,  # that went through the model, over all epochs and hooks
    "train_tokens": 0,  # of these sequences, with padding; of an encoder-decoder those that the encoder reads
    "train_generated_tokens": 0,  # that the model sampled, each in a pass of one token
    "evaluate_examples": 0,
    "evaluate_sequences": 0,  # prompts that went through the model; steps of generation not counted
    "trainable_parameters": 0,
    "stored_parameters": 0,  # of the model and the method's own modules
    "kept_bytes": 0,  # of everything else: memory, teachers, anchors, Fisher ...
}


class Spent(NamedTuple):
    """What a part of a run took."""

    seconds: float
    sequences: int  # that went through the model, of all processes
    tokens: int  # of these sequences, with padding
    generated: int  # passes of one token, by rows
    examples: int  # evaluated


def _nowhere(_spent: Spent) -> None:
    pass


class Cost:
    """Counters of a run, saved with its checkpoints.

    Everything is counted all the time; the innermost `with` block, `training`, `evaluating` or `neither`, decides what
    it is booked as. What happens outside these blocks is booked nowhere.
    """

    def __init__(self, method: Method, tasks: int):
        self.method = method
        self.values: dict[str, Any] = {name: [zero] * tasks for name, zero in PER_TASK.items()}
        self.values |= {"evaluate_seconds": 0.0, "peak_memory_bytes": 0}
        self._block: Callable[[Spent], None] = _nowhere
        self._began = time.monotonic()  # of what is not booked yet
        self._sequences: int | Tensor = 0  # a tensor, as a GPU would have to be waited for
        self._tokens = self._generated = self._examples = 0
        net = innermost(method.model)
        reader = net.get_encoder() if net.config.is_encoder_decoder else net.base_model
        reader.register_forward_pre_hook(self._count, with_kwargs=True)
        if net.config.is_encoder_decoder:
            net.get_decoder().register_forward_pre_hook(self._count_written, with_kwargs=True)

    def _count(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given: Tensor | None = kwargs.get("inputs_embeds")
        if given is None:
            given = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if given.shape[1] > 1:
            positions = None if kwargs.get("attention_mask") is not None else kwargs.get("position_ids")
            self._sequences += given.shape[0] if positions is None else (positions == 0).sum()
            self._tokens += given.shape[0] * given.shape[1]
        elif kwargs.get("inputs_embeds") is None:  # a step of generation; the check of the head reads single vectors
            self._generated += given.shape[0]

    def _count_written(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Steps of generation of an encoder-decoder; in training its decoder has no cache."""
        given = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if kwargs.get("past_key_values") is not None and given.shape[1] == 1:
            self._generated += given.shape[0]

    def training(self, index: int) -> AbstractContextManager[None]:
        """What happens inside is training of a task, hooks included."""

        def book(spent: Spent) -> None:
            self.values["train_seconds"][index] += spent.seconds
            self.values["train_sequences"][index] += spent.sequences
            self.values["train_tokens"][index] += spent.tokens
            self.values["train_generated_tokens"][index] += spent.generated

        return self._within(book)

    def evaluating(self, index: int | None = None) -> AbstractContextManager[None]:
        """What happens inside is evaluation, after a task if it is after one."""

        def book(spent: Spent) -> None:
            self.values["evaluate_seconds"] += spent.seconds
            if index is not None:
                self.values["evaluate_examples"][index] += spent.examples
                self.values["evaluate_sequences"][index] += spent.sequences

        return self._within(book)

    def neither(self) -> AbstractContextManager[None]:
        """What happens inside is neither training nor evaluation: checkpoints and reports."""
        return self._within(_nowhere)

    def scored(self, examples: int) -> None:
        """Count examples that are evaluated."""
        self._examples += examples

    @contextmanager
    def _within(self, book: Callable[[Spent], None]) -> Iterator[None]:
        """All processes must come here. After an exception nothing is booked, as the run ends."""
        outer = self._block
        outer(self._spent())
        self._block = book
        yield
        book(self._spent())
        self._block = outer

    def sizes(self, task: Task, examples: int, trainable: int) -> None:
        """Note how large everything is after a task."""
        index, parameters = task.index, self.method.named().values()
        self.values["train_examples"][index] = examples
        self.values["train_visits"][index] = task.epochs * len(task.train)
        self.values["trainable_parameters"][index] = trainable
        self.values["stored_parameters"][index] = sum(w.numel() for w in parameters)
        self.values["kept_bytes"][index] = kept_bytes(self.method.state_dict())

    def peak(self) -> None:
        """Note the most memory held so far."""
        self.values["peak_memory_bytes"] = max(self.values["peak_memory_bytes"], peak_memory(self.method.home))

    def _spent(self) -> Spent:
        """What was counted since the last call, over all processes."""
        began, self._began = self._began, time.monotonic()
        mine = [int(self._sequences), self._tokens, self._generated]
        counts = torch.tensor(mine, device=self.method.session.accelerator.device)
        sequences, tokens, generated = sum_over_processes({"counts": counts})["counts"].tolist()
        examples, self._sequences, self._tokens, self._generated, self._examples = self._examples, 0, 0, 0, 0
        return Spent(self._began - began, sequences, tokens, generated, examples)


def kept_bytes(state: dict[str, Any]) -> int:
    """Bytes of the tensors in a method's state, and of the rest as JSON.

    >>> kept_bytes({"fisher": {"w": torch.zeros(10)}}) - kept_bytes({"fisher": {"w": torch.zeros(5)}})
    20
    """
    tensors: list[Tensor] = []
    plain = split(state, tensors.append)
    return sum(w.numel() * w.element_size() for w in tensors) + len(json.dumps(plain, ensure_ascii=False).encode())


def peak_memory(device: torch.device) -> int:
    """Most bytes this process has held: on its GPU, or resident if it computes on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
