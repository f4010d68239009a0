"""Runs as forks of one process that has already imported what a run needs, so that they start at once.

A fork begins with the state of a new process after its imports: nothing was computed and no random number drawn, so its
results are those of `python main_CL.py`, bit for bit. Processes that use a GPU are not forked; see utils/jobs/work.py.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

PRELOADED = [  # and what they import later
    "main_CL",
    "utils.options.checks",
    "utils.run.launch",
    "transformers.modeling_utils",
    "transformers.tokenization_utils_tokenizers",
    "torch._dynamo",
    "matplotlib.figure",
]


class Forked:
    """A run, with the part of subprocess.Popen's interface that a sweep needs."""

    def __init__(self, process: ForkServerProcess):
        self.process = process
        self.pid: int = process.pid or 0

    @property
    def returncode(self) -> int | None:
        """Exit code; minus the signal that ended it; None while it runs."""
        return self.process.exitcode

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self.returncode

    def wait(self, timeout: float) -> int | None:
        """Wait until it ends.

        Raises:
            subprocess.TimeoutExpired: it did not.
        """
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self.process), timeout)
        return self.returncode

    def kill(self) -> None:
        """Send SIGKILL."""
        self.process.kill()


def fork(program: Path, arguments: Sequence[str], output: Path) -> Forked:
    """Start a run. The process that forks has the environment that this one has at the first run.

    Args:
        program: Path of main_CL.py.
        arguments: Of the run.
        output: File for what it prints; its folder exists.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_run, args=(program, list(arguments), output))
    process.start()
    return Forked(process)


def _run(program: Path, arguments: list[str], output: Path) -> None:
    os.setsid()  # Ctrl-C reaches the sweep alone, which ends the runs
    threading.Thread(target=_end_with_sweep, daemon=True).start()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [str(program), *arguments]
    try:
        runpy.run_path(str(program), run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves without them


def _end_with_sweep() -> None:
    """Wait for the sweep to end, however it ends, and let this run end in order."""
    sweep = multiprocessing.parent_process()
    if sweep is not None:
        sweep.join()
        os.kill(os.getpid(), signal.SIGTERM)
