"""One cell of R: scored once per example, the same in either mode, and without a trace in the model."""

import re
from dataclasses import replace
from functools import cache

import pytest
import torch

from models.Base import Method
from tests import tiny
from utils import progress
from utils.dataset import Example
from utils.errors import UserError
from utils.evaluation import Cell, check_finite, evaluate, predict
from utils.model.weights import Weights, assign
from utils.run.fit import fit
from utils.run.trainer import Trainer
from utils.storage.files import read_jsonl


@cache
def learned() -> Weights:
    """Weights that answer some questions of task 0."""
    session = tiny.make_session(tiny.make_config(batch_size=12, lr=1e-2))
    method = tiny.make_method(session)
    fit(method, tiny.make_task(0, epochs=15), session)
    return tiny.snapshot(method)


@pytest.fixture
def parts(tmp_path):
    """A method, its session and a cell, after some training."""

    def maker(**options):
        method = tiny.make_method(session := tiny.make_session(tiny.make_config(**options)))
        assign(method.named(), learned())
        examples = [
            *tiny.micro_stream().tasks[0].train,
            Example("cat a", "MEOW "),
            Example("cat a", "meow meow"),
            Example("cat a", "zoo"),
        ]
        return method, session, Cell(tmp_path / "p/task_0.jsonl", 0, examples, "exact_match", 48, 8)

    return maker


def test_both_modes_give_the_same_scores(parts):
    runs = {}
    for mode in ("verify", "generate"):
        rows = predict(*parts(evaluation_mode=mode))
        assert [row["index"] for row in rows] == list(range(15))
        runs[mode] = rows
    scores = [row["score"] for row in runs["generate"]]
    assert 0 < sum(scores) < 15, "a test of two equal nothings"
    assert [row["score"] for row in runs["verify"]] == scores
    assert {row["decided"] for row in runs["generate"]} == {"generated"}
    assert {"verified", "refuted"} <= {row["decided"] for row in runs["verify"]}
    for fast, slow in zip(runs["verify"], runs["generate"], strict=True):
        assert fast["decided"] == "refuted" or fast["prediction"] == slow["prediction"]


def test_every_accepted_answer_is_right_in_either_mode(parts):
    runs = {}
    for mode in ("verify", "generate"):
        method, session, cell = parts(evaluation_mode=mode)
        said = [row["prediction"] for row in predict(method, session, cell._replace(in_full=True))]
        examples = [
            replace(e, target="zoo", references=("zoo", f"{text}.", "ox"))
            for e, text in zip(cell.examples, said, strict=True)
        ]
        cell = cell._replace(examples=examples, metric="exact_match_bare")
        assert evaluate(method, session, cell) == 1
        runs[mode] = read_jsonl(cell.file)
        assert [row["references"] for row in runs[mode]] == [list(e.references) for e in examples]
        other = cell._replace(examples=[replace(examples[0], references=("zoo", "ox")), *examples[1:]])
        with pytest.raises(UserError, match="damaged"):
            evaluate(method, session, other)
    assert [row["score"] for row in runs["verify"]] == [1.0] * 15


@pytest.mark.parametrize("size", [1, 5, 64])
def test_the_size_of_a_batch_does_not_matter(parts, size):
    rows = predict(*parts(evaluate_batch_size=size))
    assert [row["input"] for row in rows[:12]] == [e.input for e in tiny.micro_stream().tasks[0].train]
    assert [row["target"] for row in rows[-3:]] == ["MEOW ", "meow meow", "zoo"]
    assert [row["score"] for row in rows] == [row["score"] for row in predict(*parts())]


def test_the_mean_of_the_rows_is_the_score(parts):
    method, session, cell = parts()
    result = evaluate(method, session, cell)
    rows = read_jsonl(cell.file)
    assert result == sum(row["score"] for row in rows) / 15
    assert set(rows[0]) == {"index", "input", "target", "prediction", "score", "decided"}


def test_the_likeliest_choice_is_the_answer(parts):
    questions = [
        Example("cat a", "meow", choices=("meow", "oink oink oink")),
        Example("dog a", "x", choices=("q", "oink oink oink", "x", "buzz buzz buzz buzz")),
    ]
    rows = {}
    for metric in ("choice_likelihood", "choice_likelihood_normalised"):
        for size in (1, 64):
            method, session, cell = parts(evaluate_batch_size=size)
            rows[metric] = predict(method, session, cell._replace(examples=questions, metric=metric))
            for row, example in zip(rows[metric], questions, strict=True):
                own = [_by_hand(method, session, replace(example, target=text)) for text in example.choices]
                assert row["log_likelihoods"] == pytest.approx(own, abs=1e-4)
                lengths = [1 if metric == "choice_likelihood" else len(text) for text in example.choices]
                best = max(range(len(own)), key=lambda i, own=own, lengths=lengths: own[i] / lengths[i])
                assert row["prediction"] == example.choices[best] and row["choices"] == example.choices
                assert row["score"] == (row["prediction"] == example.target) and row["decided"] == "likelihood"
    assert rows["choice_likelihood"][1]["prediction"] != rows["choice_likelihood_normalised"][1]["prediction"]
    tie = Example("pig a", "oink", choices=("moo", "moo"), references=("moo",))
    (row,) = predict(method, session, cell._replace(examples=[tie], metric="choice_likelihood"))
    assert row["log_likelihoods"][0] == row["log_likelihoods"][1]


