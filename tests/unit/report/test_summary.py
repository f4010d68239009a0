import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from utils import scoring
from utils.errors import UserError
from utils.report import results, summary
from utils.report.__main__ import main
from utils.report.compare import compare_text
from utils.report.results import build, group
from utils.storage.files import read_json, read_jsonl, write_json, write_jsonl, write_text

ROOT = Path(__file__).parents[3]
THREE = [[0.8, None, None], [0.7, 0.9, None], [0.75, 0.6, 0.95]]


def make_cell(path, share, rows=20):
    """Predictions of which the given share is right; their saved scores are wrong on purpose."""
    right = round(share * rows)
    write_jsonl(
        path,
        [
            {"index": i, "input": "q", "target": "Yes", "prediction": " yes" if i < right else "no", "score": 0.123}
            for i in range(rows)
        ],
    )


def make_run(folder, R, base=(), recovery=None, cost=True, config="", **facts):
    tasks = len(R)
    defaults = {
        "name": "demo",
        "stream": "toy",
        "method": "SEQ",
        "seed": 1,
        "il_mode": "CIT",
        "backbone": "tiny",
        "task_names": [f"task_{k}" for k in range(tasks)],
        "metrics": ["exact_match"] * tasks,
        "chance": [None] * tasks,
    }
    write_json(folder / "facts.json", {**defaults, **facts})
    if cost:
        write_json(folder / "cost.json", {"train_seconds": [10.0] * tasks, "peak_memory_bytes": None})
    if config:
        write_text(folder / "config.yaml", config)
    for moment, row in [("base", base), *((f"after_{i}", row) for i, row in enumerate(R))]:
        for j, share in enumerate(row):
            if share is not None:
                make_cell(folder / "predictions" / moment / f"task_{j}.jsonl", share)
    if recovery is not None:
        make_cell(folder / "predictions/recovery/task_0.jsonl", recovery)
    return folder


@pytest.fixture
def error_rate(monkeypatch):
    """A metric that is better low: the share of "yes"."""
    metric = scoring.Metric("error_rate", scoring.exact_match, higher_is_better=False)
    monkeypatch.setitem(scoring.METRICS, "error_rate", metric)
    return "error_rate"


def line(text, start):
    return next(line for line in text.splitlines() if line.startswith(f"| {start}"))


def costs(text):
    """The second table of a comparison."""
    return text.split("Positive backward transfer")[1]


def numbers(text, start):
    return [cell.strip() for cell in line(text, start).split("|")[2:-1]]


def test_matrix_is_recomputed_from_the_texts(tmp_path):
    run = make_run(tmp_path / "run", THREE, base=[0.0, 0.05, 0.1], chance=[0.1, 0.2, 0.3])
    results = summary.write(run, plots=False)
    assert results["R"] == THREE
    assert results["base"] == [0.0, 0.05, 0.1]
    assert results["examples"] == [20, 20, 20]
    assert results["higher_is_better"] == [True] * 3
    assert results["summary"]["average_accuracy"] == pytest.approx(2.3 / 3)
    assert results["summary"]["forgetting"] == pytest.approx(0.175)
    assert results["recovery"] is None
    assert "R_train" not in results
    assert read_json(run / "results.json") == results
    assert json.loads((run / "results.json").read_text(encoding="utf-8"))["R"][0][2] is None


def test_table_shows_percent_and_chance(tmp_path):
    run = make_run(tmp_path / "run", THREE, base=[0.0, 0.05, 0.1], chance=[0.1, 0.2, 0.3])
    text = summary.table(build(run))
    assert text.startswith("SEQ on toy, seed 1: exact_match in percent, higher is better\n")
    assert numbers(text, "before training") == ["0.00", "5.00", "10.00", ""]
    assert numbers(text, "after task_0") == ["80.00", "-", "-", "80.00"]
    assert numbers(text, "after task_2") == ["75.00", "60.00", "95.00", "76.67"]
    assert numbers(text, "chance") == ["10.00", "20.00", "30.00", "20.00"]
    assert numbers(text, "forgetting") == ["+17.50"]
    assert numbers(text, "backward transfer") == ["-17.50"]
    assert len({len(row) for row in text.splitlines()[2:9]}) == 1  # aligned


