"""Intervals of differences, orders, and the transfer to a reference, on hand-made runs."""

import numpy as np
import pytest

from utils.report import differences
from utils.report.__main__ import main
from utils.report.compare import compare_text
from utils.report.results import build, group
from utils.storage.files import read_json, write_json, write_jsonl

TASKS = ["a", "b"]


def make_run(root, method, seed, right, order="stored", metric="exact_match", stream="letters", mode="CIT"):
    """A finished run; `right[i][j]` are the scores, 0 or 1, of the questions of task j after task i."""
    run = root / f"{method}-{order}-{seed}"
    names = TASKS[::-1] if order == "reversed" else TASKS
    facts = {"name": method, "stream": stream, "method": method, "seed": seed, "il_mode": mode, "backbone": "tiny"}
    facts |= {"task_names": names, "metrics": [metric] * 2, "chance": [0.0, 0.0]}
    write_json(run / "facts.json", facts | {"options": {"task_order": order}, "identity": {"stream": "1"}})
    for i, row in enumerate(right):
        for j, scores in enumerate(row[: i + 1]):
            rows = [{"index": n, "prediction": "x" if s else "Sorry", "target": "x"} for n, s in enumerate(scores)]
            write_jsonl(run / f"predictions/after_{i}/task_{j}.jsonl", rows)
    return run


def runs_of(root, *made):
    return [(run, build(run)) for run in (make_run(root, *one) for one in made)]


def last(first, second):
    """A run whose last row has these scores."""
    return [[[1] * len(first)], [first, second]]


def compared(runs, baseline="SEQ"):
    (section,) = group(runs)
    differences.add([section], {str(run): results for run, results in runs}, baseline)
    return section


def test_the_difference_is_the_mean_over_tasks_of_the_mean_over_questions(tmp_path):
    runs = runs_of(tmp_path, ("SEQ", 1, last([0, 0, 0, 0], [1, 1])), ("Replay", 1, last([1, 1, 0, 0], [1, 0])))
    (found,) = compared(runs)["differences"]
    assert found["method"] == "Replay" and found["mean"] == 0.0 and found["won"] == 1
    assert found["tasks"] == {"a": 0.5, "b": -0.5} and found["low"] < 0 < found["high"] and found["p"] > 0.5
    assert "the choice of questions alone" in compare_text([compared(runs)])


def test_the_interval_covers_the_questions_and_the_runs(tmp_path):
    rng = np.random.default_rng(0)
    seeds, shares = (1, 2, 3), {"SEQ": 0.5, "Replay": 0.7}
    right = {name: (rng.random((3, 2, 400)) < share).astype(int).tolist() for name, share in shares.items()}
    made = [(name, seed, last(*right[name][seed - 1])) for name in shares for seed in seeds]
    (found,) = compared(runs_of(tmp_path, *made))["differences"]
    assert found["pairs"] == [[1, "stored"], [2, "stored"], [3, "stored"]]
    assert 0.1 < found["low"] < 0.2 < found["high"] < 0.3 and found["won"] == 2
    # Answers of different runs are independent here: 0.08 by questions and runs; three runs show their part roughly.
    assert found["p"] == pytest.approx(2 / 2001) and 0.04 < found["high"] - found["low"] < 0.2
    (same,) = compared(runs_of(tmp_path / "same", made[0], ("Replay", 1, made[0][2])))["differences"]
    assert (same["mean"], same["low"], same["high"], same["p"]) == (0, 0, 0, 1)


def test_runs_that_disagree_widen_the_interval(tmp_path):
    ones, none = [1] * 50, [0] * 50
    steady = [("SEQ", s, last(none, none)) for s in (1, 2)] + [("Replay", s, last(ones, none)) for s in (1, 2)]
    wild = [*steady[:3], ("Replay", 2, last(none, none))]
    (calm,) = compared(runs_of(tmp_path / "calm", *steady))["differences"]
    (torn,) = compared(runs_of(tmp_path / "torn", *wild))["differences"]
    assert calm["low"] == pytest.approx(0.5) == calm["high"]
    # Two runs with 0.5 and 0: the mean of two draws, scaled by sqrt(2) around 0.25.
    assert torn["mean"] == 0.25 and torn["low"] == pytest.approx(0.25 - 0.25 * 2**0.5)


def test_pairs_have_the_same_seed_and_order(tmp_path):
    made = [("SEQ", 1, last([0], [1])), ("SEQ", 1, last([0], [1]), "reversed"), ("EWC", 2, last([1], [1]))]
    made += [("Replay", 1, last([1], [0]), "reversed"), ("Replay", 2, last([1], [1]))]
    runs = runs_of(tmp_path, *made)
    section = compared(runs)
    (found,) = section["differences"]
    # Reversed: the first column is task b.
    assert found["pairs"] == [[1, "reversed"]] and found["tasks"] == {"a": -1.0, "b": 1.0}
    assert "| EWC" in differences.text(section)  # no pair: shown without numbers


def test_orders_share_a_row_and_have_a_sensitivity(tmp_path):
    made = [("SEQ", s, last([0, 1], [1, 1])) for s in (1, 2)]
    made += [("SEQ", s, last([0, 0], [1, 0]), "reversed") for s in (1, 2)]
    (section,) = group(runs_of(tmp_path, *made))
    (row,) = section["rows"]
    assert row["orders"] == ["stored", "stored", "reversed", "reversed"] and row["seeds"] == [1, 2, 1, 2]
    # a: 0.5 and 0.5; b: 1 and 0
    assert row["columns"]["order_sensitivity"]["mean"] == 0.5
    text = compare_text([section])
    assert "order sensitivity" in text and "(n=" not in text and "not independent" not in text and "AOPD" in text


