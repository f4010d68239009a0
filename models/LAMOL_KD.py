"""LAMOL_KD: LAMOL with a teacher for the pseudo-samples, a baseline of Zheng et al., "Learn or Recall?", ACL 2024."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from models.Base import Task
from models.LAMOL import LAMOL, LAMOLOptions
from utils.config import Float, OptionGroup, search
from utils.dataloader import Batch
from utils.model.architecture import Model
from utils.model.weights import Weights, snapshot


class LAMOL_KDOptions(LAMOLOptions):
    """LAMOL_KD."""

    LAMOL_KD_distill_weight: Float = Field(
        1.0, ge=0, description="w, weight of the distillation.", json_schema_extra=search(0.5, 1, 2)
    )
    LAMOL_KD_temperature: Float = Field(2.0, gt=0, description="tau, temperature of the distillation.")


class LAMOL_KD(LAMOL):
    """LAMOL, with pseudo-samples distilled from the model as it was before the task::

        L = [l_A + lambda l_G](new rows) + w [KD_tau(A) + lambda KD_tau(G)](pseudo rows)

    KD_tau is tau^2 KL(teacher || student) at the positions that predict the labels. The teacher is in eval mode.
    Each term is a mean over the tokens of its rows. The first task is LAMOL.

    Deviation: the published code reads the teacher one position late and with dropout.
    """

    Options: ClassVar[type[OptionGroup]] = LAMOL_KDOptions
    options: LAMOL_KDOptions
    state: ClassVar[tuple[str, ...]] = (*LAMOL.state, "teacher")
    sampling = (*LAMOL.sampling, "LAMOL_KD_distill_weight", "LAMOL_KD_temperature")

    def setup(self) -> None:
        super().setup()
        self.teacher: Weights = {}

    def before_task(self, task: Task) -> None:
        super().before_task(task)
        self.teacher = snapshot(self.learning(task)) if self.pseudo else {}

    def loss(self, model: Model, batch: Batch, task: Task) -> dict[str, Tensor]:
        scores, labels = self.scores(model, batch, task.index)
        terms = self.learn(scores, labels, batch, "task")
        if self.teacher:
            w, tau = self.options.LAMOL_KD_distill_weight, self.options.LAMOL_KD_temperature
            distilled = self.distil(scores, labels, batch, "pseudo", self.teacher, tau)
            terms |= {name: w * term for name, term in distilled.items()}
        return terms

    def after_task(self, task: Task) -> None:
        super().after_task(task)
        self.teacher = {}
