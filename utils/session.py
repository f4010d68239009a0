"""What a run has once, whatever it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.config import Config
from utils.dataloader import Encoder
from utils.logger import Aside, RunLog

if TYPE_CHECKING:
    from accelerate import Accelerator  # seconds to import: not for --help


@dataclass
class Session:
    """Options, processes, tokeniser, log."""

    config: Config
    accelerator: Accelerator
    encoder: Encoder
    log: RunLog | Aside


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
