"""The run folder: options, logs and progress of a run.

Only the main process writes. Logs and trackers are extras: whatever happens to them, the run continues.
"""

from __future__ import annotations

import io
import json
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from utils.config import Config
from utils.errors import UserError
from utils.progress import Bar, has_bar, say
from utils.storage.files import drop_torn_line, lock, write_json

_TRAINED = re.compile(r'\{"event": "train", "time": "[^"]*", "step": (\d+),')
PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "deepspeed", "numpy", "scikit-learn")


@dataclass
class Window:
    """Sums of the loss terms over the optimizer steps since the last line of training."""

    sums: dict[str, Tensor] = field(default_factory=dict)  # by term, () float each
    count: int = 0

    def add(self, terms: dict[str, Tensor]) -> None:
        """Another step."""
        self.sums = {name: value + self.sums[name] if name in self.sums else value for name, value in terms.items()}
        self.count += 1


class RunLog:
    """train.log for people, log.jsonl for programs, progress bars, and the trackers.

    It exists before the run folder does: what the main process logs until `write_to` is kept and written then.
    """

    def __init__(self, config: Config, is_main: bool):
        self.config, self.is_main = config, is_main
        self.tracker: Any = None  # see utils/run/trackers.py
        self.step = 0  # optimizer steps of the whole run so far
        self.window = Window()
        self._logged = -1  # the last step with a "train" event before the run was resumed
        self._events: TextIO | None = None
        self._waiting: io.StringIO | None = io.StringIO() if is_main else None  # events until `write_to`
        self._held = _HeldHandler()  # text until `write_to`
        self._text = logging.getLogger("main_CL")
        self._text.setLevel(logging.INFO)
        self._text.propagate = False
        self._text.handlers = [self._held if is_main else logging.NullHandler()]

    def write_to(self, folder: Path) -> None:
        """Write to this run folder from now on; other processes than the main one write nothing.

        Raises:
            UserError: another process writes there.
        """
        if self._waiting is None:  # not the main process
            return
        self._events = open(folder / "log.jsonl", "a", encoding="utf-8")  # noqa: SIM115 (lives as long as the run)
        lock(self._events, f"resume: {folder} is in use by a process that still runs; wait for it or stop it")
        drop_torn_line(folder / "log.jsonl")
        self._logged = _last_trained(folder / "log.jsonl")
        if self._waiting is not None:
            self._events.write(self._waiting.getvalue())
        self._text.handlers = [_StdoutHandler(), _FileHandler(folder / self.config.logger_filename, encoding="utf-8")]
        for handler in self._text.handlers:
            handler.setFormatter(_Formatter())
        for record in self._held.records:
            self._text.handle(record)
        self._waiting, self._held.records = None, []

    def event(self, kind: str, **fields: Any) -> None:
        """Append one JSON object to log.jsonl, and send its numbers to the trackers.

        A resumed run repeats the steps since its checkpoint; what was logged of their training is not logged again.
        """
        file = self._events or self._waiting
        if file is None or (kind == "train" and self.step <= self._logged):
            return
        row = {"event": kind, "time": datetime.now(UTC).isoformat(timespec="seconds"), "step": self.step}
        try:
            file.write(json.dumps(row | fields, ensure_ascii=False, default=_plain) + "\n")
            file.flush()
        except OSError as error:  # a full disk; Python keeps the line and writes it with the next one
            self.warning(f"log.jsonl cannot be written: {error.strerror}")
        if self.tracker is not None:
            numbers = {k: v for k, v in fields.items() if isinstance(v, int | float) and not isinstance(v, bool)}
            self.tracker.log({f"{kind}/{name}": value for name, value in numbers.items()}, self.step)

    def info(self, text: str) -> None:
        """Print and log a line."""
        self._text.info(text)

    def warning(self, text: str) -> None:
        """Print and log something that may be wrong."""
        self._text.warning(text)

    def progress_line(self, text: str) -> None:
        """Log how far the run is; printed only where no bar shows it."""
        self._text.info(text, extra={"is_progress": True})

    def progress(self, title: str, total: int, done: int = 0, unit: str | None = None) -> Bar:
        """A bar with the time left on a terminal; with `unit`, such as "questions", also lines now and then."""
        line = None if unit is None else self.progress_line
        return Bar(title, total, unit or "steps", line, done, quiet=not self.is_main)

    def close(self) -> None:
        """Close files and trackers."""
        if self.tracker is not None:
            self.tracker.finish()
        with suppress(OSError):  # a full disk, which was reported when it was met
            for handler in self._text.handlers:
                handler.close()
            if self._events is not None:
                self._events.close()
        self._text.handlers, self._events, self.tracker = [logging.NullHandler()], None, None
        self._waiting = None