@torch.no_grad()
def _by_hand(method, session, example):
    (row,) = session.encoder([replace(example, references=None)], None)
    answer = list(row.answer[:-1])
    logits = method.model(torch.tensor([[*row.prompt, *answer]])).logits[0, -len(answer) - 1 : -1]
    return sum(values[token].item() for values, token in zip(logits.log_softmax(-1), answer, strict=True))


def test_an_existing_file_is_not_written_again(parts):
    method, session, cell = parts()
    result = evaluate(method, session, cell)
    method.backbone = None  # would fail if it were asked
    assert evaluate(method, session, cell) == result


def test_an_evaluation_that_fails_leaves_no_file(parts, monkeypatch):
    method, session, cell = parts()
    monkeypatch.setattr("utils.model.staged.answer", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(method, session, cell)
    assert not cell.file.exists()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["verify", "generate"])
def test_the_mode_of_the_model_is_restored(parts, training, mode):
    method, session, cell = parts(evaluation_mode=mode)
    method.extra["own"] = tiny.torch.nn.Dropout()
    method.model.train(training)
    method.extra.train(training)
    before, seen = tiny.snapshot(method), []
    method.model.register_forward_hook(lambda *_: seen.append((method.model.training, method.extra["own"].training)))
    predict(method, session, cell)
    assert method.model.training is method.extra["own"].training is training
    assert set(seen) == {(False, False)}
    assert tiny.same(before, tiny.snapshot(method))
    assert all(w.grad is None for w in method.model.parameters())


@pytest.mark.parametrize("mode", ["verify", "generate"])
def test_the_model_computes_as_in_training(parts, mode):
    for options, expected in (
        ({}, {torch.float32}),
        ({"mixed_precision": "bfloat16"}, {torch.bfloat16}),
        ({"mixed_precision": "bfloat16", "evaluate_autocast": False}, {torch.float32}),
    ):
        method, session, cell = parts(evaluation_mode=mode, **options)
        seen = set()
        layer = method.model.base_model.layers[0].attention.query_key_value
        layer.register_forward_hook(lambda _layer, _args, output, seen=seen: seen.add(output.dtype))
        predict(method, session, cell)
        assert seen == expected, options


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_weights_are_refused(value, tmp_path):
    session = tiny.make_session(tiny.make_config(is_evaluate_only=True))
    method = tiny.make_method(session)
    check_finite(method)
    name, weight = list(method.named().items())[-1]
    with tiny.torch.no_grad():
        weight.view(-1)[1] = value
    with pytest.raises(UserError, match=f"backbone: {re.escape(name)} holds NaN or infinite values"):
        Trainer(method, tmp_path).run()
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize("mode", ["verify", "generate"])
def test_a_long_evaluation_says_how_far_it_is(parts, monkeypatch, mode):
    method, session, cell = parts(evaluation_mode=mode, evaluate_batch_size=4)
    lines = []
    monkeypatch.setattr(session.log, "is_main", True)
    monkeypatch.setattr(session.log, "progress_line", lines.append)
    predict(method, session, cell)
    assert lines == []  # it took no ten seconds
    monkeypatch.setattr(progress, "SECONDS", 0)
    predict(method, session, cell)
    done = [re.fullmatch(r"p: task_0: (\d+) of 15 questions, .* left", line) for line in lines]
    assert done and all(done)
    assert mode == "verify" or [match[1] for match in done] == ["4", "8", "12"]


class Spy(Method):
    """Records its arguments, and overrides `predict`."""

    def predict(self, rows, task_id, max_new_tokens):
        self.told = (len(rows), task_id, max_new_tokens)
        return ["meow"] * len(rows)


@pytest.mark.parametrize("il_mode", ["CIL", "TIL", "CIT", "IIL", "CKE"])
def test_methods_get_the_task_id_in_til_only_and_their_own_answers_are_used(parts, tmp_path, il_mode):
    _, _, cell = parts()
    session = tiny.make_session(tiny.make_config(il_mode=il_mode))
    method = tiny.make_method(session, method_class=Spy)
    rows = predict(method, session, cell._replace(task=2, max_new_tokens=5))
    assert method.told == (15, 2 if il_mode == "TIL" else None, 5)
    assert {row["decided"] for row in rows} == {"generated"}
    assert [row["score"] for row in rows] == [1.0 if e.target.strip().lower() == "meow" else 0.0 for e in cell.examples]
