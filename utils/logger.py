"""The run folder: what a run was told, what it did, where it stands.

Only the main process writes. Trackers are extras: whatever happens to them, the run goes on.
"""

from __future__ import annotations

import fcntl
import io
import json
import logging
import platform
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import torch
from tqdm import tqdm

from utils.config import Config
from utils.errors import UserError
from utils.storage.files import drop_torn_line, write_json

PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "deepspeed", "numpy", "scikit-learn")


class RunLog:
    """train.log for people, log.jsonl for programs, progress bars, and the trackers.

    It exists before the run folder does: what the main process logs until `write_to` is kept and written then.
    """

    def __init__(self, config: Config, is_main: bool):
        self.config, self.is_main, self.tracker = config, is_main, None
        self.step = 0  # optimizer steps of the whole run so far
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
        if not self.is_main:
            return
        self._events = open(folder / "log.jsonl", "a", encoding="utf-8")  # noqa: SIM115 (lives as long as the run)
        _lock(self._events, folder)
        drop_torn_line(folder / "log.jsonl")
        self._events.write(self._waiting.getvalue())
        self._text.handlers = [_BarHandler(), _FileHandler(folder / self.config.logger_filename, encoding="utf-8")]
        for handler in self._text.handlers:
            handler.setFormatter(_Formatter())
        for record in self._held.records:
            self._text.handle(record)
        self._waiting, self._held.records = None, []

    def event(self, kind: str, **fields: Any) -> None:
        """Append one JSON object to log.jsonl, and send its numbers to the trackers."""
        file = self._events or self._waiting
        if file is None:
            return
        row = {"event": kind, "time": datetime.now(UTC).isoformat(timespec="seconds"), "step": self.step}
        file.write(json.dumps(row | fields, ensure_ascii=False) + "\n")
        file.flush()
        if self.tracker is not None:
            numbers = {k: v for k, v in fields.items() if isinstance(v, int | float) and not isinstance(v, bool)}
            self.tracker.log({f"{kind}/{name}": value for name, value in numbers.items()}, self.step)

    def info(self, text: str) -> None:
        """Tell the user."""
        self._text.info(text)

    def warning(self, text: str) -> None:
        """Tell the user something that may be wrong."""
        self._text.warning(text)

    def progress(self, title: str, total: int, done: int = 0) -> tqdm:
        """A bar with the time left; silent when nobody looks."""
        quiet = not self.is_main or not sys.stderr.isatty()
        return tqdm(total=total, initial=done, desc=title, disable=quiet, leave=False, dynamic_ncols=True)

    def close(self) -> None:
        """Close files and trackers."""
        if self.tracker is not None:
            self.tracker.finish()
        with suppress(OSError):  # a full disk, which was told when it was met
            for handler in self._text.handlers:
                handler.close()
            if self._events is not None:
                self._events.close()
        self._text.handlers, self._events, self.tracker = [logging.NullHandler()], None, None
        self._waiting = None


class Aside:
    """The log of training beside the run, such as a teacher's: told apart, and its steps are not steps of the run."""

    def __init__(self, log: RunLog, name: str):
        self.log, self.name, self.step = log, name, 0

    def event(self, kind: str, **fields: Any) -> None:
        """As `RunLog.event`."""
        self.log.event(f"{self.name}_{kind}", **fields)

    def info(self, text: str) -> None:
        """As `RunLog.info`."""
        self.log.info(f"{self.name}: {text}")

    def warning(self, text: str) -> None:
        """As `RunLog.warning`."""
        self.log.warning(f"{self.name}: {text}")

    def progress(self, title: str, total: int, done: int = 0) -> tqdm:
        """As `RunLog.progress`."""
        return self.log.progress(f"{self.name}: {title}", total, done)


class _HeldHandler(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class _BarHandler(logging.Handler):
    """Prints to stdout without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # nobody reads any more: `python main_CL.py | head`
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()


class _FileHandler(logging.FileHandler):
    """Without the traceback of the library where a disk is full: the next event meets it too, and that is told."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _Formatter(logging.Formatter):
    """`[15:04:05] text`; warnings say so."""

    def __init__(self):
        super().__init__("[%(asctime)s] %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        if record.levelno >= logging.WARNING and not str(record.msg).startswith("warning: "):
            record.msg = f"warning: {record.msg}"
        return super().format(record)


def _lock(file: TextIO, folder: Path) -> None:
    """Keep a second process out of the folder for as long as the file is open; a killed process lets go by itself.

    Raises:
        UserError: another process has it open.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"resume: {folder} is in use by a process that still runs; wait, or stop that one") from None
    except OSError:
        return  # a file system without locks


def make_run_folder(config: Config) -> Path:
    """A new folder <dump_path>/<wandb_name>/<time>-seed<seed>; nothing that exists is touched.

    Raises:
        UserError: the folder can't be made.
    """
    root = Path(config.dump_path) / config.wandb_name
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
    raise UserError(f"dump_path: a hundred runs were started in {root} this second; wait a moment")


def environment(
    config: Config, device: str, processes: int, distributed: str = "NO", mode: str | None = None
) -> dict[str, Any]:
    """What another person needs to know to repeat the run."""
    return {
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "seed": config.seed,
        "device": device,
        "processes": processes,
        "distributed_type": distributed,
        "mode": mode,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
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
