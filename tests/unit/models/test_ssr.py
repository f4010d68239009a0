"""SSR: which examples are kept, answered anew and rehearsed, on hand-made texts."""

from dataclasses import replace

import numpy as np
import pytest

from models import SSR as module
from models.common.rollouts import Rollout
from models.SSR import SSR, typical
from tests import tiny
from utils.dataset import Stream, TaskData
from utils.model.weights import borrowed


def test_each_cluster_gives_its_share_of_the_rows_nearest_to_its_centroid():
    states = np.array([[0, 1], [0, 2], [0, 3], [0, 4], [9, 0], [11, 0]], dtype=np.float32)  # centroids 2.5 and 10
    states[4, 0] = 9.5
    assert typical(states, 2, 3, seed=1) == [1, 2, 4]  # two of four, one of two; 1 and 2 are nearest to 2.5
    assert typical(states, 1, 1, seed=1) in ([0], [1], [2], [3], [4])
    assert typical(states, 20, 3, seed=1) == []  # clusters of one row have a share of a half, which rounds to 0


def writing(monkeypatch, *texts):
    """Lets the base model write these texts after every prompt; returns the method, the weights and the prompts."""
    method = tiny.make_method(tiny.make_session(tiny.make_config("SSR")), SSR_shots=2, SSR_keep=20)
    seen = {}

    def sample(backbone, rows, longest, how, *seed):
        seen.update(prompts=[method.encoder.tokenizer.decode(row.prompt) for row in rows], how=how)
        seen["weights"] = tiny.snapshot(method)
        return [[Rollout((1,), text, True) for text in texts]] + [[] for _ in rows[1:]]

    monkeypatch.setattr(module, "sample", sample)
    return method, seen


def test_the_base_writes_after_all_ordered_choices_and_copies_are_dropped(monkeypatch):
    task = tiny.make_task(0)
    copied = task.train[0].input, task.train[0].target
    text = f"a b\nOutput: c\n\nInput: a b\nOutput: d\n\nInput: {copied[0]}\nOutput: {copied[1]}"
    method, seen = writing(monkeypatch, text, "no answer")
    method.options = method.options.model_copy(update={"SSR_demonstrations": 12})
    method.before_task(task)
    base = tiny.snapshot(method)
    for w in method.model.parameters():
        w.data.add_(1)
    assert method.write(task) == [("a b", "c")]
    assert len(seen["prompts"]) == len(set(seen["prompts"])) == 12 * 11
    assert all(text.startswith("Input: ") and text.endswith("\n\nInput:") for text in seen["prompts"])
    assert all(text.count("Input:") == 3 and text.count("Output:") == 2 for text in seen["prompts"])
    assert tiny.same(seen["weights"], base)
    (event,) = [event for event in method.session.log.events if event["event"] == "pseudo"]
    assert (event["texts"], event["well_formed"], event["distinct"]) == (2, 3, 1)


def test_questions_are_answered_by_the_newest_model_and_join_later_tasks(monkeypatch):
    method, _ = writing(monkeypatch, "a b\nOutput: c\n\nInput: d\nOutput: e")
    answers = {"a b": "new", "d": ""}
    texts = lambda rows: [method.encoder.tokenizer.decode(row.prompt).strip() for row in rows]  # noqa: E731
    monkeypatch.setattr(SSR, "predict", lambda self, rows, task, limit: [answers[text] for text in texts(rows)])
    first, second = tiny.make_task(0), tiny.make_task(1)
    method.before_task(first)
    assert list(method.train_examples(first)) == list(first.train)
    method.after_task(first)
    assert list(method.written) == [("a b", "new", 0)]
    rows = method.train_examples(second)
    assert list(rows[:-1]) == list(second.train)
    assert (rows[-1].input, rows[-1].target, rows[-1].task, rows[-1].source) == ("a b", "new", 0, "pseudo")
    method.after_task(tiny.make_task(2))  # the last task
    assert len(method.written) == 1


def test_written_answers_stay_without_refinement(monkeypatch):
    method, _ = writing(monkeypatch, "a b\nOutput: c")
    method.options = method.options.model_copy(update={"SSR_refine": False})
    method.before_task(tiny.make_task(0))
    method.after_task(tiny.make_task(0))
    assert list(method.written) == [("a b", "c", 0)]


def test_a_base_that_imitates_nothing_is_reported(monkeypatch):
    method, _ = writing(monkeypatch, "gibberish")
    method.before_task(tiny.make_task(0))
    method.after_task(tiny.make_task(0))
    assert "does not imitate demonstrations" in method.session.log.messages[-1]


def test_prompts_that_leave_no_room_are_left_out():
    method = tiny.make_method(tiny.make_session(tiny.make_config("SSR")))
    assert method.imitations(["a " * 300], tiny.make_task(0)) == []
    assert "1 of 1 prompts leave no room" in method.session.log.messages[-1]


def test_the_base_is_the_backbone_before_any_task():
    method = tiny.make_method(tiny.make_session(tiny.make_config("SSR", PEFT_type="LoRA")))
    method.before_task(tiny.make_task(0))
    assert all("lora_" in name for name in method.base)  # an adapter's copy, not the model's
    with borrowed(method.named(), method.base):
        ups = [w for name, w in method.named().items() if ".lora_B." in name]
        assert ups and not any(w.any() for w in ups)


@pytest.mark.parametrize(
    "own, stream, expected",
    [
        ({"SSR_demonstrations": 1}, tiny.micro_stream(), "SSR_demonstrations: expected at least SSR_shots, 2; got 1"),
        ({"SSR_shots": 9}, tiny.micro_stream(), "SSR_shots: micro has fewer than 9 training examples in task 1"),
        ({}, None, "method SSR writes questions and answers; chats holds chats"),
    ],
)
def test_what_cannot_work_is_refused(own, stream, expected):
    if stream is None:
        rows = tuple(
            replace(e, messages=(("user", "a"), ("assistant", "b"))) for e in tiny.micro_stream().tasks[0].train
        )
        stream = Stream("chats", (TaskData("chat", rows, rows, rows),), {})
    assert SSR.problems(tiny.make_config("SSR"), SSR.Options(**own), stream) == [expected]
