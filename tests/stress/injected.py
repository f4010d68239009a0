"""Faults at random moments of tiny runs of every method; each must be resumed to the numbers of an undisturbed run.

    python -m tests.stress.injected [--methods SEQ EWC] [--kinds "kill -9" SIGTERM] [--rounds 1] [--seed 0] [--work DIR]

A moment is an optimizer step, an evaluation, or a file that is about to be written or renamed. Each run is a forked
child of this process, so that it need not import anything; a kill is a real one, a signal is a real one.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

import main_CL
from models import METHODS
from tests import tiny
from tests.fixtures import mounts
from tests.stress.faults import compare
from utils import evaluation, logger
from utils.dataset import save_stream
from utils.report import summary
from utils.run import checkpoint, fit

NO_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried 99 bytes"),
)


class Outcome(NamedTuple):
    """How a run ended."""

    code: int  # negative: the signal that killed it
    text: str

    @property
    def sentences(self) -> list[str]:
        """What it said when it ended, apart from times."""
        lines = self.text.strip().split("\n")
        return [line.partition("] ")[2] or line for line in lines if "error: " in line or "interrupted; " in line]


class Case(NamedTuple):
    """A method's run that nothing happened to."""

    argv: list[str]
    folder: Path
    moments: list[str]

    def moment(self, rng: random.Random, *kinds: str, after: str = "/config.yaml") -> int:
        """A random moment at which a resumable run has gone past the first file named so; of these kinds, or any."""
        first = next(i for i, name in enumerate(self.moments) if after in name) + 1
        left = range(first, len(self.moments))
        return rng.choice([i for i in left if not kinds or self.moments[i].split(" ")[0] in kinds])


class Fault(NamedTuple):
    """What is done to a run, and how it has to end."""

    inflict: Callable[[Case, Path, random.Random], Outcome]
    code: int
    says: str


