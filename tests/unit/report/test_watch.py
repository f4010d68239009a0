"""The state of runs on one screen."""

import os
import time

import pytest

from tests.unit.report.test_summary import make_run
from utils.errors import UserError
from utils.report.__main__ import main
from utils.report.page.watch import QUIET_SECONDS, State, screen, states_of, watch
from utils.report.summary import write
from utils.storage.files import write_json, write_text

HALF = [[0.8, None], [None, None]]


def sweep(tmp_path, outputs=(), at_a_time=1):
    """A sweep of four runs: one finished, one in its second task, one that failed, one that waits."""
    names = ["done", "half", "failed", "waiting"]
    jobs = [{"title": f"{name}.yaml, seed 1", "name": f"s-{name}", "seed": 1} for name in names]
    write_json(tmp_path / "s/jobs.json", {"at_a_time": at_a_time, "jobs": jobs})
    for name, R in (("done", [[0.8, None], [0.5, 0.9]]), ("half", HALF)):
        run = make_run(tmp_path / f"s-{name}/2026-01-01-seed1", R)
        write(run, plots=False)
        events = [f'{{"event": "train", "time": "2026-01-01T00:0{k}:00+00:00", "step": 1}}\n' for k in (0, 3)]
        write_text(run / "log.jsonl", "".join(events))
        write_text(run / "train.log", "[10:00:00] task 1, epoch 1 of 2, step 5 of 10: loss 1.5, 9 s left\n")
    write_text(tmp_path / "s/s-failed-seed1.out", "[10:00:00] begins\nerror: lr: too high\n")
    return tmp_path / "s"


def test_each_run_has_its_state(tmp_path):
    done, half, failed, waiting = states_of(sweep(tmp_path))
    assert done[:4] == ("done.yaml, seed 1", "finished", 1.0, 180.0) and done.average == pytest.approx(0.7)
    assert (half.status, half.share, half.left) == ("running", 0.75, 60.0) and half.average == pytest.approx(0.8)
    assert half.news.startswith("task 1, epoch 1 of 2") and waiting == State("waiting.yaml, seed 1", "waiting")
    assert (failed.status, failed.news) == ("failed", "error: lr: too high")


def test_the_screen_says_what_is_left_and_what_is_best(tmp_path):
    text = screen(list(states_of(sweep(tmp_path))), 1, None, None)
    assert text.splitlines()[0] == (
        "4 runs: 1 running, 1 failed, 1 waiting, 1 finished; about 4 min 0 s left"  # 1 of the running, 3 of the waiting
    )
    assert "running   half.yaml, seed 1: 75% done, about 1 min 0 s left, average 80.00 %, task 1" in text
    assert text.splitlines()[-1] == "best average so far: 70.00 %, done.yaml, seed 1"
    cut = screen(list(states_of(tmp_path / "s")), 1, 30, 7).splitlines()
    assert len(cut) <= 7 and max(map(len, cut)) <= 30 and cut[-2] == "  ... and 2 more"


def test_a_run_without_news_counts_as_stopped(tmp_path):
    run = make_run(tmp_path / "name/run-seed1", HALF)
    for name in ("train.log", "log.jsonl"):
        write_text(run / name, "")
        os.utime(run / name, (time.time() - 2 * QUIET_SECONDS,) * 2)
    assert [state.status for state in states_of(run)] == ["stopped"]


def test_watching_ends_with_the_runs(tmp_path):
    folder, shown = sweep(tmp_path), []

    def show(text):
        shown.append(text)
        make_run(tmp_path / "s-half/2026-01-01-seed1", [[0.8, None], [0.6, 0.9]])
        write(tmp_path / "s-half/2026-01-01-seed1", plots=False)
        write_text(folder / "s-waiting-seed1.out", "error: no space\n")

    watch([folder], 0.01, show)
    assert len(shown) == 2 and "2 failed, 2 finished" in shown[1]
    assert "75.00 %, half.yaml" in shown[1].splitlines()[-1]


def test_a_pipe_gets_lines_without_escapes(tmp_path, capsys):
    write(run := make_run(tmp_path / "name/run-seed1", [[0.8, None], [0.5, 0.9]]), plots=False)
    assert main([str(run), "--watch"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "1 run: 1 finished" in out and "finished  name/run-seed1: average 70.00 %" in out
    assert main([str(tmp_path), "--watch"]) == 2
    with pytest.raises(UserError, match="neither a run folder nor that of a sweep"):
        list(states_of(tmp_path))


def test_seconds_between_two_states_are_positive_and_finite(tmp_path, capsys):
    for seconds in ("0", "-1", "nan", "inf", "1e300", "soon"):
        with pytest.raises(SystemExit):
            main([str(tmp_path), f"--watch={seconds}"])
        assert "argument --watch: " in capsys.readouterr().err, seconds
