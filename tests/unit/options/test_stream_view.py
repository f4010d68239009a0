import pytest

from tests import tiny
from utils.dataset import Example, Stream, TaskData
from utils.errors import UserError
from utils.options import stream_view
from utils.options.checks import problems
from utils.preprocess import biography_qa


def view(stream, **options):
    return stream_view.view(stream, tiny.make_config(**options))


def rows(*names, task=0):
    return tuple(Example(name, f"answer {name}", task=task) for name in names)


def inputs(examples):
    return "".join(example.input for example in examples)


def stream(*tasks, **facts):
    return Stream("letters", tuple(TaskData(f"task {k}", *task) for k, task in enumerate(tasks)), facts)


def test_the_default_is_the_stored_stream():
    stored = tiny.micro_stream()
    assert view(stored) is stored


def test_an_order_moves_tasks_with_their_facts_and_classes():
    stored = tiny.class_stream()
    moved = view(stored, task_order="2,0,1")
    assert [t.name for t in moved.tasks] == [stored.tasks[k].name for k in (2, 0, 1)]
    assert moved.config["CUR_NUM_CLASS"] == [stored.config["CUR_NUM_CLASS"][k] for k in (2, 0, 1)]
    for place, task in enumerate(moved.tasks):
        assert {e.task for e in (*task.train, *task.dev, *task.test)} == {place}
    labels = [label for task in moved.tasks for label in sorted({e.label for e in task.train})]
    assert labels == list(range(sum(moved.config["CUR_NUM_CLASS"])))
    assert [e.input for e in moved.tasks[0].train] == [e.input for e in stored.tasks[2].train]


def test_words_have_one_order():
    with pytest.raises(UserError, match="task_order: words is word-level"):
        view(tiny.word_stream(), task_order="reversed")
    assert view(tiny.word_stream(), first_tasks=2).config["idx2label"] == ["O", "B-T0", "I-T0", "B-T1", "I-T1"]


def test_orders_that_do_not_exist():
    for text in ("0,1", "0,1,3", "0,0,1", "2;1;0", "random", "random:x", "a,b,c", "2,0,1,"):
        with pytest.raises(UserError, match=r"task_order: expected stored, reversed, random:<seed>, or each of 0 to 2"):
            stream_view.order_of(text, 3)
    with pytest.raises(UserError, match="first_tasks: expected at most the 3 tasks of micro, got 4"):
        view(tiny.micro_stream(), first_tasks=4)


def test_values_per_task_follow_their_task():
    plan = tiny.plan(tiny.make_config(lr_list=(1.0, 2.0, 3.0), task_order="reversed", first_tasks=2))
    assert plan.config.lr_list == (3.0, 2.0) and len(plan.stream.tasks) == 2 and len(plan.stored.tasks) == 3
    assert problems(plan) == []
    short = tiny.plan(tiny.make_config(lr_list=(1.0, 2.0), first_tasks=2))
    assert problems(short) == ["lr_list: expected 3 entries, one per task of micro, got 2"]


def test_dev_of_demo_persons():
    stored = biography_qa.build(None, biography_qa.Options(preset="micro"), 1)
    tuned = view(stored, score_split="dev")
    for before, after in zip(stored.tasks, tuned.tasks, strict=True):
        assert after.test == before.dev and not set(after.test) & set(before.test)
        assert not set(after.train) & set(before.test)
    assert not set(tuned.tasks[0].train) & set(tuned.tasks[0].test)
    assert tuned.tasks[1].train == tuned.tasks[1].test
    assert len(tuned.tasks[1].train) == len(stored.tasks[1].train)


def test_a_dev_split_takes_the_place_of_test():
    tuned = view(stream([rows("a", "b", "c"), rows("c", "d"), rows("x")]), score_split="dev")
    assert (inputs(tuned.tasks[0].train), inputs(tuned.tasks[0].test)) == ("ab", "cd") and tuned.name == "letters (dev)"


def test_without_a_dev_split_a_fixed_tenth_of_train_is_held_out():
    letters = rows(*"abcdefghijklmnopqrst")
    stored = stream([letters, rows("x"), rows("x")], IL_MODE="CIT")
    tuned, again = view(stored, score_split="dev", seed=1), view(stored, score_split="dev", seed=2)
    (task,) = tuned.tasks
    assert task == again.tasks[0] and len(task.test) == 2 and not set(task.test) & set(task.train)
    assert len(task.train) == 18
    with pytest.raises(UserError, match=r"score_split: task 0 of letters has too few training examples \(1\)"):
        view(stream([rows("a"), (), rows("x")]), score_split="dev")


def test_facts_are_scored_on_questions_that_are_trained():
    for il_mode, test in (("IIL", "x"), ("CKE", "x"), ("CIT", "a")):
        stored = stream([rows(*"abcdefghij"), (), rows(test)], IL_MODE=il_mode)
        (task,) = view(stored, score_split="dev").tasks
        assert task.train == stored.tasks[0].train and len(task.test) == 1 and set(task.test) <= set(task.train)
    edits = stream([rows(*"abcdefghij"), rows("z"), rows("x")], IL_MODE="CKE", LOCALITY_SPLIT="dev")
    (task,) = view(edits, score_split="dev").tasks
    assert inputs(task.dev) == "z" and set(task.test) <= set(task.train)


def test_each_class_keeps_a_training_example():
    pairs = tuple(Example(f"text {i}", f"kind {i // 2}", label=i // 2) for i in range(20))
    (task,) = view(stream([pairs, (), rows("x")], IL_MODE="CIL"), score_split="dev").tasks
    assert {e.label for e in task.train} == set(range(10)) and len(task.test) == 2


def test_a_dev_split_that_changes_training_does_not_decide_inside_a_run():
    options = {"keep_best": True, "evaluate_interval": 1}
    small = biography_qa.build(None, biography_qa.Options(preset="small", num_person=120, num_person_first_task=80), 1)
    assert problems(tiny.plan(tiny.make_config(**options), stream=small)) == []
    micro = biography_qa.build(None, biography_qa.Options(preset="micro"), 1)
    (problem,) = problems(tiny.plan(tiny.make_config(**options), stream=micro))
    assert problem.startswith("keep_best: the dev split of biography_micro_task2 is for tuning (score_split)")
