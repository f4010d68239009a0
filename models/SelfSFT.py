"""Supervised fine-tuning on the model's own right answers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from models.Base import GENERATING, WRITING, Method, Task
from models.common.measuring import measuring
from models.common.rollouts import Rollout, Sampling, sample
from utils.config import Count, Float, OptionGroup
from utils.dataloader import Encoded
from utils.dataset import Example, metric_of
from utils.distributed.modes import WHOLE_WEIGHTS
from utils.scoring import find, score


class SelfSFTOptions(OptionGroup):
    """SelfSFT."""

    SelfSFT_samples: Count = Field(8, description="Answers drawn to each question; the first right one is learned.")
    SelfSFT_temperature: Float = Field(1, gt=0, description="Temperature at which answers are drawn.")
    SelfSFT_threshold: Float = Field(1, ge=0, description="Least score of a right answer, in the metric of the stream.")
    SelfSFT_refresh: Literal["task", "epoch"] = Field(
        "epoch", description="Draw anew before each task, or before each of its epochs."
    )
    SelfSFT_fallback: Literal["drop", "target"] = Field(
        "drop", description="A question without a right own answer is left out, or its given answer is learned."
    )


class SelfSFT(Method):
    """Fine-tunes on the model's own answers to the training questions, as far as they are right.

    Chen, Razin, Narasimhan and Chen, "Retaining by Doing: The Role of On-Policy Data in Mitigating Forgetting", 2025
    (arXiv 2510.18874). For each question x with the given answer y*,

        y_1 ... y_k ~ pi(. | x),   y the first y_i with score(y_i, y*) >= threshold,   L = CE(y | x; theta)

    with the metric of the stream as score. `SelfSFT_refresh: task` is the paper's Self-SFT, on answers of the model as
    it was before the task; `epoch` its Iterative-SFT, which forgets about as little as reinforcement learning. As in
    the authors' code, questions without a right answer are left out (`SelfSFT_fallback: drop`): with `task` the epochs
    are shorter, with `epoch` some steps have fewer rows, and one without any learns nothing. The log has the share of
    questions with a right answer; compare methods at equal numbers of steps.

    The ids that were drawn are learned, not the text tokenised again. Rows from memory keep their given answers.
    """

    Options = SelfSFTOptions
    options: SelfSFTOptions
    heads = GENERATING
    backbones = WRITING
    parallel = WHOLE_WEIGHTS  # the model generates while it is trained
    state: ClassVar = ("own", "batches")

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.own: dict[int, list[int]] = {}  # place of a question, from 1 -> ids of the right answer
        self.batches = 0  # of this task so far

    def before_task(self, task: Task) -> None:
        super().before_task(task)
        self.own, self.batches = {}, 0
        if self.options.SelfSFT_refresh == "task":
            self._draw(task, 0)

    def takes_steps(self, task: Task) -> bool:
        return super().takes_steps(task) and bool(self.own or not self._is_settled)

    @property
    def _is_settled(self) -> bool:
        """True if questions without a right answer are out for the whole task."""
        return self.options.SelfSFT_refresh == "task" and self.options.SelfSFT_fallback == "drop"

    def train_examples(self, task: Task) -> Sequence[Example]:
        rows = [replace(example, presentation=i + 1) for i, example in enumerate(task.train)]
        kept = [row for row in rows if row.presentation in self.own or not self._is_settled]
        return [*kept, *super().train_examples(replace(task, train=[]))]

    def batch(self, examples: Sequence[Example], task: Task, rng: random.Random) -> Sequence[Example]:
        if self.options.SelfSFT_refresh == "epoch":
            steps = math.ceil(len(self.train_examples(task)) / (self.config.batch_size - self.memory_rows()))
            if self.batches % steps == 0:
                self._draw(task, self.batches // steps)
        self.batches += 1
        return super().batch(examples, task, rng)

    def encode(self, examples: Sequence[Example], task: Task) -> list[Encoded]:
        rows = self.encoder(examples, task.max_length)
        for i, (prompt, example) in enumerate(
            zip(self.encoder.for_prediction(examples, task.max_length), examples, strict=True)
        ):
            own = self.own.get(example.presentation)
            if example.source == "task" and own is not None:
                rows[i] = prompt._replace(answer=own)
            elif example.source == "task" and self.options.SelfSFT_fallback == "drop":
                rows[i] = prompt._replace(answer=(), labelled=())
        return rows

    def _draw(self, task: Task, epoch: int) -> None:
        """Answer all questions of the task and keep the first right answer to each."""
        metric = metric_of(self.config, self.stream, task.index)
        prompts = self.encoder.for_prediction(task.train, task.max_length)
        how = Sampling(self.options.SelfSFT_samples, self.options.SelfSFT_temperature)
        seed = (self.config.seed, "own", task.index, epoch)
        with measuring(self):
            drawn = sample(self.backbone, prompts, task.max_new_tokens, how, *seed, soft_prompt=self.soft_prompt(None))
        rights = [self._first_right(answers, row, metric) for answers, row in zip(drawn, task.train, strict=True)]
        self.own = {i + 1: list(answer.ids) for i, answer in enumerate(rights) if answer is not None}
        share = len(self.own) / len(task.train)
        log = self.session.log.warning if not self.own else self.session.log.info
        log(f"task {task.index}, epoch {epoch + 1}: {share:.1%} of {len(task.train)} questions have a right own answer")
        self.session.log.event("own_answers", task=task.index, epoch=epoch, share=share)

    def _first_right(self, answers: Sequence[Rollout], example: Example, metric: str) -> Rollout | None:
        texts, sign = [answer.text for answer in answers], 1 if find(metric).higher_is_better else -1
        scores = score(metric, texts, [example.accepted] * len(texts), [example.input] * len(texts))
        threshold = self.options.SelfSFT_threshold if sign > 0 else 1 - self.options.SelfSFT_threshold
        right = (a for a, s in zip(answers, scores, strict=True) if a.ended and sign * s >= sign * threshold)
        return next(right, None)
