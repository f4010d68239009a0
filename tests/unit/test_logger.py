"""The run folder: new for every run, and sufficient to repeat it."""

import json
import logging
import sys
from datetime import datetime

import numpy as np
import pytest
import torch

from tests.tiny import make_config
from utils.errors import UserError
from utils.logger import Aside, RunLog, environment, make_run_folder, write_environment
from utils.storage.files import read_json, read_jsonl


def config(tmp_path, **options):
    return make_config(dump_path=str(tmp_path), **options)


def opened(tmp_path, is_main=True):
    log = RunLog(config(tmp_path), is_main)
    log.write_to(tmp_path)
    return log


def test_two_runs_of_one_second_have_two_folders(tmp_path, monkeypatch):
    class Still(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr("utils.logger.datetime", Still)
    folders = [make_run_folder(config(tmp_path, seed=0)) for _ in range(3)]
    assert [folder.name for folder in folders] == [
        "2026-01-02-03-04-05-seed0",
        "2026-01-02-03-04-05-seed0-1",
        "2026-01-02-03-04-05-seed0-2",
    ]
    assert all(folder.parent == tmp_path / "tiny" and folder.is_dir() for folder in folders)


def test_an_existing_folder_is_never_changed(tmp_path, monkeypatch):
    first = make_run_folder(config(tmp_path))
    (first / "results.json").write_text("mine", encoding="utf-8")
    assert make_run_folder(config(tmp_path)) != first
    assert (first / "results.json").read_text(encoding="utf-8") == "mine"


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="dump_path: cannot make"):
        make_run_folder(make_config(dump_path=str(tmp_path / "file")))


def test_env_json_holds_what_a_repetition_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main_CL.py", "--seed", "0"])
    write_environment(tmp_path, config(tmp_path, seed=0), "cpu", 2)
    found = read_json(tmp_path / "env.json")
    assert found["seed"] == 0
    assert found["command"].endswith("main_CL.py --seed 0")
    assert (found["device"], found["processes"]) == ("cpu", 2)
    assert found["versions"]["torch"]
    assert found["commit"] is None or len(found["commit"]) == 40
    assert isinstance(found["dirty"], bool)
    first = (tmp_path / "env.json").read_bytes()
    for number in (2, 3):  # a resumed run
        write_environment(tmp_path, config(tmp_path), "cpu", 1)
        assert read_json(tmp_path / f"env-{number}.json")["processes"] == 1
    assert (tmp_path / "env.json").read_bytes() == first


