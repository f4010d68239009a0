"""What a continual-learning method may decide, and nothing else.

The frame owns the loop: data order, precision, accumulation, processes, clipping, logging, checkpoints, evaluation.
A method answers the questions below; the defaults make plain sequential fine-tuning. Replay and freezing are settings
of the frame that combine with any method.

Shapes: B rows of a batch, T tokens of a row, K answer columns, V vocabulary, D hidden size, N examples.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from utils import adapters, freeze
from utils.backbone import Backbone, answer_logits, features
from utils.buffer import Memory
from utils.config import Config, NoOptions, Options, per_task
from utils.copies import Weights, borrowed, eval_mode
from utils.dataloader import Batch, Encoded, Encoder, collate
from utils.dataset import Example, Stream
from utils.generation import generate
from utils.losses import answer_loss
from utils.optimizer import Group
from utils.seed import random_for
from utils.session import Session


@dataclass(frozen=True)
class Task:
    """One element of the stream, as training sees it."""

    index: int  # position in the stream, from 0
    name: str
    train: tuple[Example, ...]
    epochs: int
    max_length: int | None  # tokens of prompt and answer
    max_new_tokens: int


class Method:
    """Base of all methods. Order of calls::

    setup()
    for each task:
        before_task -> train_examples -> trainable
        for each batch:          batch -> loss -> backward (once per micro-batch: loss, backward)
        for each optimizer step: on_gradients -> clip -> step -> after_step
        after_task
        predict, on every task to be evaluated
    """

    Options: ClassVar[type[Options]] = NoOptions
    scenarios: ClassVar[frozenset[str]] = frozenset({"CIL", "TIL", "IIL", "CIT", "CKE"})  # il_mode
    heads: ClassVar[frozenset[str]] = frozenset({"None"})  # classifier; None: answers are generated
    backbones: ClassVar[frozenset[str]] = frozenset({"decoder", "encoder-decoder"})
    parallel: ClassVar[frozenset[str]] = frozenset({"DDP"})  # besides one process
    needs: ClassVar[dict[str, str]] = {}  # settings it can't do without -> why: "is_replay", "Replay_update: step"
    excludes: ClassVar[dict[str, str]] = {}  # settings that contradict it -> why
    trains: ClassVar[bool] = True  # False: no optimizer step is ever made
    state: ClassVar[tuple[str, ...]] = ()  # attributes that a resumed run needs: tensors and plain values

    def __init__(self, config: Config, options: Any, backbone: Backbone, encoder: Encoder, stream: Stream):
        self.config, self.options = config, options
        self.backbone, self.encoder, self.stream = backbone, encoder, stream
        self.extra = nn.ModuleDict()  # modules of the method's own; they train and are saved with the model
        self.memory = Memory(config, stream.config.get("NUM_CLASS")) if config.is_replay else None
        self.offered: list[Example] = []  # new rows of the step in progress, for a memory that follows each step
        self.session: Session  # processes and log of the run; there from the first `before_task` on

    @property
    def model(self) -> nn.Module:
        """The language model."""
        return self.backbone.model

    @classmethod
    def refuse(cls, config: Config, options: Any, stream: Stream) -> list[str]:
        """Problems of a configuration that `scenarios`, `needs` and `excludes` can't tell; nothing is loaded yet."""
        return []

    def named(self) -> dict[str, nn.Parameter]:
        """All parameters by name; those of `extra` begin with "extra."."""
        return dict([*self.model.named_parameters(), *self.extra.named_parameters(prefix="extra")])

    def learning(self, task: Task) -> dict[str, nn.Parameter]:
        """Those that learn in this task."""
        chosen = {id(w) for group in self.trainable(task) for w in group.parameters}
        return {name: w for name, w in self.named().items() if id(w) in chosen}

    def max_length(self, index: int) -> int | None:
        """Most tokens of prompt and answer together in a task; None: no limit."""
        length = self.config.max_seq_length if self.config.max_seq_length > 0 else self.stream.max_seq_length(index)
        return per_task(self.config.max_seq_length_list, length, index)

    def setup(self) -> None:
        """Edit the model's structure once, before anything is trained: new tokens, adapters, prompts."""

    def before_task(self, task: Task) -> None:
        """Prepare for a task: make a teacher, add an adapter, write pseudo-samples."""

    def train_examples(self, task: Task) -> Sequence[Example]:
        """What an epoch of the task passes over; with dataset-level replay also the whole memory."""
        if self.memory is not None and not self.config.Replay_batch_level:
            return [*task.train, *self.memory.rows()]
        return task.train

    def memory_rows(self) -> int:
        """Rows of each batch that come from memory with batch-level replay: half of it, or all there is."""
        if self.memory is None or not self.config.Replay_batch_level:
            return 0
        half = self.config.batch_size // 2
        return half if self.config.Replay_update == "step" else min(half, len(self.memory))

    def batch(self, examples: Sequence[Example], task: Task, rng: random.Random) -> Sequence[Example]:
        """The rows of one optimizer step over all processes, given its new ones; adds those from memory."""
        self.offered = list(examples)
        return [*examples, *self.memory.sample(self.memory_rows(), rng)] if self.memory_rows() else examples

    def trainable(self, task: Task) -> list[Group]:
        """Parameters that learn in this task, with their learning rates; everything else stands still."""
        frozen = self.frozen(task)
        parameters = [w for name, w in self.model.named_parameters() if name not in frozen]
        parameters += self.extra.parameters()
        lr = per_task(self.config.lr_list, self.config.lr, task.index)
        return [Group(parameters, lr, self.config.weight_decay)]

    def frozen(self, task: Task) -> set[str]:
        """Names of the model's parameters that do not learn in this task: by `freeze_parts`, and beside adapters."""
        parts = self.config.freeze_parts if task.index >= self.config.freeze_from_task else ()
        return freeze.select(self.model, parts, self.config.freeze_match) | adapters.resting(self.model)

    def loss(self, model: nn.Module, batch: Batch, task: Task) -> dict[str, Tensor]:
        """The method's objective on one micro-batch, as named terms, () float each. The heart of a method file.

        The loop minimises the sum of the terms, averaged over the micro-batches of a step. A sum over tokens is
        therefore divided by `batch.tokens`, which makes that average the mean over the whole step; a term that does
        not depend on the batch (a penalty on the weights) stands as it is.
        """
        logits, labels = answer_logits(model, batch, self.soft_prompt(task.index))
        return {"answer": answer_loss(logits, labels, batch.tokens["all"])}

    def collated(self, examples: Sequence[Example], task: Task) -> Batch:
        """These examples as one batch on the model's device, for measurements beside training."""
        rows = self.encoder(examples, task.max_length)
        return collate(rows, examples, self.backbone.pad_id).to(self.model.device)

    def soft_prompt(self, task_id: int | None) -> Tensor | None:
        """Embeddings (P, D) of virtual tokens that the model reads before each text of a task; None: no such.

        In training the task is the one that is learned; otherwise it is as in `predict`.
        """
        return None

    def teacher_logits(self, teacher: Weights, batch: Batch, task_id: int | None = None) -> Tensor:
        """Logits (B, K, V) of `answer_logits` under other weights: in eval mode, without gradients."""
        with borrowed(self.named(), teacher), eval_mode(self.model, self.extra):
            return answer_logits(self.model, batch, self.soft_prompt(task_id))[0]

    def on_gradients(self, task: Task) -> None:
        """Edit the step's accumulated gradients, e.g. project them."""

    def after_step(self, task: Task) -> None:
        """Follow the weights, e.g. with a moving average; by default offer the new rows to a stepwise memory."""
        if self.memory is not None and self.config.Replay_update == "step":
            self._remember(self.offered, task, self.memory.seen)

    def after_task(self, task: Task) -> None:
        """Keep what later tasks need; by default examples for replay."""
        if self.memory is not None and self.config.Replay_update == "task":
            self._remember(task.train, task)

    def _remember(self, examples: Sequence[Example], task: Task, *moment: object) -> None:
        rng = random_for(self.config.seed, "memory", task.index, *moment)
        self.memory.update(examples, rng, lambda rows: self.features(rows, task.max_length))

    def versions(self) -> dict[str, Weights | None]:
        """Weights under which answers are given, by name; None: the model as it stands.

        "" is the method's answer, which R, the metrics and the saved model show. Others are evaluated beside it.
        """
        return {"": None}

    @property
    def is_plain(self) -> bool:
        """True if answers are the greedy ones of the model as it stands, which `evaluation_mode: verify` can check."""
        return type(self).predict is Method.predict

    def predict(self, rows: Sequence[Encoded], task_id: int | None, max_new_tokens: int) -> list[str]:
        """Answers to a batch of encoded prompts; the model is in eval mode.

        Args:
            rows: Encoded examples; only their prompts may be looked at.
            task_id: The task they belong to in TIL, otherwise None: identity does not leak.
            max_new_tokens: Most tokens of an answer.
        """
        return generate(self.backbone, rows, max_new_tokens, self.soft_prompt(task_id))

    def after_evaluation(self, task_id: int) -> None:
        """Log what `predict` has seen on the way, now that a set of questions of this task is answered."""

    def state_dict(self) -> dict[str, Any]:
        """Everything besides the model and `extra` that a resumed run needs."""
        own = {name: getattr(self, name) for name in self.state}
        return own | ({} if self.memory is None else {"memory": self.memory.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        for name in self.state:
            setattr(self, name, state[name])
        if self.memory is not None:
            self.memory.load_state_dict(state["memory"])

    @torch.no_grad()
    def features(self, examples: Sequence[Example], max_length: int | None) -> NDArray[np.float32]:
        """(N, D) hidden states after the prompts of N examples, each cut to `max_length` tokens."""
        rows = [Encoded(row.prompt, ()) for row in self.encoder.for_prediction(examples, max_length)]
        size = self.config.evaluate_batch_size
        batches = [
            collate(rows[i : i + size], examples[i : i + size], self.backbone.pad_id) for i in range(0, len(rows), size)
        ]
        device = self.model.device
        return torch.cat([features(self.model, batch.to(device)).cpu() for batch in batches]).numpy()
