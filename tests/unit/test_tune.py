"""The search for values: spaces, budgets, proposals, what is chosen, and what is refused before a run starts."""

from pathlib import Path

import pytest

from tests import tiny
from utils import study
from utils.config import Config
from utils.dataset import save_stream
from utils.jobs.choice import Entry, entries
from utils.options.checks import check
from utils.options.parse import ConfigError, read_yaml, resolve
from utils.options.tuning import described
from utils.storage.files import read_json, write_json, write_text
from utils.tune import __main__ as tune
from utils.tune import trials
from utils.tune.proposals import Sampled
from utils.tune.space import declared, grid, label_of, space_of, words_of

DEMO = Path("config/biography_demo_task2")


def plan(*words):
    return check(resolve([*words]))


def test_spaces_are_declared_next_to_the_options():
    seq, ewc = (declared(plan("--method", name)) for name in ("SEQ", "EWC"))
    assert list(seq) == ["lr"] and list(ewc) == ["lr", "EWC_lambda"] and ewc["lr"] == seq["lr"]
    lora = declared(plan("--PEFT_type", "LoRA"))
    assert list(lora) == ["lr", "PEFT_lora_r", "PEFT_lora_alpha"] and lora["lr"] == pytest.approx(
        [10 * lr for lr in seq["lr"]]
    )
    assert "Replay_buffer_ratio" in declared(plan("--is_replay"))
    assert "Replay_buffer_ratio" not in declared(plan("--is_replay", "--Replay_buffer_size", "5"))
    assert list(declared(plan("--method", "ICL"))) == ["ICL_n_shot"]


