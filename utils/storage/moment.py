"""Evaluation points of a run, and the names of their folders below predictions/, probing/ and features/."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

_FOLDER = re.compile(r"(?:base|recovery|after_(\d+)|task_(\d+)_epoch_(\d+))(?:_(.+))?")


@dataclass(frozen=True)
class Moment:
    """When the model was evaluated; `BASE` and `RECOVERY` are the moments outside the tasks.

    >>> Moment(2).folder, Moment(1, epoch=3).folder, Moment(2).of("slow").folder, BASE.folder
    ('after_2', 'task_1_epoch_3', 'after_2_slow', 'base')
    """

    task: int | None = None  # the task just learned, or in progress if there is an epoch
    epoch: int | None = None  # epochs of this task so far
    version: str = ""  # which weights answered, see `Method.versions`; "": those that the results show
    recovered: bool = False  # task 0 was practised again after the last task

    @property
    def folder(self) -> str:
        """Name of its folder; `parse` is the inverse."""
        if self.task is None:
            name = "recovery" if self.recovered else "base"
        elif self.epoch is None:
            name = f"after_{self.task}"
        else:
            name = f"task_{self.task}_epoch_{self.epoch}"
        return f"{name}_{self.version}" if self.version else name

    def of(self, version: str) -> Moment:
        """The same moment under another version of the weights."""
        return replace(self, version=version)

    def predictions(self, run: Path, cell: str) -> Path:
        """File with the predictions of one set of questions, such as `task_0`, in the folder of a run."""
        return run / "predictions" / self.folder / f"{cell}.jsonl"

    def probing(self, run: Path, task: int) -> Path:
        """File with the answers of the probes to one task, in the folder of a run."""
        return run / "probing" / self.folder / f"task_{task}.jsonl"


BASE = Moment()  # before the first task
RECOVERY = Moment(recovered=True)


def parse(folder: str) -> Moment | None:
    """The moment that a folder belongs to; None if it belongs to none.

    >>> parse("after_2_alpha 0.2"), parse("notes")
    (Moment(task=2, epoch=None, version='alpha 0.2', recovered=False), None)
    """
    match = _FOLDER.fullmatch(folder)
    if match is None:
        return None
    after, inside, epoch, version = match.groups(default="")
    task = after or inside
    return Moment(
        int(task) if task else None,
        int(epoch) if epoch else None,
        version,
        folder.startswith("recovery"),
    )
