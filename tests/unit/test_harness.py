"""Tasks of lm-eval: the same scores as our own, no trace in the run, errors in a sentence. Skipped without lm-eval."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import tiny
from utils.errors import UserError
from utils.general import asking, harness
from utils.options.checks import problems
from utils.report import general as reported
from utils.storage.files import read_json, read_jsonl, write_json
from utils.storage.moment import BASE, Moment

YAML = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: {kind}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: {target}
metric_list: [{{metric: {metric}, aggregation: mean, higher_is_better: true}}{more}]
"""
ROWS = [
    {"question": f"{name} {letter}", "choices": ["meow", "moo boom", "oink oink oink"], "answer": i % 3, "text": "meow"}
    for i, name in enumerate(tiny.ANIMALS)
    for letter in "ab"
]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Folder with a task of choices, a task of written answers, and their questions."""
    data = tmp_path / "mc.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    more = ", {metric: acc_norm, aggregation: mean, higher_is_better: true}"
    choices = (
        YAML.format(name="my_mc", data=data, kind="multiple_choice", target="answer", metric="acc", more=more)
        + 'doc_to_choice: "{{choices}}"\n'
    )
    written = YAML.format(
        name="my_text", data=data, kind="generate_until", target="text", metric="exact_match", more=""
    )
    written += 'generation_kwargs: {max_gen_toks: 8, until: ["?"]}\n'
    (tmp_path / "mc.yaml").write_text(choices, encoding="utf-8")
    (tmp_path / "text.yaml").write_text(written, encoding="utf-8")
    (tmp_path / "broken.yaml").write_text("task: [", encoding="utf-8")
    return tmp_path


def test_without_the_package_a_sentence_says_so(monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda _: None)
    (problem,) = problems(tiny.plan(tiny.make_config(general_harness=("hellaswag",))))
    assert problem.startswith("general_harness: needs the package lm_eval, which is missing; pip install lm_eval==")


def test_a_model_that_lm_eval_cannot_call_is_refused(monkeypatch):
    monkeypatch.setattr(harness, "read", lambda _: ())
    for options, own, words in (
        ({"method": "SEQ", "classifier": "Linear", "il_mode": "CIL"}, {}, "a classifier gives classes"),
        ({"method": "SEQ", "backbone": tiny.backbone_folder("t5")}, {}, "must be a decoder; got encoder-decoder"),
        ({"method": "SEQ", "PEFT_type": "PromptTuning"}, {}, "virtual tokens"),
        ({"method": "ProgPrompt"}, {}, "virtual tokens"),
        ({"method": "PEFT"}, {"PEFT_inference": "route"}, "an adapter is chosen for each question"),
        ({"method": "AdapterCL"}, {}, "an adapter is chosen for each question"),
    ):
        found = problems(tiny.plan(tiny.make_config(**options, general_harness=("x.yaml",)), **own))
        assert any(problem.startswith("general_harness") and words in problem for problem in found), found


def test_results_of_lm_eval_are_a_part_of_the_changes_if_they_are_shares(tmp_path):
    def results(accuracy: float) -> dict:
        metrics = {"acc": {"value": accuracy, "stderr": 0.05, "higher_is_better": True}}
        scale = {"bleu": {"value": 100 * accuracy, "stderr": None, "higher_is_better": True}}
        return {"tasks": {"mc": {"main": "acc", "metrics": metrics}, "mt": {"main": "bleu", "metrics": scale}}}

    for moment, accuracy in ((BASE, 0.5), (Moment(1), 0.25)):
        write_json(harness.file_of(tmp_path, moment), results(accuracy))
    facts = {"harness": [{"name": "mc", "kind": "safety"}, {"name": "mt", "kind": "general"}]}
    sets = reported.read(tmp_path, facts, 2, lambda *_: 0.0)
    assert sets[0]["after"] == [None, 0.25] and sets[0]["stderr"] == {"before": 0.05, "after": [None, 0.05]}
    changes = reported.columns({"general": sets})
    assert changes["safety_change"] == -0.25 and changes["general_change"] is None
    text = "\n".join(reported.table({"general": sets, "task_names": ["a", "b"]}))
    assert "50.00 ± 5.00" in text and "mt (not in the changes)" in text and "| safety change |  -25.00 |" in text
    nan = {"main": "acc", "metrics": {"acc": {"value": math.nan, "stderr": None, "higher_is_better": True}}}
    for damaged in ([], *({"tasks": {"mc": one}} for one in ("x", {"main": "acc", "metrics": {}}, nan))):
        harness.file_of(tmp_path, BASE).write_text(json.dumps(damaged), encoding="utf-8")
        with pytest.raises(UserError, match=r"base\.json: expected results of lm-eval"):
            reported.read(tmp_path, facts, 2, lambda *_: 0.0)


def test_a_metric_of_lm_eval_that_is_not_finite_has_no_value():
    results = {"results": {"p": {"word_perplexity,none": math.inf, "word_perplexity_stderr,none": "N/A"}}}
    (found,) = harness._metrics(results | {"higher_is_better": {}}, "p")["metrics"].values()
    assert found == {"value": None, "stderr": None, "higher_is_better": None}


@pytest.mark.slow
def test_scores_are_those_of_the_same_questions_here_and_nothing_else_changes(tasks, tmp_path):
    pytest.importorskip("lm_eval")
    words = (f"{tasks}/mc.yaml", f"safety={tasks}/text.yaml")
    metrics = ("choice_likelihood", "choice_likelihood_normalised")
    same = tmp_path / "same.jsonl"
    same.write_text((tasks / "mc.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    fields = "input=question,endings=choices,target=answer"
    config = tiny.make_config(
        general_harness=words, general_fields=fields, general_files=(f"{tasks}/mc.jsonl", str(same)),
        general_metrics=metrics,
    )  # fmt: skip
    method = tiny.make_method(tiny.make_session(config))
    method.model.train()
    settings = method.model.generation_config
    settings.max_new_tokens = 1
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state(), tiny.snapshot(method)
    sides = [getattr(method.backbone.tokenizer, name) for name in ("padding_side", "truncation_side", "pad_token")]
    asking.ask(method, tmp_path, BASE, asked := asking.outside(config))
    assert (random.getstate(), str(np.random.get_state())) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2]) and tiny.same(tiny.snapshot(method), before[3])
    assert method.model.training and method.model.generation_config is settings and settings.max_new_tokens == 1
    assert sides == [getattr(method.backbone.tokenizer, n) for n in ("padding_side", "truncation_side", "pad_token")]
    found = read_json(harness.file_of(tmp_path, BASE))["tasks"]
    rows = [read_jsonl(BASE.predictions(tmp_path, f"general_{k}")) for k in range(2)]
    for own, metric in zip(rows, ("acc", "acc_norm"), strict=True):
        assert found["my_mc"]["metrics"][metric]["value"] == pytest.approx(sum(r["score"] for r in own) / len(ROWS))
    assert 0 < found["my_mc"]["metrics"]["acc"]["stderr"] < 0.2 and found["my_mc"]["examples"] == len(ROWS)
    assert found["my_text"]["main"].startswith("exact_match") and [one.kind for one in asked.tasks] == [
        "general",
        "safety",
    ]
    content = harness.file_of(tmp_path, BASE).read_bytes()
    method.backbone = None  # would fail if it were asked
    harness.ask(method, tmp_path, BASE, asked.tasks)
    assert harness.file_of(tmp_path, BASE).read_bytes() == content


@pytest.mark.slow
def test_tasks_that_cannot_be_loaded_are_refused_in_a_sentence(tasks):
    pytest.importorskip("lm_eval")
    (tasks / "mc.jsonl").unlink()
    for word, error in (
        (f"{tasks}/none.yaml", "none.yaml does not exist"),
        (f"{tasks}/broken.yaml", "lm_eval cannot load .*broken.yaml"),
        (f"{tasks}/mc.yaml", "lm_eval cannot load .*mc.yaml: .*mc.jsonl"),
        ("hellaswagg", "lm_eval has no task 'hellaswagg'; did you mean hellaswag"),
    ):
        with pytest.raises(UserError, match=f"general_harness: .*{error}"):
            harness.read(tiny.make_config(general_harness=(word,)))
