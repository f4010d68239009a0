"""What a run costs beside its scores: time, memory, passes through the model, and what is kept from task to task."""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

from models.Base import Method, Task
from utils.distributed.collectives import sum_over_processes
from utils.model.adapters import innermost
from utils.run.checkpoint import pack

PER_TASK = {
    "train_seconds": 0.0,  # hooks included: teachers, pseudo-samples, Fisher
    "train_examples": 0,  # of one epoch, with memory and pseudo-samples
    "train_visits": 0,  # to the task's own examples, over all epochs
    "train_sequences": 0,  # that went through the model, over all epochs and hooks
    "train_tokens": 0,  # of these sequences, with padding; of an encoder-decoder those that the encoder reads
    "evaluate_examples": 0,
    "evaluate_sequences": 0,  # prompts that went through the model; steps of generation not counted
    "trainable_parameters": 0,
    "stored_parameters": 0,  # of the model and the method's own modules
    "kept_bytes": 0,  # of everything else: memory, teachers, anchors, Fisher ...
}


class Cost:
    """Counters of a run, saved with its checkpoints."""

    def __init__(self, method: Method, tasks: int):
        self.method = method
        self.values: dict[str, Any] = {name: [zero] * tasks for name, zero in PER_TASK.items()}
        self.values |= {"evaluate_seconds": 0.0, "peak_memory_bytes": 0}
        self._began = time.monotonic()  # of what is not booked yet
        self._sequences = self._tokens = 0
        net = innermost(method.model)
        reader = net.get_encoder() if net.config.is_encoder_decoder else net.base_model
        reader.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = kwargs.get("inputs_embeds")
        given = kwargs.get("input_ids", args[0] if args else None) if given is None else given
        if given.shape[1] > 1:  # else a step of generation
            self._sequences += given.shape[0]
            self._tokens += given.shape[0] * given.shape[1]

    def train(self, index: int) -> None:
        """Book what has happened since the last booking as training of a task."""
        sequences, tokens = self._passes()
        self.values["train_seconds"][index] += self._seconds()
        self.values["train_sequences"][index] += sequences
        self.values["train_tokens"][index] += tokens

    def evaluate(self, index: int | None, examples: int) -> None:
        """Book what has happened since the last booking as evaluation, after a task if it was after one."""
        sequences, _ = self._passes()
        self.values["evaluate_seconds"] += self._seconds()
        if index is not None:
            self.values["evaluate_examples"][index] += examples
            self.values["evaluate_sequences"][index] += sequences

    def skip(self) -> None:
        """Book what has happened since the last booking nowhere: checkpoints and reports are neither."""
        self._seconds()

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
        self.values["peak_memory_bytes"] = max(self.values["peak_memory_bytes"], _peak_memory())

    def _seconds(self) -> float:
        began, self._began = self._began, time.monotonic()
        return self._began - began

    def _passes(self) -> tuple[int, int]:
        """Sequences and tokens over all processes since the last call."""
        device = self.method.model.device
        counts = torch.tensor([self._sequences, self._tokens], device=device)
        self._sequences = self._tokens = 0
        sequences, tokens = sum_over_processes({"counts": counts})["counts"].tolist()
        return sequences, tokens


def kept_bytes(state: dict[str, Any]) -> int:
    """Bytes of the tensors in a method's state, and of the rest as JSON.

    >>> kept_bytes({"fisher": {"w": torch.zeros(10)}}) - kept_bytes({"fisher": {"w": torch.zeros(5)}})
    20
    """
    plain, tensors = pack(state)
    return sum(map(_bytes, tensors.values())) + len(json.dumps(plain, ensure_ascii=False).encode())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _peak_memory() -> int:
    """Most bytes this process has held: on the GPU if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
