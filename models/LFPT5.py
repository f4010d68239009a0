"""LFPT5: Qin and Joty, "LFPT5: A Unified Framework for Lifelong Few-shot Language Learning", ICLR 2022."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from models.Base import Setting, Task
from models.common.virtual_tokens import NewRows, random_words
from models.LAMOL_KD import LAMOL_KD, LAMOL_KDOptions
from utils.config import Float, Int, per_task, search
from utils.dataloader import Batch
from utils.model.architecture import Model
from utils.optimizer import Group
from utils.seed import random_for

NO_MODEL = "the model is frozen, only the prompt is trained"


class LFPT5Options(LAMOL_KDOptions):
    """LFPT5."""

    LFPT5_num_virtual_tokens: Int = Field(100, ge=1, description="n, virtual tokens of the prompt.")
    LFPT5_label_filter: bool = Field(True, description="Keep only pseudo-samples with an answer of their task.")
    LAMOL_topk: Int = Field(64, ge=1, description="Pseudo-samples are drawn from the k best tokens.")
    LAMOL_use_task_specific_gen_token: bool = Field(True, description="A separate GEN token for each task.")
    LAMOL_KD_distill_weight: Float = Field(
        0.05, ge=0, lt=1, description="k, weight of the distillation.", json_schema_extra=search(0.01, 0.05, 0.2)
    )
    LAMOL_KD_temperature: Float = Field(1.0, gt=0, description="tau, temperature of the distillation.")


class LFPT5(LAMOL_KD):
    """LAMOL with a soft prompt on a frozen model, and distillation of the previous prompt on the pseudo-samples::

        L = (1 - k) [l_A + lambda l_G](all rows) + k KL(A)(pseudo rows)

    One prompt of n virtual tokens, initialised with random words, answers and writes in all tasks. Before a task it
    writes pseudo-samples of the earlier ones; KL is that of the outputs under that prompt and under the
    prompt as it learns, 0 at the start. The first task is l_A + lambda l_G. Besides the prompt only the rows of the new
    tokens ANS and GEN are trained.

    Deviations: KL is a mean over answer tokens (published: a sum over all tokens of a batch, so that k weighs as many
    times more as a batch has tokens). The prompt comes before the text (published: after it, at the end of an encoder's
    input). Pseudo-samples are a share gamma of the new task, not two of each class. A sample is kept if its answer
    occurred in its task's examples (published: if it is a label). AdamW at `lr` (published for T5-large: Adafactor at
    0.5, n = 300). Other task types continue the prompt, too.
    """

    Options = LFPT5Options
    options: LFPT5Options
    excludes: ClassVar = LAMOL_KD.excludes | {
        Setting(option): NO_MODEL for option in ("freeze_parts", "PEFT_type", "recovery", "is_probing", "drift")
    }
    state: ClassVar[tuple[str, ...]] = (*LAMOL_KD.state, "targets")
    sampling = (*LAMOL_KD.sampling, "LFPT5_label_filter")

    def setup(self) -> None:
        tokenizer, old = self.backbone.tokenizer, len(self.backbone.tokenizer)
        rng, n = random_for(self.config.seed, "prompt"), self.options.LFPT5_num_virtual_tokens
        self.prompt = nn.ParameterList([random_words(self.model, tokenizer, n, rng)])
        self.extra["prompt"] = self.prompt
        self.virtual_tokens = n
        super().setup()
        if len(tokenizer) > old:
            self.extra["rows"] = NewRows(self.model, old, len(tokenizer) - old)
        self.targets: dict[int, list[str]] = {}  # by task; -1: all

    def soft_prompt(self, task_id: int | None) -> Tensor:
        return self.prompt[0]

    def trainable(self, task: Task) -> list[Group]:
        lr = per_task(self.config.lr_list, self.config.lr, task.index)
        return [Group(list(self.extra.parameters()), lr, self.config.weight_decay)]

    def loss(self, model: Model, batch: Batch, task: Task) -> dict[str, Tensor]:
        scores, labels = self.scores(model, batch, task.index)
        learned = self.learn(scores, labels, batch)
        if not self.teacher:
            return learned
        k, tau = self.options.LAMOL_KD_distill_weight, self.options.LAMOL_KD_temperature
        distilled = self.distil(scores, labels, batch, "pseudo", self.teacher, tau, "answer")
        return {name: (1 - k) * term for name, term in learned.items()} | {
            "pseudo answer": k * distilled["pseudo answer"]
        }

    def write(self, task: Task, old: int, attempt: int, count: int) -> list[tuple[str, str] | None]:
        samples = super().write(task, old, attempt, count)
        if not self.options.LFPT5_label_filter:
            return samples
        return [sample if sample and sample[1] in self.targets[old] else None for sample in samples]

    def after_task(self, task: Task) -> None:
        super().after_task(task)
        if self.options.LFPT5_label_filter:
            self.targets[task.index] = sorted({example.target.strip() for example in task.train})
            self.targets[-1] = sorted({*self.targets.get(-1, []), *self.targets[task.index]})
