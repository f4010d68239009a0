"""AdapterCL: an adapter per task, selected by the perplexity of the question."""

from __future__ import annotations

from typing import Any, ClassVar

from models.Base import GENERATING, Setting
from models.PEFT import PEFT
from utils.config import Config, NoOptions
from utils.dataset import Stream


class AdapterCL(PEFT):
    """Trains an adapter per task as a language model; the one with the lowest perplexity on a question answers it.

    Madotto et al., "Continual Learning in Task-Oriented Dialogue Systems", EMNLP 2021. For a text x of prompt and
    answer, task t minimises the loss over all of its tokens, not only those of the answer,

        L = -1/n sum_k log p_t(x_k | x_<k)

    and afterwards the adapter i* = argmin_i L_i(prompt) writes the answer. In TIL the task is known, and its adapter
    answers.

    Deviations: the paper's adapter is a residual bottleneck after each layer, with a layer norm before it; with
    `PEFT_type: Bottleneck` it follows the layer's feed-forward part, without that norm. Any other kind works, too.
    Prompts are routed in batches: one pass for each adapter, then decoding in groups.
    """

    Options = NoOptions
    heads = GENERATING
    backbones = frozenset({"decoder"})
    loss_on_prompts = True
    per_task = True
    excludes: ClassVar = {
        Setting("is_replay"): "an adapter would learn other tasks' questions, which then no longer identify it",
        Setting("keep_optimizer_state"): "each task has separate parameters",
        Setting("recovery"): "it trains the newest adapter, which does not answer task 0",
        Setting("is_probing"): "it reads the newest adapter, which need not answer",
        Setting("drift"): "several adapters answer, and it compares one model with that before the stream",
    }

    @classmethod
    def problems(cls, config: Config, options: Any, stream: Stream) -> list[str]:
        return cls.outside_the_stream(config, "task_id" if config.il_mode == "TIL" else "route")

    @property
    def inference(self) -> str:
        return "task_id" if self.config.il_mode == "TIL" else "route"