def test_two_tasks_with_recovery(tmp_path):
    results = build(make_run(tmp_path / "run", [[0.8, None], [0.2, 0.9]], recovery=0.65))
    assert results["recovery"] == {"before": 0.2, "after": 0.65, "peak": 0.8, "returned": pytest.approx(0.75)}
    text = summary.table(results)
    assert numbers(text, "after recovery") == ["65.00", "", ""]
    assert "75.00 % of the loss came back" in text


def test_recovery_without_a_loss_has_no_share(tmp_path):
    results = build(make_run(tmp_path / "run", [[0.8, None], [0.8, 0.9]], recovery=0.9))
    assert results["recovery"]["returned"] is None
    assert "came back" not in summary.table(results)


def test_lower_is_better_says_so_and_turns_the_signs(tmp_path, error_rate):
    run = make_run(tmp_path / "run", [[0.1, None], [0.4, 0.9]], metrics=[error_rate] * 2, recovery=0.2)
    results = summary.write(run)
    assert results["higher_is_better"] == [False, False]
    assert results["summary"]["forgetting"] == pytest.approx(0.3)
    assert results["summary"]["backward_transfer"] == pytest.approx(-0.3)
    assert results["summary"]["average_accuracy"] == pytest.approx(0.65)
    assert results["recovery"]["returned"] == pytest.approx(2 / 3)
    assert "lower is better" in summary.table(results)
    assert "lower is better" in tiny.compare([run])


def test_mixed_directions_are_marked_and_not_averaged(tmp_path, error_rate):
    run = make_run(tmp_path / "run", [[0.1, None], [0.4, 0.9]], metrics=[error_rate, "acc"], chance=[0.5, 0.5])
    text = summary.table(summary.write(run))
    assert "task_0 ↓ | task_1 |" in text
    assert numbers(text, "after task_1") == ["40.00", "90.00", "-"]
    assert numbers(text, "chance")[-1] == "-"
    assert numbers(text, "forgetting") == ["+30.00"]
    assert "average accuracy" not in text
    assert "task 0 ↓ | last task |" in tiny.compare([run])


def test_unfinished_run(tmp_path):
    run = make_run(tmp_path / "run", [[0.8, None, None], [0.7, 0.9, None], [None] * 3], cost=False)
    results = summary.write(run)
    assert set(results["summary"].values()) == {None}
    assert results["cost"] is None
    text = summary.table(results)
    assert numbers(text, "after task_1") == ["70.00", "90.00", "-", "80.00"]
    assert numbers(text, "after task_2") == ["-"] * 4
    assert "No metric is defined yet." in text
    compared = tiny.compare([run])
    assert numbers(compared, "SEQ") == ["1", *["-"] * 5]
    assert "train seconds" not in compared
    assert "1 of 1 runs have no score after the last task" in compared


def test_run_without_any_prediction(tmp_path):
    run = make_run(tmp_path / "run", [[None, None], [None, None]], cost=False)
    assert summary.write(run)["R"] == [[None, None], [None, None]]
    assert tiny.compare([run])


def test_one_task(tmp_path):
    results = summary.write(make_run(tmp_path / "run", [[0.8]], base=[0.1], chance=[0.25]))
    assert results["summary"]["average_accuracy"] == 0.8
    assert results["summary"]["forgetting"] is None
    text = summary.table(results)
    assert numbers(text, "average accuracy") == ["80.00"]
    assert "| forgetting" not in text


def test_training_questions_have_a_separate_matrix(tmp_path):
    run = make_run(tmp_path / "run", [[0.5, None], [0.4, 0.6]], il_mode="IIL")
    make_cell(run / "predictions/after_0/train_task_0.jsonl", 1.0, rows=40)
    results = build(run)
    assert results["R_train"] == [[1.0, None], [None, None]]
    assert results["examples"] == [20, 20]
    assert "Training questions:" in summary.table(results)