class Aside:
    """The log of other training, such as a teacher's: its lines are marked, its steps do not count."""

    def __init__(self, log: RunLog | Aside, name: str):
        self.log, self.name, self.step, self.window = log, name, 0, Window()

    def event(self, kind: str, **fields: Any) -> None:
        """As `RunLog.event`."""
        self.log.event(f"{self.name}_{kind}", **fields)

    def info(self, text: str) -> None:
        """As `RunLog.info`."""
        self.log.info(f"{self.name}: {text}")

    def warning(self, text: str) -> None:
        """As `RunLog.warning`."""
        self.log.warning(f"{self.name}: {text}")

    def progress_line(self, text: str) -> None:
        """As `RunLog.progress_line`."""
        self.log.progress_line(f"{self.name}: {text}")

    def progress(self, title: str, total: int, done: int = 0, unit: str | None = None) -> Bar:
        """As `RunLog.progress`."""
        return self.log.progress(f"{self.name}: {title}", total, done, unit)


class _HeldHandler(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class _StdoutHandler(logging.Handler):
    """Prints to stdout without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        if not (getattr(record, "is_progress", False) and has_bar()):
            say(self.format(record))


class _FileHandler(logging.FileHandler):
    """Without the library's traceback where a disk is full: the next checkpoint reports that."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _Formatter(logging.Formatter):
    """`[15:04:05] text`; warnings say so."""

    def __init__(self) -> None:
        super().__init__("[%(asctime)s] %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        if record.levelno >= logging.WARNING and not str(record.msg).startswith("warning: "):
            record.msg = f"warning: {record.msg}"
        return super().format(record)


def _plain(value: Any) -> Any:
    """A number of numpy or torch as a plain one; anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)


def _last_trained(path: Path) -> int:
    """The last optimizer step of which a log.jsonl holds the training; -1: none."""
    with open(path, encoding="utf-8", errors="replace") as file:
        found = [_TRAINED.match(line) for line in file]
    return max((int(match[1]) for match in found if match), default=-1)


def check_dump_path(config: Config) -> None:
    """Check that a run folder can be made, before any weights are loaded.

    Raises:
        UserError: it cannot.
    """
    root = (Path(config.dump_path) / config.run_name).absolute()
    nearest = next(path for path in (root, *root.parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"dump_path: cannot make {root}: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"dump_path: cannot make {root}: {nearest} cannot be written to")


def make_run_folder(config: Config) -> Path:
    """A new folder <dump_path>/<wandb_name>/<time>-seed<seed>; nothing that exists is touched.

    Raises:
        UserError: the folder can't be made.
    """
    root = Path(config.dump_path) / config.run_name
    for attempt in range(100):
        name = f"{datetime.now():%Y-%m-%d-%H-%M-%S}-seed{config.seed}" + (f"-{attempt}" if attempt else "")
        try:
            (root / name).mkdir(parents=True)
            return root / name
        except FileExistsError:
            continue  # another run of this second
        except (OSError, ValueError) as error:  # the second: a NUL in the name
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"dump_path: cannot make {root / name}: {reason}") from None
    raise UserError(f"dump_path: 100 runs were started in {root} within one second; wait a moment")


def environment(
    config: Config,
    device: str,
    processes: int,
    distributed: str = "NO",
    mode: str | None = None,
    self_test: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What another person needs to repeat the run."""
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "seed": config.seed,
        "device": device,
        "processes": processes,
        "distributed_type": distributed,
        "mode": mode,
        "gpu": _gpu(),
        "threads": torch.get_num_threads(),
        "self_test": self_test,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _gpu() -> dict[str, Any] | None:
    """The GPU of this process and the libraries on it; None: there is none."""
    if not torch.cuda.is_available():
        return None
    return {
        "name": torch.cuda.get_device_name(),
        "memory_bytes": torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory,
        "count": torch.cuda.device_count(),
        "cuda": vars(torch.version)["cuda"],
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "float32_matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def write_environment(folder: Path, *facts: Any) -> None:
    """env.json; a resumed run adds env-2.json, env-3.json ..."""
    number = len(list(folder.glob("env*.json"))) + 1
    name = "env.json" if number == 1 else f"env-{number}.json"
    write_json(folder / name, environment(*facts))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*words: str) -> str | None:
    """Output of a git command in the program's own checkout; None if it is none."""
    where = Path(__file__).parents[1]
    try:
        done = subprocess.run(["git", "-C", where, *words], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
