"""L2KD: Chuang, Su and Chen, "Lifelong Language Knowledge Distillation", EMNLP 2020."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from models.Base import Task
from models.common.measuring import measuring
from models.common.pseudo_samples import answer_all, make_room
from models.LAMOL import LAMOL, LAMOLOptions
from utils.backbone import load_model
from utils.config import Config, Float, search
from utils.dataloader import Batch
from utils.dataset import Example, Stream
from utils.model.architecture import Model
from utils.model.weights import Weights, assign, snapshot


class L2KDOptions(LAMOLOptions):
    """L2KD."""

    L2KD_variant: Literal["word", "seq", "seq_soft"] = Field(
        "word", description="Targets: probabilities, the teacher's answers, or its probabilities of those."
    )
    L2KD_distill_weight: Float = Field(
        1.0, gt=0, description="w, weight of the teacher's targets.", json_schema_extra=search(0.5, 1, 2)
    )
    L2KD_temperature: Float = Field(2.0, gt=0, description="tau, temperature of the distillation.")
    L2KD_first_task_teacher: bool = Field(True, description="Use a teacher in the first task too; False: LAMOL.")


class L2KD(LAMOL):
    """Distil each new task into LAMOL from a teacher that is trained on this task only::

        L = w [T_A + lambda T_G](new rows) + [l_A + lambda l_G](pseudo rows)

        word:      T = KD_tau on the task's examples, no hard loss      KD_tau = tau^2 KL(teacher || student)
        seq:       T = cross-entropy of the answers that the teacher writes to the task's questions
        seq_soft:  T = KD_tau on these answers

    A task's teacher starts from the weights before any task, learns l_A + lambda l_G by the same loop, with the same
    options and number of epochs, teaches in eval mode, and is dropped after the task. Each term is a mean over the
    tokens of its rows.

    Answers are written greedily. With `L2KD_first_task_teacher: False` the first task is LAMOL, as in the code of Zheng
    et al. (ACL 2024); there the teacher is also read one position late and with dropout, here not.
    """

    Options = L2KDOptions
    options: L2KDOptions
    state: ClassVar[tuple[str, ...]] = (*LAMOL.state, "teacher", "written")

    @classmethod
    def problems(cls, config: Config, options: Any, stream: Stream) -> list[str]:
        problems = super().problems(config, options, stream)
        if options.L2KD_variant == "seq":
            problems += cls.unused(options, ["L2KD_temperature"], "L2KD_variant seq, which distils no probabilities")
        return problems

    def setup(self) -> None:
        super().setup()
        self.teacher: Weights = {}
        self.written: list[str] = []  # the teacher's, to the questions of the task

    def before_task(self, task: Task) -> None:
        super().before_task(task)
        if task.index > 0 or self.options.L2KD_first_task_teacher:
            student = snapshot(self.named())
            self._be_teacher(task)
            if self.options.L2KD_variant != "word":
                self.written = self._write_answers(task)
            if self.options.L2KD_variant != "seq":
                self.teacher = snapshot(self.named())
            assign(self.named(), student)

    def _be_teacher(self, task: Task) -> None:
        """Reset the model to the weights before any task and train it on this task alone."""
        first = load_model(self.config)
        make_room(first, len(self.backbone.tokenizer))
        assign(self.named(), dict(first.named_parameters()))
        session = self.session.aside("teacher")
        session.fit(LAMOL(session, self.options, self.backbone, self.stream), task)

    def _write_answers(self, task: Task) -> list[str]:
        """The model's greedy answers to the questions of the task, on every process."""
        rows = self.encoder.for_prediction(task.train, task.max_length)
        task_id = task.index if self.config.il_mode == "TIL" else None
        with measuring(self):
            return answer_all(
                lambda chunk: self.predict(chunk, task_id, task.max_new_tokens), rows, self.config.evaluate_batch_size
            )

    def train_examples(self, task: Task) -> Sequence[Example]:
        rows = super().train_examples(task)
        answered = [replace(example, target=answer) for example, answer in zip(rows, self.written, strict=False)]
        return [*answered, *rows[len(answered) :]]

    def loss(self, model: Model, batch: Batch, task: Task) -> dict[str, Tensor]:
        scores, labels = self.scores(model, batch, task.index)
        if not self.teacher and not self.written:
            return self.learn(scores, labels, batch)
        w, tau = self.options.L2KD_distill_weight, self.options.L2KD_temperature
        if self.teacher:
            taught = self.distil(scores, labels, batch, "task", self.teacher, tau)
        else:
            taught = self.learn(scores, labels, batch, "task")
        practised = self.learn(scores, labels, batch, "pseudo") if self.pseudo else {}
        return {name: w * term for name, term in taught.items()} | practised

    def after_task(self, task: Task) -> None:
        super().after_task(task)
        self.teacher, self.written = {}, []
