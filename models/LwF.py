"""Learning without forgetting."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from models.Base import Method, Task
from utils.backbone import answer_logits
from utils.config import Float, Options
from utils.copies import Weights, snapshot
from utils.dataloader import IGNORE, Batch
from utils.losses import answer_loss, distillation


class LwF(Method):
    """On the new task's inputs, answer also as the model before the task would have.

    Li and Hoiem, ECCV 2016 (PAMI 2018). In task t, with the weights theta_(t-1) of its beginning as teacher,

        L(theta) = CE(y | x; theta) + lambda tau^2 KL(p_tau(. | x; theta_(t-1)) || p_tau(. | x; theta))

    per answer token, p_tau being softened by the temperature tau; no old example is needed. In the paper every task
    has a head and the old heads are distilled; a language model has one head for all, so both terms pull at the same
    distribution, and the teacher reads the new answer's tokens so far. The paper's warm-up of the new head has no
    counterpart. tau^2 keeps the size of the gradient (Hinton et al., 2015); the paper leaves it out.

    Rows from memory, where there is one, are learned but not distilled.
    """

    class Options(Options):
        """LwF."""

        LwF_lambda: Float = Field(1, ge=0, description="Weight of the distillation.")
        LwF_temperature: Float = Field(2, gt=0, description="Temperature of teacher and student in it.")

    state: ClassVar = ("teacher",)

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.teacher: Weights = {}

    def before_task(self, task: Task) -> None:
        if task.index > 0:
            self.teacher = snapshot(self.learning(task))  # the rest will not differ

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.teacher = {name: w.to(self.model.device) for name, w in self.teacher.items()}

    def loss(self, model: nn.Module, batch: Batch, task: Task) -> dict[str, Tensor]:
        logits, labels = answer_logits(model, batch)
        terms = {"answer": answer_loss(logits, labels, batch.tokens["all"])}
        if self.teacher:
            teacher = self.teacher_logits(self.teacher, batch)
            new, tokens = only(labels, batch.rows("task")), batch.tokens.get("task", 1)  # maybe of memory alone
            kl = distillation(logits, teacher, new, tokens, self.options.LwF_temperature)
            terms["distillation"] = self.options.LwF_lambda * kl
        return terms


def only(labels: Tensor, rows: list[int]) -> Tensor:
    """Labels (B, K) with IGNORE in all other rows."""
    kept = labels.new_full(labels.shape, IGNORE)
    kept[rows] = labels[rows]
    return kept
