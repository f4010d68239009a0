"""Learning without forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from models.Base import Method, Task
from models.common.losses import answer_loss, distillation
from utils.config import Float, OptionGroup, search
from utils.dataloader import IGNORE, Batch
from utils.distributed.modes import WHOLE_WEIGHTS
from utils.model.architecture import Model
from utils.model.forward import labelled_states
from utils.model.head import Scores
from utils.model.weights import Weights, borrowed, eval_mode, snapshot


class LwFOptions(OptionGroup):
    """LwF."""

    LwF_lambda: Float = Field(
        1,
        ge=0,
        description="lambda, weight of the distillation; as in the paper without tau^2.",
        json_schema_extra=search(0.1, 1, 10),
    )
    LwF_temperature: Float = Field(2, gt=0, description="tau, temperature of teacher and student.")


class LwF(Method):
    """Distils the model before the task on the new task's inputs.

    Li and Hoiem, ECCV 2016 (PAMI 2018). In task t, with the weights theta_(t-1) of its beginning as teacher,

        L(theta) = CE(y | x; theta) + lambda KL(p_tau(. | x; theta_(t-1)) || p_tau(. | x; theta))

    per answer token, where p_tau is softened by the temperature tau; no old example is needed. As in the paper, with a
    classifier the old heads are distilled on the new inputs: separately in TIL, the old classes together in CIL. A
    language model has one head for all tasks, so both terms act on the same distribution, and the teacher reads the
    preceding tokens of the new answer. The paper's warm-up of the new head has no counterpart. As in the paper there
    is no factor tau^2 (Hinton et al., 2015): code that has it needs lambda / tau^2.

    Rows from memory are learned but not distilled.
    """

    Options = LwFOptions
    options: LwFOptions
    parallel = WHOLE_WEIGHTS | {"FSDP2"}
    has_teacher = True
    state: ClassVar = ("teacher",)

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.teacher: Weights = {}

    def before_task(self, task: Task) -> None:
        if task.index > 0:
            self.teacher = snapshot(self.learning(task))  # all other weights are equal

    def loss(self, model: Model, batch: Batch, task: Task) -> dict[str, Tensor]:
        scores, labels = self.scores(model, batch, task.index)
        terms = {"answer": answer_loss(scores, labels, batch.tokens["all"])}
        if self.teacher:
            new, tokens = only(labels, batch.rows("task")), batch.tokens.get("task", 1)  # maybe of memory alone
            pairs = self._pairs(scores, model, batch, task)
            tau = self.options.LwF_temperature
            nothing = torch.zeros((), device=labels.device)
            kl = sum((distillation(own, old, new, tokens, tau) for own, old in pairs), nothing)
            terms["distillation"] = self.options.LwF_lambda / tau**2 * kl
        return terms

    def _pairs(
        self, scores: Scores, model: Model, batch: Batch, task: Task
    ) -> Sequence[tuple[Scores | Tensor, Scores | Tensor]]:
        """Scores (B, K, V) of student and teacher, of all that is distilled together."""
        if self.classifier is None or not self.classifier.is_task_known:
            old = self.teacher_scores(self.teacher, batch, task.index - 1)
            return [(scores.first(old.width), old)]
        with borrowed(self.named(), self.teacher), eval_mode(self.model, self.extra), torch.no_grad():
            olds = self._old_heads(model, batch, task)
        return list(zip(self._old_heads(model, batch, task), olds, strict=True))

    def _old_heads(self, model: Model, batch: Batch, task: Task) -> list[Tensor]:
        """Logits of the heads of earlier tasks, (B, K, classes of the task) each."""
        states, _ = labelled_states(model, batch)
        return [self.answers.needed_heads.one(k, states) for k in range(task.index)]

    def learning_heads(self, task: Task) -> set[int]:
        return set(range(self.answers.count(task.index)))


def only(labels: Tensor, rows: list[int]) -> Tensor:
    """Labels (B, K) with IGNORE in all other rows."""
    kept = labels.new_full(labels.shape, IGNORE)
    kept[rows] = labels[rows]
    return kept
