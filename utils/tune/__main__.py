"""Choose the values of each method on dev: `python -m utils.tune --methods SEQ Replay EWC --tries 6`.

Every method gets the same budget, in tries or in passes (sequences through the model in training). A try trains on the
first tasks of the stream and is scored on dev, never on test; the best average decides. The default, the first two
tasks, is what can be known when a stream begins; `--first_k all` is an oracle and is reported as one. Finished tries
are not repeated and interrupted ones are resumed, so the command can be given again until all is done. It writes
FOLDER/chosen/<METHOD>.yaml, FOLDER/trials.md and FOLDER/trials.json, FOLDER being <dump_path>/<prefix>. Then:
`python -m utils.sweep FOLDER/chosen/*.yaml`.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from utils.errors import UserError, exit_with
from utils.jobs import choice, times
from utils.jobs.choice import Entry
from utils.jobs.runs import alone, check_all, identity_of
from utils.jobs.work import How, run_all
from utils.options import yaml_dialect
from utils.options.checks import Plan
from utils.options.stream_view import has_dev
from utils.progress import say
from utils.report.tables import percent
from utils.storage.files import is_file
from utils.sweep import interruptible, jobs_of
from utils.tune.proposals import SAMPLERS, Proposals, check_sampler, proposals
from utils.tune.space import Space, check_names, ends, label_of, space_of
from utils.tune.trials import (
    Trial,
    Where,
    best,
    describe,
    is_higher_better,
    spent,
    trial_of,
    write_chosen,
    write_tables,
)

TRIES = 6  # of each method


class Budget(NamedTuple):
    """What each method may spend: one of the two."""

    tries: int | None = None
    passes: int | None = None

    def __str__(self) -> str:
        if self.tries is None:
            return f"{self.passes:,} passes"
        return f"{self.tries} {'try' if self.tries == 1 else 'tries'}"


class Search:
    """The search for the values of one row of a comparison."""

    def __init__(self, entry: Entry, plan: Plan, space: Space, source: Proposals, where: Where):
        self.entry, self.plan, self.space, self.source, self.where = entry, plan, space, source, where

    @property
    def higher(self) -> bool:
        """True if a higher score is better."""
        return bool(is_higher_better(self.plan))

    def trials(self) -> list[Trial]:
        """All tries that were proposed."""
        return [trial_of(self.entry, self.plan, point, self.where) for point in self.source.points()]

    def affordable(self, budget: Budget) -> int:
        """How many more tries the budget allows, as far as their cost is known."""
        trials = self.trials()
        if budget.tries is not None:
            return budget.tries - len(trials)
        if not trials:
            return 1
        least = max(1, times.training_work(self.plan))  # of a try whose cost is not known
        used = spent(trials, least)
        return int((budget.passes or 0) - used) * len(trials) // used

    def chosen(self) -> Trial | None:
        """The best try so far."""
        return best(self.trials(), self.higher)


def prepare(
    rows: Sequence[Entry], given: Mapping[str, Any], sampler: str, budget: Budget, where: Where, how: How
) -> list[Search]:
    """Check everything that can be checked before the first run.

    Args:
        rows: What is compared.
        given: Replaces parts of the declared spaces.
        sampler: One of SAMPLERS.
        budget: Of each row.
        where: What all tries share.
        how: Where they run.

    Raises:
        UserError: with the first problem, or ConfigError with those of all options.
    """
    check_sampler(sampler)
    for word in dict.fromkeys(word for row in rows for word in row.words if word in where.words[::2]):
        raise UserError(f"set: {word[2:]}: tuning sets it itself (dev, --first_k); leave it out")
    bare = {row: row._replace(words=(*row.words, *where.words)) for row in rows}
    jobs = {row: jobs_of([bare[row]], [where.seed], ["stored"], where.prefix, where.root)[0] for row in rows}
    plans = check_all(list(jobs.values()))
    by_row = {row: plans[jobs[row]] for row in rows}
    check_names(given, by_row, budget.passes is not None)
    found = []
    for row, plan in by_row.items():
        if is_higher_better(plan) is None:
            raise UserError(f"{row.name}: higher is better in some tasks, lower in others; no mean decides")
        least = times.training_work(plan)
        if budget.passes is not None and budget.passes < least:
            raise UserError(f"passes: one try of {row.name} needs at least {least}, got {budget.passes}")
        space = space_of(row, plan, given)
        higher, runs = bool(is_higher_better(plan)), identity_of(jobs[row])
        source = proposals(sampler, space, budget.tries, higher, row.name, where.folder, runs)
        found.append(Search(row, plan, space, source, where))
    extremes = [trial_of(one.entry, one.plan, point, where).job for one in found for point in ends(one.space)]
    check_all(extremes)
    how.check(extremes)
    return found


def tune(searches: Sequence[Search], budget: Budget, sampler: str, how: How) -> bool:
    """Run until the budget is spent; False if a run failed for another reason than its values."""
    together = max(1, (how.jobs or 1) // len(searches)) if sampler == "tpe" else None  # it draws from the scores so far
    while True:
        known = [len(one.source.points()) for one in searches]
        for one in searches:
            allowed = max(0, one.affordable(budget))
            one.source.more(allowed if together is None else min(allowed, together))
        is_new = known != [len(one.source.points()) for one in searches]
        tries = [trial for one in searches for trial in one.trials() if trial.diverged is None]
        waiting = [trial for trial in tries if trial.is_open]
        if waiting:
            run_all([trial.job for trial in tries], how, check_all([trial.job for trial in waiting]))
        for one in searches:
            one.source.learn(one.trials())
        if any(trial.is_open for trial in waiting):
            return False
        if not waiting and not is_new:
            return True


def results(searches: Sequence[Search], budget: Budget, sampler: str, command: str) -> list[Path]:
    """Write the tables and the chosen files, and print what was chosen; returns the files.

    Raises:
        UserError: a row has no try that came to an end.
    """
    folder, files, rows = searches[0].where.folder, list[Path](), []
    for one, name in zip(searches, _names([one.entry for one in searches]), strict=True):
        trials, chosen = one.trials(), one.chosen()
        said = describe(trials, one.where, len(one.plan.stored.tasks), budget.passes)
        notes = [f"{command}\n\nBudget: {budget}, {sampler}. {said}"]
        if one.affordable(budget) > 0:
            notes.append("the grid has no more points, so a part of the budget is not spent")
        if budget.passes is not None and (used := spent(trials)) > budget.passes:
            notes.append(f"its tries took {used:,} passes, more than the budget, as what {name} measures counts too")
            say(f"{name}: {notes[-1]}")
        if waiting := sum(trial.is_open for trial in trials):
            notes.append(f"{waiting} of them not done yet, so nothing is chosen")
        elif chosen is not None:
            files.append(folder / "chosen" / f"{name}.yaml")
            write_chosen(chosen, said, command, files[-1])
            score = percent(chosen.score())
            say(f"{name}: {label_of(chosen.point)}, {score} % on dev, the best of {len(trials)} tries: {files[-1]}")
        rows.append((trials, chosen, "; ".join(notes)))
    write_tables(rows, folder)
    done = [one for one in searches if not any(trial.is_open for trial in one.trials())]
    if without := [one.entry.name for one in done if one.chosen() is None]:
        raise UserError(f"no try of {', '.join(without)} finished; give smaller learning rates (--space)")
    return files


def _names(rows: Sequence[Entry]) -> list[str]:
    """Names of the chosen files; rows of the same name get those of their files and folders."""
    twice = Counter(row.name for row in rows)
    return [
        row.name if twice[row.name] == 1 else "-".join((row.cfg.parent.name, row.cfg.stem, row.label)).rstrip("-")
        for row in rows
    ]


def read_space(text: str | None) -> dict[str, Any]:
    """The words after --space: a YAML file, or YAML.

    Raises:
        UserError: it is no mapping.
    """
    if text is None:
        return {}
    try:
        content = yaml_dialect.read(Path(text).read_text(encoding="utf-8") if is_file(Path(text)) else text)
    except (OSError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"space: {text[:80]} is not YAML: {' '.join(str(error).split())}") from None
    if not content:
        raise UserError("space: is empty; leave it out for the declared values (docs/options.md)")
    if not isinstance(content, dict):
        raise UserError(f"space: expected a YAML file, or YAML such as '{{lr: [1e-5, 1e-4]}}'; got {text[:80]!r}")
    return content


def run(
    rows: Sequence[Entry], given: Mapping[str, Any], sampler: str, budget: Budget, where: Where, how: How, dry: bool
) -> list[Path] | None:
    """Search for the values of all rows; returns the chosen files, None if a run failed or with `dry`.

    Raises:
        UserError: something is wrong with the options, before anything runs; or no try of a row came to an end.
    """
    with alone(where.folder):
        searches = prepare(rows, given, sampler, budget, where, how)
        for one in searches if sampler == "grid" else []:  # the others keep what they have proposed
            one.source.more(max(0, one.affordable(budget)))
        _say_plan(searches, budget, sampler, how)
        if dry:
            how.show([trial.job for one in searches for trial in one.trials() if trial.is_open])
            return None
        program = {"study.py": "utils.study"}.get(Path(sys.argv[0]).name, "utils.tune")
        command = f"python -m {program} {shlex.join(sys.argv[1:])}"
        is_whole = tune(searches, budget, sampler, how)
        files = results(searches, budget, sampler, command)
        return files if is_whole else None


def _say_plan(searches: Sequence[Search], budget: Budget, sampler: str, how: How) -> None:
    """Spaces, what a grid will try of them, and the time that this will take at most."""
    for one in searches:
        size = math.prod(map(len, one.space.values()))
        say(f"{one.entry.name}: {one.space}, {f'{size} points' if sampler == 'grid' else sampler}; {budget}")
        tried = [label_of(point) for point in one.source.points()]
        if sampler == "grid" and budget.tries is not None and len(tried) < size:
            say(f"{one.entry.name}: tries {', '.join(tried)}")
        if not all(has_dev(one.plan.stored, k) for k in range(len(one.plan.stored.tasks))):
            say(f"{one.plan.stored.name} has no dev split: a fixed tenth of train is scored (dataset/README.md)")
    if budget.tries is not None:
        done = [sum(not trial.is_open for trial in one.trials()) for one in searches]
        plans = [one.plan for one, count in zip(searches, done, strict=True) for _ in range(budget.tries - count)]
        left = how.in_words(searches[0].where.root, plans) if plans else "nothing is left"
        say(f"{budget.tries * len(searches)} runs at most, {sum(done)} finished: {left}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m utils.tune", description=__doc__.split("\n\n")[1])
    choice.add_words(parser, "tune")
    spent = parser.add_mutually_exclusive_group()
    spent.add_argument("--tries", type=choice.count, help=f"tries of each method (default: {TRIES})")
    spent.add_argument("--passes", type=choice.count, help="sequences of each method through the model in training")
    parser.add_argument("--first_k", default="2", metavar="N", help="tune on the first N tasks (default: 2), or all")
    parser.add_argument("--space", help="YAML, as text or file: option: [values], or method: {option: [values]}")
    parser.add_argument("--sampler", choices=SAMPLERS, default="grid")
    parser.add_argument("--seed", type=int, default=1, help="of all runs")
    return parser


def first_tasks(text: str) -> int | None:
    """A number of tasks; None: all.

    Raises:
        UserError: it is neither.
    """
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"first_k: expected a number of tasks or all, got {text!r}")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 0 if values were chosen for every method, 130 or 143 if interrupted."""
    given = _parser().parse_args(arguments)
    return interruptible(lambda: _main(given))


def _main(given: argparse.Namespace) -> int:
    rows = choice.entries(given.cfg, given.methods, given.set)
    where = Where(given.prefix, given.dump_path, given.seed, first_tasks(given.first_k), choice.launcher(given))
    budget = Budget(None, given.passes) if given.passes is not None else Budget(given.tries or TRIES)
    files = run(rows, read_space(given.space), given.sampler, budget, where, choice.how(given), given.dry_run)
    return 0 if given.dry_run or files is not None else 1


if __name__ == "__main__":
    exit_with(main)
