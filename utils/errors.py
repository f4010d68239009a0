"""Errors that the user can correct, and the signal to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """An error of the user, in one sentence: file or option, what was expected, what was got, what to do.

    main_CL prints the sentence without a traceback and exits with code 2.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM: handled like Ctrl-C, with a different exit code."""


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Let SIGTERM, which a cluster sends before it kills, end a command as Ctrl-C does: by an exception, at once."""

    def interrupt(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code(error: KeyboardInterrupt) -> int:
    """130 after Ctrl-C, 143 after SIGTERM, as shells do."""
    return 143 if isinstance(error, Terminated) else 130
