"""One try: a run with some values, scored on dev."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from utils.config import MEASUREMENTS, Config
from utils.jobs.choice import Entry
from utils.jobs.runs import Job, is_finished, reason
from utils.options import yaml_dialect
from utils.options.checks import Plan, metrics_of
from utils.options.parse import flatten, resolve
from utils.report.tables import MISSING, markdown, percent
from utils.scoring import find
from utils.storage.files import is_file, read_json, write_json, write_text
from utils.tune.space import Point, columns, label_of, text_of, words_of

DIVERGED = "the loss is not finite"  # of utils.run.fit.DivergedError: a property of the values, not of the machine
NOT_CHOSEN = ("cfg", "seed", "dump_path", "wandb_name", "score_split", "first_tasks", "resume", "tuning")


class Where(NamedTuple):
    """What all tries share."""

    prefix: str
    root: Path  # dump_path
    seed: int
    first_k: int | None  # None: all tasks
    launcher: tuple[str, ...] | None = None

    @property
    def folder(self) -> Path:
        """With tables and chosen files."""
        return self.root / self.prefix

    @property
    def words(self) -> tuple[str, ...]:
        """Options of a try."""
        first = () if self.first_k is None else ("--first_tasks", str(self.first_k))
        return ("--score_split", "dev", *first)


class Trial(NamedTuple):
    """Values of a row, and their run."""

    entry: Entry
    point: Point
    job: Job
    metric: str  # decides
    chosen: tuple[str, ...]  # its words without those that only searching needs

    @property
    def diverged(self) -> str | None:
        """Why its run has no end, if that is due to the values."""
        if not is_file(self.job.output) or is_finished(self.job.folder()):
            return None
        said = reason(self.job.output)
        return said if said.startswith(DIVERGED) and self.job.folder() is not None else None

    @property
    def is_open(self) -> bool:
        """True if it has to be run."""
        return not is_finished(self.job.folder()) and self.diverged is None

    def score(self) -> float | None:
        """The number that decides; None: there is none."""
        run = self.job.folder()
        return read_json(run / "results.json")["summary"][self.metric] if run and is_finished(run) else None

    def passes(self) -> int | None:
        """Sequences that went through the model in training."""
        file = (self.job.folder() or Path()) / "cost.json"
        return sum(read_json(file)["train_sequences"]) if is_file(file) and not self.is_open else None


def trial_of(entry: Entry, plan: Plan, point: Point, where: Where) -> Trial:
    """The try of some values, with no measurement but its score."""
    values = words_of(point, plan.resolved.config)
    words = (*entry.words, *where.words, *scored_alone(plan.config), *values)
    label = "-".join(word for word in (entry.label, label_of(point)) if word)
    job = Job(entry.cfg, where.seed, where.prefix, where.root, words, where.launcher, label)
    return Trial(entry, point, job, criterion(plan.config), (*entry.words, *values))


def scored_alone(config: Config) -> tuple[str, ...]:
    """Words that leave out all that does not decide: measurements, and scores that the criterion does not need."""
    wanted = {name: Config.model_fields[name].default for name in MEASUREMENTS}
    wanted |= {"is_evaluate_init": False, "tuning": None}
    if criterion(config) == "average_accuracy":
        wanted["evaluate_schedule"] = "last"
    return words_of({name: value for name, value in wanted.items() if getattr(config, name) != value}, config)


def criterion(config: Config) -> str:
    """The metric that decides: of Single, which knows one task at a time, the diagonal of R."""
    return "learning_accuracy" if config.method == "Single" else "average_accuracy"


def is_higher_better(plan: Plan) -> bool | None:
    """The direction of the scores; None: it differs between tasks."""
    directions = {find(metric).higher_is_better for metric in metrics_of(plan)}
    return directions.pop() if len(directions) == 1 else None


def best(trials: Sequence[Trial], higher: bool) -> Trial | None:
    """The try with the best score, the first of equal ones; None: none has a score."""
    scored = [(score, trial) for trial in trials if (score := trial.score()) is not None and not math.isnan(score)]
    return max(scored, key=lambda pair: pair[0] if higher else -pair[0])[1] if scored else None


def spent(trials: Sequence[Trial], least: int = 0) -> int:
    """Passes of all tries; of one whose cost is not known, `least`."""
    return sum(trial.passes() or least for trial in trials)


def describe(trials: Sequence[Trial], where: Where, tasks: int, passes: int | None) -> str:
    """How values were chosen, in the words of a report.

    Args:
        trials: All tries of a row.
        where: What they share.
        tasks: Of the stream.
        passes: The budget, if it is one of passes.
    """
    names, count = ", ".join(columns([trial.point for trial in trials])), len(trials)
    on = f"dev of the first {where.first_k} of {tasks} tasks"
    if where.first_k is None or where.first_k == tasks:
        on = f"dev of all {tasks} tasks (an oracle: later tasks are not known when the first is learned)"
    of_passes = "" if passes is None else f", {spent(trials):,} of {passes:,} passes,"
    return f"{names}: {count} {'try' if count == 1 else 'tries'}{of_passes} on {on}"


def write_chosen(trial: Trial, said: str, command: str, file: Path) -> None:
    """The YAML file of a row with its best values, for utils.sweep."""
    options = resolve(trial.job._replace(options=trial.chosen).words())
    values = flatten(options)
    given = [name for name in options.sources if name not in NOT_CHOSEN and values[name] is not None]
    lines = [f"# {said}", f"# score {percent(trial.score())}: {command}"]
    lines += [f"{name}: {yaml_dialect.write(values[name])}" for name in given]
    write_text(file, "\n".join([*lines, f"tuning: {json.dumps(said, ensure_ascii=False)}"]) + "\n")


def write_tables(rows: Sequence[tuple[Sequence[Trial], Trial | None, str]], folder: Path) -> None:
    """trials.md and trials.json, also of an unfinished search; those of other rows of an earlier command are kept.

    Args:
        rows: Tries of a row, the chosen one, and how they were made.
        folder: Where the tables are.
    """
    names = {trials[0].entry.name for trials, *_ in rows if trials}
    content, parts = _others(folder, names)
    for trials, chosen, said in rows:
        content += [_row(trial, trial == chosen) for trial in trials]
        parts += [f"## {trials[0].entry.name}\n\n{said}\n\n{_table(trials, chosen)}"] if trials else []
    write_json(folder / "trials.json", content)
    write_text(folder / "trials.md", "\n\n".join(["# Tries, scores in percent on dev", *parts]) + "\n")


def _others(folder: Path, names: Set[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """What trials.json and trials.md have of other rows."""
    if not (is_file(folder / "trials.json") and is_file(folder / "trials.md")):
        return [], []
    text = (folder / "trials.md").read_text(encoding="utf-8").removesuffix("\n")
    parts = ["## " + part.rstrip("\n") for part in text.split("\n## ")[1:]]
    content = [row for row in read_json(folder / "trials.json") if row["method"] not in names]
    return content, [part for part in parts if part.partition("\n")[0].removeprefix("## ") not in names]


def _row(trial: Trial, is_chosen: bool) -> dict[str, Any]:
    run = trial.job.folder()
    return {
        "method": trial.entry.name,
        "values": trial.point,
        "score": trial.score(),
        "passes": trial.passes(),
        "diverged": trial.diverged,
        "run": None if run is None else str(run),
        "chosen": is_chosen,
    }


def _table(trials: Sequence[Trial], chosen: Trial | None) -> str:
    names = columns([trial.point for trial in trials])
    lines = [[*names, "score", "passes", ""]]
    for trial in trials:
        state = "chosen" if trial == chosen else "diverged" if trial.diverged else "not done" if trial.is_open else ""
        passes = trial.passes()
        values = [text_of(trial.point[name]) if name in trial.point else MISSING for name in names]
        lines.append([*values, percent(trial.score()), MISSING if passes is None else f"{passes:,}", state])
    return markdown(lines, left=())
