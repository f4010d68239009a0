"""Spoilt and wrong inputs at every entry point: `python -m tests.stress.inputs [--seed 0] [--count 1000]`.

Each input must be accepted (exit code 0) or refused in one clear sentence (another exit code). Reported are tracebacks,
other noise, hangs, exit code 0 on an input that is known to be wrong, and results that are no scores. A failure is
repeated by the command that is printed with it; the input then stays in the printed folder.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests import tiny
from tests.stress import input_files, input_folders
from tests.stress.input_world import Case, World, make_world
from utils.report import summary

SECONDS, WAIT = 20, 200  # of processor time, and by the clock, until an input counts as a hang
ENTRIES: dict[str, Callable[[World], st.SearchStrategy[Case]]] = {
    "yaml": input_files.yaml_files,
    "command": input_files.command_lines,
    "stream": input_files.streams,
    "own": input_files.own_files,
    "raw": input_files.raw_files,
    "model": input_folders.model_folders,
    "run": input_folders.run_folders,
    "template": input_folders.templates,
}
LONGEST = 600  # characters of an error, but for a list of options


class Hang(BaseException):
    """The time of an input is over."""


class Outcome(NamedTuple):
    """How an input ended."""

    word: str  # accepted, refused, or the kind of failure
    text: str
    seconds: float


FINE = ("accepted", "refused")


def draws(strategy: st.SearchStrategy[Case], seed: int, count: int) -> list[Case]:
    """The same cases for the same seed."""
    found: list[Case] = []
    quiet = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
    rounds = 0
    while len(found) < count:

        @hypothesis.seed(f"{seed}:{rounds}")
        @settings(max_examples=count - len(found), phases=[Phase.generate], **quiet)
        @given(strategy)
        def collect(case: Case) -> None:
            found.append(case)

        collect()
        rounds += 1
    return found


def attempt(case: Case, world: World) -> Outcome:
    """Run the program on an input in this process."""
    world.fresh()
    tiny.forget_processes()
    out, err, began = io.StringIO(), io.StringIO(), time.monotonic()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _limit():
            code = case.call()
    except SystemExit as error:  # argparse
        code = error.code
    except Hang:
        return Outcome("hang", traceback.format_exc()[-1500:], time.monotonic() - began)
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {str(error)[:300]} ({where.filename}:{where.lineno})\n{traceback.format_exc()}"
        return Outcome("traceback", text, time.monotonic() - began)
    word, text = _judge(case, code, err.getvalue() + out.getvalue() * (code != 0), world)
    return Outcome(word, text, time.monotonic() - began)


def _judge(case: Case, code: object, errors: str, world: World) -> tuple[str, str]:
    if "Traceback" in errors:
        return "traceback", errors
    if code == 0:
        if case.wrong:
            return "accepted although wrong", errors
        return _judge_results(world)
    sentences = [line for line in errors.splitlines() if line.startswith("error: ") or ": error: " in line]
    if len(sentences) != 1 and "resume" not in errors and "failed" not in errors:
        return "no sentence", f"exit code {code}: {errors[-500:]!r}"
    if len(sentences) == 1 and len(sentences[0]) > LONGEST:
        return "long sentence", sentences[0]
    return "refused", errors


def _judge_results(world: World) -> tuple[str, str]:
    """Scores of an accepted run lie in 0..1."""
    for path in (world.case / "out").rglob("results.json"):
        cells = [cell for row in json.loads(path.read_text(encoding="utf-8"))["R"] for cell in row]
        if not all(cell is None or 0 <= cell <= 1 for cell in cells):
            return "results that are no scores", f"{cells}"
    return "accepted", ""


@contextlib.contextmanager
def _limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGVTALRM, stop)
    signal.alarm(WAIT)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Without what makes a small run slow: plots, syncs and collections of garbage."""
    with (
        mock.patch.object(os, "fsync"),
        mock.patch.object(gc, "collect"),
        mock.patch.multiple(summary, heat_map=mock.DEFAULT, curves=mock.DEFAULT, probing_curves=mock.DEFAULT),
        mock.patch.dict(os.environ, {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}),
    ):
        yield


def check(entry: str, seed: int, count: int, world: World, only: int | None = None) -> list[tuple[int, Case, Outcome]]:
    """The outcomes of the inputs of one entry point, or of one of them."""
    cases = list(enumerate(draws(ENTRIES[entry](world), seed, count)))
    return [(k, case, attempt(case, world)) for k, case in cases if only in (None, k)]


def table(rows: dict[str, list[tuple[int, Case, Outcome]]]) -> str:
    """A line for each entry point."""
    lines = [f"{'entry point':12} {'inputs':>7} {'accepted':>9} {'refused':>8} {'failures':>9} {'slowest':>8}"]
    for entry, found in rows.items():
        words = Counter(outcome.word for _, _, outcome in found)
        failures = len(found) - sum(words[word] for word in FINE)
        slowest = max((outcome.seconds for _, _, outcome in found), default=0)
        counts = f"{len(found):7} {words['accepted']:9} {words['refused']:8} {failures:9}"
        lines.append(f"{entry:12} {counts} {slowest:6.1f} s")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if no input failed."""
    parser = argparse.ArgumentParser("python -m tests.stress.inputs", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000, help="inputs of all entry points together")
    parser.add_argument("--only", nargs="+", choices=list(ENTRIES), default=list(ENTRIES), help="entry points")
    parser.add_argument("--case", type=int, help="run this input alone and keep its folder")
    parser.add_argument("--full", action="store_true", help="print whole tracebacks and the refusals too")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="inputs-"))
    share, rows = -(-given.count // len(ENTRIES)), {}
    with quick():
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            world = make_world(root)
        for entry in given.only:
            rows[entry] = check(entry, given.seed, share, world, given.case)
            for k, case, outcome in rows[entry]:
                if outcome.word not in FINE or given.full:
                    repeat = f"--only {entry} --seed {given.seed} --count {given.count} --case {k}"
                    text = outcome.text if given.full else outcome.text.split("\n")[0]
                    print(f"{outcome.word}: {entry} {case.what}\n    {text}\n    {repeat}", flush=True)
    print(table(rows))
    if given.case is not None:
        print(f"the input is in {world.case}")
    else:
        shutil.rmtree(root)
    return int(any(outcome.word not in FINE for found in rows.values() for _, _, outcome in found))


if __name__ == "__main__":
    sys.exit(main())
