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

from models.common.losses import answer_loss
from utils.backbone import load_first_weights
from utils.buffer import Memory
from utils.classifier import Heads, make_heads
from utils.config import Config, NoOptions, OptionGroup, per_task
from utils.dataloader import IGNORE, Batch, Encoded, Encoder, collate
from utils.dataset import Example, Stream
from utils.distributed.modes import WHOLE_WEIGHTS
from utils.model import adapters, freeze
from utils.model.architecture import KINDS, Backbone
from utils.model.forward import answer_logits, features, labelled_states
from utils.model.generation import generate
from utils.model.weights import Weights, borrowed, eval_mode
from utils.optimizer import Group
from utils.seed import random_for
from utils.session import Session

WRITING = frozenset({"decoder", "encoder-decoder"})  # backbones that write answers
GENERATING = frozenset({"None"})  # classifiers, for methods that need written answers


@dataclass(frozen=True)
class Task:
    """One element of the stream, as training sees it."""

    index: int  # position in the stream, from 0
    name: str
    train: Sequence[Example]
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

    Options: ClassVar[type[OptionGroup]] = NoOptions
    scenarios: ClassVar[frozenset[str]] = frozenset({"CIL", "TIL", "IIL", "CIT", "CKE"})  # il_mode
    heads: ClassVar[frozenset[str]] = frozenset({"None", "Linear", "CosineLinear"})  # None: answers are generated
    backbones: ClassVar[frozenset[str]] = frozenset(KINDS)
    parallel: ClassVar[frozenset[str]] = WHOLE_WEIGHTS  # modes of several processes that it can run in
    needs: ClassVar[dict[str, str]] = {}  # settings it can't do without -> why: "is_replay", "Replay_update: step"
    excludes: ClassVar[dict[str, str]] = {}  # settings that contradict it -> why
    trains: ClassVar[bool] = True  # False: no optimizer step is ever made
    state: ClassVar[tuple[str, ...]] = ()  # attributes that a resumed run needs: tensors and plain values

    def __init__(self, session: Session, options: Any, backbone: Backbone, stream: Stream):
        self.session, self.options, self.backbone, self.stream = session, options, backbone, stream
        config = session.config
        self.extra = nn.ModuleDict()  # modules of the method's own; they train and are saved with the model
        self.memory = Memory(config, stream.config.get("NUM_CLASS")) if config.is_replay else None
        self.newest: int | None = None  # the task learned last
        if config.classifier is not None:
            self.extra["heads"] = make_heads(config, stream, self.model)
        self.offered: list[Example] = []  # new rows of the step in progress, for a memory that follows each step

    @property
    def config(self) -> Config:
        """The options of the run."""
        return self.session.config

    @property
    def encoder(self) -> Encoder:
        """Turns examples into token ids."""
        return self.session.encoder

    @property
    def model(self) -> nn.Module:
        """The language model."""
        return self.backbone.model

    @property
    def classifier(self) -> Heads | None:
        """One head per task, which classifies what the model has read; None: answers are written."""
        return None if self.config.classifier is None else self.extra["heads"]

    def start_afresh(self) -> None:
        """Give the model and its heads the weights again that they had before any task."""
        load_first_weights(self.model, self.config)
        if self.classifier is not None:
            self.classifier.load_state_dict(make_heads(self.config, self.stream, self.model).state_dict())

    @classmethod
    def problems(cls, config: Config, options: Any, stream: Stream) -> list[str]:
        """What `scenarios`, `needs` and `excludes` cannot express: the problems of a configuration, before loading."""
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
        parameters += [w for name, w in self.extra.named_parameters() if not name.startswith("heads.")]
        lr = per_task(self.config.lr_list, self.config.lr, task.index)
        return [Group(parameters, lr, self.config.weight_decay), *self.head_groups(task)]

    def head_groups(self, task: Task) -> list[Group]:
        """The heads that learn in this task."""
        if self.classifier is None:
            return []
        parameters = [w for k in sorted(self.learning_heads(task)) for w in self.classifier[k].parameters()]
        return [Group(parameters, self.config.classifier_lr, self.config.classifier_weight_decay)]

    def learning_heads(self, task: Task) -> set[int]:
        """Their tasks: in CIL all so far, which compete in one softmax; in TIL those of which there are examples."""
        if not self.classifier.is_task_known:
            return set(range(self.heads_at(task.index)))
        remembered = self.memory.rows() if self.memory is not None else []
        return {example.task for example in (*self.train_examples(task), *remembered)}

    def frozen(self, task: Task) -> set[str]:
        """Names of the model's parameters that do not learn in this task: by `freeze_parts`, and beside adapters."""
        parts = self.config.freeze_parts if task.index >= self.config.freeze_from_task else ()
        unused = freeze.writer(self.model) if self.classifier is not None else set()
        return freeze.select(self.model, parts, self.config.freeze_match) | adapters.resting(self.model) | unused

    def loss(self, model: nn.Module, batch: Batch, task: Task) -> dict[str, Tensor]:
        """The method's objective on one micro-batch, as named terms, () float each. The heart of a method file.

        The loop minimises the sum of the terms, averaged over the micro-batches of a step. A sum over tokens is
        therefore divided by `batch.tokens`, which makes that average the mean over the whole step; a term that does
        not depend on the batch (a penalty on the weights) stands as it is.
        """
        logits, labels = self.outputs(model, batch, task.index)
        return {"answer": answer_loss(logits, labels, batch.tokens["all"])}

    def outputs(self, model: nn.Module, batch: Batch, index: int | None) -> tuple[Tensor, Tensor]:
        """Logits (B, K, V) and the labels (B, K) they are about: the next tokens or, with a classifier, classes.

        Args:
            model: The language model.
            batch: Encoded examples.
            index: The task that is learned, which decides the classes that are known; None: as in `predict`.
        """
        if self.classifier is None:
            return answer_logits(model, batch, self.soft_prompt(index))
        states, labels = labelled_states(model, batch, self.soft_prompt(index))
        count, tasks = self.heads_at(index), [example.task for example in batch.examples]
        return self.classifier(states, count, tasks), self.classifier.known(labels, count)

    def heads_at(self, index: int | None) -> int:
        """How many heads are asked after task `index`; None: after the newest, or all before any task."""
        index, count = self.newest if index is None else index, len(self.classifier)
        return count if index is None else min(index + 1, count)

    def collated(self, examples: Sequence[Example], task: Task) -> Batch:
        """These examples as one batch on the model's device, for measurements beside training."""
        rows = self.encoder(examples, task.max_length)
        return collate(rows, examples, self.backbone.pad_id).to(self.model.device)

    def soft_prompt(self, task_id: int | None) -> Tensor | None:
        """Embeddings (P, D) of virtual tokens that the model reads before each text of a task; None: no such.

        In training the task is the one that is learned; otherwise it is as in `predict`.
        """
        return None

    def teacher_logits(self, teacher: Weights, batch: Batch, index: int | None = None) -> Tensor:
        """Logits (B, K, V) of `outputs` under other weights: in eval mode, without gradients."""
        with borrowed(self.named(), teacher), eval_mode(self.model, self.extra):
            return self.outputs(self.model, batch, index)[0]

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
        return type(self).predict is Method.predict and self.classifier is None

    def predict(self, rows: Sequence[Encoded], task_id: int | None, max_new_tokens: int) -> list[str]:
        """Answers to a batch of encoded prompts; the model is in eval mode.

        Args:
            rows: Encoded examples; only their prompts may be looked at.
            task_id: The task they belong to in TIL, otherwise None: identity does not leak.
            max_new_tokens: Most tokens of an answer.
        """
        if self.classifier is not None:
            return self.classify(rows, task_id)
        return generate(self.backbone, rows, max_new_tokens, self.soft_prompt(task_id))

    def classify(self, rows: Sequence[Encoded], task_id: int | None) -> list[str]:
        """Names of the most likely classes, of the places that are classified; arguments as in `predict`."""
        asked = [Example("", "", task=task_id or 0)] * len(rows)
        batch = collate(rows, asked, self.backbone.pad_id).to(self.model.device)
        with torch.no_grad():
            logits, labels = self.outputs(self.model, batch, task_id if self.config.il_mode == "TIL" else None)
        chosen = zip(logits.argmax(dim=-1).tolist(), labels.tolist(), strict=True)
        names = self.classifier.classes.names
        return [" ".join(names[c] for c, y in zip(*row, strict=True) if y != IGNORE) for row in chosen]

    def after_evaluation(self, task_id: int) -> None:
        """Log what `predict` has seen on the way, now that a set of questions of this task is answered."""

    def state_dict(self) -> dict[str, Any]:
        """Everything besides the model and `extra` that a resumed run needs."""
        own = {name: getattr(self, name) for name in self.state}
        own |= {"newest": self.newest}
        return own | ({} if self.memory is None else {"memory": self.memory.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        for name in self.state:
            setattr(self, name, state[name])
        self.newest = state.get("newest")  # runs before there were heads do not tell
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
        extract = self.config.backbone_extract_token
        return torch.cat([features(self.model, batch.to(device), extract).cpu() for batch in batches]).numpy()
