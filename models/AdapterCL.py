"""AdapterCL: an adapter per task, found by the perplexity of the question."""

from __future__ import annotations

from typing import ClassVar

from models.Base import GENERATING
from models.PEFT import PEFT
from utils.config import Config, NoOptions
from utils.dataset import Stream


class AdapterCL(PEFT):
    """Train an adapter for each task as a language model of its texts; the one that knows a question best answers it.

    Madotto et al., "Continual Learning in Task-Oriented Dialogue Systems", EMNLP 2021. For a text x of prompt and
    answer, task t minimises the loss over every token of it, not only those of the answer,

        L = -1/n sum_k log p_t(x_k | x_<k)

    so that afterwards i* = argmin_i L_i(prompt) says whose text this is; adapter i* writes the answer. In TIL, where
    the task is known, nothing has to be found.

    Deviations: the paper's adapter is a residual bottleneck behind each layer, with a norm of its own in front; with
    `PEFT_type: Bottleneck` it stands behind the layer's feed-forward part, without that norm, and any other kind will
    do. Prompts are routed in batches: one pass for each adapter, then decoding in groups.
    """

    Options = NoOptions
    heads = GENERATING
    backbones = frozenset({"decoder"})
    per_task = True
    excludes: ClassVar = {
        "is_replay": "an adapter would learn other tasks' questions, and no longer be told by them",
        "keep_optimizer_state": "each task has parameters of its own",
        "recovery": "it trains the newest adapter, which does not answer task 0",
        "is_probing": "it looks at the newest adapter, which need not answer",
    }

    @classmethod
    def problems(cls, config: Config, options: NoOptions, stream: Stream) -> list[str]:
        return []

    @property
    def inference(self) -> str:
        return "task_id" if self.config.il_mode == "TIL" else "route"

    def setup(self) -> None:
        super().setup()
        self.encoder.loss_on_prompts = True