def reference(name: str, work: Path) -> Case:
    """Run a method once, undisturbed, and note its moments."""
    save_stream(tiny.micro_stream(), work / "streams")
    config = tiny.make_config(name, backbone=tiny.backbone_folder(dropout=0.1))
    values = config.model_dump(mode="json", exclude_unset=True, exclude={"cfg", "wandb_name"}) | tiny.OWN.get(name, {})
    values |= {"dataset": "micro", "dataset_path": str(work / "streams"), "save_llm_ckpt_step_interval": 2}
    (work / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    argv, moments = ["--cfg", str(work / f"{name}.yaml")], work / f"{name}.moments"
    done = child([*argv, "--dump_path", str(work / name)], watch(lambda *_: None, moments))
    assert done.code == 0, done.text
    return Case(argv, folder_in(work / name), moments.read_text(encoding="utf-8").split("\n")[:-1])


def child(argv: list[str], prepare: Callable[[], None] = lambda: None) -> Outcome:
    """main_CL.py in a child process that `prepare` may spoil."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                code = _call(argv, prepare)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        output.seek(0)
        return Outcome(os.waitstatus_to_exitcode(status), output.read())


def _call(argv: list[str], prepare: Callable[[], None]) -> int:
    sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are deaf to it
    summary.write, logger._git, os.fsync = tiny._write_without_plots, lambda *_: None, lambda *_: None
    tiny.forget_processes()
    prepare()
    return main_CL.main(argv)


def watch(act: Callable[[int, str], None], notes: Path | None = None) -> Callable[[], None]:
    """A preparation: `act` is called at each moment, with its number and name."""

    def prepare() -> None:
        count = iter(range(10**9))

        def before(kind: str, call: Callable, describe: Callable[..., str]) -> Callable:
            def watched(*arguments, **options):
                name = f"{kind} {describe(*arguments)}"
                if notes is not None:
                    with open(notes, "a", encoding="utf-8") as file:
                        file.write(name + "\n")
                act(next(count), name)
                return call(*arguments, **options)

            return watched

        fit._step = before("step", fit._step, lambda *_: "")
        evaluation._answer = before("answer", evaluation._answer, lambda *_: "")
        checkpoint.save_file = before("save", checkpoint.save_file, lambda _, path: str(path))
        os.replace = before("rename", os.replace, lambda _, path: str(path))

    return prepare


def at(number: int, act: Callable[[str], None], lasting: bool = False) -> Callable[[], None]:
    """A preparation: `act` at one moment, or from there on."""
    return watch(lambda n, name: act(name) if n == number or (lasting and n > number) else None)


def throw(error: Exception) -> Callable[[str], None]:
    """An act that raises."""

    def act(_: str) -> None:
        raise error

    return act


def start(case: Case, dump: Path, prepare: Callable[[], None]) -> Outcome:
    """A new run below `dump`, spoilt."""
    return child([*case.argv, "--dump_path", str(dump)], prepare)


def resume(folder: Path, prepare: Callable[[], None] = lambda: None) -> Outcome:
    """Resume a run."""
    return child(["--resume", str(folder)], prepare)


def folder_in(dump: Path) -> Path:
    """The one run folder below `dump`."""
    (folder,) = dump.glob("*/*-seed1")
    return folder


def signalled(number: int) -> Callable[[Case, Path, random.Random], Outcome]:
    """Send a signal at a random moment."""

    def inflict(case: Case, dump: Path, rng: random.Random) -> Outcome:
        return start(case, dump, at(case.moment(rng), lambda _: os.kill(os.getpid(), number)))

    return inflict


def disk_full(case: Case, dump: Path, rng: random.Random) -> Outcome:
    """No file can be written any more from a random one on."""

    def refuse(name: str) -> None:
        kind, _, path = name.partition(" ")
        if kind in ("save", "rename"):
            raise OSError(28, "No space left on device", path)

    return start(case, dump, at(case.moment(rng, "save", "rename"), refuse, lasting=True))


def file_limit(case: Case, dump: Path, rng: random.Random) -> Outcome:
    """The kernel refuses to write beyond a size between those of config.yaml and of the largest file."""
    sizes = [path.stat().st_size for path in (case.folder / "checkpoints").rglob("*") if path.is_file()]
    limit = rng.randint((case.folder / "config.yaml").stat().st_size + 1000, max(sizes) - 1)
    return start(case, dump, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))


def out_of_memory(case: Case, dump: Path, rng: random.Random) -> Outcome:
    """A step or an evaluation gets no memory."""
    return start(case, dump, at(case.moment(rng, "step", "answer"), throw(rng.choice(NO_MEMORY))))


def damaged(case: Case, dump: Path, rng: random.Random) -> Outcome:
    """A file of the newest checkpoint of a killed run is spoilt; it has to be named, and nothing of it to be used."""
    moment = case.moment(rng, after="checkpoints/task_")
    start(case, dump, at(moment, lambda _: os.kill(os.getpid(), signal.SIGKILL)))
    root = folder_in(dump) / "checkpoints"
    newest = root / checkpoint.checkpoints(root)[-1].name
    spoil(rng.choice(sorted(path for path in newest.rglob("*") if path.is_file())), rng)
    outcome = resume(folder_in(dump))
    if str(newest) in outcome.text:
        shutil.rmtree(newest)  # as the sentence says
    return outcome


def spoil(path: Path, rng: random.Random) -> None:
    """Flip a bit, cut the file off, or remove it."""
    content = bytearray(path.read_bytes())
    how = rng.choice(("flip", "flip", "cut", "remove"))
    if how == "remove":
        path.unlink()
        return
    place = rng.randrange(len(content) - 1)  # not the last: a line end of JSON says nothing
    if how == "flip":
        content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content if how == "flip" else content[:place])


def read_only(case: Case, dump: Path, rng: random.Random) -> Outcome:
    """The run folder of a killed run can't be written."""
    signalled(signal.SIGKILL)(case, dump, rng)
    return resume(folder_in(dump), lambda: mounts.make_read_only(folder_in(dump)))


def second_run(case: Case, dump: Path, rng: random.Random) -> Outcome:
    """Another process has the run folder."""
    signalled(signal.SIGKILL)(case, dump, rng)
    with open(folder_in(dump) / "log.jsonl", "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return resume(folder_in(dump))


def clock_jumps(case: Case, dump: Path, rng: random.Random) -> Outcome:
    """The wall clock is set anew, by up to thirty years, whenever somebody looks."""
    real = time.time

    class Clock(datetime):
        @classmethod
        def now(cls, zone: Any = None) -> datetime:
            return datetime.now(zone) + timedelta(days=rng.uniform(-10_000, 10_000))

    def prepare() -> None:
        time.time, logger.datetime = lambda: real() + rng.uniform(-1e9, 1e9), Clock

    return start(case, dump, prepare)


KINDS = {
    "kill -9": Fault(signalled(signal.SIGKILL), -signal.SIGKILL, ""),
    "SIGTERM": Fault(signalled(signal.SIGTERM), 143, "interrupted; resume it "),
    "Ctrl-C": Fault(signalled(signal.SIGINT), 130, "interrupted; resume it "),
    "disk full": Fault(disk_full, 2, "No space left on device"),
    "file too large": Fault(file_limit, 2, "File too large"),
    "out of memory": Fault(out_of_memory, 2, "gradient_accumulation_steps"),
    "damaged checkpoint": Fault(damaged, 2, "delete the folder"),
    "read-only folder": Fault(read_only, 2, "Read-only file system"),
    "two at once": Fault(second_run, 2, "is in use by a process that still runs"),
    "clock jumps": Fault(clock_jumps, 0, ""),
}


def verdict(fault: Fault, case: Case, dump: Path, rng: random.Random) -> tuple[list[str], str]:
    """What went wrong in one injection and in what followed (nothing should), and the sentence that was said."""
    outcome = fault.inflict(case, dump, rng)
    bad = [] if outcome.code == fault.code else [f"exit code {outcome.code}: {outcome.text[-2000:]}"]
    bad += ["a traceback"] if "Traceback" in outcome.text else []
    expected = 1 if fault.says else 0
    bad += [] if len(outcome.sentences) == expected else [f"{len(outcome.sentences)} sentences: {outcome.text[-500:]}"]
    bad += [] if fault.says in outcome.text else [f"does not say {fault.says!r}: {outcome.text[-500:]}"]
    if outcome.code:
        again = resume(folder_in(dump))
        bad += [] if again.code == 0 else [f"resumed: exit code {again.code}: {again.text[-2000:]}"]
    if not bad:
        bad = compare(case.folder, folder_in(dump))
    return bad, " ".join(outcome.sentences)


def main(argv: list[str]) -> int:
    """Print a line for each injection that went wrong, and a table; 1 if any did."""
    parser = argparse.ArgumentParser("python -m tests.stress.injected", description=__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=1, help="injections of each kind into each method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for the runs; default: a temporary one")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        return _inject_all(options, options.work or Path(temporary))


def _inject_all(options: argparse.Namespace, work: Path) -> int:
    rows = {kind: [0, 0, ""] for kind in options.kinds}
    for method in options.methods:
        case = reference(method, work)
        for kind in options.kinds * options.rounds:
            injected = rows[kind][0]
            rng, dump = random.Random(f"{options.seed} {method} {kind} {injected}"), work / f"{method}-{injected}"
            bad, sentence = verdict(KINDS[kind], case, dump, rng)
            rows[kind] = [injected + 1, rows[kind][1] + (not bad), sentence.replace(str(work), "...") or rows[kind][2]]
            if bad:
                print(f"{method}, {kind}: {'; '.join(bad)}", flush=True)
            shutil.rmtree(dump, ignore_errors=True)
        print(f"{method}: {sum(row[1] for row in rows.values())} of {sum(row[0] for row in rows.values())}", flush=True)
    print("\n| fault | injected | recovered | says |\n|---|--:|--:|---|")
    for kind, (injected, recovered, sentence) in rows.items():
        print(f"| {kind} | {injected} | {recovered} | {sentence} |")
    total, good = (sum(row[i] for row in rows.values()) for i in (0, 1))
    print(f"| all | {total} | {good} | |")
    return int(good < total)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
