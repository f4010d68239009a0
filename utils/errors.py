"""Errors that the user can correct, and the signal to stop."""

from __future__ import annotations

import os
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode's categories of control characters, surrogates and line ends


def printable(text: str) -> str:
    r"""The text on one line, with control characters as escapes: a name from a file must not steer a terminal.

    >>> printable("a\x1b[2J\nb")
    'a\\x1b[2J\\nb'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in HIDDEN else c for c in text)


def reason_of(error: BaseException, most: int = 400) -> str:
    """What a library's error says, all its lines on one; its type if it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


class UserError(Exception):
    """An error of the user, in one sentence: file or option, what was expected, what was got, what to do.

    main_CL prints the sentence without a traceback and exits with code 2.
    """

    def __init__(self, *lines: str):
        super().__init__("\n".join(map(printable, lines)))


class Terminated(KeyboardInterrupt):
    """SIGTERM: handled like Ctrl-C, with a different exit code."""


GRACE_SECONDS = 20  # from SIGTERM to the end of a step; accelerate's launcher kills its processes after 30


@contextmanager
def termination_waits() -> Iterator[Callable[[], bool]]:
    """Delay SIGTERM in this block by up to GRACE_SECONDS, until work reaches a point where it can be resumed.

    Yields:
        Says whether SIGTERM has come.
    """
    came = False

    def note(*_: object) -> None:
        nonlocal came
        if not came:  # launchers send it again and again
            came = True
            signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)

    before = signal.signal(signal.SIGTERM, note), signal.signal(signal.SIGALRM, _terminate)
    try:
        yield lambda: came
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGALRM, before[1])
    if came:
        raise Terminated


def _terminate(*_: object) -> None:
    raise Terminated


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Make SIGTERM, which clusters send before SIGKILL, raise an exception as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code(error: KeyboardInterrupt) -> int:
    """130 after Ctrl-C, 143 after SIGTERM, as shells do."""
    return 143 if isinstance(error, Terminated) else 130


def exit_with(command: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its code; when the reader of its output has gone (`| head`), with SIGPIPE's."""
    try:
        try:
            code = command()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        code = 128 + signal.SIGPIPE
    sys.exit(code)
