"""Self-distillation fine-tuning."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from models.Base import GENERATING, WRITING, Method, Setting, Task
from models.common.measuring import measuring
from models.common.rollouts import (
    Divergence,
    Rollout,
    Sampling,
    added,
    divergence,
    listed,
    sample,
    statistics,
    with_answers,
)
from utils.config import Config, Count, Float, Int, OptionGroup
from utils.dataloader import IGNORE, Batch, Encoded, collate
from utils.dataset import Example, Stream, metric_of
from utils.model.architecture import Model
from utils.model.head import Scores, sum_over_pieces
from utils.model.weights import Weights, eval_mode, interpolate, snapshot
from utils.scoring import score
from utils.seed import random_for

TEMPLATE = (
    "{prompt}\n\nThis is an example of a response to the question:\n{target}\n\nNow answer with a response of your own."
)


class SDFTOptions(OptionGroup):
    """SDFT."""

    SDFT_divergence: Divergence = Field(
        "reverse",
        description="D: reverse KL(student || teacher), forward KL(teacher || student), or their symmetric jsd.",
    )
    SDFT_topk: Count | None = Field(
        None,
        description="D compares the student's k most likely tokens, and all others as one token; None: all tokens.",
    )
    SDFT_teacher: Literal["ema", "base", "live"] = Field(
        "ema",
        description="Teacher's weights: a moving average of the student's, those before the task, or the student's.",
    )
    SDFT_rate: Float = Field(0.01, gt=0, le=1, description="Share of the student in the average after a step.")
    SDFT_temperature: Float = Field(1, gt=0, description="Temperature at which answers are drawn.")
    SDFT_skip_tokens: Int = Field(3, ge=0, description="First tokens of an answer that are left out of the loss.")
    SDFT_template: str = Field(
        TEMPLATE,
        description="What the teacher reads instead of the question; {prompt}: it, {target}: the right answer.",
    )
    SDFT_probe: Count = Field(32, description="Training questions on which the teacher is scored before each task.")


class SDFT(Method):
    """Learns from its own answers, pulled towards the same model that has seen the right answer.

    Shenfeld et al., "Self-Distillation Enables Continual Learning", 2026 (arXiv 2601.19897). For y drawn from the
    student, with the right answer c as a demonstration in the teacher's prompt,

        y ~ pi(. | x),   L = mean over y of 1/|y| sum_t D( pi(. | x, y_<t) || pi_T(. | x, c, y_<t) )

    with gradients through the student only. D is the reverse KL over the full vocabulary. The teacher is an exponential
    average of the student with rate 0.01, which starts as the student at the first task and continues over tasks. The
    first 3 tokens of an answer are left out, as in the authors' code (`SDFT_skip_tokens`); an answer that has no more
    keeps its last one. Dropout is off in both passes.

    It works as far as the model can use a demonstration, so before each task the log has the scores of student and
    teacher on some training questions, with a warning if the teacher's is not higher. Small base models cannot. "Denser
    is not better" (arXiv 2607.01763) finds that fast teachers collapse into repetition: the log has length, repetition
    and the student's entropy. Published for full fine-tuning: lr 2e-5, 32 questions a step, one answer each.

    Where prompt and demonstration do not fit into the model's positions the demonstration is cut. A step costs the
    sampling of an answer, one pass of the teacher and one of the student.
    """

    Options = SDFTOptions
    options: SDFTOptions
    heads = GENERATING
    backbones = WRITING
    excludes: ClassVar = {Setting("is_replay"): "it trains on answers that the model samples, not on given ones"}
    state: ClassVar = ("teacher", "sums")

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.teacher: Weights = {}
        self.answers_drawn: list[Rollout] = []  # of the step in progress; a row's `presentation` is its number
        self.sums: dict[str, Any] = {}  # of what is logged at the end of the task

    @classmethod
    def problems(cls, config: Config, options: SDFTOptions, stream: Stream) -> list[str]:
        problems = []
        if "{prompt}" not in options.SDFT_template or "{target}" not in options.SDFT_template:
            problems.append("SDFT_template: expected a text with {prompt} and {target}")
        if options.SDFT_teacher != "ema" and options.is_changed("SDFT_rate"):
            problems.append(f"SDFT_rate: has no effect with SDFT_teacher {options.SDFT_teacher}; leave it out")
        return problems

    def before_task(self, task: Task) -> None:
        super().before_task(task)
        learning, self.sums = self.learning(task), {}
        if self.options.SDFT_teacher == "base":
            self.teacher = snapshot(learning)
        elif self.options.SDFT_teacher == "ema":
            self.teacher = snapshot(learning) | self.teacher
        self._compare_with_teacher(task)

    def batch(self, examples: Sequence[Example], task: Task, rng: random.Random) -> Sequence[Example]:
        questions = self.encoder.for_prediction(examples, task.max_length)
        how = Sampling(temperature=self.options.SDFT_temperature)
        with measuring(self):
            drawn = sample(self.backbone, questions, task.max_new_tokens, how, rng.getrandbits(63))
        self.answers_drawn = [answer for (answer,) in drawn]
        self.sums = added(self.sums, statistics(self.answers_drawn) | {"steps": 1})
        return [replace(example, presentation=i) for i, example in enumerate(examples)]

    def encode(self, examples: Sequence[Example], task: Task) -> list[Encoded]:
        rows = self.encoder.for_prediction(examples, task.max_length)
        return with_answers(rows, (self.answers_drawn[example.presentation].ids for example in examples))

    def loss(self, model: Model, batch: Batch, task: Task) -> dict[str, Tensor]:
        def apart(own: Tensor, other: Tensor, weights: Tensor) -> Tensor:
            log_p = own.detach().float().log_softmax(dim=-1)
            entropy = -(log_p.exp() * log_p).double().sum()  # stays on the device, which is not waited for
            self.sums = added(self.sums, {"entropy": entropy, "tokens": len(own)})
            return (weights * divergence(own, other, self.options.SDFT_divergence, self.options.SDFT_topk)).sum()

        with eval_mode(self.model, self.extra):
            student, labels = self.scores(model, batch, task.index)
            teacher = self.demonstrated(batch, task)
            chosen, weights = self.scored(labels)
            total = sum_over_pieces(apart, student[chosen], teacher[chosen], weights)
        return {"distillation": total / batch.tokens["rows task answer"]}

    def scored(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The positions (B, K) that count, and the weight of each: all answers have the same in all."""
        is_answer = labels != IGNORE
        number, length = is_answer.cumsum(dim=1), is_answer.sum(dim=1, keepdim=True)
        chosen = is_answer & (number > torch.minimum(length - 1, length.new_tensor(self.options.SDFT_skip_tokens)))
        weights = chosen / chosen.sum(dim=1, keepdim=True).clamp(min=1)
        return chosen, weights[chosen]

    def demonstrated(self, batch: Batch, task: Task) -> Scores:
        """Scores (B, K, V) of the teacher, which reads the demonstrations, at the answers of the batch."""
        answers = [row[row != IGNORE].tolist() for row in batch.labels]
        rows = self.informed(batch.examples, task, max(map(len, answers)))
        informed = collate(with_answers(rows, answers), batch.examples, self.backbone.pad_id).to(batch.labels.device)
        return self.teacher_scores(self.teacher, informed, task.index)

    def informed(self, examples: Sequence[Example], task: Task, longest: int) -> list[Encoded]:
        """The teacher's prompts: question and right answer, cut to leave room for an answer of `longest` tokens."""
        positions = self.backbone.positions
        room = None if positions is None else positions - longest
        rows = [self._informed(example, example.target) for example in examples]
        for i, length in enumerate(len(row.prompt) for row in self.encoder.for_prediction(rows, None)):
            if room is not None and length > room:
                target = self.encoder.tokenizer(rows[i].target, add_special_tokens=False)["input_ids"]
                kept = self.encoder.tokenizer.decode(target[: max(0, len(target) - (length - room))])
                rows[i] = self._informed(examples[i], kept)
        return self.encoder.for_prediction(rows, room)

    def _informed(self, example: Example, target: str) -> Example:
        def text(prompt: str) -> str:
            return self.options.SDFT_template.replace("{prompt}", prompt, 1).replace("{target}", target, 1)

        if example.messages is None:
            return replace(example, input=text(example.input))
        *earlier, (role, question), answer = example.messages
        return replace(example, messages=(*earlier, (role, text(question)), answer))

    def after_step(self, task: Task) -> None:
        super().after_step(task)
        if self.options.SDFT_teacher == "ema":
            now = {name: w.detach() for name, w in self.named().items() if name in self.teacher}
            self.teacher |= interpolate({name: self.teacher[name] for name in now}, now, self.options.SDFT_rate)

    def after_task(self, task: Task) -> None:
        super().after_task(task)
        steps, tokens = self.sums.pop("steps", 1), self.sums.pop("tokens", 1)
        entropy = float(self.sums.pop("entropy", 0)) / max(1, tokens)
        means = {name: value / steps for name, value in self.sums.items()} | {"entropy": entropy}
        self.session.log.info(f"task {task.index}: own answers: {listed(means)}")
        self.session.log.event("rollouts", task=task.index, **means)

    @torch.no_grad()
    def _compare_with_teacher(self, task: Task) -> None:
        """Score student and teacher on some training questions: without a better teacher there is nothing to learn."""
        count = min(self.options.SDFT_probe, len(task.train))
        rows = random_for(self.config.seed, "teacher", task.index).sample(task.train, count)
        metric, results = metric_of(self.config, self.stream, task.index), []
        known = task.index if self.config.il_mode == "TIL" else None
        readings = (self.encoder.for_prediction(rows, task.max_length), self.informed(rows, task, task.max_new_tokens))
        with measuring(self):
            for prompts in readings:
                answers = [self.predict([prompt], known, task.max_new_tokens)[0] for prompt in prompts]
                scores = score(metric, answers, [row.accepted for row in rows], [row.input for row in rows])
                results.append(100 * sum(scores) / count)
        student, teacher = results
        text = f"task {task.index}: {count} training questions: student {student:.1f}, given the answer {teacher:.1f}"
        if teacher > student:
            self.session.log.info(text)
        else:
            self.session.log.warning(
                f"{text}: the model does not use demonstrations, so SDFT cannot teach it this task"
            )
        self.session.log.event("teacher", task=task.index, student=student, teacher=teacher)
