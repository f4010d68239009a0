"""Child processes that need not import the libraries: copies of this one."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def fork(action: Callable[[], int | None], out: Path, **environment: str) -> int:
    """Start a child that does this, prints to a file and ends with the exit code that `action` returns.

    Returns:
        Its process id, for `exit_code`.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ.update(environment)
        sys.stdout = sys.stderr = open(out, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
        for stream in (1, 2):
            os.dup2(sys.stdout.fileno(), stream)
        code = action() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def exit_code(child: int) -> int:
    """Wait for a child; below 0: the number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
