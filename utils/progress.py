"""How far a piece of work is: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

from tqdm import tqdm

SECONDS = 10  # between two lines


def duration(seconds: float) -> str:
    """A time span as one says it.

    >>> duration(0.4), duration(59.6), duration(754), duration(7_500)
    ('0 s', '1 min 0 s', '12 min 34 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def say(text: str) -> None:
    """Print a line with the time of day, without tearing a bar; a reader that has gone (`| head`) is no error."""
    with suppress(OSError, ValueError):  # the second: a closed file
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        tqdm.write(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stdout)
        sys.stdout.flush()


def say_with_time(text: str) -> None:
    """`[15:04:05] text`, as in a run's log."""
    say(f"[{datetime.now():%H:%M:%S}] {text}")


def without_time(line: str) -> str:
    """What `say_with_time` was given, from the line that it printed; other lines as they are.

    >>> without_time("[15:04:05] step 2 of 8"), without_time("error: no")
    ('step 2 of 8', 'error: no')
    """
    return line.partition("] ")[2] if line.startswith("[") else line


def has_bar() -> bool:
    """True if the reader of stdout sees the bars, which are on stderr: lines would say the same again."""
    return sys.stdout.isatty() and sys.stderr.isatty()


@contextmanager
def working(title: str) -> Iterator[None]:
    """Say every ten seconds that the work in this block, whose length is not known, is still being done."""
    ended, began = threading.Event(), time.monotonic()

    def tick() -> None:
        while not ended.wait(SECONDS):
            say_with_time(f"{title}: {duration(time.monotonic() - began)} so far")

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        ended.set()
        ticker.join()


class Bar:
    """A bar where stderr is a terminal; and a line every ten seconds for those who do not see it.

    Args:
        title: What is done, such as "after_0: task_1".
        total: Pieces of work.
        unit: Their name, in the plural.
        line: Writes a line; None: no lines, the caller writes them.
        done: Pieces that were done before.
        quiet: No bar and no lines: a process that is not the main one.
    """

    def __init__(
        self,
        title: str,
        total: int,
        unit: str,
        line: Callable[[str], None] | None,
        done: int = 0,
        quiet: bool = False,
    ):
        self.title, self.total, self.unit, self.done = title, total, unit, done
        self._line = None if quiet else line
        self._before, self._began = done, time.monotonic()
        self._said = self._began
        hidden = quiet or not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc=title, disable=hidden, leave=False, dynamic_ncols=True)

    def update(self, count: int = 1) -> None:
        """So many more pieces are done."""
        self.done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._line is not None and now - self._said >= SECONDS and self.done < self.total:
            self._said = now
            self._line(f"{self.title}: {self.done:,} of {self.total:,} {self.unit}, {self.left()}")

    def note(self, **values: str) -> None:
        """Show values behind the bar."""
        self._bar.set_postfix(values)

    def left(self) -> str:
        """Time left at the pace so far, in words."""
        new = self.done - self._before
        if not new:
            return "time left unknown"
        return f"{duration((time.monotonic() - self._began) / new * (self.total - self.done))} left"

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()
