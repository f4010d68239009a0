"""What a sweep runs, and how long it will take."""

import argparse
from pathlib import Path

import pytest

from tests import tiny
from utils import sweep
from utils.jobs import choice, times
from utils.jobs.choice import entries
from utils.options.checks import check
from utils.options.parse import ConfigError, resolve
from utils.sweep import jobs_of

BASE = Path("config/biography_demo_task2/SEQ.yaml")


def test_rows_are_files_or_methods():
    assert [row.name for row in entries([BASE, BASE], [], [])] == ["SEQ"]
    rows = entries([BASE], ["EWC", "Replay"], [("lr", "1e-3")])
    assert [row.words for row in rows] == [
        ("--method", "EWC", "--lr", "1e-3"),
        ("--method", "SEQ", "--is_replay", "true", "--lr", "1e-3"),
    ]
    (row,) = entries([], ["Freeze"], [("dataset", "zsre_task10")])
    assert row.cfg == Path("config/zsre_task10/Freeze.yaml")
    with pytest.raises(ConfigError, match="lr: set twice, so one value would have no effect"):
        entries([BASE], [], [("lr", "1"), ("lr", "2")])
    for name in choice.OF_COMMAND:
        with pytest.raises(ConfigError, match=f"{name}: the command gives it to each run; leave it out"):
            entries([BASE], [], [(name, "1")])
    with pytest.raises(ConfigError, match="nothing to run: give YAML files, or --methods"):
        entries([], [], [])
    with pytest.raises(ConfigError, match=r"methods: expected one of .*, got 'LoRA'; LoRA is a setting"):
        entries([BASE], ["LoRA"], [])
    with pytest.raises(argparse.ArgumentTypeError, match="expected option=value, got 'lr'"):
        choice.setting("lr")


def test_orders_are_jobs_with_names():
    rows = entries([BASE], [], [])
    jobs = jobs_of(rows, [1, 2], ["stored", "reversed", "random:3-4"], "p", Path("runs"))
    assert len(jobs) == 8 and len({(job.name, job.seed) for job in jobs}) == 8
    assert jobs[0].words() == ["--cfg", str(BASE), "--seed", "1", "--wandb_name", jobs[0].name, "--dump_path", "runs"]
    assert jobs[2].words()[-2:] == ["--task_order", "reversed"] and jobs[2].name.endswith("-SEQ-reversed")
    for order in ("random:2-1", "random:1-", "random:a-b"):
        with pytest.raises(ConfigError, match="orders: expected random:<first>-<last>"):
            sweep.expanded(order)


def test_an_order_under_two_names_is_one_run(monkeypatch, capsys):
    monkeypatch.setattr(sweep, "stream_of", lambda _: tiny.micro_stream(2))
    jobs = jobs_of(entries([BASE], [], []), [1, 2], ["stored", "0,1", "1,0", "reversed"], "p", Path("runs"))
    assert [job.label for job in sweep.once(jobs)] == ["", "", "1,0", "1,0"]
    assert "SEQ.yaml 0,1, seed 1: the order of config/biography" in capsys.readouterr().out
    assert sweep.once(sweep.once(jobs)) == sweep.once(jobs)


def test_differences_need_the_same_questions(tmp_path, capsys):
    words = [str(BASE), "config/biography_demo_task2/EWC.yaml", "--dump_path", str(tmp_path), "--seeds", "1"]
    assert sweep.main([*words, "--dry_run", "--baseline", "SEQ"]) == 0
    assert "2 runs, 2 to do: time not known yet" in capsys.readouterr().out
    other = tmp_path / "F1.yaml"
    other.write_text("metric_for_each_task: [token_f1, token_f1]\n", encoding="utf-8")
    assert sweep.main([str(other), *words, "--baseline", "SEQ"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "runs of different streams or metrics cannot be compared: biography_demo" in told
    other.write_text("evaluate_limit: 5\n", encoding="utf-8")
    assert sweep.main([str(other), *words, "--baseline", "SEQ", "--dry_run"]) == 2
    assert "baseline: runs with different evaluate_limit cannot be compared: 5, None" in capsys.readouterr().err


def test_the_forecast_is_by_method_then_backbone(tmp_path):
    plans = [check(resolve(["--method", name])) for name in ("SEQ", "EWC", "ICL")]
    assert times.forecast(tmp_path, plans, 1) is None
    times.note(tmp_path, plans[0], 10.0)
    seq, ewc, icl = (times.work_of(plan) for plan in plans)
    assert seq == ewc == 10 * 1200 + 10 * 240 + 2 * 1200 + 240 - 7 * 1200 - 2 * 240 and icl == 2 * 1200 + 240
    times.note(tmp_path, plans[1], 30.0)
    assert times.forecast(tmp_path, plans[:2], 2) == pytest.approx(20.0)
    with open(tmp_path / times.FILE, "a", encoding="utf-8") as file:
        file.write('{"work": "many"}\n')
    assert times.in_words(tmp_path, plans[:2], 1).startswith("time not known yet")
    assert times.in_words(tmp_path, [], 1) == "nothing to do"


def test_a_run_without_training_has_questions_only():
    plan = tiny.plan(tiny.make_config("ICL"))
    assert times.training_work(plan) == 0 < times.work_of(plan)


def test_launch_words_are_checked():
    assert choice.launch_words("--config_file config/accelerate/cpu_2.yaml --cpu")[1:] == (
        "config/accelerate/cpu_2.yaml",
        "--cpu",
    )
    for text, reason in (
        ("", "got nothing"),
        ("--config_file nosuch.yaml", "--config_file nosuch.yaml: the file does not exist"),
        ("--config_file=nosuch.yaml", "--config_file nosuch.yaml: the file does not exist"),
        ("'", "No closing quotation"),
    ):
        with pytest.raises(ConfigError, match=f"launch: .*{reason}"):
            choice.launch_words(text)
