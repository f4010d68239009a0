"""Load a finished run: its model with the weights of any of its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.Base import Method
from utils.distributed.modes import make_accelerator
from utils.errors import UserError
from utils.logger import RunLog
from utils.model.weights import Weights, snapshot
from utils.options.checks import check
from utils.options.parse import ConfigError, resolve
from utils.run.checkpoint import Place, checkpoints
from utils.run.launch import build_method, quieten
from utils.run.trainer import load
from utils.session import Session

ADVICE = "keep them by running with --save_llm_ckpt True --save_llm_ckpt_step_interval 10"


@dataclass
class Opened:
    """A run folder with its method, ready to load checkpoints."""

    folder: Path
    method: Method
    session: Session
    places: list[Place]  # oldest first

    def find(self, names: list[str]) -> list[Place]:
        """Checkpoints by the names of their folders.

        Raises:
            UserError: one is missing or incomplete.
        """
        known = {place.name: place for place in self.places}
        for name in names:
            if name not in known:
                raise UserError(
                    f"{self.folder}/checkpoints/{name} is missing or incomplete; expected {', '.join(known)}; {ADVICE}"
                )
        return [known[name] for name in names]

    def ends(self) -> tuple[Place, Place]:
        """The checkpoints at the end of task 0 and of task 1."""
        first, second = self.find(["task_0", "task_1"])
        return first, second

    def triple(self) -> tuple[Place, Place, Place]:
        """The end of task 0, the first checkpoint inside task 1, the end of task 1."""
        first, last = self.ends()
        inside = [place for place in self.places if place.task == 1 and not place.finished]
        if not inside:
            raise UserError(f"{self.folder}/checkpoints holds none from inside task 1; {ADVICE}")
        return first, inside[0], last

    def load(self, place: Place) -> int:
        """Give the model the weights of a checkpoint; returns the optimizer steps of the run until then."""
        return load(self.method, self.folder / "checkpoints" / place.name)["steps"]

    def weights(self, place: Place) -> Weights:
        """Copies of the weights in a checkpoint, on the CPU."""
        self.load(place)
        return {name: w.cpu() for name, w in snapshot(self.method.named()).items()}


def open_run(folder: Path, **supported: bool) -> Opened:
    """Build what a run folder describes.

    Args:
        folder: The run's.
        supported: An option that its method must allow: `recovery` or `drift`, so that the model's weights answer.

    Raises:
        UserError: it is no run folder, has no checkpoints, or its method does not allow that.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is not a run folder: expected config.yaml in it; give one like {_EXAMPLE}")
    places = checkpoints(folder / "checkpoints")
    if not places:
        raise UserError(f"{folder}/checkpoints holds no checkpoint; {ADVICE}")
    options = resolve(["--cfg", str(folder / "config.yaml")])
    config = options.config.updated(**supported)
    try:
        plan = check(options._replace(config=config))
    except ConfigError as error:
        raise UserError(f"{folder}: {'; '.join(error.problems)}") from None
    quieten()
    method = build_method(plan, make_accelerator(config), RunLog(config, is_main=False))
    return Opened(folder, method, method.session, places)


_EXAMPLE = "experiments/<name>/<date-time>-seed<k>"