def test_pages_and_pictures_are_written(figures, tmp_path):
    run = make_run(tmp_path / "run", THREE, base=[0.0, 0.05, 0.1], chance=[0.1, 0.2, None], recovery=0.8)
    summary.write(run)
    for name in ("R.png", "accuracy.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG\r\n"), name
        assert (run / name).stat().st_size > 5000, name
        assert f"({name})" in (run / "results.md").read_text(encoding="utf-8")
    page = (run / "results.md").read_text(encoding="utf-8")
    assert numbers(page, "forgetting including last")[0] == "+17.50"
    assert numbers(page, "train seconds") == ["10.0, 10.0, 10.0"]
    assert not [path for path in run.iterdir() if path.suffix == ".tmp"]


@pytest.mark.filterwarnings("ignore:Glyph")  # the picture shows a box for it
def test_odd_names_do_not_break_tables_or_pictures(tmp_path):
    names = ["a|b", "$x$ \\frac{", "_" + "long" * 20, "任务"]
    R = [[0.5 if j <= i else None for j in range(4)] for i in range(4)]
    results = summary.write(make_run(tmp_path / "run", R, task_names=names))
    rows = summary.table(results).splitlines()[2:9]
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1


@pytest.mark.slow
def test_many_tasks(tmp_path):
    R = [[0.5 if j <= i else None for j in range(21)] for i in range(21)]
    results = summary.write(make_run(tmp_path / "run", R))
    assert results["summary"]["average_accuracy"] == 0.5


def test_same_predictions_give_the_same_files(tmp_path):
    run = make_run(tmp_path / "run", THREE)
    summary.write(run)
    first = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    summary.write(run)
    assert first == {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}


def two_methods_two_seeds(folder):
    for method, old in (("SEQ", (0.2, 0.4)), ("EWC", (0.6, 0.65))):
        for seed, share in enumerate(old, start=1):
            yield make_run(
                folder / f"{method}-{seed}",
                [[0.8, None], [share, 0.9]],
                method=method,
                seed=seed,
                name=f"{method}-{seed}",
                chance=[0.1, 0.2],
                config=f"seed: {seed}  # --seed\nwandb_name: {method}-{seed}  # --wandb_name\nlr: 5e-6  # x.yaml\n",
            )


def test_compare_groups_seeds(tmp_path):
    runs = list(two_methods_two_seeds(tmp_path))
    text = tiny.compare(runs)
    seq, ewc = numbers(text, "SEQ"), numbers(text, "EWC")
    assert seq[:2] == ["2", "30.00 ± 14.14"]
    assert seq[2:] == ["90.00 ± 0.00", "60.00 ± 7.07", "-50.00 ± 14.14", "+50.00 ± 14.14"]
    assert numbers(costs(text), "SEQ") == ["2", "20.0 ± 0.0"]
    assert ewc[:2] == ["2", "62.50 ± 3.54"]
    assert numbers(text, "chance") == ["", "10.00", "20.00", "15.00", "", ""]
    assert "recovery" not in text
    (section,) = group([(run, build(run)) for run in runs])
    assert [row["seeds"] for row in section["rows"]] == [[1, 2], [1, 2]]
    assert section["rows"][0]["columns"]["task_0"] == {
        "mean": pytest.approx(0.3),
        "std": pytest.approx(0.02**0.5),
        "n": 2,
    }


def test_other_options_make_another_row(tmp_path):
    R = [[0.8, None], [0.2, 0.9]]
    runs = [
        make_run(tmp_path / str(k), R, seed=k, config=f"seed: {k}\nlr: {lr}\ncfg: {k}.yaml\n")
        for k, lr in enumerate(["1e-5", "1e-5", "1e-4"])
    ]
    text = tiny.compare(runs)
    assert numbers(text, "SEQ lr=1e-5")[0] == "2"
    assert numbers(text, "SEQ lr=1e-4")[:2] == ["1", "20.00"]


def test_what_is_measured_alongside_names_a_row_only_if_nothing_else_does(tmp_path):
    R, own = (
        [[0.8, None], [0.2, 0.9]],
        ("lr: 1e-5\ndrift: true\n", "lr: 1e-4\ndrift: false\n", "lr: 1e-5\ndrift: false\n"),
    )
    runs = [make_run(tmp_path / str(k), R, seed=k, config=f"seed: {k}\n{text}") for k, text in enumerate(own)]
    assert numbers(tiny.compare(runs[:2]), "SEQ lr=1e-5")[0] == "1"
    assert numbers(tiny.compare(runs), "SEQ lr=1e-5 drift=True")[0] == "1"


