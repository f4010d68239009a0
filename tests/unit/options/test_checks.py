"""All problems of a plan are reported together, before weights are loaded."""

import pytest

import main_CL
from tests import tiny
from utils import sweep
from utils.dataset import save_stream
from utils.errors import UserError
from utils.options import checks
from utils.options.checks import Plan, check, problems
from utils.options.parse import ConfigError, resolve


def test_problems_of_every_kind_are_reported_together():
    config = tiny.make_config(
        "EWC", training_epochs_list=(1,), metric_for_each_task=("nosuch",), lr_min_ratio=0.5,
        early_stop_patience=1, evaluate_interval=1, backbone="/nowhere", classifier="Linear",
    )  # fmt: skip
    found = problems(tiny.plan(config))
    for words in (
        "lr_min_ratio: has no effect", "classifier: Linear needs il_mode", "training_epochs_list: expected 3 entries",
        "metric_for_each_task: expected 3 entries", "unknown metric 'nosuch'", "/nowhere/config.json does not exist",
    ):  # fmt: skip
        assert sum(words in problem for problem in found) == 1, (words, found)


def test_a_metric_that_cannot_tell_right_from_wrong_is_refused():
    for metrics, tasks in (("span_f1",) * 3, (0, 1, 2)), (("exact_match", "rouge_l", "span_f1"), (2,)):
        found = problems(tiny.plan(tiny.make_config(metric_for_each_task=metrics)))
        assert all(f"of task {k} (micro {k})" in one for k, one in zip(tasks, found, strict=True)), (metrics, found)


def test_a_value_of_the_command_line_that_a_list_replaces_is_refused():
    with pytest.raises(ConfigError, match=r"lr: has no effect, as lr_list \(config/\S*SEQ.yaml\) replaces it"):
        check(resolve(["--lr", "1e-3"]))
    check(resolve(["--lr", "1e-3", "--lr_list", "None"]))


def test_a_stream_that_cannot_be_read_hides_no_other_problem_and_is_read_once():
    read = []

    def missing(config):
        read.append(config)
        raise UserError("no stream")

    plan = tiny.plan(tiny.make_config(lr_min_ratio=0.5, backbone="/nowhere"))
    found = problems(Plan(plan.resolved, plan.method, read=missing))
    assert found.count("no stream") == 1 and len(found) == 3 and len(read) == 1


def test_a_method_is_asked_only_about_lists_that_fit_the_stream():
    config = tiny.make_config("GradientProjection", training_epochs_list=(1,))
    (problem,) = problems(tiny.plan(config, **tiny.OWN.get("GradientProjection", {})))
    assert problem.startswith("training_epochs_list: expected 3 entries")


def test_options_about_chats_need_chats():
    found = problems(tiny.plan(tiny.make_config(chat_thinking=True)))
    assert found == ["chat_thinking: has no effect, as micro holds no chats"]


def test_likelihood_needs_the_possible_answers():
    (problem,) = problems(tiny.plan(tiny.make_config(metric_for_each_task=("acc", "choice_likelihood", "acc"))))
    assert problem.endswith(
        "needs the possible answers to each question (choices), and task 1 (micro 1) lists none; use another metric"
    )
    classes = tiny.make_config(metric_for_each_task=("choice_likelihood",) * 3, classifier="Linear", il_mode="CIL")
    assert "classifier: heads choose among classes; choice_likelihood needs written answers" in problems(
        tiny.plan(classes)
    )


def test_weights_are_not_needed_to_find_a_problem(tmp_path, monkeypatch):
    save_stream(tiny.micro_stream(), tmp_path)
    monkeypatch.setattr("utils.backbone.load_model", lambda *_: pytest.fail("loaded"))
    words = ["--cfg", "None", "--dataset", "micro", "--dataset_path", str(tmp_path), "--backbone"]
    assert check(resolve([*words, tiny.backbone_folder()])).stream.name == "micro"
    with pytest.raises(ConfigError, match="can't write answers"):
        check(resolve([*words, tiny.backbone_folder("bert_encoder")]))


def test_a_missing_package_is_found_before_the_backbone_is_loaded(monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda _: None)
    (problem,) = problems(tiny.plan(tiny.make_config(attn_implementation="flash_attention_2")))
    assert problem.startswith("attn_implementation: flash_attention_2 needs the package flash-attn")


def test_options_about_the_kernels_of_a_gpu_need_one(monkeypatch):
    config = tiny.make_config(deterministic=True, tf32=True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert problems(tiny.plan(config)) == ["deterministic, tf32: no effect without a GPU; leave it out"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert problems(tiny.plan(config)) == []


def test_main_reports_them_without_a_traceback(capsys):
    words = ["--dataset", "nosuch", "--lr_min_ratio", "0.5", "--backbone", "/nowhere"]
    assert main_CL.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: invalid options:\n  - lr_min_ratio: ") and said.count("\n  - ") == 3


def test_a_sweep_checks_every_job_before_the_first_one_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "run_all", lambda *_: pytest.fail("started"))
    good, wrong, worse = (tmp_path / f"{name}.yaml" for name in ("good", "wrong", "worse"))
    streams = save_stream(tiny.micro_stream(), tmp_path / "data").parent
    common = f"dataset: micro\ndataset_path: {streams}\nbackbone: {tiny.backbone_folder()}\n"
    good.write_text(common, encoding="utf-8")
    wrong.write_text(common + "il_mode: CIL\nclassifier_lr: 1.0\n", encoding="utf-8")
    worse.write_text(common + "lrr: 1\n", encoding="utf-8")
    words = [str(good), str(wrong), str(worse), "--seeds", "1", "2", "--dump_path", str(tmp_path / "runs")]
    assert sweep.main(words) == 2
    problems = capsys.readouterr().err.splitlines()[1:]
    assert [problem.removeprefix("  - ").split(": ")[:2] for problem in problems] == [
        [str(wrong), "classifier_lr"],
        [str(worse), "lrr"],
    ]


def test_each_check_takes_a_plan_and_returns_problems():
    plan = tiny.plan(tiny.make_config())
    assert [one(plan) for one in checks.CHECKS] == [[]] * len(checks.CHECKS)