def test_transfer_to_the_tasks_learned_alone(tmp_path):
    runs = runs_of(
        tmp_path, ("Single", 1, last([0], [1, 0])), ("SEQ", 1, last([0], [1, 1])), ("EWC", 2, last([0], [1, 1]))
    )
    (section,) = group(runs)
    differences.add_transfer([section], {str(run): results for run, results in runs}, "Single")
    found = {row["method"]: row["columns"]["transfer_to_reference"]["mean"] for row in section["rows"]}
    assert found == {"Single": 0.0, "SEQ": 0.5, "EWC": None}


def test_other_runs_than_those_of_the_baseline_are_pointed_out(tmp_path):
    made = [("SEQ", 1, last([0], [0])), ("SEQ", 2, last([0], [0])), ("EWC", 1, last([1], [1]))]
    made += [("EWC", 3, last([0], [0])), ("GEM", 1, last([1], [1]), "reversed")]
    section = compared(runs_of(tmp_path, *made))
    assert [(found["method"], found["mean"]) for found in section["differences"]] == [("EWC", 1.0)]
    text = compare_text([section])
    assert "Runs differ between rows: seeds 1 2 stored (SEQ); seeds 1 3 stored (EWC); seeds 1 reversed (GEM).\n" in text
    assert "1 of 2 runs have a partner of the same seed and task order among the 2 of SEQ, and differences" in text
    assert "No difference to SEQ, as no finished run of it has the same seed and task order: GEM." in text
    assert "Task 0 and last task are the first and the last one learned" in text
    assert "Runs differ" not in compare_text([compared(runs_of(tmp_path, *made[:1]))])


def test_unequal_tuning_is_pointed_out(tmp_path):
    runs = runs_of(tmp_path, *((name, 1, last([0], [0])) for name in ("SEQ", "EWC", "GEM", "LwF")))
    tunings = [
        "lr: 2 tries on dev of all",
        "lr: 3 tries on dev of all",
        "lr: 3 tries, 90 of 80 passes, on dev of all",
        None,
    ]
    for (_, results), tuning in zip(runs, tunings, strict=True):
        results["tuning"] = tuning
    text = compare_text([compared(runs)])
    assert "Not tuned: LwF.\n" in text
    assert "Unequal budgets of tuning: 2 tries (SEQ); 3 tries (EWC); 80 passes (GEM).\n" in text
    runs = runs[:1]
    assert "budgets" not in compare_text([compared(runs)])


def test_lower_is_better(tmp_path):
    made = [(name, 1, last([s], [s]), "stored", "jailbreak_rate") for name, s in (("SEQ", 1), ("EWC", 0))]
    (found,) = compared(runs_of(tmp_path, *made))["differences"]
    assert found["mean"] == 1.0 and found["won"] == 2


def test_rows_whose_task_is_known_are_a_table_without_differences(tmp_path):
    told = [make_run(tmp_path, name, 1, last([0, 1], [1, 1]), mode="TIL") for name in ("ProgPrompt", "PEFT")]
    paths = [make_run(tmp_path, name, 1, last([0, 1], [1, 1])) for name in ("SEQ", "EWC")] + told
    runs = [(path, build(path)) for path in paths]
    sections = group(runs)
    differences.add(sections, {str(run): results for run, results in runs}, "SEQ")
    assert [section["stream"] for section in sections] == ["letters, CIT", "letters, TIL"]
    assert [len(section.get("differences", ())) for section in sections] == [1, 0]
    assert compare_text(sections).count("Not compared with SEQ, which has a different il_mode.") == 1
    differences.add_transfer(sections, {str(run): results for run, results in runs}, "SEQ")
    assert compare_text(sections).count("No transfer to reference: there is no row SEQ here.") == 1


def test_bad_baselines_are_one_sentence(tmp_path, capsys):
    runs = [make_run(tmp_path, "SEQ", 1, last([0], [1])), make_run(tmp_path, "SEQ + LoRA r 8", 1, last([0], [1]))]
    assert main([*map(str, runs), "--baseline", "Joint"]) == 2
    assert (
        capsys.readouterr().err
        == "error: baseline: 'Joint': there is no such row; expected one of SEQ; SEQ + LoRA r 8\n"
    )
    assert main([*map(str, runs), "--baseline", "SEQ +"]) == 0
    other = make_run(tmp_path, "EWC", 1, last([0], [1]), stream="digits")
    assert main([*map(str, runs), str(other), "--baseline", "SEQ"]) == 2
    assert (
        "runs of different streams or metrics cannot be compared: letters with exact_match; digits"
        in capsys.readouterr().err
    )
    assert main([*map(str, runs), "--reference", "Single"]) == 2
    assert "reference: 'Single': there is no such row" in capsys.readouterr().err


@pytest.mark.slow
def test_the_files_have_the_differences(tmp_path):
    runs = [make_run(tmp_path, name, 1, last([0, 1], [1, 1])) for name in ("SEQ", "EWC")]
    assert main([*map(str, runs), "--baseline", "SEQ", "--out", str(tmp_path / "out")]) == 0
    (section,) = read_json(tmp_path / "out/compare.json")
    assert section["baseline"] == "SEQ" and section["differences"][0]["p_holm"] == 1.0
    assert "Paired bootstrap over questions" in (tmp_path / "out/compare.md").read_text(encoding="utf-8")


def test_holm():
    assert differences.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert differences.holm([]) == [] and differences.holm([0.9, 0.8]) == [1.0, 1.0]
