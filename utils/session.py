"""The objects that all parts of a run share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from utils.classifier import ClassEncoder
from utils.config import Config
from utils.dataloader import Encoder
from utils.logger import Aside, RunLog

if TYPE_CHECKING:
    from accelerate import Accelerator  # seconds to import: not for --help


@dataclass
class Session:
    """Options, processes, tokenizer, log, and the training loop."""

    config: Config
    accelerator: Accelerator
    encoder: Encoder | ClassEncoder
    log: RunLog | Aside
    loop: Callable[..., Any]  # utils.run.fit.fit: handed to methods, which lie below it

    def fit(self, method: Any, task: Any, **options: Any) -> Any:
        """Train as `utils.run.fit.fit` does, in this session."""
        return self.loop(method, task, self, **options)

    def aside(self, name: str, config: Config | None = None) -> Session:
        """A session for auxiliary training, such as of a teacher, logged separately, optionally with other options."""
        return replace(self, config=config or self.config, log=Aside(self.log, name))


@dataclass(frozen=True)
class Progress:
    """How far a task has been learned: `step` of the `steps` optimizer steps of epoch `epoch` are done."""

    task: int
    epoch: int = 0
    step: int = 0
    steps: int = 0

    @property
    def done(self) -> int:
        """Optimizer steps of this task so far."""
        return self.epoch * self.steps + self.step