def test_other_backbone_makes_another_row(tmp_path):
    R = [[0.8, None], [0.2, 0.9]]
    runs = [make_run(tmp_path / name, R, backbone=name) for name in ("big", "small")]
    assert numbers(tiny.compare(runs), "SEQ backbone=big")[0] == "1"


def test_streams_have_separate_tables(tmp_path):
    R = [[0.8, None], [0.2, 0.9]]
    runs = [make_run(tmp_path / name, R, stream=name) for name in ("here", "there")]
    text = tiny.compare(runs)
    assert text.index("here: exact_match") < text.index("there: exact_match")


def test_a_run_given_twice_counts_once(tmp_path):
    run = make_run(tmp_path / "run", [[0.8, None], [0.2, 0.9]])
    assert numbers(tiny.compare([run, tmp_path / "run/../run"]), "SEQ")[0] == "1"


def test_repeated_seeds_and_unfinished_runs_are_reported(tmp_path):
    done = [make_run(tmp_path / f"{k}", [[0.8, None], [0.2, 0.9]], recovery=0.4) for k in range(2)]
    half = make_run(tmp_path / "half", [[0.8, None], [None, None]], seed=2, cost=False)
    text = tiny.compare([*done, half])
    assert "SEQ: more than one run with seed 1; these are not independent." in text
    assert "SEQ: 1 of 3 runs have no score after the last task (unfinished, or evaluation only)." in text
    assert numbers(text, "SEQ")[:2] == ["3", "20.00 ± 0.00 (n=2)"]
    assert numbers(text, "SEQ")[-1] == "40.00 ± 0.00 (n=2)"
    assert numbers(costs(text), "SEQ") == ["3", "20.0 ± 0.0 (n=2)"]


def test_cost_is_reported_per_example_and_after_the_last_task(tmp_path):
    run = make_run(tmp_path / "run", [[0.8, None], [0.2, 0.9]])
    cost = {"train_seconds": [1.0, 2.0], "train_visits": [10, 30], "train_sequences": [20, 100]}
    cost |= {"evaluate_examples": [4, 8], "evaluate_sequences": [4, 14], "kept_bytes": [0, 2_500_000]}
    cost |= {"trainable_parameters": [7, 5000], "stored_parameters": [7000, 8000], "peak_memory_bytes": 3e8}
    write_json(run / "cost.json", cost)
    assert numbers(costs(tiny.compare([run])), "SEQ") == ["1", "3.0", "3.00", "1.50", "0.005", "0.008", "2.50", "300"]


def test_files_of_a_run_that_hold_something_else_are_named(tmp_path):
    run = make_run(tmp_path / "run", [[0.8, None], [0.2, 0.9]])
    for name, text in (("cost.json", "3"), ("cost.json", "[]"), ("cost.json", '{"R": NaN}'), ("log.jsonl", "[]\n")):
        (run / name).write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=rf"{name}.*: expected an object"):
            summary.write(run)
        (run / name).unlink()


def test_other_weights_of_a_run_are_separate_rows(tmp_path):
    run = make_run(tmp_path / "run", [[0.8, None], [0.2, 0.9]], method="TaskVector")
    for j, share in enumerate((0.6, 0.4)):
        make_cell(run / f"predictions/after_1_alpha 0.5/task_{j}.jsonl", share)
    make_cell(run / "predictions/after_0_alpha 0.5/task_0.jsonl", 0.7)
    results = summary.write(run)
    assert results["versions"] == {"alpha 0.5": [[0.7, None], [0.6, 0.4]]}
    assert numbers(summary.table(results), "alpha 0.5") == ["60.00", "40.00", "50.00"]
    text = tiny.compare([run])
    assert numbers(text, "TaskVector  ")[:3] == ["1", "20.00", "90.00"]
    assert numbers(text, "TaskVector: alpha 0.5")[:4] == ["1", "60.00", "40.00", "50.00"]


