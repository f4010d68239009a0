"""Adapters on a frozen base model: one for all tasks, or one per task."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from models.Base import Method, Setting, Task
from models.common.frozen_sum import FrozenSum
from utils.backbone import kind
from utils.classifier import MASKED, HeadAnswers
from utils.config import Config, OptionGroup
from utils.dataloader import Batch, Encoded, collate
from utils.dataset import Example, Stream
from utils.distributed.collectives import sum_over_processes
from utils.distributed.modes import ALL
from utils.model import adapters
from utils.model.architecture import Model
from utils.model.forward import forward, labelled_states
from utils.model.generation import generate
from utils.model.head import Scores, as_scores
from utils.model.weights import Weights

T = TypeVar("T")
CEILING = "task given"  # the upper bound of a router: it is given the task of each question


class PEFTOptions(OptionGroup):
    """PEFT."""

    PEFT_per_task: bool = Field(True, description="An adapter for each task; False: one for all tasks.")
    PEFT_inference: Literal["newest", "sum", "task_id", "route"] = Field(
        "newest",
        description="Which adapter answers: the last, the sum of all (LoRA), the task's (TIL), or the one whose "
        "perplexity of the question is lowest.",
    )


class PEFT(Method):
    """Trains an adapter per task on a frozen base model.

    `PEFT_type` is the kind (LoRA: Hu et al., ICLR 2022; prompts: Lester et al., EMNLP 2021; prefixes: Li and Liang, ACL
    2021; IA3: Liu et al., NeurIPS 2022; bottlenecks: Pfeiffer et al., EACL 2021). With one adapter for all tasks this
    is sequential fine-tuning of the adapter (SeqLoRA), as is SEQ with `PEFT_type`. With one per task, an adapter is
    added when its task begins and is frozen afterwards, so nothing can be forgotten; the question is which one answers:

        newest    the last task's
        sum       all together, y = W x + sum_{i <= t} B_i A_i x, in training too (IncLoRA; Wang et al., 2023)
        task_id   the task's own, where tasks are known (TIL)
        route     i* = argmin_i -1/n sum_k log p_i(x_k | x_<k), the one with the lowest perplexity of the question x

    In the sum, earlier adapters are read without dropout and all at once, so that a step takes about as long at the
    hundredth task as at the second.

    A row of `route` measures the router as well. So the same questions are also answered by the adapters of their
    tasks (version "task given", an upper bound that knows the task), and reports show the share that was routed right.

    With a classifier and an adapter per task, each head reads the states of its task's adapter and is learned among
    the classes of its task; in CIL all adapters are evaluated and the likeliest class answers. Of words, the tag O
    is task 0's.
    """

    Options: ClassVar[type[OptionGroup]] = PEFTOptions
    options: PEFTOptions
    parallel = ALL
    needs: ClassVar = {Setting("PEFT_type"): "the kind of the adapters"}

    @classmethod
    def problems(cls, config: Config, options: PEFTOptions, stream: Stream) -> list[str]:
        way, per_task = options.PEFT_inference, options.PEFT_per_task
        rules = [
            (way != "newest" and not per_task, "PEFT_inference: has no effect with PEFT_per_task False"),
            (way == "task_id" and config.il_mode != "TIL", "PEFT_inference: task_id needs il_mode TIL"),
            (way == "sum" and config.PEFT_type != "LoRA", "PEFT_inference: sum needs PEFT_type LoRA"),
            (
                config.classifier is not None and way in ("task_id", "route"),
                f"PEFT_inference: {way} has no effect with a classifier, where each head uses the adapter of its task",
            ),
            (
                way == "route" and per_task and kind(config) == "encoder-decoder",
                "PEFT_inference: route needs the perplexity of a question, which an encoder-decoder reads and does not "
                "write; use newest, sum or task_id",
            ),
            (config.keep_optimizer_state and per_task, "keep_optimizer_state: has no effect with PEFT_per_task"),
            (
                config.recovery and way == "route",
                "recovery: trains task 0's adapter, which need not answer task 0 with PEFT_inference route",
            ),
            (
                config.is_probing and way == "route",
                "is_probing: reads each task's own adapter, which need not answer with PEFT_inference route",
            ),
            (
                config.drift and way in ("task_id", "route"),
                f"drift: compares one model with that before the stream; with PEFT_inference {way} several answer",
            ),
            (
                config.drift and per_task and adapters.virtual_tokens(config) > 0,
                f"drift: before the stream there is no {config.PEFT_type} to compare with; set PEFT_per_task: False",
            ),
            (
                config.is_replay and config.classifier is not None and per_task and way != "sum",
                "is_replay: remembered rows need the adapters and heads of earlier tasks, which are frozen with a "
                "classifier and PEFT_per_task; leave it out or set PEFT_per_task: False",
            ),
        ]
        unasked = cls.outside_the_stream(config, way) if per_task else []
        return [problem for found, problem in rules if found] + unasked

    @staticmethod
    def outside_the_stream(config: Config, way: str) -> list[str]:
        """What cannot be asked outside the stream where `way` chooses the adapter that answers."""
        texts = [name for name in config.general_files or () if name.lower().endswith(".txt")]
        rules = [
            (
                bool(config.general_files or config.general_tasks) and way == "task_id",
                "general_files, general_tasks: questions outside the stream have no task, which chooses the adapter; "
                "let the newest adapter, the sum or a router answer",
            ),
            (
                bool(texts) and way == "route",
                f"general_files: {', '.join(texts)} holds no question that could choose an adapter; leave it out",
            ),
            (
                config.general_harness is not None and way in ("task_id", "route"),
                "general_harness: lm-eval calls the model itself, and an adapter is chosen for each question; leave "
                "it out",
            ),
        ]
        return [problem for found, problem in rules if found]

    @property
    def per_task(self) -> bool:
        """True if each task has a separate adapter."""
        return self.options.PEFT_per_task

    @property
    def inference(self) -> str:
        """Which adapter answers, see above."""
        return self.options.PEFT_inference

    @property
    def is_plain(self) -> bool:
        own = type(self).predict is PEFT.predict
        return own and self.answers.are_greedy and self.inference in ("newest", "sum")

    @property
    def isolates(self) -> bool:
        """True if each task's head reads states of that task's adapter."""
        return self.classifier is not None and self.per_task and self.inference != "sum"

    def reading_as(self, index: int) -> AbstractContextManager[None]:
        names = adapters.names(self.model)
        return adapters.using(self.model, names[min(index, len(names) - 1)]) if self.separates else nullcontext()

    @property
    def separates(self) -> bool:
        return self.isolates or (self.inference == "task_id" and self.per_task)

    def setup(self) -> None:
        self.earlier = FrozenSum()  # of the adapters before the newest, where the answer is their sum
        self.surprises: dict[bytes, array[float]] = {}  # digest of a prompt -> its log-perplexity under each adapter
        self.learned = 0  # adapters that are not trained any more; after a resume at least all but the newest
        self.routed: list[int] = []  # tasks whose adapters have answered, since this was last logged
        if self.isolates and isinstance(self.answers, HeadAnswers):
            self.answers = AdapterHeads(self.answers)
        if self.per_task:
            adapters.rename(self.model, adapters.FIRST, "task_0", self.config.seed)

    def before_task(self, task: Task) -> None:
        if self.per_task and task.index > 0:
            adapters.add(self.model, f"task_{task.index}", self.config.seed)
            self._activate()

    def after_task(self, task: Task) -> None:
        super().after_task(task)
        self.learned = task.index + 1

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.surprises, self.learned = {}, 0
        self._activate()

    def _activate(self) -> None:
        names = adapters.names(self.model)
        earlier = names[:-1] if self.inference == "sum" else []
        adapters.use(self.model, names[-1:] if self.earlier.set(self.model, earlier) else names)

    def frozen(self, task: Task) -> set[str]:
        newest = adapters.names(self.model)[-1]
        others = {name for name, _ in self.model.named_parameters() if adapters.owner(name) != newest}
        return super().frozen(task) | others

    @contextmanager
    def as_first(self, first: Weights) -> Iterator[None]:
        if not self.per_task:
            with super().as_first(first):
                yield
            return
        self.earlier.set(self.model, ())
        try:  # a fresh adapter changes nothing
            with adapters.disabled(self.model), torch.no_grad():
                yield
        finally:
            self._activate()

    def learning_heads(self, task: Task) -> set[int]:
        return {task.index} if self.isolates else super().learning_heads(task)

    def predict(self, rows: Sequence[Encoded], task_id: int | None, max_new_tokens: int) -> list[str]:
        if self.classifier is not None or self.inference in ("newest", "sum"):
            return super().predict(rows, task_id, max_new_tokens)
        return self._chosen(rows, task_id, lambda own: generate(self.backbone, own, max_new_tokens))

    def likelihoods(self, rows: Sequence[Encoded], task_id: int | None) -> list[float]:
        if self.inference in ("newest", "sum"):
            return super().likelihoods(rows, task_id)
        whole = super().likelihoods
        return self._chosen(rows, task_id, lambda own: whole(own, None))

    def _chosen(self, rows: Sequence[Encoded], task_id: int | None, ask: Callable[[list[Encoded]], list[T]]) -> list[T]:
        """What `ask` returns for each row under the adapter that answers it."""
        routes = self.inference == "route" and not self.is_task_given
        chosen = self.route(rows) if routes else [self._known(task_id)] * len(rows)
        self.routed += chosen if routes else []
        answers: dict[int, T] = {}
        for index in sorted(set(chosen)):
            places = [i for i, other in enumerate(chosen) if other == index]
            with adapters.using(self.model, adapters.names(self.model)[index]):
                answers.update(zip(places, ask([rows[i] for i in places]), strict=True))
        return [answers[i] for i in range(len(rows))]

    def versions(self) -> dict[str, Weights | None]:
        routes = self.inference == "route" and len(adapters.names(self.model)) > 1
        return {"": None, CEILING: None} if routes else {"": None}

    @contextmanager
    def answering(self, version: str) -> Iterator[None]:
        self.is_task_given = version == CEILING
        try:
            yield
        finally:
            self.is_task_given = False

    def _known(self, task_id: int | None) -> int:
        """The task, or the last one learned for a task not yet seen."""
        return min(task_id or 0, len(adapters.names(self.model)) - 1)

    def route(self, rows: Sequence[Encoded]) -> list[int]:
        """For each prompt the task whose adapter predicts it best.

        An adapter that is not trained any more reads a prompt once in a run: the results are kept.
        """
        keys = [hashlib.blake2b(array("q", row.prompt).tobytes(), digest_size=16).digest() for row in rows]
        found = [array("d", self.surprises.get(key, ())) for key in keys]
        names = adapters.names(self.model)
        for index, name in enumerate(names):
            if missing := [k for k, values in enumerate(found) if len(values) == index]:
                with adapters.using(self.model, name):
                    values = self._surprises([rows[k] for k in missing])
                for k, value in zip(missing, values, strict=True):
                    found[k].append(value)
        final = max(self.learned, len(names) - 1)
        self.surprises.update((key, values[:final]) for key, values in zip(keys, found, strict=True))
        return [values.index(min(values)) for values in found]

    @torch.no_grad()
    def _surprises(self, rows: Sequence[Encoded]) -> list[float]:
        """Log-perplexity of each prompt under the active adapter."""
        prompts = [Encoded(row.prompt, ()) for row in rows]
        batch = collate(prompts, [Example("", "")] * len(rows), self.backbone.pad_id).to(self.model.device)
        return surprise(forward(self.model, batch), batch.input_ids, batch.attention_mask).tolist()

    def after_evaluation(self, task_id: int | None) -> None:
        routed, self.routed = self.routed, []
        learned = len(adapters.names(self.model))
        if self.is_task_given or self.inference != "route" or learned == 1 or task_id is None or task_id >= learned:
            return  # there was nothing to choose, or nothing right
        counts = torch.tensor([routed.count(task_id), len(routed)], device=self.model.device)
        right, total = sum_over_processes({"counts": counts})["counts"].tolist()
        self.session.log.info(f"task {task_id}: {100 * right / total:.1f} % answered by the task's own adapter")
        self.session.log.event("route", task=task_id, learned=learned, accuracy=right / total)


class AdapterHeads(HeadAnswers):
    """Heads, each of which reads the states of its task's adapter."""

    def __init__(self, answers: HeadAnswers):
        super().__init__(answers.backbone, answers.config, answers.stream)
        self.heads = answers.heads

    def scores(
        self, model: Model, batch: Batch, index: int | None, prompt: Tensor | None = None
    ) -> tuple[Scores, Tensor]:
        """Scores of the task's own classes alone, and of words O; with index None those of all heads."""
        count, classes = self.count(index), self.heads.classes
        parts = [self._one(model, batch, k) for k in (range(count) if index is None else [count - 1])]
        logits, labels = torch.cat([z for z, _ in parts], dim=-1), self.heads.known(parts[0][1], count)
        if index is not None:
            logits = F.pad(logits, (classes.starts[count - 1], 0), value=MASKED)
            if self.stream.is_word_level and count > 1:
                with torch.no_grad():
                    logits[..., 0] = self._one(model, batch, 0)[0][..., 0]
        return as_scores(logits), labels

    def _one(self, model: Model, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        """Logits (B, K, C) of head k under its adapter, or under the newest if it has none yet; and labels (B, K)."""
        names = adapters.names(self.backbone.model)
        with adapters.using(self.backbone.model, names[min(k, len(names) - 1)]):
            states, labels = labelled_states(model, batch)
        return self.heads.one(k, states), labels


def surprise(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Log-perplexity of texts: the mean of -log p(token | those before it), without the first token.

    Args:
        logits: (B, T, V) float.
        ids: (B, T) int64, padded on the left.
        mask: (B, T) int64, 0 on padding.

    Returns:
        (B,) float, in nats per token.
    """
    first = (mask.shape[1] - mask.sum(dim=1)).tolist()  # column of each text's first token
    # Row by row: a float32 copy of the logits of all rows could take gigabytes.
    rows = zip(logits, ids, first, strict=True)
    losses = [F.cross_entropy(z[k:-1].float(), y[k + 1 :], reduction="sum") for z, y, k in rows]
    return torch.stack(losses) / (mask.sum(dim=1) - 1).clamp(min=1)
