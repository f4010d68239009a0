"""Many runs by one command: `python -m utils.sweep config/biography_demo_task2/*.yaml --seeds 1 2 3 --jobs 2`.

Each YAML file, or each method of --methods with the options of a YAML file, with each seed and each task order is one
run of main_CL.py, in a separate process. Finished runs are not repeated and interrupted runs are resumed, so the
command can be given again until all is done. At the end `utils.report` compares them in FOLDER/compare.md, FOLDER being
<dump_path>/<prefix>; FOLDER/<name>-seed<k>.out holds what a run printed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError, exit_code, exit_with, termination_interrupts
from utils.factory import describe
from utils.jobs import choice, gpu_hours
from utils.jobs.runs import Job, alone, check_all, is_finished, stream_of
from utils.jobs.work import How, run_all
from utils.options.parse import ConfigError, fail, resolve
from utils.options.stream_view import order_of
from utils.progress import say
from utils.report.__main__ import main as report
from utils.report.results import SCORED

if TYPE_CHECKING:
    from utils.options.checks import Plan  # seconds to import: not for --help


def jobs_of(
    rows: Sequence[choice.Entry],
    seeds: Sequence[int],
    orders: Sequence[str],
    prefix: str,
    root: Path,
    launcher: tuple[str, ...] | None = None,
) -> list[Job]:
    """A job for each row, seed and task order; one that is named twice is run once."""
    found = []
    for row in rows:
        for order in (single for text in orders for single in expanded(text)):
            label = "-".join(word for word in (row.label, "" if order == "stored" else order) if word)
            words = row.words if order == "stored" else (*row.words, "--task_order", order)
            found += [Job(row.cfg, seed, prefix, root, words, launcher, label) for seed in seeds]
    return list(dict.fromkeys(found))


def once(jobs: Sequence[Job]) -> list[Job]:
    """Jobs of which no two learn the tasks in the same order, as `reversed` and `1,0` of two tasks do."""
    found: dict[tuple[Any, ...], Job] = {}
    for job in jobs:
        config = resolve(job.words()).config
        order = order_of(config.task_order, len(stream_of(config).tasks))
        row = job.options[:-2] if job.options[-2:-1] == ("--task_order",) else job.options
        first = found.setdefault((job.cfg, job.seed, row, order), job)
        if first is not job:
            say(f"{job}: the order of {first}, so it is left out")
    return list(found.values())


def expanded(order: str) -> list[str]:
    """A task order; `random:<first>-<last>` is several.

    >>> expanded("random:1-3"), expanded("2,0,1")
    (['random:1', 'random:2', 'random:3'], ['2,0,1'])
    """
    first, dash, last = order.removeprefix("random:").partition("-")
    if not order.startswith("random:") or not dash:
        return [order]
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise ConfigError([f"orders: expected random:<first>-<last>, such as random:1-3; got {order!r}"])
    return [f"random:{seed}" for seed in range(int(first), int(last) + 1)]


def run(jobs: list[Job], how: How, baseline: str | None = None, dry: bool = False) -> int:
    """Check and do all jobs, and compare them; returns the exit code.

    Args:
        jobs: Of one prefix.
        how: Where they run, and how many at a time.
        baseline: Row whose differences to the others get an interval.
        dry: Check and print the forecast only.

    Raises:
        UserError: a wrong option, or jobs that cannot be compared with a baseline.
    """
    folder = jobs[0].root / jobs[0].prefix
    with alone(folder):
        todo = [job for job in jobs if not is_finished(job.folder())]
        plans = check_all(jobs if baseline is not None else todo)
        if baseline is not None:
            check_comparable(list(plans.values()), baseline)
        jobs = once(jobs)
        todo = [job for job in todo if job in jobs]
        how.check(todo)
        if dry:
            ahead = how.in_words(jobs[0].root, [plans[job] for job in todo])
            print(f"{len(jobs)} runs, {len(todo)} to do: {ahead}")
            if known := gpu_hours.text({job: plans[job] for job in todo}):
                print(known)
            how.show(todo)
            return 0
        failed = run_all(jobs, how, plans)
        done = [str(job.folder()) for job in jobs if is_finished(job.folder())]
        words = [] if baseline is None else ["--baseline", baseline]
        if done and report([*done, "--out", str(folder), *words]):
            return 2
    return 1 if failed else 0


def check_comparable(plans: Sequence[Plan], baseline: str) -> None:
    """Differences to a baseline need the same questions and scores in all runs.

    Raises:
        UserError: the streams or metrics differ, or no run is of the baseline.
    """
    from utils.options.checks import metrics_of

    kinds = {(plan.stored.name, plan.stream.name, tuple(sorted(metrics_of(plan)))) for plan in plans}
    if len(kinds) > 1:
        shown = "; ".join(f"{name} with {', '.join(dict.fromkeys(metrics))}" for _, name, metrics in sorted(kinds))
        raise UserError(f"baseline: runs of different streams or metrics cannot be compared: {shown}")
    for name in SCORED:
        if len(values := dict.fromkeys(str(getattr(plan.config, name)) for plan in plans)) > 1:
            raise UserError(f"baseline: runs with different {name} cannot be compared: {', '.join(values)}")
    titles = list(dict.fromkeys(describe(plan.config) for plan in plans))
    if not any(title.startswith(baseline) for title in titles):
        raise UserError(f"baseline: {baseline!r}: there is no such row; expected one of {'; '.join(titles)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m utils.sweep", description=__doc__.split("\n\n")[1])
    choice.add_words(parser, "sweep")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument(
        "--orders",
        nargs="+",
        default=["stored"],
        metavar="ORDER",
        help="task orders: stored, reversed, random:<seed>, random:<first>-<last>, numbers such as 2,0,1",
    )
    parser.add_argument("--baseline", metavar="METHOD", help="row of the table that the others are compared with")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 0 if every run is finished, 130 or 143 if interrupted."""
    given = _parser().parse_args(arguments)
    return interruptible(lambda: _main(given))


def _main(given: argparse.Namespace) -> int:
    rows = choice.entries(given.cfg, given.methods, given.set)
    where = (given.prefix, given.dump_path, choice.launcher(given))
    return run(jobs_of(rows, given.seeds, given.orders, *where), choice.how(given), given.baseline, given.dry_run)


def interruptible(command: Callable[[], int]) -> int:
    """The exit code of a command that can be interrupted and given again."""
    try:
        with termination_interrupts():
            return command()
    except UserError as error:
        return fail(error)
    except KeyboardInterrupt as error:
        with suppress(OSError):
            print("interrupted; the same command resumes the runs", file=sys.stderr)
        return exit_code(error)


if __name__ == "__main__":
    exit_with(main)