def test_broken_run_folders_are_reported(tmp_path):
    with pytest.raises(UserError, match=r"is not a run folder: expected facts\.json"):
        summary.write(tmp_path)
    run = make_run(tmp_path / "run", [[0.8, None], [0.2, 0.9]], chance=[0.1])
    with pytest.raises(UserError, match=r"one entry of chance for each of 2 tasks, got \[0\.1\]"):
        build(run)
    write_json(run / "facts.json", {"name": "x"})
    with pytest.raises(UserError, match="lacks stream, method"):
        build(run)


def test_predictions_that_cannot_be_compared_are_refused(tmp_path):
    run = make_run(tmp_path / "run", [[0.8, None], [0.2, 0.9]])
    cell = run / "predictions/after_1/task_0.jsonl"
    make_cell(cell, 0.2, rows=10)
    with pytest.raises(UserError, match=r"expected 20 rows .* got 10"):
        build(run)
    write_jsonl(cell, [{"index": 0, "target": "a", "prediction": "a"}] * 20)
    with pytest.raises(UserError, match="each example once"):
        build(run)
    write_jsonl(cell, [{"index": 0, "prediction": "a"}])
    with pytest.raises(UserError, match=r"line 1: expected index, prediction and target"):
        build(run)


@pytest.mark.slow
def test_command_line_compares(tmp_path, capsys):
    runs = [str(run) for run in two_methods_two_seeds(tmp_path)]
    assert main([*runs, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "out/compare.md").read_text(encoding="utf-8") == printed
    assert read_json(tmp_path / "out/compare.json")[0]["rows"][1]["method"] == "EWC"
    assert all((Path(run) / "results.json").exists() for run in runs)


def test_command_line_of_one_run_prints_its_matrix(tmp_path, capsys):
    run = make_run(tmp_path / "run", THREE)
    assert main([str(run)]) == 0
    assert capsys.readouterr().out == summary.table(build(run))


@pytest.mark.slow
def test_command_line_reports_a_wrong_folder_in_one_sentence(tmp_path):
    command = [sys.executable, "-m", "utils.report", str(tmp_path / "nowhere")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "nowhere is not a run folder" in done.stderr
    assert done.stderr.count("\n") == 1


def test_matplotlib_is_loaded_only_to_draw():
    code = "import sys, utils.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_file_is_read_once_while_it_stays_as_it_is(tmp_path, monkeypatch):
    run, read = make_run(tmp_path / "run", THREE), []
    monkeypatch.setattr(results, "read_jsonl", lambda path: read.append(path) or read_jsonl(path))
    first = build(run)
    assert build(run) == first
    assert len(read) == 6
    make_cell(run / "predictions/after_2/task_0.jsonl", 0.5)
    assert build(run)["R"][2][0] == 0.5
    assert len(read) == 7


def test_scores_of_other_questions_are_in_another_table(tmp_path):
    def made(name, config):
        return (folder := make_run(tmp_path / name, [[0.5]], config=config, method=name)), build(folder)

    sections = group([made("a", ""), made("b", "evaluate_limit: 10\n"), made("c", "score_split: dev\n")])
    names = [section["stream"] for section in sections]
    assert names == ["toy", "toy, 10 questions of each task", "toy, scored on dev"]
    assert "toy, 10 questions of each task: exact_match in percent" in compare_text(sections)


def test_rows_that_were_not_trained_alike_are_named(tmp_path):
    runs = [make_run(tmp_path / n, [[0.5]], config=f"training_epochs: {e}", method=n) for n, e in (("a", 1), ("b", 4))]
    text = compare_text(group([(run, build(run)) for run in runs]))
    assert "training_epochs differs between rows: 1 (a); 4 (b)." in text


def test_options_without_effect_are_refused(tmp_path, capsys):
    run = str(make_run(tmp_path / "run", [[0.5]]))
    assert main([run, "--baseline", "SEQ"]) == 2
    assert capsys.readouterr().err == "error: baseline: expected several runs, got one\n"
    assert main([run, "--metrics", "forgetting"]) == 0
    assert "| SEQ " in capsys.readouterr().out
    for words, problem in (
        (["--watch", "1", "--out", "x"], "leave out --out"),
        (["--watch", run], "folders before"),
    ):
        with pytest.raises(SystemExit):
            main([run, *words])
        assert problem in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "which for a sweep are experiments/<prefix>-*/*" in capsys.readouterr().err
