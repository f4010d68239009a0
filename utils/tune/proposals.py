"""Which values are tried: the points of a grid, or draws of optuna, whose sqlite file keeps what was asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from utils.errors import UserError
from utils.seed import seed_for
from utils.tune.space import Point, Space, grid, text_of
from utils.tune.trials import Trial

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

SAMPLERS = ("grid", "random", "tpe")
LOG_SCALE = 10  # a range whose ends differ by this factor is searched on a logarithmic scale
STORAGE = "optuna.db"


class Proposals(Protocol):
    """A source of points, one row of a comparison each."""

    def points(self) -> list[Point]:
        """What was proposed so far, also by an earlier command."""

    def more(self, count: int) -> None:
        """Propose up to this many further points; none if the space is used up."""

    def learn(self, trials: Sequence[Trial]) -> None:
        """Take in the scores of tries."""


class Grid:
    """The points of a grid.

    Args:
        space: Option -> values.
        limit: Most points, if it is known; then they are drawn once and tried in order.
        name: Of the row.
    """

    def __init__(self, space: Space, limit: int | None, name: str):
        self._all, self._count = grid(space, limit, name), 0

    def points(self) -> list[Point]:
        """As in Proposals."""
        return self._all[: self._count]

    def more(self, count: int) -> None:
        """As in Proposals."""
        self._count = min(self._count + count, len(self._all))

    def learn(self, trials: Sequence[Trial]) -> None:
        """A grid does not depend on scores."""


class Sampled:
    """Draws between the smallest and the largest value of each option; options that are no numbers: of the values.

    Args:
        space: Option -> values.
        sampler: random or tpe (Bergstra et al., NeurIPS 2011).
        limit: Most points, if it is known; what an earlier command with a larger budget asked beyond it is left out.
        higher: True if a higher score is better.
        name: Of the row.
        folder: For the storage.
        runs: What the scores depend on besides the values: another study for other options, data or code.
    """

    def __init__(
        self, space: Space, sampler: str, limit: int | None, higher: bool, name: str, folder: Path, runs: object
    ):
        self._space, self._sampler, self._limit, self._name = space, sampler, limit, name
        digest = hashlib.sha256(json.dumps([space, runs], default=str, sort_keys=True).encode()).hexdigest()[:8]
        self._study = _study(folder / STORAGE, f"{name}-{sampler}-{digest}", higher)

    def points(self) -> list[Point]:
        """As in Proposals."""
        return [self._point(trial) for trial in self._study.trials[: self._limit]]

    def more(self, count: int) -> None:
        """As in Proposals."""
        from optuna.samplers import RandomSampler, TPESampler

        kind = {"random": RandomSampler, "tpe": TPESampler}[self._sampler]
        for _ in range(count):
            # A generator is not stored: with the same seed a resumed search would draw the same points again.
            self._study.sampler = kind(seed=seed_for(self._name, len(self._study.trials)) % 2**32)
            trial = self._study.ask()
            for name, values in self._space.items():
                _suggest(trial, name, values)

    def learn(self, trials: Sequence[Trial]) -> None:
        """As in Proposals."""
        from optuna.trial import TrialState

        for known, trial in zip(self._study.trials[: self._limit], trials, strict=True):
            if known.state == TrialState.RUNNING and not trial.is_open:
                score = trial.score()
                self._study.tell(known.number, score, state=TrialState.FAIL if score is None else None)

    def _point(self, trial: FrozenTrial) -> Point:
        return {name: _value(trial.params[name], values) for name, values in self._space.items()}


def proposals(
    sampler: str, space: Space, limit: int | None, higher: bool, name: str, folder: Path, runs: object
) -> Proposals:
    """The source of points that `sampler` names; see `Grid` and `Sampled`."""
    if sampler == "grid":
        return Grid(space, limit, name)
    return Sampled(space, sampler, limit, higher, name, folder, runs)


def check_sampler(sampler: str) -> None:
    """Refuse a sampler whose package is missing.

    Raises:
        UserError: it is.
    """
    if sampler != "grid" and find_spec("optuna") is None:
        raise UserError(f"sampler: {sampler} needs the package optuna, which is missing; install it, or use grid")


def _study(file: Path, name: str, higher: bool) -> Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file.parent.mkdir(parents=True, exist_ok=True)
    return optuna.create_study(
        storage=f"sqlite:///{file}",
        study_name=name,
        direction="maximize" if higher else "minimize",
        load_if_exists=True,
    )


def _is_number(values: Sequence[Any]) -> bool:
    return len(values) > 1 and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _suggest(trial: Any, name: str, values: Sequence[Any]) -> None:
    if not _is_number(values):
        trial.suggest_categorical(name, [text_of(value) for value in values])
        return
    low, high = min(values), max(values)
    draw = trial.suggest_int if all(isinstance(value, int) for value in values) else trial.suggest_float
    draw(name, low, high, log=low > 0 and high / low >= LOG_SCALE)


def _value(found: Any, values: Sequence[Any]) -> Any:
    """The value of an option: three digits of a number, which is what a YAML file shows."""
    if not _is_number(values):
        return next(value for value in values if text_of(value) == found)
    return float(f"{found:.3g}") if isinstance(found, float) else found
