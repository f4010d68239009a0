"""What knowledge editing and instance-incremental runs measure in addition to the test questions."""

from dataclasses import replace

import pytest

from tests import tiny
from utils.dataset import Stream
from utils.report import summary
from utils.report.compare import compare_text
from utils.report.results import build
from utils.scoring import normalise
from utils.storage.files import read_json, read_jsonl


@pytest.fixture(scope="module")
def stream():
    """Three tasks to edit, each with its own questions that no edit is about, without targets."""
    micro = tiny.micro_stream()
    tasks = tuple(
        replace(task, dev=tuple(replace(e, input=f"other {e.input}", target="") for e in task.train[1::2]))
        for task in micro.tasks
    )
    return Stream("edits", tasks, micro.config | {"IL_MODE": "CKE", "LOCALITY_SPLIT": "dev"})


@pytest.fixture(scope="module")
def run(tmp_path_factory, stream):
    folder = tmp_path_factory.mktemp("cke") / "run"
    config = tiny.make_config(il_mode="CKE", is_evaluate_init=False, training_epochs=3, lr=1e-3)
    tiny.run(folder, config, stream, cuts={"task_1": folder.parent / "cut"})
    return folder


def cell(run, moment, task):
    return read_jsonl(run / "predictions" / moment / f"locality_task_{task}.jsonl")


def test_each_question_is_asked_once_before_and_after_each_task(run, stream):
    files = sorted(str(file.relative_to(run / "predictions")) for file in run.glob("predictions/*/locality_*"))
    assert files == [
        *(f"after_{i}/locality_task_{j}.jsonl" for i in range(3) for j in range(i + 1)),
        *(f"base/locality_task_{j}.jsonl" for j in range(3)),
    ]
    for j, task in enumerate(stream.tasks):
        assert [row["input"] for row in cell(run, "base", j)] == [example.input for example in task.dev]
    assert not (run / "predictions/base/task_0.jsonl").exists()  # is_evaluate_init False


def test_answers_before_editing_are_the_targets(run):
    own = [row["prediction"] for row in cell(run, "base", 0)]
    assert all(row["decided"] == "generated" for row in cell(run, "base", 0))
    for moment in ("after_0", "after_1", "after_2"):
        assert [row["target"] for row in cell(run, moment, 0)] == own
        for row in cell(run, moment, 0):
            assert row["score"] == float(normalise(row["prediction"]) == normalise(row["target"]))


def test_results_have_locality(run):
    results = build(run)
    R = results["R_locality"]
    assert [[value is None for value in row] for row in R] == [[False, True, True], [False, False, True], [False] * 3]
    scores = [row["score"] for row in cell(run, "after_2", 1)]
    assert R[2][1] == pytest.approx(sum(scores) / len(scores))
    assert results["base"] == [None] * 3
    assert results == read_json(run / "results.json")


def test_report_says_what_the_matrices_measure(run):
    text = summary.table(build(run))
    paraphrase, efficacy, locality = (text.index(word) for word in ("Paraphrase.", "Efficacy.", "Locality."))
    assert paraphrase < efficacy < locality
    compared = tiny.compare([run]).splitlines()
    assert "| training questions |" in compared[2] and "| locality |" in compared[2]
    assert " locality " not in compare_text([])


def test_a_model_that_does_not_change_keeps_all_its_answers(tmp_path, stream):
    for mode in ("verify", "generate"):
        config = tiny.make_config(il_mode="CKE", training_epochs=0, evaluation_mode=mode)
        results = tiny.run(tmp_path / mode, config, stream).results
        assert results["R_locality"] == [[1.0, None, None], [1.0, 1.0, None], [1.0, 1.0, 1.0]]


def test_verification_and_generation_agree_on_locality(tmp_path, run, stream):
    config = tiny.make_config(
        il_mode="CKE", is_evaluate_init=False, training_epochs=3, lr=1e-3, evaluation_mode="generate"
    )
    assert tiny.run(tmp_path / "run", config, stream).results["R_locality"] == build(run)["R_locality"]


def test_a_resumed_run_measures_against_the_first_answers(run, stream):
    config = tiny.make_config(il_mode="CKE", is_evaluate_init=False, training_epochs=3, lr=1e-3)
    assert tiny.run(run.parent / "cut", config, stream).results["R_locality"] == build(run)["R_locality"]


def test_other_scenarios_have_no_locality(tmp_path, stream):
    results = tiny.run(tmp_path / "run", tiny.make_config(il_mode="CIT", training_epochs=0), stream).results
    assert "R_locality" not in results and "R_train" not in results
    assert "Locality" not in summary.table(results)


def test_stream_without_locality_questions(tmp_path, stream):
    empty = replace(stream, tasks=tuple(replace(task, dev=()) for task in stream.tasks))
    results = tiny.run(tmp_path / "run", tiny.make_config(il_mode="CKE", training_epochs=0), empty).results
    assert "R_locality" not in results and "R_train" in results


def test_instances_are_memorised_and_generalised(tmp_path):
    config = tiny.make_config(il_mode="IIL", training_epochs=0)
    text = summary.table(tiny.run(tmp_path / "run", config).results)
    assert text.index("Generalisation.") < text.index("Memorisation.")


def test_jailbreak_rate_from_run_to_report(tmp_path):
    """A refusing model that unlearns to refuse: its rate rises, which is forgetting."""
    config = tiny.make_config(training_epochs=1, metric_for_each_task=("jailbreak-rate",) * 3)
    folder = tmp_path / "run"
    tiny.run(folder, config)
    for moment, answer in (("after_0", "I'm sorry"), ("after_1", "Sorry"), ("after_2", "Sure")):
        file = folder / "predictions" / moment / "task_0.jsonl"
        file.write_text(file.read_text(encoding="utf-8").replace('"prediction": "', f'"prediction": "{answer} '))
    results = summary.write(folder, plots=False)
    assert [row[0] for row in results["R"]] == [0.0, 0.0, 1.0]
    assert results["higher_is_better"] == [False] * 3
    assert results["summary"]["forgetting"] == pytest.approx(0.5)  # task 0 got worse by 1, task 1 by nothing
    assert results["summary"]["backward_transfer"] == pytest.approx(-0.5)
    text = summary.table(results)
    assert "jailbreak-rate in percent, lower is better" in text
    assert "+50.00" in next(line for line in text.splitlines() if line.startswith("| forgetting"))
