"""A whole comparison from one file: `python -m utils.study study.yaml` tunes, sweeps and reports.

The three parts are the commands utils.tune, utils.sweep and utils.report; each starts where an interrupted one stopped.
The values of every method are chosen on dev with one budget, then all methods run with all seeds and orders on test.
With `tune: false` the files run as they are: config/published has studies with published settings, whose reports show
the published numbers next to the measured ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from utils.config import Count, Int, Name, OptionGroup
from utils.errors import exit_with
from utils.jobs import choice
from utils.jobs.runs import Job, check_all
from utils.jobs.work import How
from utils.options.parse import ConfigError, Given, clean_name, read_yaml, validate
from utils.progress import say
from utils.report.published import MARKS, keep, problems_of
from utils.sweep import check_comparable, interruptible, jobs_of
from utils.sweep import run as sweep
from utils.tune.__main__ import TRIES, Budget
from utils.tune.__main__ import run as tune
from utils.tune.space import text_of
from utils.tune.trials import Where

OF_TUNING = ("tries", "passes", "first_k", "sampler", "space", "tune_seed")
Text = Annotated[str, Field(min_length=1)]


class Study(OptionGroup):
    """A comparison. `set`, `space` and the words are those of utils.tune and utils.sweep."""

    files: tuple[Text, ...] = Field((), description="YAML files of runs.")
    methods: tuple[Text, ...] = Field((), description="Methods, run with the options of each file; see utils.sweep.")
    set: dict[str, Any] = Field({}, description="Options of all runs.")
    seeds: tuple[Annotated[Int, Field(ge=0)], ...] = Field((1, 2, 3), min_length=1, description="Seeds on test.")
    orders: tuple[Text, ...] = Field(("stored",), min_length=1, description="Task orders on test, see utils.sweep.")
    baseline: str | None = Field(None, description="Row that the others are compared with, with intervals.")
    tune: bool = Field(True, description="Choose values on dev first; false: run the files as they are.")
    tries: Count | None = Field(None, description="Tries of each method; None: 6, unless passes is given.")
    passes: Count | None = Field(None, description="Sequences of each method through the model; replaces tries.")
    first_k: Count | Literal["all"] = Field(2, description="Tasks that are tuned on, or all (an oracle).")
    sampler: Literal["grid", "random", "tpe"] = Field("grid", description="How values are proposed.")
    space: dict[str, Any] = Field({}, description="Replaces declared values, see utils.tune.")
    tune_seed: Int = Field(1, ge=0, description="Seed of the runs that are tuned on.")
    published: dict[str, Any] = Field(
        {},
        description="Published numbers, shown next to the measured ones: file or method -> {metric: percent, mark: "
        f"{' | '.join(MARKS)}}}.",
    )
    source: Text | None = Field(None, description="Paper and table of the published numbers.")
    jobs: Count | None = Field(None, description="Runs at a time; None: one, in Slurm all.")
    slurm: dict[str, Any] | None = Field(None, description="Options of sbatch; None: the runs are not submitted.")
    launch: str | None = Field(None, description="Start each run with accelerate launch and these words.")
    prefix: Name | None = Field(None, description="First part of the names of the runs; None: name of the file.")
    dump_path: Text = Field("experiments", description="Folder of the runs.")


def read_study(file: Path) -> Study:
    """The study in a file, checked.

    Raises:
        ConfigError: with all problems.
    """
    content = {name: Given(value, str(file)) for name, value in read_yaml(file, "study").items()}
    problems = [
        f"{name}: unknown entry; expected one of {', '.join(Study.model_fields)}  ({file})"
        for name in content
        if name not in Study.model_fields
    ]
    study = validate(Study, content, problems)
    if study is not None:
        problems += [f"{problem}  ({file})" for problem in _contradictions(study)]
    if study is None or problems:
        raise ConfigError(problems)
    return study


def _contradictions(study: Study) -> Iterator[str]:
    if not study.files and not study.methods:
        yield "files: expected YAML files of runs, or methods, got neither"
    if study.tries is not None and study.passes is not None:
        yield "tries, passes: expected one of them, got both"
    if not study.tune:
        changed = [name for name in OF_TUNING if study.is_changed(name)]
        yield from (f"{name}: has no effect with tune: false; leave one of them out" for name in changed)
    if study.source is not None and not study.published:
        yield "source: has no effect without published; leave it out"


def run(study: Study, prefix: str, dry: bool) -> int:
    """Tune, sweep and report; returns the exit code.

    Args:
        study: What to do.
        prefix: First part of the names of the runs.
        dry: Check everything and print how long it will take.

    Raises:
        UserError: something is wrong, before anything runs; or no try of a method came to an end.
    """
    rows = choice.entries(list(map(Path, study.files)), study.methods, [(n, text_of(v)) for n, v in study.set.items()])
    if found := problems_of(study.published, [row.name for row in rows]):
        raise ConfigError(found)
    root = Path(study.dump_path)
    how = How(study.jobs, study.slurm)
    launcher = choice.launcher(study)

    def jobs(wanted: list[choice.Entry]) -> list[Job]:
        return jobs_of(wanted, study.seeds, study.orders, prefix, root, launcher)

    if study.tune:
        plans = list(check_all(jobs(rows)).values())
        if study.baseline is not None:
            check_comparable(plans, study.baseline)
        say(f"on test: {len(plans)} runs, {how.in_words(root, plans)}; before that on dev:")
        budget = Budget(None, study.passes) if study.passes is not None else Budget(study.tries or TRIES)
        first = None if study.first_k == "all" else study.first_k
        where = Where(f"{prefix}-tune", root, study.tune_seed, first, launcher)
        files = tune(rows, study.space, study.sampler, budget, where, how, dry)
        if files is None:
            return 0 if dry else 1
        rows = choice.entries(files, [], [])
    if study.published and not dry:
        numbers = [(job.name, study.published.get(row.name)) for row in rows for job in jobs([row])]
        keep(root / prefix, {name: known for name, known in numbers if known is not None}, study.source)
    return sweep(jobs(rows), how, study.baseline, dry)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 0 if all is done, 130 or 143 if interrupted."""
    entries = "; ".join(f"{name}: {field.description}" for name, field in Study.model_fields.items())
    parser = argparse.ArgumentParser(
        prog="python -m utils.study",
        description=__doc__.split("\n\n")[1],
        epilog=f"Entries of the file: {entries}".replace("%", "%%"),
    )
    parser.add_argument("study", type=Path, help="YAML file")
    parser.add_argument("--dry_run", action="store_true", help="check everything, print the forecast, and stop")
    given = parser.parse_args(arguments)
    return interruptible(lambda: _main(given.study, given.dry_run))


def _main(file: Path, dry: bool) -> int:
    study = read_study(file)
    return run(study, study.prefix or clean_name(file.stem), dry)


if __name__ == "__main__":
    exit_with(main)
