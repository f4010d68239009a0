"""Trackers are fast without a network, leak no secrets, and never stop a run."""

import os
import time

import pytest

from tests import tiny
from utils.logger import RunLog
from utils.run.trackers import Tracker, start_tracker, tracker_names

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_wandb_settings(monkeypatch, tmp_path):
    """As on a machine on which wandb was never used."""
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "set, so that it is put back")
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def start(tmp_path):
    """Start the trackers of a run; gives the tracker, the accelerator and the messages to the user."""
    folder = tmp_path / "run"
    folder.mkdir()

    def starter(**options):
        config, told = tiny.make_config(**options), []
        accelerator = tiny.make_session(config).accelerator
        tracker = start_tracker(accelerator, config, {"lr": 0.5, "parts": ["a"], "none": None}, folder, told.append)
        return tracker, accelerator, told

    starter.folder = folder
    return starter


def test_none_are_asked_for(start):
    assert start()[0] is None
    assert tracker_names(tiny.make_config(is_wandb=True, is_tensorboard=True)) == ["wandb", "tensorboard"]


def test_tensorboard_files_hold_the_numbers(start):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker, _, told = start(is_tensorboard=True)
    for step in (1, 5):
        tracker.log({"train/loss": step / 2}, step)
    tracker.finish()
    assert told == []
    (file,) = [path for path in start.folder.rglob("events.out*") if path.parent.name == "continual-learning"]
    reader = EventAccumulator(str(file.parent))
    reader.Reload()
    assert [(event.step, event.value) for event in reader.Scalars("train/loss")] == [(1, 0.5), (5, 2.5)]


@pytest.mark.parametrize("stage", ["log", "finish"])
def test_a_tracker_that_fails_is_left_out(start, stage, monkeypatch):
    tracker, accelerator, told = start(is_tensorboard=True)
    calls = []

    def fail(*_, **__):
        calls.append(stage)
        raise RuntimeError("no more room\non the disk")

    for inner in accelerator.trackers:
        monkeypatch.setattr(inner, stage, fail)
    for step in range(3):
        tracker.log({"train/loss": 1.0}, step)
    tracker.finish()
    accelerator.end_training()  # as at the end of every run
    assert calls == [stage]
    assert told == ["a tracker failed and is left out from here on: no more room on the disk"]


@pytest.mark.parametrize("options", [{"is_tensorboard": True}, {"is_wandb": True}])
def test_trackers_that_do_not_start_are_left_out(start, monkeypatch, options):
    def fail(*_, **__):
        raise RuntimeError("broken")

    monkeypatch.setattr("accelerate.Accelerator.init_trackers", fail)
    tracker, accelerator, told = start(**options)
    assert tracker is None
    assert told[-1] == "no tracker: broken"
    accelerator.end_training()


def test_a_host_that_does_not_answer_means_offline(start, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    modes = []

    def init(*_, **__):
        modes.append(os.environ.get("WANDB_MODE"))
        if len(modes) == 1:
            raise TimeoutError("no answer")

    monkeypatch.setattr("accelerate.Accelerator.init_trackers", init)
    tracker, _, told = start(is_wandb=True)
    assert isinstance(tracker, Tracker)
    assert modes == [None, "offline"]
    assert told == [f"is_wandb: wandb can't be reached (no answer); it writes to {start.folder}/wandb instead"]


@pytest.mark.slow
def test_wandb_without_a_key_is_offline_and_fast(start, monkeypatch):
    monkeypatch.chdir(start.folder)
    began = time.monotonic()
    tracker, _, told = start(is_wandb=True)
    tracker.log({"train/loss": 1.0}, 1)
    tracker.finish()
    assert time.monotonic() - began < 60  # offline takes some 4 s; a host that does not answer 100 s
    assert told == [
        f"is_wandb: no API key found, so wandb writes to {start.folder}/wandb; upload later with: wandb sync"
    ]
    assert list((start.folder / "wandb").glob("offline-run-*/run-*.wandb"))


def test_the_key_is_in_no_file_of_the_run(tmp_path, monkeypatch):
    from utils.dataset import save_stream
    from utils.options.checks import check
    from utils.options.parse import resolve
    from utils.run import launch

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("sys.argv", ["main_CL.py", "--is_wandb"])
    monkeypatch.chdir(tmp_path)
    save_stream(tiny.micro_stream(2), tmp_path / "data")
    words = ["dataset", "micro", "dataset_path", str(tmp_path / "data"), "dump_path", str(tmp_path / "experiments")]
    words += ["backbone", tiny.backbone_folder(), "is_wandb", "true", "is_tensorboard", "true", "training_epochs", "1"]
    argv = [word if i % 2 else f"--{word}" for i, word in enumerate(words)]
    tiny.forget_processes()
    results = launch.launch(check(resolve(["--cfg", "None", *argv])), None)
    assert results["R"][1][1] is not None
    (run,) = (tmp_path / "experiments").glob("*/*")
    files = [path for path in run.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert {"config.yaml", "env.json", "facts.json", "log.jsonl", "train.log", "results.json", "results.md"} <= {
        path.name for path in run.iterdir()
    }
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_failing_tracker_does_not_change_the_log(tmp_path):
    class Broken:
        trackers = ()

        def log(self, *_, **__):
            raise OSError("full")

    log, told = RunLog(tiny.make_config(), True), []
    log.write_to(tmp_path)
    log.tracker = Tracker(Broken(), told.append)
    for _ in range(3):
        log.event("train", loss=1.0)
    log.close()
    assert len((tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    assert told == ["a tracker failed and is left out from here on: full"]
