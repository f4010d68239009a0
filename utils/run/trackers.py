"""Weights & Biases and TensorBoard, through accelerate. A tracker that fails is dropped; the run continues."""

from __future__ import annotations

import netrc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import filter_trackers

from utils.config import Config
from utils.errors import reason_of

WANDB_HOST = "api.wandb.ai"
WANDB_TIMEOUT_SECONDS = 10  # to begin; wandb's own default waits a minute and a half for a host that does not answer
WANDB_UPLOAD_SECONDS = 60  # at the end; wandb's own default waits forever for a host that no longer answers


class Tracker:
    """What `RunLog` sends its numbers to."""

    def __init__(self, accelerator: Accelerator, warn: Callable[[str], None]):
        self.accelerator, self.warn, self.alive = accelerator, warn, True

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Send numbers; nothing is sent after the first failure."""
        self._try(lambda: self.accelerator.log(numbers, step=step))

    def finish(self) -> None:
        """Close the trackers; accelerate must not try again, where nobody would catch what they raise."""
        for tracker in self.accelerator.trackers:
            self._try(tracker.finish)
        self.accelerator.trackers = []

    def _try(self, action: Callable[[], None]) -> None:
        if self.alive:
            try:
                action()
            except Exception as error:  # whatever a tracker raises, it must not stop the run
                self.alive = False
                later = "; what it has not sent: wandb sync" if isinstance(error, TimeoutError) else ""
                self.warn(f"a tracker failed and is left out from here on: {reason_of(error, 200)}{later}")


def tracker_names(config: Config) -> list[str]:
    """The trackers that accelerate logs to."""
    return [name for name in ("wandb", "tensorboard") if getattr(config, f"is_{name}")]


def start_tracker(
    accelerator: Accelerator,
    config: Config,
    values: dict[str, Any],
    folder: Path,
    warn: Callable[[str], None],
) -> Tracker | None:
    """Start the trackers that the options ask for; None if there are none or none starts."""
    if not tracker_names(config):
        return None
    if config.is_wandb and "WANDB_MODE" not in os.environ and not _has_wandb_key():
        warn(f"is_wandb: no API key found, so wandb writes to {folder}/wandb; upload later with: wandb sync")
        os.environ["WANDB_MODE"] = "offline"
    try:
        _start(accelerator, config, values, folder)
    except Exception as error:  # see the module's docstring
        accelerator.trackers = []
        if os.environ.get("WANDB_MODE", "online") != "online" or not config.is_wandb:
            warn(f"no tracker: {reason_of(error, 200)}")
            return None
        warn(f"is_wandb: wandb can't be reached ({reason_of(error, 200)}); it writes to {folder}/wandb instead")
        os.environ["WANDB_MODE"] = "offline"
        return start_tracker(accelerator, config, values, folder, warn)
    return Tracker(accelerator, warn)


def _start(accelerator: Accelerator, config: Config, values: dict[str, Any], folder: Path) -> None:
    options: dict[str, Any] = {}
    if config.is_wandb:
        import wandb

        settings = wandb.Settings(
            init_timeout=WANDB_TIMEOUT_SECONDS,
            finish_timeout=WANDB_UPLOAD_SECONDS,
            finish_timeout_raises=True,
            silent=True,
        )
        name = f"{config.wandb_name}-seed{config.seed}"
        options["wandb"] = {
            "entity": config.wandb_entity,
            "name": name,
            "dir": str(folder),
            "settings": settings,
        }
    accelerator.project_configuration.set_directories(str(folder))  # the accelerator is older than the folder
    accelerator.log_with = filter_trackers(tracker_names(config), str(folder))
    simple = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in values.items()}
    accelerator.init_trackers(config.wandb_project or "continual-learning", config=simple, init_kwargs=options)


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(WANDB_HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False
