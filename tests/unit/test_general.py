"""What is asked outside the stream: read from files and streams, scored at every moment, no part of R or training."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests import tiny
from utils.dataset import Stream, save_stream
from utils.errors import UserError
from utils.general import asking, questions
from utils.general.asking import Outside
from utils.general.questions import Asked
from utils.metric import ability_change
from utils.options.checks import problems
from utils.report import general as reported
from utils.storage.files import read_jsonl, write_jsonl
from utils.storage.moment import BASE, Moment

CHOICES = [{"question": f"{name} a", "choices": ["meow", "moo", "x"], "answer": i % 3} for i, name in enumerate("abcd")]
PLAIN = [{"prompt": f"say {name}", "answer": name} for name in ("meow", "moo")]


@pytest.fixture
def files(tmp_path):
    """Folder with questions of each kind, a text, and two streams."""
    for name, rows in {"mc": CHOICES, "qa": PLAIN, "harm": PLAIN}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "story.txt").write_text("the cat and the dog said meow, " * 30, encoding="utf-8")
    for name in ("micro", "other"):
        save_stream(Stream(name, tiny.micro_stream().tasks, tiny.micro_stream().config), tmp_path)
    return tmp_path


def options(files: Path, *names: str, **more) -> dict:
    return {"general_files": tuple(name.format(files) for name in names), "dataset_path": str(files)} | more


def read(files: Path, *names: str, **more) -> tuple[Asked, ...]:
    return questions.read(tiny.make_config(**options(files, *names, **more)))


def test_files_and_tasks_have_a_kind_and_a_metric(files):
    words = ("{}/mc.jsonl", "instruction={}/qa.jsonl", "safety={}/harm.jsonl", "{}/story.txt")
    found = read(files, *words, general_tasks=("safety=other:1", "micro:micro 2"), dataset="micro", first_tasks=2)
    assert [(one.name, one.kind, one.metric) for one in found] == [
        ("mc", "general", "choice_likelihood"),
        ("qa", "instruction", "exact_match"),
        ("harm", "safety", "jailbreak_rate"),
        ("story", "general", "perplexity"),
        ("other: micro 1", "safety", "exact_match"),
        ("micro: micro 2", "general", "exact_match"),
    ]
    assert found[0].examples[1].choices == ("meow", "moo", "x") and found[0].examples[1].target == "moo"
    assert list(found[4].examples) == list(tiny.micro_stream().tasks[1].test) and found[4].max_new_tokens == 8
    whole = read(files, general_tasks=("micro",), dataset="micro", first_tasks=1, task_order="reversed")
    assert [one.name for one in whole] == ["micro: micro 0", "micro: micro 1"]
    config = tiny.make_config(**options(files, general_tasks=("other:1",)))
    (remark,) = questions.remarks(config, tiny.micro_stream())
    assert remark.startswith("other: micro 1: 4 questions that should not be trained are in")
    (listed,) = read(files, "{}/mc.jsonl", general_fields="lm_eval", general_metrics=("first_letter",))
    assert listed.examples[0].input.endswith("A. meow\nB. moo\nC. x") and listed.metric == "first_letter"


def test_wrong_words_are_refused_in_a_sentence(files):
    (files / "empty.txt").write_text(" \n", encoding="utf-8")
    (files / "odd.jsonl").write_text('{"a": 1}', encoding="utf-8")
    (files / "bad.txt").write_bytes(b"\xff\xfe\x00")
    own = {"dataset": "micro"}
    for words, more, error in (
        (("{}/mc.jsonl", "{}/mc.jsonl"), {}, "expected different names, got 'mc' twice"),
        (("safety={}/story.txt",), {}, "a text, whose perplexity has no kind; leave safety= out"),
        (("{}/empty.txt",), {}, "empty.txt holds no words"),
        (("{}/bad.txt",), {}, "bad.txt: expected a UTF-8 text"),
        (("{}/none.txt",), {}, "none.txt: expected a UTF-8 text"),
        (("{}/none.jsonl",), {}, "general_files: .*none.jsonl is missing"),
        (("unsafe={}/qa.jsonl",), {}, "a kind is one of general, instruction, safety"),
        (("{}/odd.jsonl",), {}, "name those to read: --general_fields input=FIELD"),
        (("{}/mc.jsonl",), {"general_metrics": ("acc", "acc")}, "general_metrics: expected 1"),
        (("{}/story.txt",), {"general_metrics": ("acc",)}, "is a text; expected perplexity, got acc"),
        (("{}/mc.jsonl",), {"general_metrics": ("accc",)}, "unknown metric 'accc'.* did you mean 'acc'"),
        ((), {"general_tasks": ("micro",)} | own, "micro: the run trains all of its tasks"),
        ((), {"general_tasks": ("micro:1",)} | own, "micro:1: the run trains this task"),
        ((), {"general_tasks": ("./micro:1",)} | own, "./micro:1: the run trains this task"),
        ((), {"general_tasks": ("other/../micro",)} | own, "the run trains all of its tasks"),
        ((), {"general_tasks": ("",)}, "expected STREAM or STREAM:TASK, got ''"),
        ((), {"general_tasks": ("other:7",)}, r"expected a task of other, number or name: 0 \(micro 0\), 1"),
        ((), {"general_tasks": ("nowhere",)}, "nowhere/continual_data.json is missing"),
    ):
        with pytest.raises(UserError, match=error):
            read(files, *words, **more)


def test_what_cannot_be_asked_is_found_before_loading(files):
    def found(*words, method="SEQ", own=None, **more):
        return problems(tiny.plan(tiny.make_config(method, **options(files, *words, **more)), **own or {}))

    assert found("{}/mc.jsonl", "{}/story.txt") == []
    (error,) = found("{}/qa.jsonl", general_metrics=("choice_likelihood",))
    assert error.startswith("qa: choice_likelihood needs the possible answers")
    heads = found("{}/qa.jsonl", classifier="Linear", il_mode="CIL")
    assert any(error.startswith("general_files, general_tasks: need written answers") for error in heads)
    (error,) = found("{}/story.txt", backbone=tiny.backbone_folder("t5"))
    assert error == "general_files: the perplexity of a text needs a decoder; got encoder-decoder"
    known = {"method": "PEFT", "il_mode": "TIL", "own": {"PEFT_inference": "task_id"}}
    assert any("outside the stream have no task" in error for error in found("{}/qa.jsonl", **known))
    routed = {"method": "PEFT", "own": {"PEFT_inference": "route"}}
    assert found("{}/qa.jsonl", **routed) == []
    for other in (routed, {"method": "AdapterCL"}):
        assert any("story.txt holds no question" in error for error in found("{}/story.txt", **other))
    assert found(general_fields="trace")[0].startswith("general_fields: has no effect without general_files")


@pytest.mark.parametrize("bos", [False, True])
def test_the_perplexity_of_a_text_predicts_each_token_once(files, tmp_path, monkeypatch, bos):
    monkeypatch.setattr(asking, "WINDOW", 16)
    (one,) = read(files, "{}/story.txt")
    method = tiny.make_method(tiny.make_session(tiny.make_config(backbone=tiny.backbone_folder(bos=bos))))
    windows = asking._windows(method, one)
    ids = tiny.tokenizer(bos)(one.text, add_special_tokens=False)["input_ids"]
    assert [token for window in windows for token in window.answer] == ids
    assert windows[0].prompt == ([tiny.BOS] if bos else [tiny.EOS]) and len(windows) > 2
    assert all(len(window.prompt) + len(window.answer) <= 16 for window in windows)
    asking.ask(method, tmp_path, BASE, Outside([one]))
    total = 0.0
    for window in windows:
        whole = torch.tensor([[*window.prompt, *window.answer]])
        logits = method.model(whole).logits[0, -len(window.answer) - 1 : -1].log_softmax(-1)
        total += logits.gather(1, torch.tensor(window.answer)[:, None]).sum().item()
    rows = read_jsonl(BASE.predictions(tmp_path, "general_0"))
    assert sum(row["log_likelihood"] for row in rows) == pytest.approx(total, rel=1e-5)
    assert sum(row["tokens"] for row in rows) == len(ids)


def test_questions_leave_no_trace_and_are_asked_once(files, tmp_path, monkeypatch):
    sets = read(files, "{}/mc.jsonl", "{}/qa.jsonl", "{}/story.txt")
    method = tiny.make_method(tiny.make_session(tiny.make_config()))
    method.model.train()
    before = tiny.snapshot(method), method.backbone.stop_ids, torch.get_rng_state()
    asking.ask(method, tmp_path, Moment(0), Outside(sets))
    assert tiny.same(before[0], tiny.snapshot(method)) and method.model.training
    assert method.backbone.stop_ids == before[1] and torch.equal(before[2], torch.get_rng_state())
    assert [len(read_jsonl(Moment(0).predictions(tmp_path, f"general_{k}"))) for k in range(2)] == [4, 2]
    monkeypatch.setattr(asking, "_log_likelihoods", lambda *_: pytest.fail("read again"))
    monkeypatch.setattr("utils.evaluation.predict", lambda *_: pytest.fail("asked again"))
    asking.ask(method, tmp_path, Moment(0), Outside(sets))


@pytest.mark.slow
def test_a_run_that_is_asked_more_is_the_same_run_also_when_resumed(files, tmp_path):
    more = options(files, "{}/mc.jsonl", "instruction={}/qa.jsonl", "{}/story.txt")
    whole, plain, cut = (tmp_path / name for name in ("whole", "plain", "cut"))
    asked = tiny.run(whole, tiny.make_config(**more), cuts={"task_1": cut})
    bare = tiny.run(plain, tiny.make_config())
    assert tiny.same(asked.weights, bare.weights) and asked.losses == bare.losses
    assert [asked.results[name] for name in ("R", "base")] == [bare.results[name] for name in ("R", "base")]
    assert "general" not in bare.results
    sets = asked.results["general"]
    assert [one["kind"] for one in sets] == ["general", "instruction", "general"]
    assert all(None not in (one["before"], *one["after"]) for one in sets)
    BASE.predictions(cut, "general_1").unlink()
    resumed = tiny.run(cut, tiny.make_config(**more))
    assert tiny.same(resumed.weights, asked.weights)
    assert resumed.results | {"cost": None} == asked.results | {"cost": None}
    made = sorted(path.relative_to(whole) for path in (whole / "predictions").rglob("*.jsonl"))
    assert all((whole / path).read_bytes() == (cut / path).read_bytes() for path in made)


@pytest.mark.slow
def test_the_schedule_and_evaluation_alone_are_followed(files, tmp_path):
    more = options(files, "{}/mc.jsonl", training_epochs=1)
    sets = tiny.run(tmp_path / "a", tiny.make_config(**more, evaluate_schedule="last")).results["general"]
    assert [value is None for value in (sets[0]["before"], *sets[0]["after"])] == [False, True, True, False]
    rare = tiny.run(tmp_path / "c", tiny.make_config(**more, general_schedule="last")).results
    sets = rare["general"]
    assert [value is None for value in (sets[0]["before"], *sets[0]["after"])] == [False, True, True, False]
    assert None not in (rare["R"][1][:2])
    sets = tiny.run(tmp_path / "b", tiny.make_config(**more, is_evaluate_only=True)).results["general"]
    assert [value is None for value in (sets[0]["before"], *sets[0]["after"])] == [False, True, True, True]


def test_changes_are_signed_so_that_a_loss_is_negative(tmp_path):
    facts = {
        "general": [
            {"name": "mc", "kind": "general", "metric": "choice_likelihood"},
            {"name": "harm", "kind": "safety", "metric": "jailbreak_rate"},
            {"name": "story", "kind": "general", "metric": "perplexity", "words": 4},
        ]
    }
    scores = {(BASE, 0): 0.5, (BASE, 1): 0.25, (Moment(1), 0): 0.25, (Moment(1), 1): 0.75}
    for moment, value in ((BASE, -8.0), (Moment(1), -16.0)):
        row = {"index": 0, "tokens": 8, "log_likelihood": value}
        write_jsonl(moment.predictions(tmp_path, "general_2"), [row])
    sets = reported.read(tmp_path, facts, 2, lambda moment, k, *_: scores.get((moment, k), math.nan))
    assert sets[0]["before"] == 0.5 and sets[0]["after"] == [None, 0.25]
    assert sets[2]["after"] == [None, pytest.approx(math.e**2)]
    assert sets[2]["per_word"]["before"] == pytest.approx(math.e**2)
    changes = reported.columns({"general": sets})
    assert changes == {
        "general_change": -0.25,
        "instruction_change": None,
        "safety_change": -0.5,
        "perplexity_change": pytest.approx(math.e - 1),
    }
    text = "\n".join(reported.table({"general": sets, "task_names": ["a", "b"]}))
    assert "after b" in text and "after a" not in text and "jailbreak_rate ↓" in text
    assert "| safety change          |  -50.00 |" in text
    sets[0]["after"][-1] = None
    assert reported.columns({"general": sets})["general_change"] is None
    with pytest.raises(ValueError, match="needs scores"):
        ability_change([], [], [])


def test_damaged_facts_and_answers_are_refused_in_a_sentence(tmp_path):
    text = {"name": "t", "kind": "general", "metric": "perplexity"}
    path = BASE.predictions(tmp_path, "general_0")
    for facts, rows, error in (
        ({"general": "x"}, [], "general: expected entries with name, kind, metric"),
        ({"general": [{"name": "t"}]}, [], "general: expected entries with name, kind, metric"),
        ({"harness": [3]}, [], "harness: expected entries with name, kind"),
        ({"general": [text]}, [], "expected the number of words"),
        ({"general": [text | {"words": 2}]}, [{"tokens": 2}], "expected rows with tokens and log_likelihood"),
        (
            {"general": [text | {"words": 2}]},
            [{"tokens": 10**400, "log_likelihood": -1.0}],
            "expected rows with tokens",
        ),
    ):
        write_jsonl(path, rows)
        with pytest.raises(UserError, match=error):
            reported.read(tmp_path, facts, 1, lambda *_: 0.0)
    path.write_text('{"tokens": 1, "log_likelihood": Infinity}\n{"tokens": 1, "log_likelihood": -Infinity}\n', "utf-8")
    with pytest.raises(UserError, match="expected rows with tokens"):
        reported.read(tmp_path, {"general": [text | {"words": 2}]}, 1, lambda *_: 0.0)
