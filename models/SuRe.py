"""SuRe: replay of what surprised the model, and a slow average that answers."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from models.Base import Method, Setting, Task
from utils.config import Float, OptionGroup, search
from utils.model.weights import Weights, follow, snapshot


class SuReOptions(OptionGroup):
    """SuRe."""

    SuRe_beta: Float = Field(
        0.99,
        ge=0,
        lt=1,
        description="Share that the slow weights keep at each step.",
        json_schema_extra=search(0.9, 0.99, 0.999),
    )


class SuRe(Method):
    """Replays the examples that surprised the model most, and answers with a slow average of the weights.

    Hazard et al., "SuRe: Surprise-Driven Prioritised Replay for Continual LLM Learning", 2025 (arXiv 2511.22367). Fast
    weights theta learn the new and the remembered examples; after each step slow ones follow,

        theta_slow := beta theta_slow + (1 - beta) theta

    and answer; they start as the first weights and continue over tasks. The fast ones are evaluated alongside them.
    Memory keeps the examples with the largest mean -log p(y_t | x, y_<t), measured before their task is learned: that
    is a setting of the frame, `Replay_sampling_algorithm: surprise`, which every method with a memory can have.
    `SuRe_beta: 0` is the selection without the average; another `Replay_sampling_algorithm` is the average without the
    selection.

    The paper's weights are LoRA's (`PEFT_type: LoRA`): the average of the factors, not of their products. Only its
    abstract was read for this file, so beta, the moment of the measurement, and that prompts do not count are choices
    made here (`Replay_surprise_when`, `Replay_surprise_on`). The largest losses include those of wrong labels; the log
    has the mean loss of all examples and of the most surprising tenth. Slow weights are float32 whatever theta is.
    """

    Options = SuReOptions
    options: SuReOptions
    needs: ClassVar = {Setting("is_replay"): "it learns from memory"}
    state: ClassVar = ("slow",)

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.slow: Weights = {}

    def before_task(self, task: Task) -> None:
        super().before_task(task)
        now = {name: w.float() for name, w in snapshot(self.learning(task)).items()}
        self.slow = now | self.slow  # heads of later tasks become trainable later

    def after_step(self, task: Task) -> None:
        super().after_step(task)
        follow(self.slow, self.named(), self.options.SuRe_beta)

    def versions(self) -> dict[str, Weights | None]:
        return {"": self.slow, "fast": None} if self.slow else {"": None}
