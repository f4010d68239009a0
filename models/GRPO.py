"""Group relative policy optimization."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from models.Base import GENERATING, WRITING, Method, Setting, Task
from models.common.measuring import measuring
from models.common.rollouts import Rollout, Sampling, added, listed, sample, statistics, with_answers
from utils.config import Config, Float, Int, OptionGroup, search
from utils.dataloader import IGNORE, Batch, Encoded
from utils.dataset import Example, Stream, metric_of
from utils.model.architecture import Model
from utils.model.head import sum_over_pieces
from utils.model.weights import Weights, eval_mode, snapshot
from utils.scoring import find, score

OWN = "own"  # source of rows with sampled answers


class GRPOOptions(OptionGroup):
    """GRPO."""

    GRPO_samples: Int = Field(8, ge=2, description="G, answers drawn to each question.")
    GRPO_temperature: Float = Field(1, gt=0, description="Temperature of drawing and of the loss.")
    GRPO_scale: bool = Field(True, description="Divide advantages by the deviation of the group's rewards.")
    GRPO_normalise: Literal["sample", "batch", "fixed"] = Field(
        "sample", description="Divide the sum over tokens by each answer's length, the batch's, or the longest allowed."
    )
    GRPO_beta: Float = Field(
        0,
        ge=0,
        description="beta, weight of the KL to the weights before the task.",
        json_schema_extra=search(0, 0.01, 0.1),
    )
    GRPO_warm_start: Int = Field(0, ge=0, description="Epochs of fine-tuning on the given answers before GRPO.")
    GRPO_must_end: bool = Field(False, description="An answer that is cut at the limit has reward 0.")


class GRPO(Method):
    """Reinforces own answers that score higher than the others to the same question.

    Shao et al., "DeepSeekMath", 2024 (arXiv 2402.03300); as a continual learner in "RL's Razor" (arXiv 2509.04259) and
    "Retaining by Doing" (arXiv 2510.18874). G answers y_i to each question have the rewards r_i, their scores in the
    metric of the stream (1 - score where lower is better):

        A_i = (r_i - mean r) / (std r + 1e-4)
        L = - 1/G sum_i 1/|y_i| sum_t rho_it A_i + beta KL_k3(pi || pi_ref)

    std has Bessel's correction. Each set of answers serves one optimizer step, so the ratio rho is 1 in value and only
    its gradient, that of log pi, counts; there is nothing to clip. KL_k3 = exp(d) - d - 1 with d = log pi_ref - log pi
    on the drawn tokens, pi_ref the weights before the task; beta is 0 as in most work since 2025. `GRPO_scale: False`
    with `GRPO_normalise: fixed` is Dr. GRPO (arXiv 2503.20783); `batch` is DAPO's mean over tokens. Dropout is off.

    `batch_size` counts questions: a step trains batch_size * G rows; use gradient_accumulation_steps where they do not
    fit. A group whose rewards are equal has no gradient; the log has the share of such groups, with a warning if they
    are nearly all: a model that never scores never learns. `GRPO_warm_start` gives it a beginning. Published: G 8, lr
    1e-6 for full fine-tuning; in "Retaining by Doing" G 5, temperature 0.8, lr 5e-6, beta 0.05, `GRPO_must_end`.
    """

    Options = GRPOOptions
    options: GRPOOptions
    heads = GENERATING
    backbones = WRITING
    excludes: ClassVar = {Setting("is_replay"): "it trains on answers that the model samples, not on given ones"}
    state: ClassVar = ("reference", "batches", "sums")

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.reference: Weights = {}
        self.batches = 0  # of this task so far
        self.drawn: list[Rollout] = []  # of the step in progress; a row's `presentation` is its number
        self.advantages: list[float] = []  # of the same
        self.sums: dict[str, float] = {}  # of what is logged at the end of the task

    @classmethod
    def problems(cls, config: Config, options: GRPOOptions, stream: Stream) -> list[str]:
        epochs = config.training_epochs_list or (config.training_epochs, config.training_epochs_first_task or math.inf)
        if options.GRPO_warm_start and options.GRPO_warm_start >= min(epochs):
            return ["GRPO_warm_start: leaves no epoch for GRPO; lower it or raise training_epochs"]
        return []

    def before_task(self, task: Task) -> None:
        super().before_task(task)
        self.batches, self.sums = 0, {}
        self.reference = snapshot(self.learning(task)) if self.options.GRPO_beta else {}

    def batch(self, examples: Sequence[Example], task: Task, rng: random.Random) -> Sequence[Example]:
        steps = math.ceil(len(task.train) / self.config.batch_size)
        self.batches += 1
        if self.batches <= self.options.GRPO_warm_start * steps:
            return examples
        questions = self.encoder.for_prediction(examples, task.max_length)
        how = Sampling(self.options.GRPO_samples, self.options.GRPO_temperature)
        with measuring(self):
            groups = sample(self.backbone, questions, task.max_new_tokens, how, rng.getrandbits(63))
        rewards = [self.rewards(answers, row, task) for answers, row in zip(groups, examples, strict=True)]
        self.drawn = [answer for answers in groups for answer in answers]
        self.advantages = [a for group in rewards for a in advantages(group, self.options.GRPO_scale)]
        level = sum(len(set(group)) == 1 for group in rewards) / len(rewards)
        reward = sum(map(sum, rewards)) / len(self.drawn)
        values = statistics(self.drawn) | {"reward": reward, "level_groups": level, "steps": 1}
        self.sums = added(self.sums, values)
        rows = [row for row in examples for _ in range(self.options.GRPO_samples)]
        return [replace(row, source=OWN, presentation=i) for i, row in enumerate(rows)]

    def rewards(self, answers: Sequence[Rollout], example: Example, task: Task) -> list[float]:
        """Scores of the answers to one question, higher being better."""
        metric = metric_of(self.config, self.stream, task.index)
        texts = [answer.text for answer in answers]
        scores = score(metric, texts, [example.accepted] * len(texts), [example.input] * len(texts))
        scores = scores if find(metric).higher_is_better else [1 - s for s in scores]
        cut = [self.options.GRPO_must_end and not answer.ended for answer in answers]
        return [0.0 if is_cut else s for is_cut, s in zip(cut, scores, strict=True)]

    def encode(self, examples: Sequence[Example], task: Task) -> list[Encoded]:
        if examples[0].source != OWN:
            return super().encode(examples, task)
        rows = self.encoder.for_prediction(examples, task.max_length)
        return with_answers(rows, (self.drawn[example.presentation].ids for example in examples))

    def loss(self, model: Model, batch: Batch, task: Task) -> dict[str, Tensor]:
        if batch.examples[0].source != OWN:
            return {**super().loss(model, batch, task), "policy": batch.labels.new_zeros((), dtype=torch.float32)}
        with eval_mode(self.model, self.extra):
            scores, labels = self.scores(model, batch, task.index)
            own, places = scores[labels != IGNORE], (labels != IGNORE).nonzero()
            wanted, weights = labels[labels != IGNORE], self.weights(labels, batch, task)
            a = torch.tensor([self.advantages[row.presentation] for row in batch.examples], device=labels.device)
            gain = sum_over_pieces(self.gain, own, wanted, weights * a[places[:, 0]])
            terms = {"answer": gain.new_zeros(()), "policy": -gain}
            if self.reference:
                old = self.teacher_scores(self.reference, batch, task.index)[labels != IGNORE]
                terms["kl"] = self.options.GRPO_beta * sum_over_pieces(self.k3, own, old, wanted, weights)
        return terms

    def gain(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """sum_t rho_t A_t, weighted, () float32."""
        log_p = self.log_probabilities(logits, labels)
        return (weights * (log_p - log_p.detach()).exp()).sum()

    def k3(self, logits: Tensor, old: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """sum_t exp(d_t) - d_t - 1, weighted, () float32."""
        d = self.log_probabilities(old, labels) - self.log_probabilities(logits, labels)
        return (weights * (d.exp() - d - 1)).sum()

    def log_probabilities(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of labels (N) under logits (N, V), (N) float32, at the temperature of drawing."""
        log_p = (logits.float() / self.options.GRPO_temperature).log_softmax(dim=-1)
        return log_p.gather(1, labels[:, None]).squeeze(1)

    def weights(self, labels: Tensor, batch: Batch, task: Task) -> Tensor:
        """What each label counts in the loss, (labels) float32."""
        is_label = labels != IGNORE
        lengths = is_label.sum(dim=1)[is_label.nonzero()[:, 0]].float()
        rows = batch.tokens[f"rows {OWN} answer"]
        if self.options.GRPO_normalise == "sample":
            return 1 / (lengths * rows)
        whole = batch.tokens["all"] if self.options.GRPO_normalise == "batch" else rows * task.max_new_tokens
        return torch.full_like(lengths, 1 / whole)

    def after_task(self, task: Task) -> None:
        super().after_task(task)
        steps = self.sums.pop("steps", 0)
        if not steps:
            return
        means = {name: value / steps for name, value in self.sums.items()}
        text = f"task {task.index}: own answers: {listed(means)}"
        if means["level_groups"] > 0.95:
            text += "; nearly all groups have equal rewards and teach nothing: see GRPO_warm_start, GRPO_samples"
        (self.session.log.warning if means["level_groups"] > 0.95 else self.session.log.info)(text)
        self.session.log.event("rollouts", task=task.index, **means)


def advantages(rewards: Sequence[float], scale: bool) -> list[float]:
    """A_i of one group.

    >>> [round(a, 3) for a in advantages([0.0, 1.0], scale=True)], advantages([0.0, 1.0], scale=False)
    ([-0.707, 0.707], [-0.5, 0.5])
    """
    r = torch.tensor(rewards, dtype=torch.float64)
    a = r - r.mean()
    return (a / (r.std() + 1e-4) if scale else a).tolist()