def test_a_checkout_without_git_is_no_reason_to_stop(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment(config(tmp_path), "cpu", 1)["commit"] is None


def test_events_are_lines_of_json(tmp_path):
    log = opened(tmp_path)
    log.event("train", loss=0.5, task=0)
    log.step = 7
    log.event("evaluate", cell="é", score=1.0)
    rows = read_jsonl(tmp_path / "log.jsonl")  # readable during the run
    log.close()
    assert [{k: v for k, v in row.items() if k != "time"} for row in rows] == [
        {"event": "train", "step": 0, "loss": 0.5, "task": 0},
        {"event": "evaluate", "step": 7, "cell": "é", "score": 1.0},
    ]
    assert all(datetime.fromisoformat(row["time"]).tzinfo for row in rows)


def test_a_resumed_run_appends_to_the_same_files(tmp_path, capsys):
    for word in ("one", "two"):
        log = opened(tmp_path)
        log.event(word)
        log.info(word)
        log.warning("careful")
        log.warning("careful")
        log.close()
    assert [row["event"] for row in read_jsonl(tmp_path / "log.jsonl")] == ["one", "two"]
    lines = [line.split("] ")[1] for line in (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()]
    assert lines == ["one", "warning: careful", "warning: careful", "two", "warning: careful", "warning: careful"]
    assert capsys.readouterr().out.count("warning: careful") == 4


def test_a_resumed_run_logs_no_step_twice(tmp_path):
    for steps in (range(1, 4), range(2, 6)):  # the second run begins at a checkpoint before the end of the first
        log = opened(tmp_path)
        for log.step in steps:
            log.event("train", loss=log.step / 10)
            log.event("evaluate", cell="task_0")
        log.close()
    rows = read_jsonl(tmp_path / "log.jsonl")
    assert [row["step"] for row in rows if row["event"] == "train"] == [1, 2, 3, 4, 5]
    assert sum(row["event"] == "evaluate" for row in rows) == 7


def test_lines_of_progress_are_logged_and_printed_where_no_bar_is_seen(tmp_path, capsys, monkeypatch):
    log = opened(tmp_path)
    for seen in (False, True):
        monkeypatch.setattr("utils.logger.has_bar", lambda seen=seen: seen)
        log.progress_line("step 1 of 2")
        Aside(log, "teacher").progress_line("step 2 of 2")
    log.close()
    assert [line.split("] ")[1] for line in capsys.readouterr().out.splitlines()] == [
        "step 1 of 2", "teacher: step 2 of 2",
    ]  # fmt: skip
    assert (tmp_path / "train.log").read_text(encoding="utf-8").count("step 2 of 2") == 2


def test_a_log_line_never_stops_a_run(tmp_path, capsys):
    log = opened(tmp_path)
    log.event("odd", number=np.float32(0.5), tensor=torch.tensor(3), path=tmp_path)
    log._events.close()
    log._events = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115 (a disk without room)
    log.event("train", loss=1.0)
    assert "log.jsonl cannot be written: No space left on device" in capsys.readouterr().out
    log.close()
    (row,) = read_jsonl(tmp_path / "log.jsonl")
    assert (row["number"], row["tensor"], row["path"]) == (0.5, 3, str(tmp_path))


def test_only_the_main_process_writes(tmp_path, capsys):
    log = opened(tmp_path, is_main=False)
    log.event("train", loss=1.0)
    log.info("hello")
    log.progress("bar", 3).update()
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_what_is_logged_before_there_is_a_folder_is_written_then(tmp_path, capsys):
    for is_main in (False, True):
        log = RunLog(config(tmp_path), is_main)
        log.event("early", number=1)
        log.warning("careful")
        assert capsys.readouterr().out == "" and not (tmp_path / "log.jsonl").exists()
        log.write_to(tmp_path)
        log.event("late")
        log.info("there")
        log.close()
    assert [row["event"] for row in read_jsonl(tmp_path / "log.jsonl")] == ["early", "late"]
    lines = [line.split("] ")[1] for line in (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()]
    assert lines == ["warning: careful", "there"]
    assert capsys.readouterr().out.count("careful") == 1


def test_closing_leaves_nothing_open(tmp_path):
    log = opened(tmp_path)
    log.close()
    log.close()
    log.event("late")
    log.info("late")
    assert (tmp_path / "log.jsonl").read_text(encoding="utf-8") == ""
    assert all(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("main_CL").handlers)


def test_a_folder_in_use_is_refused(tmp_path):
    first = opened(tmp_path)
    with pytest.raises(UserError, match="is in use by a process that still runs"):
        opened(tmp_path)
    first.close()
    opened(tmp_path).close()


def test_numbers_go_to_the_trackers_with_the_step_of_the_run(tmp_path):
    sent = []

    class Tracker:
        def log(self, numbers, step):
            sent.append((numbers, step))

        def finish(self):
            sent.append("finished")

    log = opened(tmp_path)
    log.tracker, log.step = Tracker(), 5
    log.event("train", loss=0.5, name="x", flag=True, task=2)
    log.close()
    assert sent == [({"train/loss": 0.5, "train/task": 2}, 5), "finished"]
    assert json.loads((tmp_path / "log.jsonl").read_text(encoding="utf-8"))["name"] == "x"
