"""Two moving averages as teachers: "Learning Fast, Learning Slow" (CLS-ER; Arani et al., ICLR 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from models.Base import Method, Setting, Task
from models.common.losses import answer_loss, squared_error
from utils.backbone import kind
from utils.config import Config, Float, OptionGroup, search
from utils.dataloader import IGNORE, Batch
from utils.dataset import Stream
from utils.model.architecture import Model
from utils.model.forward import layer_states
from utils.model.head import PIECE, Scores, sum_over_pieces
from utils.model.weights import Weights, follow, snapshot
from utils.seed import random_for


class CLSEROptions(OptionGroup):
    """CLSER."""

    CLSER_alpha_fast: Float = Field(0.999, ge=0, le=1, description="Largest share that the plastic average keeps.")
    CLSER_alpha_slow: Float = Field(0.999, ge=0, le=1, description="Largest share that the stable average keeps.")
    CLSER_freq_fast: Float = Field(0.9, ge=0, le=1, description="Share of steps that update the plastic average.")
    CLSER_freq_slow: Float = Field(0.7, ge=0, le=1, description="Share of steps that update the stable average.")
    CLSER_lambda: Float = Field(
        0.1,
        ge=0,
        description="Weight of the squared error to the better average.",
        json_schema_extra=search(0.01, 0.1, 1),
    )
    CLSER_match: Literal["logits", "states"] = Field(
        "logits", description="What is compared with the better average: logits, or the hidden states of all layers."
    )
    CLSER_predict_with: Literal["stable", "working"] = Field(
        "stable", description="Weights that answer; the others are evaluated alongside them."
    )


class CLSER(Method):
    """Replays, and keeps the working model close to the better of two averages of its past, plastic and stable.

        L = CE(new and remembered rows) + lambda MSE(f(x'), z*)

    x' are the rows from memory; z* are, at each answer token, the logits of the average that gives the true token more
    probability. After step n, with probability r_P for the plastic (fast) and r_S for the stable (slow) average,

        theta_E := a theta_E + (1 - a) theta,   a = min(1 - 1 / (n + 1), alpha)

    where n counts the steps of the whole stream. Both averages start as the first weights. The stable average answers;
    the working model is evaluated alongside it.

    I-LoRA (Ren et al., "Analyzing and Reducing Catastrophic Forgetting in Parameter Efficient Tuning", 2024, arXiv
    2402.18865) is this with hidden states in the place of logits, on LoRA, and with one average: `CLSER_match: states`,
    `PEFT_type: LoRA`, and a plastic average that is the working model (`CLSER_alpha_fast: 0`, `CLSER_freq_fast: 1`), so
    that tokens which this knows better add nothing. f and z* are then the embeddings and the outputs of all layers,
    where tokens of the answer are predicted, and the MSE is the mean over them. In the released code the slow adapter
    never moves, and the better of two states is their elementwise maximum; here both are as in CLS-ER.

    As published, the new examples are offered to a reservoir after every step. An average is chosen for each token;
    the paper's unit is an image, and the MSE is the mean over the vocabulary. Averages are float32 whatever the weights
    are: 1 - alpha of a difference would be lost in bfloat16.
    """

    Options = CLSEROptions
    options: CLSEROptions
    needs: ClassVar = {
        Setting("is_replay"): "it learns from memory",
        Setting("Replay_update", "step"): "memory is filled during a task",
    }
    state: ClassVar = ("fast", "slow", "steps")

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.fast: Weights = {}
        self.slow: Weights = {}
        self.steps = 0  # of the whole stream

    @classmethod
    def problems(cls, config: Config, options: CLSEROptions, stream: Stream) -> list[str]:
        if options.CLSER_match == "logits":
            return []
        if config.classifier is not None or kind(config) != "decoder":
            return ["CLSER_match: states are those that a decoder writes answers from; use logits"]
        if config.gradient_checkpointing:
            return ["gradient_checkpointing: discards the states that CLSER_match states compares; leave it out"]
        if config.padding_free:
            return ["padding_free: CLSER_match states compares the states of whole rows; leave it out"]
        return []

    def before_task(self, task: Task) -> None:
        for average in (self.fast, self.slow):  # heads of later tasks become trainable later
            new = {name: w for name, w in self.learning(task).items() if name not in average}
            average |= {name: w.float() for name, w in snapshot(new).items()}

    def loss(self, model: Model, batch: Batch, task: Task) -> dict[str, Tensor]:
        nothing: AbstractContextManager[list[Tensor]] = nullcontext([])
        with layer_states(model) if self.options.CLSER_match == "states" else nothing as states:
            scores, labels = self.scores(model, batch, task.index)
        old = batch.rows("memory")
        if not old:
            error = scores.states.sum() * 0
        elif self.options.CLSER_match == "states":
            error = self._error_of_states([layer[old] for layer in states], labels[old], batch.only(old), task)
        else:
            error = self._error(scores[old], labels[old], batch.only(old), task)
        return {
            "answer": answer_loss(scores, labels, batch.tokens["all"]),
            "consistency": self.options.CLSER_lambda * error / batch.tokens.get("memory", 1.0),
        }

    def _error(self, scores: Scores, labels: Tensor, batch: Batch, task: Task) -> Tensor:
        """Squared errors to z*, () float: mean over the vocabulary, sum over the answer tokens of x'."""
        teachers = [self.teacher_scores(weights, batch, task.index) for weights in (self.fast, self.slow)]
        columns = teachers[0].shape[1]
        scores, labels = scores[:, -columns:], labels[:, -columns:]
        labelled = labels != IGNORE

        def term(own: Tensor, plastic: Tensor, stable: Tensor, wanted: Tensor) -> Tensor:
            return squared_error(own, better(plastic, stable, wanted))

        of_teachers = (teacher[labelled] for teacher in teachers)
        return sum_over_pieces(term, scores[labelled], *of_teachers, labels[labelled])

    def _error_of_states(self, states: list[Tensor], labels: Tensor, batch: Batch, task: Task) -> Tensor:
        """Squared errors to the states of the better average, () float: mean over layers and D, sum over tokens of x'.

        Args:
            states: (B, T, D) of each layer, with gradients.
            labels: (B, K), of the last K columns.
            batch: These B rows, without the padding that they share.
            task: The task being learned.
        """
        found, chances = [], []
        for weights in (self.fast, self.slow):
            with layer_states(self.model) as layers:
                scores = self.teacher_scores(weights, batch, task.index)
            columns = scores.shape[1]
            labels = labels[:, -columns:]
            found.append(at_labels(layers, labels))
            chances.append(log_probabilities(scores[labels != IGNORE], labels[labels != IGNORE]))
        is_plastic = (chances[0] > chances[1])[:, None, None]
        own = at_labels(states, labels)
        return (own - torch.where(is_plastic, found[0], found[1])).float().square().mean(dim=(1, 2)).sum()

    def after_step(self, task: Task) -> None:
        super().after_step(task)
        self.steps += 1
        rng, o = random_for(self.config.seed, "averages", self.steps), self.options
        for average, alpha, frequency in (
            (self.fast, o.CLSER_alpha_fast, o.CLSER_freq_fast),
            (self.slow, o.CLSER_alpha_slow, o.CLSER_freq_slow),
        ):
            if rng.random() < frequency:
                follow(average, self.named(), min(1 - 1 / (self.steps + 1), alpha))

    def versions(self) -> dict[str, Weights | None]:
        if not self.slow:
            return {"": None}
        if self.options.CLSER_predict_with == "stable":
            return {"": self.slow, "working": None}
        return {"": None, "stable": self.slow}


def at_labels(layers: Sequence[Tensor], labels: Tensor) -> Tensor:
    """(N, L, D): the states (B, T, D) of L layers from which the N labels in the last columns (B, K) are predicted."""
    columns = labels.shape[1]
    return torch.stack([states[:, -columns - 1 : -1][labels != IGNORE] for states in layers], dim=1)


@torch.no_grad()
def log_probabilities(scores: Scores, labels: Tensor) -> Tensor:
    """Of the labels (N,), (N,) float32; in pieces of the positions."""
    size = max(1, PIECE // scores.width)
    pieces = [scores[start : start + size].whole().float().log_softmax(dim=-1) for start in range(0, len(labels), size)]
    return torch.cat(pieces).gather(1, labels[:, None])[:, 0]


def better(plastic: Tensor, stable: Tensor, labels: Tensor) -> Tensor:
    """From two models' logits (N, V), at each token those that give the label (N,) more probability."""
    of_label = [z.float().log_softmax(dim=-1).gather(-1, labels[:, None]) for z in (plastic, stable)]
    return torch.where(of_label[0] > of_label[1], plastic, stable)
