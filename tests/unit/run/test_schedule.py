"""A run that is evaluated after some tasks, or on a sample of the questions: holes stay holes, also when resumed."""

import pytest
import yaml

from tests import tiny
from utils.config import Config
from utils.dataset import Stream, TaskData
from utils.model import staged
from utils.report.summary import table
from utils.run.tasks import questions_of
from utils.storage.files import read_jsonl, write_text

SHORT = {"training_epochs": 1, "is_evaluate_init": False, "lr": 1e-2}


def run(folder, **options):
    """A short run with its options in the folder, as a report reads them."""
    write_text(folder / "config.yaml", yaml.safe_dump(options))
    return tiny.run(folder, tiny.make_config(**SHORT, **options))


def evaluated(results):
    """R with True where there is a score."""
    return [[score is not None for score in row] for row in results["R"]]


def test_scores_are_those_of_a_run_that_is_evaluated_after_every_task(tmp_path):
    whole = run(tmp_path / "every").results
    last = run(tmp_path / "last", evaluate_schedule="last")
    some = run(tmp_path / "some", evaluate_schedule="every_2").results
    no = [False] * 3
    assert evaluated(last.results) == [no, no, [True] * 3]
    assert evaluated(some) == [no, [True, True, False], [True] * 3]
    for results in (last.results, some):
        assert results["R"][2] == whole["R"][2]
        known = {name for name, value in results["summary"].items() if value is not None}
        assert known == {"average_accuracy"}, "other metrics need scores that are not there"
        assert "average incremental" not in table(results)
        assert "(evaluate_schedule)" in table(results)
    assert "evaluate_schedule" not in table(whole)
    assert "task 0: not evaluated (evaluate_schedule last)" in last.log.messages


def test_the_sample_is_fixed_and_in_the_order_of_the_split(tmp_path):
    found = run(tmp_path, evaluate_limit=4, il_mode="IIL")
    assert found.results["examples"] == [4, 4, 4]
    assert found.results["evaluate_limit"] == 4
    assert "at most 4 questions of each task" in table(found.results)
    for cell, split in (("task_0", "test"), ("train_task_0", "train")):
        rows = [read_jsonl(tmp_path / f"predictions/after_{k}/{cell}.jsonl") for k in range(3)]
        places = [row["index"] for row in rows[0]]
        assert places == sorted(set(places)) and len(places) == 4
        assert [[row["index"] for row in row_of] for row_of in rows] == [places] * 3
        examples = getattr(tiny.micro_stream().tasks[0], split)
        assert [row["input"] for row in rows[2]] == [examples[place].input for place in places]
    assert found.results["cost"]["evaluate_examples"] == [8, 16, 24]
    other = tiny.make_method(tiny.make_session(tiny.make_config("EWC", seed=7, evaluate_limit=4)))
    assert questions_of(other, 0, "train").places == places, "methods and seeds answer the same questions"


def test_a_small_split_is_scored_whole():
    method = tiny.make_method(tiny.make_session(tiny.make_config(evaluate_limit=6)))
    assert questions_of(method, 0, "test").places is None


def test_an_interrupted_run_keeps_its_schedule(tmp_path):
    config = tiny.make_config(**SHORT, evaluate_schedule="every_2", evaluate_limit=3)
    whole = tiny.run(tmp_path / "whole", config).results
    tiny.run(tmp_path / "first", config, cuts={"task_1": tmp_path / "cut"})
    resumed = tiny.run(tmp_path / "cut", config)
    assert resumed.results["R"] == whole["R"]
    assert not any("cannot be made again" in message for message in resumed.log.messages)


@pytest.mark.parametrize("schedule", ["never", "every_0", "every_-1", "every_2.5", "every2"])
def test_other_schedules_are_refused(schedule):
    with pytest.raises(ValueError, match="evaluate_schedule"):
        Config(cfg=None, evaluate_schedule=schedule)


def test_locality_compares_the_same_sample(tmp_path):
    stream = tiny.micro_stream()
    tasks = tuple(TaskData(t.name, t.train, t.dev, t.test) for t in stream.tasks)
    stream = Stream("edits", tasks, stream.config | {"IL_MODE": "CKE", "LOCALITY_SPLIT": "dev"})
    config = tiny.make_config(**SHORT | {"lr": 0.0}, evaluate_limit=3, il_mode="CKE")
    results = tiny.run(tmp_path, config, stream).results
    assert results["R_locality"][2] == [1.0] * 3, "nothing was learned, so everything is answered as before"
    assert len(read_jsonl(tmp_path / "predictions/base/locality_task_0.jsonl")) == 3


def test_small_test_sets_of_several_tasks_share_batches(tmp_path, monkeypatch):
    calls = []
    answer = staged.answer
    monkeypatch.setattr(staged, "answer", lambda *args: calls.append(len(args[1])) or answer(*args))
    tables = {}
    for name, size in (("together", 16), ("apart", 4)):  # at most 64 questions before they are written, or 16
        calls.clear()
        config = tiny.make_config(**SHORT, evaluate_batch_size=size, il_mode="IIL", evaluate_limit=9)
        results = tiny.run(tmp_path / name, config).results
        files = sorted((tmp_path / name / "predictions").rglob("*.jsonl"))
        tables[name] = {file.relative_to(tmp_path / name): read_jsonl(file) for file in files}
        assert results["cost"]["evaluate_examples"] == [15, 27, 41]
        if name == "together":
            assert calls == [15, 16, 11, 16, 16, 9]
    assert tables["together"] == tables["apart"]
    assert len(tables["together"]) == 12


def test_questions_whose_task_is_told_are_answered_task_by_task(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.evaluation._joined", lambda *_: 1 / 0)
    for options in ({"il_mode": "TIL"}, {"evaluate_batch_size": 1}):
        tiny.run(tmp_path / str(options), tiny.make_config(**SHORT, **options))
