"""What a continual-learning method may decide, and nothing else.

The frame owns the loop: data order, precision, accumulation, processes, clipping, logging, checkpoints, evaluation.
A method overrides the hooks below; their defaults make plain sequential fine-tuning. Replay and freezing are settings
of the frame that combine with any method.

Shapes: B rows of a batch, T tokens of a row, K answer columns, V vocabulary, D hidden size, N examples.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.common.losses import answer_loss
from utils.buffer import Memory
from utils.classifier import AnswerKind, ClassEncoder, Heads, make_answers
from utils.config import Config, NoOptions, OptionGroup, per_task
from utils.dataloader import Batch, Encoded, Encoder, collate
from utils.dataset import Example, Stream
from utils.distributed.modes import WHOLE_GRADIENTS, WHOLE_WEIGHTS, autocast
from utils.model import adapters, freeze
from utils.model.architecture import KINDS, Backbone, Model
from utils.model.forward import features
from utils.model.generation import likelihoods
from utils.model.head import Scores
from utils.model.weights import Weights, borrowed, eval_mode, moved
from utils.optimizer import Group
from utils.penalty import Penalty
from utils.seed import random_for
from utils.session import Session

WRITING = frozenset({"decoder", "encoder-decoder"})  # backbones that write answers
GENERATING = frozenset({AnswerKind.WRITTEN})  # for methods that need written answers


@dataclass(frozen=True)
class Task:
    """One element of the stream, as training sees it."""

    index: int  # position in the stream, from 0
    name: str
    train: Sequence[Example]
    epochs: int
    max_length: int | None  # tokens of prompt and answer
    max_new_tokens: int


@dataclass(frozen=True)
class Setting:
    """An option that a method needs or excludes."""

    option: str
    value: object = True  # True: whatever switches it on

    def holds(self, config: Config) -> bool:
        """True if the options have this setting."""
        value = getattr(config, self.option)
        return bool(value) if self.value is True else value == self.value

    def __str__(self) -> str:
        return self.option if self.value is True else f"{self.option}: {self.value}"


class Method:
    """Base of all methods. Order of calls::

    setup()
    for each task:
        before_task -> train_examples -> trainable -> penalty
        for each batch:          batch -> encode -> loss -> backward (once per micro-batch: loss, backward)
        for each optimizer step: on_gradients -> clip -> AdamW -> on_update -> after_step
        after_task
        predict, on every task to be evaluated

    What authors of methods ask:

    Is `before_task` called again when a run is resumed? No. The run continues after its last checkpoint: `setup`,
    `load_state_dict`, the remaining steps. What `before_task` computed and later hooks read belongs in `state`;
    structure it added to the model must be rebuilt in `load_state_dict`.

    Where are the weights before a step? `on_update` gets them; before a task: `snapshot(self.learning(task))`.
    `borrowed` and `teacher_scores` run the model under such a copy.

    How to sum over processes? `share(count)` says which pieces of work are this process's; `sum_over_processes` adds
    the results (utils/distributed/collectives.py). The loop averages losses and gradients itself.

    How to keep weights fixed? Tensors: leave them out of `trainable`. Single entries: restore them in `on_update`,
    `w.data[mask] = before[name][mask]`; masking gradients leaves AdamW's momentum and weight decay.

    Where do forward hooks belong? Permanent ones in `setup`. Temporary ones in a `with` block that removes them. In
    ZeRO-3 and FSDP2 a copy of the model is trained, made with its hooks when the task begins.

    Where is the state after a resume? On the device of the model (`home`), wherever the checkpoint had it.
    """

    # --- Declarations: checked before any weights are loaded.

    Options: ClassVar[type[OptionGroup]] = NoOptions  # names begin with the name of the class
    scenarios: ClassVar[frozenset[str]] = frozenset({"CIL", "TIL", "IIL", "CIT", "CKE"})  # il_mode
    heads: ClassVar[frozenset[AnswerKind]] = frozenset(AnswerKind)  # ways to answer
    backbones: ClassVar[frozenset[str]] = frozenset(KINDS)
    # Modes of several processes. A subclass that overrides `on_gradients` runs where gradients are whole, one that
    # overrides `loss`, `on_update` or `after_step` where weights are, unless it declares its own.
    parallel: ClassVar[frozenset[str]] = WHOLE_WEIGHTS
    needs: ClassVar[dict[Setting, str]] = {}  # settings it cannot do without -> why
    excludes: ClassVar[dict[Setting, str]] = {}  # settings that contradict it -> why
    has_teacher: ClassVar[bool] = False  # True: FSDP2 shards the weights in `teacher` as a second model
    trains: ClassVar[bool] = True  # False: no optimizer step is ever made
    loss_on_prompts: ClassVar[bool] = False  # True: tokens of prompts are in the loss too
    state: ClassVar[tuple[str, ...]] = ()  # attributes that a resumed run needs: tensors and plain values, nested

    def __init_subclass__(cls, **options: Any):
        """Narrow `parallel` by what the class overrides, unless the class declares it."""
        super().__init_subclass__(**options)
        source = next(kind for kind in cls.__mro__ if "parallel" in vars(kind))
        whole = {"loss": WHOLE_WEIGHTS, "on_update": WHOLE_WEIGHTS, "after_step": WHOLE_WEIGHTS}
        for hook, modes in (whole | {"on_gradients": WHOLE_GRADIENTS}).items():
            if getattr(cls, hook) is not getattr(source, hook):
                cls.parallel &= modes

    def __init__(self, session: Session, options: Any, backbone: Backbone, stream: Stream):
        self.session, self.options, self.backbone, self.stream = session, options, backbone, stream
        self.extra = nn.ModuleDict()  # the method's own modules; they train and are saved with the model
        self.memory = Memory(self.config, stream.config.get("NUM_CLASS")) if self.config.is_replay else None
        self.answers = make_answers(self.config, stream, backbone)
        if self.answers.heads is not None:
            self.extra["heads"] = self.answers.heads
        self.virtual_tokens = adapters.virtual_tokens(self.config)  # the most that come before a text
        self.is_task_given = False  # outside TIL, while a version measures what knowing the task is worth
        self.sharded_teacher: Callable[[Batch, int | None], Scores] | None = None  # see `has_teacher`
        self.offered: list[Example] = []  # new rows of the step in progress, for a memory that follows each step

    # --- Hooks a method may override, in the order of the life cycle.

    @classmethod
    def problems(cls, config: Config, options: Any, stream: Stream) -> list[str]:
        """What `scenarios`, `needs` and `excludes` cannot express: the problems of a configuration, before loading."""
        return []

    def setup(self) -> None:
        """Edit the model's structure once, before any training: new tokens, adapters, prompts."""

    def render(self, example: Example, template: Callable[[Example], tuple[str, str]]) -> tuple[str, str]:
        """Prompt and answer of an example, of any source and view, as text; `template` fills that of `prompt_type`."""
        return template(example)

    def before_task(self, task: Task) -> None:
        """Prepare for a task: make a teacher, add an adapter, write pseudo-samples."""

    def takes_steps(self, task: Task) -> bool:
        """False for a task that is learned without optimizer steps."""
        return self.trains

    def train_examples(self, task: Task) -> Sequence[Example]:
        """The examples of an epoch of the task; with dataset-level replay also the whole memory."""
        if self.memory is not None and not self.config.Replay_batch_level:
            return self.memory.behind(task.train)
        return task.train

    def trainable(self, task: Task) -> list[Group]:
        """The trainable parameters of this task, with their learning rates; all others are frozen."""
        frozen = self.frozen(task)
        parameters = [w for name, w in self.model.named_parameters() if name not in frozen]
        parameters += [w for name, w in self.extra.named_parameters() if not name.startswith("heads.")]
        body = Group(parameters, per_task(self.config.lr_list, self.config.lr, task.index), self.config.weight_decay)
        return [body, *self.answers.groups(self.learning_heads(task), self.config)]

    def frozen(self, task: Task) -> set[str]:
        """Names of the model's frozen parameters in this task: `freeze_parts`, and the base of adapters."""
        parts = self.config.freeze_parts if task.index >= self.config.freeze_from_task else ()
        chosen = freeze.select(self.model, parts, self.config.freeze_match)
        return chosen | adapters.resting(self.model) | self.answers.unused(self.model) | freeze.unread(self.model)

    def learning_heads(self, task: Task) -> set[int]:
        """Tasks whose heads are trained."""
        examples = self.train_examples(task)
        return self.answers.learning(task.index, examples if self.memory is None else self.memory.behind(examples))

    def memory_rows(self) -> int:
        """Rows of each batch that come from memory with batch-level replay: half of it, or all there is."""
        if self.memory is None or not self.config.Replay_batch_level:
            return 0
        half = self.config.batch_size // 2
        return half if self.config.Replay_update == "step" else min(half, len(self.memory))

    def batch(self, examples: Sequence[Example], task: Task, rng: random.Random) -> Sequence[Example]:
        """The rows of one optimizer step over all processes, given its new ones; adds those from memory."""
        self.offered = list(examples)
        if self.memory is None or not self.memory_rows():
            return examples
        return [*examples, *self.memory.sample(self.memory_rows(), rng)]

    def encode(self, examples: Sequence[Example], task: Task) -> list[Encoded]:
        """Token ids of the rows of a step; a method that trains on answers it has sampled puts in their ids."""
        return self.encoder(examples, task.max_length)

    def loss(self, model: Model, batch: Batch, task: Task) -> dict[str, Tensor]:
        """The method's objective on one micro-batch, as named terms, () float each. The heart of a method file.

        The loop minimises the sum of the terms, averaged over the micro-batches of a step. Divide a sum over tokens by
        `batch.tokens`: then that average is the mean over the whole step.
        """
        scores, labels = self.scores(model, batch, task.index)
        return {"answer": answer_loss(scores, labels, batch.tokens["all"], batch.label_count)}

    def penalty(self, task: Task) -> Penalty | None:
        """A quadratic penalty on the trainable weights, added to the loss of each step of the task."""
        return None

    def scores(self, model: Model, batch: Batch, index: int | None) -> tuple[Scores, Tensor]:
        """Scores (B, K, V) and their labels (B, K): the next tokens or, with a classifier, classes.

        Args:
            model: The language model.
            batch: Encoded examples.
            index: The task being learned, which decides the classes that are known; None: as in `predict`.
        """
        return self.answers.scores(model, batch, index, self.soft_prompt(index))

    def soft_prompt(self, task_id: int | None) -> Tensor | None:
        """Virtual tokens (P, D) in front of each text; in training for the task being learned, else as in `predict`."""
        return None

    def on_gradients(self, task: Task) -> None:
        """Edit the step's accumulated gradients, e.g. project them. Declares where they are whole, see `parallel`."""

    def on_update(self, before: Weights, task: Task) -> None:
        """Edit the weights after AdamW's update, e.g. project them; `before` has the trainable ones, by name."""

    def after_step(self, task: Task) -> None:
        """Follow the weights, e.g. with a moving average; by default offer the new rows to a stepwise memory."""
        if self.memory is not None and self.config.Replay_update == "step":
            self._remember(self.offered, task, self.memory.seen)

    def after_task(self, task: Task) -> None:
        """Keep what later tasks need; by default examples for replay."""
        if self.memory is not None and self.config.Replay_update == "task":
            self._remember(task.train, task)

    def versions(self) -> dict[str, Weights | None]:
        """Weights that answer, by name; None: those of the model.

        "" is the method's answer, which R, the metrics and the saved model show. Others are evaluated alongside it.
        """
        return {"": None}

    def answering(self, version: str) -> AbstractContextManager[None]:
        """Answer as one of `versions` inside the `with`, where they differ in more than the weights."""
        return nullcontext()

    def as_first(self, first: Weights) -> AbstractContextManager[None]:
        """Read as before the stream inside the `with`, given its weights; overridden where adapters are added."""
        return borrowed(self.named(), first)

    def predict(self, rows: Sequence[Encoded], task_id: int | None, max_new_tokens: int) -> list[str]:
        """Answers to a batch of encoded prompts; the model is in eval mode.

        Args:
            rows: Encoded examples; only their prompts may be read.
            task_id: The task they belong to in TIL or for `is_task_given`, otherwise None: identity does not leak.
            max_new_tokens: Most tokens of an answer.
        """
        return self.answers.predict(rows, task_id, max_new_tokens, self.soft_prompt(task_id))

    def likelihoods(self, rows: Sequence[Encoded], task_id: int | None) -> list[float]:
        """log p(answer | prompt) of each row, in nats; arguments as in `predict`, but answers are read."""
        batch = collate(rows, [Example("", "")] * len(rows), self.backbone.pad_id).to(self.model.device)
        return likelihoods(*self.scores(self.model, batch, task_id))

    @property
    def separates(self) -> bool:
        """True if each task has weights that answer for it alone."""
        return False

    def reading_as(self, index: int) -> AbstractContextManager[None]:
        """Inside the `with` the model reads with the weights that answer a task, where `separates`."""
        return nullcontext()

    @property
    def is_plain(self) -> bool:
        """True if answers are the model's greedy ones, which `evaluation_mode: verify` can check."""
        return type(self).predict is Method.predict and self.answers.are_greedy

    def after_evaluation(self, task_id: int | None) -> None:
        """Log what `predict` has recorded, after a set of questions of this task, or of none, is answered."""

    @property
    def home(self) -> torch.device:
        """The device of the state after a resume."""
        return self.model.device

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs in addition to the model and `extra`."""
        own = {name: getattr(self, name) for name in self.state} | {"newest": self.answers.newest}
        return own | ({} if self.memory is None else {"memory": self.memory.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        for name in self.state:
            setattr(self, name, moved(state[name], self.home))
        self.answers.newest = state.get("newest")  # absent from runs older than heads
        if self.memory is not None:
            self.memory.load_state_dict(state["memory"])

    # --- Helpers a method may call.

    @property
    def config(self) -> Config:
        """The options of the run."""
        return self.session.config

    @property
    def encoder(self) -> Encoder | ClassEncoder:
        """Turns examples into token ids."""
        return self.session.encoder

    @property
    def model(self) -> Model:
        """The language model."""
        return self.backbone.model

    @property
    def classifier(self) -> Heads | None:
        """One head per task, which classifies hidden states; None: answers are written."""
        return self.answers.heads

    @property
    def needed_memory(self) -> Memory:
        """`memory`, for methods whose `needs` holds is_replay."""
        if self.memory is None:
            raise RuntimeError(f"{type(self).__name__}: there is no memory; declare is_replay in `needs`")
        return self.memory

    def named(self) -> dict[str, nn.Parameter]:
        """All parameters by name; those of `extra` begin with "extra."."""
        return dict([*self.model.named_parameters(), *self.extra.named_parameters(prefix="extra")])

    def learning(self, task: Task) -> dict[str, nn.Parameter]:
        """The trainable parameters of this task by name."""
        chosen = {id(w) for group in self.trainable(task) for w in group.parameters}
        return {name: w for name, w in self.named().items() if id(w) in chosen}

    def teacher_scores(self, teacher: Weights, batch: Batch, index: int | None = None) -> Scores:
        """Scores (B, K, V) under other weights: in eval mode, without gradients."""
        if self.sharded_teacher is not None:
            return self.sharded_teacher(batch, index)
        with borrowed(self.named(), teacher), eval_mode(self.model, self.extra):
            return self.scores(self.model, batch, index)[0].under(teacher, self.named(), self.extra)

    def collated(self, examples: Sequence[Example], task: Task) -> Batch:
        """These examples as one batch on the model's device, for measurements alongside training."""
        rows = self.encoder(examples, task.max_length)
        return collate(rows, examples, self.backbone.pad_id).to(self.model.device)

    def max_length(self, index: int) -> int | None:
        """Most tokens of prompt and answer together in a task, by default as stream and model allow; None: no limit."""
        own, limits = self.config.max_seq_length, (self.stream.max_seq_length(index), self.room(index))
        length = own if own > 0 else min((max(1, limit) for limit in limits if limit is not None), default=None)
        return per_task(self.config.max_seq_length_list, length, index)

    def room(self, index: int) -> int | None:
        """Positions of the model that the longest answer and virtual tokens leave for a prompt; below 1: none."""
        count = self.backbone.positions
        if count is None:
            return None
        if self.backbone.kind == "decoder" and self.classifier is None:  # a decoder writes after the prompt
            count -= self.max_new_tokens(index)
        return count - self.virtual_tokens

    def max_new_tokens(self, index: int) -> int:
        """Most tokens of an answer that is generated in a task."""
        own = self.config.backbone_max_new_token
        length = own if own > 0 else self.stream.max_new_tokens(index)
        return per_task(self.config.backbone_max_new_token_list, length, index)

    @torch.no_grad()
    def features(self, examples: Sequence[Example], max_length: int | None) -> NDArray[np.float32]:
        """(N, D) hidden states after the prompts of N examples, each cut to `max_length` tokens."""
        rows = [Encoded(row.prompt, ()) for row in self.encoder.for_prediction(examples, max_length)]
        size = self.config.evaluate_batch_size
        starts, pad = range(0, len(rows), size), self.backbone.pad_id
        batches = [collate(rows[i : i + size], examples[i : i + size], pad) for i in starts]
        device, extract = self.model.device, self.config.backbone_extract_token
        return torch.cat([features(self.model, batch.to(device), extract).cpu() for batch in batches]).numpy()

    def _remember(self, examples: Sequence[Example], task: Task, *moment: object) -> None:
        rng = random_for(self.config.seed, "memory", task.index, *moment)
        with autocast(self.config, self.model.device):
            self.needed_memory.update(examples, rng, lambda rows: self.features(rows, task.max_length))
