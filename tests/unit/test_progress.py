"""Bars where there is a terminal, lines where there is none."""

import io
import sys
import threading

from utils import progress
from utils.progress import Bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def clocked(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_ten_seconds_with_the_time_left(monkeypatch):
    now, lines = clocked(monkeypatch), []
    bar = Bar("evaluate", 3000, "questions", lines.append, done=1000)
    for _ in range(20):
        now[0] += 4
        bar.update(100)
    assert lines == [  # 25 questions a second
        "evaluate: 1,300 of 3,000 questions, 1 min 8 s left",
        "evaluate: 1,600 of 3,000 questions, 56 s left",
        "evaluate: 1,900 of 3,000 questions, 44 s left",
        "evaluate: 2,200 of 3,000 questions, 32 s left",
        "evaluate: 2,500 of 3,000 questions, 20 s left",
        "evaluate: 2,800 of 3,000 questions, 8 s left",
    ]


def test_nothing_done_yet_has_no_pace(monkeypatch):
    clocked(monkeypatch)
    assert Bar("x", 5, "files", None).left() == "time left unknown"


def test_a_quiet_one_prints_nothing(monkeypatch):
    now, lines = clocked(monkeypatch), []
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = Bar("x", 5, "files", lines.append, quiet=True)
    now[0] += 60
    bar.update()
    bar.close()
    assert lines == [] and sys.stderr.getvalue() == ""


def test_a_bar_is_on_terminals_alone(monkeypatch):
    for stderr, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stderr)
        bar = Bar("pretraining", 5, "steps", None)
        bar.update()
        bar.close()
        assert ("pretraining" in stderr.getvalue()) == shown


def test_work_of_unknown_length_says_that_it_is_being_done(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.01)
    lines, said, before = [], threading.Event(), threading.active_count()
    monkeypatch.setattr(progress, "say_with_time", lambda text: (lines.append(text), said.set()))
    with progress.working("reading"):
        assert said.wait(60)
    assert lines[0] == "reading: 0 s so far"
    assert threading.active_count() == before


def test_words_that_stdout_cannot_write_and_a_reader_that_has_gone(monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    progress.say("café")
    assert narrow.buffer.getvalue() == b"caf\\xe9\n"
    narrow.close()
    progress.say("nobody reads this")