@pytest.mark.slow
def test_every_method_has_a_declared_space_that_can_be_tried(tmp_path, capsys):
    words = [
        str(file) for file in sorted(DEMO.glob("*.yaml")) if file.stem != "study"
    ]  # also a corner of each grid is checked
    assert tune.main([*words, "--dry_run", "--dump_path", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(" points; ") == len(words)


def test_a_given_space_replaces_options_of_all_rows_or_of_one():
    row = Entry(DEMO / "EWC.yaml", "", ())
    ewc = plan("--cfg", str(row.cfg))
    given = {"lr": [1e-3], "EWC": {"EWC_lambda": [5.0, 6.0]}, "LwF_lambda": [1]}
    assert space_of(row, ewc, given) == {"lr": [1e-3], "EWC_lambda": [5.0, 6.0]}
    assert space_of(row, ewc, {"lr": None})["EWC_lambda"] and "lr" not in space_of(row, ewc, {"lr": None})


def test_a_grid_is_enumerated_and_drawn_from_if_too_large():
    space = {"lr": [1, 2, 3], "r": [4, 5]}
    whole = grid(space, 6, "SEQ")
    assert whole[:2] == [{"lr": 1, "r": 4}, {"lr": 1, "r": 5}] and len(whole) == 6 == len(grid(space, 99, "SEQ"))
    part = grid(space, 3, "SEQ")
    assert part == grid(space, 3, "SEQ") and [point for point in whole if point in part] == part and len(part) == 3
    assert sorted(map(str, grid(space, None, "SEQ"))) == sorted(map(str, whole))


def test_one_learning_rate_replaces_a_list():
    config = plan("--cfg", str(DEMO / "SEQ.yaml")).resolved.config
    assert words_of({"lr": 3e-4}, config) == ("--lr", "0.0003", "--lr_list", "None")
    assert resolve(["--cfg", str(DEMO / "SEQ.yaml"), *words_of({"lr": 3e-5}, config)]).config.lr == 3e-5
    assert label_of({"lr": 3e-5, "PEFT_type": "LoRA"}) == "lr=3e-05-PEFT_type=LoRA"


@pytest.mark.parametrize("sampler", ["random", "tpe"])
@pytest.mark.slow
def test_optuna_keeps_what_it_asked(tmp_path, sampler):
    space = {"lr": [1e-5, 1e-2], "r": [4, 32], "kind": ["a", "b"]}
    first = Sampled(space, sampler, None, True, "SEQ", tmp_path, "runs")
    first.more(3)
    again = Sampled(space, sampler, None, True, "SEQ", tmp_path, "runs")  # as after kill -9, all tries to be scored
    assert again.points() == first.points() and len(again.points()) == 3
    again.more(2)
    points = again.points()
    assert len(points) == 5 and len({str(point) for point in points}) > 3  # a resumed one draws others
    assert all(1e-5 <= p["lr"] <= 1e-2 and 4 <= p["r"] <= 32 and p["kind"] in "ab" for p in points)
    assert Sampled(space | {"r": [4, 8]}, sampler, None, True, "SEQ", tmp_path, "runs").points() == []
    assert Sampled(space, sampler, None, True, "SEQ", tmp_path, "runs of other options").points() == []
    assert len(Sampled(space, sampler, 1, True, "SEQ", tmp_path, "runs").points()) == 1, "a smaller budget"


@pytest.fixture
def base(tmp_path):
    """A YAML file of a small stream with a dev split."""
    streams = save_stream(tiny.micro_stream(), tmp_path / "data").parent
    text = f"dataset: micro\ndataset_path: {streams}\nbackbone: {tiny.backbone_folder()}\nlr_list: [1e-3, 1e-3, 1e-3]\n"
    write_text(tmp_path / "c/SEQ.yaml", text)
    return tmp_path / "c/SEQ.yaml"


def finish(job, score, passes=100):
    """What a run of this job leaves."""
    from utils.jobs.runs import identity_of

    run = job.root / job.name / f"2026-01-01-00-00-00-seed{job.seed}"
    write_text(run / "config.yaml", "seed: 1\n")
    facts = {
        "name": "x",
        "stream": "x",
        "method": "x",
        "seed": 1,
        "il_mode": "CIT",
        "backbone": "x",
        "task_names": ["a"],
    }
    write_json(run / "facts.json", facts | {"metrics": ["exact_match"], "chance": [0.0]} | identity_of(job))
    write_json(run / "results.json", {"R": [[score]], "summary": {"average_accuracy": score}})
    write_json(run / "cost.json", {"train_sequences": [passes]})


def searching(monkeypatch, base, tmp_path, scores, *words):
    """The command with runs that are finished at once; returns the learning rates that were tried."""
    tried = []

    def run_all(jobs, how, plans):
        for job in plans:  # those that are not finished
            lr = float(job.options[job.options.index("--lr") + 1])
            tried.append(lr)
            if scores(lr) is None:
                write_text(job.output, f"error: {trials.DIVERGED} in task 0\n")
            else:
                finish(job, scores(lr))
        return []

    monkeypatch.setattr(tune, "run_all", run_all)
    code = tune.main([str(base), "--dump_path", str(tmp_path / "runs"), "--space", "lr: [1e-4, 1e-3, 1e-2]", *words])
    return code, tried


def test_the_best_try_is_written_and_nothing_is_tried_twice(monkeypatch, base, tmp_path, capsys):
    scores = {1e-4: 0.5, 1e-3: 0.75, 1e-2: 0.75}.get
    code, tried = searching(monkeypatch, base, tmp_path, scores, "--tries", "3")
    assert code == 0 and tried == [1e-4, 1e-3, 1e-2]
    chosen = read_yaml(tmp_path / "runs/tune/chosen/SEQ.yaml")
    assert (
        chosen["lr"] == 1e-3 and "lr_list" not in chosen and not chosen.keys() & {"score_split", "first_tasks", "seed"}
    )
    assert chosen["tuning"] == "lr: 3 tries on dev of the first 2 of 3 tasks"
    assert plan("--cfg", str(tmp_path / "runs/tune/chosen/SEQ.yaml")).stream.name == "micro"
    for words in (["--lr", "2e-3"], ["--lr_list", "[1e-3,1e-3,1e-3]"], ["--method", "EWC"]):
        with pytest.raises(ConfigError, match=f"{words[0][2:]}: .* has values that were chosen by tuning"):
            plan("--cfg", str(tmp_path / "runs/tune/chosen/SEQ.yaml"), *words)
    plan("--cfg", str(tmp_path / "runs/tune/chosen/SEQ.yaml"), "--lr", "2e-3", "--tuning", "None")
    chosen = ["--cfg", str(tmp_path / "runs/tune/chosen/SEQ.yaml"), "--seed", "3", "--task_order", "reversed"]
    size = str(resolve(chosen).config.batch_size)
    words = ([], ["--batch_size", size], ["--training_epochs", "9", "--batch_size", "7"])
    plain, same, changed = (described(resolve([*chosen, *more])) for more in words)
    assert plain and same == plain and changed == f"{plain}; set differently since: batch_size, training_epochs"
    assert [row["chosen"] for row in read_json(tmp_path / "runs/tune/trials.json")] == [False, True, False]
    assert searching(monkeypatch, base, tmp_path, scores, "--tries", "3") == (0, [])
    assert searching(monkeypatch, base, tmp_path, scores, "--tries", "9") == (0, [])
    assert "a part of the budget is not spent" in (tmp_path / "runs/tune/trials.md").read_text(encoding="utf-8")


def test_what_does_not_decide_is_not_measured_in_a_try(monkeypatch, base, tmp_path):
    measured = "drift: True\ndrift_questions: 7\ngeneral_files: [qa.jsonl]\ngeneral_fields: auto\n"
    base.write_text(base.read_text() + measured)
    write_text(tmp_path / "qa.jsonl", '{"input": "a", "target": "b"}\n')
    monkeypatch.chdir(tmp_path)
    words = []
    monkeypatch.setattr(tune, "trial_of", lambda *a: words.append(trials.trial_of(*a)) or words[-1])
    assert searching(monkeypatch, base, tmp_path, lambda lr: lr, "--tries", "3")[0] == 0
    tried = resolve(words[-1].job.words()).config
    assert (tried.drift, tried.general_files, tried.is_evaluate_init, tried.first_tasks) == (False, None, False, 2)
    assert tried.evaluate_schedule == "last" and "evaluate_schedule" not in trials.scored_alone(
        Config(cfg=None, method="Single")
    )
    chosen = read_yaml(tmp_path / "runs/tune/chosen/SEQ.yaml")
    assert not {"evaluate_schedule", "is_evaluate_init"} & chosen.keys()
    assert (chosen["drift"], chosen["drift_questions"], chosen["general_files"]) == (True, 7, ["qa.jsonl"])


def test_passes_are_a_budget(monkeypatch, base, tmp_path):
    least = plan("--cfg", str(base), *trials.Where("p", tmp_path, 1, 2).words)
    from utils.jobs.times import training_work

    assert training_work(least) > 100  # a try costs 100 passes below
    code, tried = searching(monkeypatch, base, tmp_path, lambda lr: 0.5, "--passes", str(training_work(least)))
    assert code == 0 and len(tried) == min(3, training_work(least) // 100)


def test_a_search_on_all_tasks_is_an_oracle(monkeypatch, base, tmp_path):
    assert searching(monkeypatch, base, tmp_path, lambda lr: lr, "--first_k", "all", "--tries", "1")[0] == 0
    assert "all 3 tasks (an oracle" in read_yaml(tmp_path / "runs/tune/chosen/SEQ.yaml")["tuning"]


def test_problems_are_reported_before_anything_runs(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tune, "run_all", lambda *_: pytest.fail("started"))
    for words, problem in (
        (["--space", "lr: []"], "space: lr: expected a list of values or null, got []"),
        (["--space", "lr: [1, 1]"], "space: lr: a value is there twice: [1, 1]"),
        (["--space", "lr: null"], "space: nothing to try for SEQ"),
        (["--space", "EWC: {lr: [1]}"], "space: EWC: expected one of SEQ"),
        (["--space", "SEQ: {EWC_lambda: null}"], "space: SEQ: EWC_lambda: expected an option of a run of SEQ"),
        (["--space", "lrr: [1]"], "space: lrr: expected an option of a method"),
        (["--space", "score_split: [test]"], "space: score_split: does not change how a method learns"),
        (["--space", "SEQ: {seed: [1, 2]}"], "space: seed: does not change how a method learns"),
        (["--space", "training_epochs: [1, 2]"], "space: training_epochs: tries with more epochs cost more"),
        (["--set", "score_split=test"], "set: score_split: tuning sets it itself"),
        (["--space", "[1"], "space: [1 is not YAML"),
        (["--space", "lr: [fast]"], "lr: expected a valid number, got 'fast'"),
        (["--passes", "3"], "passes: one try of SEQ needs at least"),
        (["--first_k", "4"], "first_tasks: expected at most the 3 tasks of micro (dev), got 4"),
        (["--first_k", "two"], "first_k: expected a number of tasks or all, got 'two'"),
        (["--set", "il_mode=CIL", "classifier=Linear"], "classifier: 6 classes of micro (dev), first 2 tasks"),
        (["--set", "metric_for_each_task=[exact_match, jailbreak_rate, acc]"], "no mean decides"),
    ):
        assert tune.main([str(base), "--dump_path", str(tmp_path / "runs"), *words]) == 2, words
        assert problem in capsys.readouterr().err, words


def test_a_study_is_checked_as_a_whole(base, tmp_path, capsys, monkeypatch):
    file, good = tmp_path / "s.yaml", f"files: [{base}]\ndump_path: {tmp_path / 'runs'}\nseeds: [1]\n"
    for text, problem in (
        ("metods: [SEQ]\n", "metods: unknown entry; expected one of files, methods"),
        ("tries: 0\n", "tries: expected greater than or equal to 1, got 0"),
        ("tries: 1\npasses: 9\n", "tries, passes: expected one of them, got both"),
        ("orders: [sideways]\n", "task_order: expected stored, reversed"),
        ("methods: [Lora]\n", "methods: expected one of"),
        ("baseline: Joint\n", "baseline: 'Joint': there is no such row; expected one of SEQ"),
        ("space: {lr: []}\n", "space: lr: expected a list"),
        ("tune: false\ntries: 3\n", "tries: has no effect with tune: false"),
        ("source: a paper\n", "source: has no effect without published"),
        ("published: {EWC: {task_0: 1, mark: paper}}\n", "published: 'EWC': there is no such row; expected one of SEQ"),
        ("seeds: []\n", "seeds: expected at least one entry, got []"),
        ("files: []\n", "files: expected YAML files of runs, or methods, got neither"),
    ):
        name = text.split(":")[0]
        write_text(file, "".join(line for line in good.splitlines(True) if not line.startswith(f"{name}:")) + text)
        assert study.main([str(file)]) == 2, text
        assert problem in capsys.readouterr().err, text
    write_text(file, good + "tries: 2\norders: [stored, reversed]\n")
    assert study.main([str(file), "--dry_run"]) == 0
    told = capsys.readouterr().out
    assert "on test: 2 runs, time not known yet" in told and "2 runs at most" in told
    assert [row.name for row in entries([base], [], [])] == ["SEQ"]
    write_text(file, good + "tune: false\npublished: {SEQ: {task_0: 1, mark: paper}}\n")
    assert study.main([str(file), "--dry_run"]) == 0
    assert "1 runs, 1 to do: time not known yet" in capsys.readouterr().out
    assert not list(tmp_path.rglob("published.json"))
