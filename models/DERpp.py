"""Dark experience replay: "Dark Experience for General Continual Learning" (Buzzega et al., NeurIPS 2020)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from models.Base import Method, Setting, Task
from models.common.losses import answer_loss, squared_error
from utils.classifier import MASKED
from utils.config import Config, Float, Int, OptionGroup, search
from utils.dataloader import IGNORE, Batch
from utils.dataset import Example, Stream
from utils.distributed.collectives import gather
from utils.model.architecture import Model
from utils.model.head import Scores, sum_over_pieces
from utils.model.weights import Weights, snapshot

Dark = tuple[Tensor, Tensor]  # of the labelled positions of an example: values (N, k) and token ids (N, k)


class DERppOptions(OptionGroup):
    """DERpp."""

    DERpp_alpha: Float = Field(
        0.5,
        ge=0,
        description="Weight of the squared error to the stored logits.",
        json_schema_extra=search(0.1, 0.5, 1),
    )
    DERpp_beta: Float = Field(
        0.5, ge=0, description="Weight of the cross-entropy on answers from memory.", json_schema_extra=search(0.5, 1)
    )
    DERpp_targets: Literal["stored", "previous_model"] = Field(
        "stored", description="Target logits: those at insertion, or those of the model of the previous task."
    )
    DERpp_topk: Int = Field(64, ge=1, description="Number of largest logits stored for each answer token.")


class DERpp(Method):
    """Replays examples with their answers and with the logits that the model gave them when they were stored.

        L = CE(x, y) + alpha MSE(f(x'), h') + beta CE(x'', y'')

    DER++. (x, y) are new; (x', h') and (x'', y'') are two independent draws from a reservoir, to which the new examples
    are offered after every step. h' are the logits of the training pass, before the step, at the presentation of x'
    that memory stored; dropout included, as published.

    A step has batch_size - batch_size // 2 new rows, as many as with plain replay, and batch_size // 2 of each draw:
    one part each, as published. Each CE is the mean over its own answer tokens.

    With a classifier h' are all logits of the classes that were known when memory stored x'. Without one, unlike in the
    paper, h' are the `DERpp_topk` largest of the vocabulary at each answer token, in float32 (8 bytes a logit with its
    token id), and the MSE is the mean over these. `previous_model` stores no logits: the target of f(x') are the logits
    of the model at the end of the previous task, over the whole vocabulary; in the first task that term is 0.
    """

    Options = DERppOptions
    options: DERppOptions
    needs: ClassVar = {
        Setting("is_replay"): "it learns from memory",
        Setting("Replay_update", "step"): "logits are stored at the step that brought the example",
    }
    state: ClassVar = ("teacher",)

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.teacher: Weights = {}  # with previous_model: trainable weights before the task
        self.places: dict[int, int] = {}  # of the new rows in the step in progress, by the identity of the example
        self.given: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # by place: values, tokens (K, k), labels (K)

    @classmethod
    def problems(cls, config: Config, options: DERppOptions, stream: Stream) -> list[str]:
        if not options.is_changed("DERpp_topk"):
            return []
        if config.classifier is not None:
            return ["DERpp_topk: has no effect with a classifier: all logits are stored"]
        if options.DERpp_targets == "previous_model":
            return ["DERpp_topk: has no effect with DERpp_targets previous_model, which stores no logits"]
        return []

    def before_task(self, task: Task) -> None:
        if self.options.DERpp_targets == "previous_model" and task.index > 0:
            self.teacher = snapshot(self.learning(task))

    def batch(self, examples: Sequence[Example], task: Task, rng: random.Random) -> Sequence[Example]:
        rows = super().batch(examples, task, rng)
        self.places, self.given = {id(example): place for place, example in enumerate(examples)}, {}
        drawn = self.needed_memory.sample(self.memory_rows(), rng)
        return [*rows, *(replace(example, source="dark") for example in drawn)]

    def loss(self, model: Model, batch: Batch, task: Task) -> dict[str, Tensor]:
        scores, labels = self.scores(model, batch, task.index)
        new, old, dark = (batch.rows(source) for source in ("task", "memory", "dark"))
        tokens = {"memory": 1.0, "dark": 1.0} | batch.tokens  # before the first step memory is empty
        if self.options.DERpp_targets == "stored":
            self._note(scores[new], labels[new], [batch.examples[i] for i in new])
        error = self._error(scores[dark], labels[dark], batch.only(dark), task)
        return {
            "answer": answer_loss(scores[new], labels[new], tokens["task"]),
            "memory": self.options.DERpp_beta * answer_loss(scores[old], labels[old], tokens["memory"]),
            "dark": self.options.DERpp_alpha * error / tokens["dark"],
        }

    def _error(self, scores: Scores, labels: Tensor, batch: Batch, task: Task) -> Tensor:
        """Squared errors to the targets, () float: mean over logits, sum over the answer tokens of x'."""
        if self.options.DERpp_targets == "stored":
            notes = [self.needed_memory.notes[example.presentation] for example in batch.examples]
            rows = zip(range(len(notes)), labels, notes, strict=True)
            errors = (dark_error(scores[i, y != IGNORE].whole(), note) for i, y, note in rows)
            return sum(errors, scores.states.sum() * 0)
        if not self.teacher or not batch.examples:
            return scores.states.sum() * 0
        target = self.teacher_scores(self.teacher, batch, task.index - 1)
        columns = target.shape[1]
        labelled = labels[:, -columns:] != IGNORE
        own = scores.first(target.width)[:, -columns:]
        return sum_over_pieces(squared_error, own[labelled], target[labelled])

    @torch.no_grad()
    def _note(self, scores: Scores, labels: Tensor, examples: Sequence[Example]) -> None:
        """Keep the largest logits (K, V) of each new row until it is known which of them memory stores."""
        k = min(self.options.DERpp_topk, scores.width) if self.classifier is None else scores.width
        for row, example in enumerate(examples):
            if id(example) in self.places and bool((labels[row] != IGNORE).any()):  # a filling row has no labels
                values, tokens = scores[row].whole().float().topk(k, dim=-1)
                self.given[self.places[id(example)]] = values, tokens, labels[row]

    def after_step(self, task: Task) -> None:
        memory = self.needed_memory
        first = memory.seen + 1  # presentation of the step's first new row
        super().after_step(task)
        fresh = [row.presentation for row in memory.rows() if row.presentation >= first]
        if fresh and self.options.DERpp_targets == "stored":
            mine = {p: stored(*self.given[p - first]) for p in fresh if p - first in self.given}
            for part in gather([mine], self.session.accelerator.num_processes):
                memory.notes.update(part)
        self.places, self.given = {}, {}


def stored(values: Tensor, tokens: Tensor, labels: Tensor) -> Dark:
    """What memory keeps of sorted logits (K, k) at the labelled positions; on the CPU, like texts.

    MASKED classes are left out.
    """
    values, tokens = values[labels != IGNORE], tokens[labels != IGNORE]
    k = int((values > MASKED).sum(dim=-1).min()) if len(values) else 0
    return values[:, :k].cpu(), tokens[:, :k].to("cpu", torch.int32)


def dark_error(logits: Tensor, dark: Dark) -> Tensor:
    """Squared error to stored logits: mean over the k of a position, sum over positions, () float.

    Args:
        logits: (N, V), at the labelled positions of an example.
        dark: What was stored for it. A chat that is cut elsewhere now may have other positions; the last are common.
    """
    values, tokens = (stored.to(logits.device) for stored in dark)
    count = min(len(logits), len(values))
    own = logits[len(logits) - count :].gather(-1, tokens[len(tokens) - count :].long())
    return (own.float() - values[len(values) - count :]).square().mean(dim=-1).sum()
