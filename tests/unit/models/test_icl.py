"""In-context learning: which demonstrations precede a question, and that nothing is trained."""

from unittest import mock

import pytest

from models.ICL import ICL, first_line
from tests import tiny
from utils.dataset import Example, Stream, TaskData


def concepts(tasks=2, concepts=3, facts=4):
    """A stream of facts, each asked twice: for training and, in other words, for the test."""

    def rows(task, wording):
        return tuple(
            Example(f"{wording} {c}{f}?", f"{c} {f}", c, c, (c, f, c * facts + f), task=task)
            for c in range(concepts * task, concepts * (task + 1))
            for f in range(facts)
        )

    data = tuple(TaskData(f"task {t}", rows(t, "what"), (), rows(t, "which")) for t in range(tasks))
    return Stream("facts", data, {"MAX_NEW_TOKENS": [8] * tasks, "PROMPT_TYPE": "qa", "IL_MODE": "IIL"})


def method_of(stream=None, seen=1, prompt_type="none", seed=1, limit=-1, **options):
    config = tiny.make_config("ICL", seed=seed, max_seq_length=limit)
    own = {f"ICL_{name}": value for name, value in options.items()}
    method = tiny.make_method(tiny.make_session(config, prompt_type=prompt_type), stream or concepts(), **own)
    for index in range(seen):
        method.before_task(tiny.make_task(index))
    return method


def questions(stream, task=0):
    data = stream.tasks[task]
    return [*data.test, *data.train]


def test_a_prompt_is_n_lines_and_the_question():
    method = method_of(n_shot=2)
    x = method.stream.tasks[0].test[0]
    prompt, answer = method.encoder.render(x)
    *lines, last = prompt.split("\n")
    assert last == "which 00?"
    assert answer == " 0 0"
    train = {f"{e.input} {e.target}" for e in method.stream.tasks[0].train}
    assert len(set(lines)) == 2 and set(lines) <= train


def test_a_template_is_around_demonstrations_too():
    prompt, _ = method_of(n_shot=1, prompt_type="qa").encoder.render(concepts().tasks[0].test[0])
    assert prompt.count("Question: ") == prompt.count("Short Answer:") == 2
    assert prompt.endswith("Question: which 00?\n Short Answer:")


@pytest.mark.parametrize("option", ["random", "same_concept", "same_instance"])
def test_never_the_question_itself_and_its_fact_only_where_that_is_asked_for(option):
    method = method_of(n_shot=3, **({} if option == "random" else {option: True}))
    for x in questions(method.stream):
        shown = method.demonstrations(x)
        assert len(shown) == len(set(shown)) == 3
        assert x.input not in {e.input for e in shown}
        same = [e for e in shown if e.ids == x.ids]
        is_test = x.input.startswith("which")
        assert len(same) == (option == "same_instance" and is_test)
        assert all(e.input.startswith("what") for e in shown)
        if option == "same_concept":
            assert {e.ids[0] for e in shown} == {x.ids[0]}


def test_all_of_a_pool_is_shown_where_more_is_asked_for():
    method = method_of(n_shot=100)
    assert len(method.demonstrations(method.stream.tasks[0].test[0])) == 12 - 1
    method = method_of(n_shot=100, same_concept=True)
    assert len(method.demonstrations(method.stream.tasks[0].test[0])) == 4 - 1


def test_the_place_of_the_same_instance_is_random():
    method = method_of(n_shot=3, same_instance=True)
    places = {[e.ids for e in method.demonstrations(x)].index(x.ids) for x in method.stream.tasks[0].test}
    assert places == {0, 1, 2}


def test_only_tasks_seen_so_far_are_shown():
    stream = concepts()
    assert method_of(stream, seen=0).demonstrations(stream.tasks[0].test[0]) == []
    for seen in (1, 2):
        method = method_of(stream, seen=seen, n_shot=4)
        tasks = {e.task for x in stream.tasks[0].test for e in method.demonstrations(x)}
        assert tasks == set(range(seen))
    method = method_of(stream, seen=1, same_concept=True)
    assert method.demonstrations(stream.tasks[1].test[0]) == []  # its concept is not known yet


def test_a_state_from_before_the_first_task_has_no_demonstrations():
    method, question = method_of(seen=2), questions(concepts())[0]
    assert method.demonstrations(question)
    method.load_state_dict(method_of(seen=0).state_dict())
    assert method.demonstrations(question) == []


def test_draws_depend_on_seed_and_question_alone():
    first, again, other = (
        [m.demonstrations(x) for x in questions(m.stream)] for m in (method_of(n_shot=2, seed=s) for s in (1, 1, 2))
    )
    assert first == again != other
    method = method_of(n_shot=2)
    assert [method.demonstrations(x) for x in reversed(questions(method.stream))][::-1] == first
    assert len({tuple(shown) for shown in first}) > 10


def test_whole_demonstrations_are_left_out_of_a_prompt_that_is_too_long():
    whole = method_of(n_shot=5)
    x = whole.stream.tasks[0].test[0]
    lines = whole.encoder.render(x)[0].split("\n")
    for left in range(6):
        wanted = "\n".join(lines[5 - left :])
        limit = len(tiny.tokenizer()(wanted)["input_ids"])
        method = method_of(n_shot=5, limit=limit)
        assert method.encoder.render(x)[0] == method.encoder.render(x)[0] == wanted
        assert len(method.session.log.messages) == (left < 5)  # said once
        (row,) = method.encoder.for_prediction([x], limit)
        assert tiny.tokenizer().decode(row.prompt) == wanted  # nothing is left to cut


def test_nothing_is_trained(tmp_path):
    made = tiny.run(tmp_path, tiny.make_config("ICL"), ICL_n_shot=2)
    assert made.log.step == 0
    assert made.losses == []
    assert tiny.same(made.weights, tiny.snapshot(tiny.make_method(tiny.make_session(tiny.make_config("ICL")))))
    assert made.results["cost"]["trainable_parameters"] == made.results["cost"]["train_examples"] == [0] * 3
    assert made.results["cost"]["train_sequences"] == [0] * 3
    assert all(row[i] is not None for i, row in enumerate(made.results["R"]))


def test_an_answer_is_the_first_line():
    assert first_line("moo \nQuestion: what 1?") == "moo"
    assert first_line("") == ""
    method = method_of()
    with mock.patch("utils.classifier.generate", lambda *_: ["0 1\nwhat 02? 0 2", "0 3"]):
        assert method.predict([], None, 8) == ["0 1", "0 3"]


def test_what_cannot_be_shown_is_refused():
    def problems(stream, **options):
        own = ICL.Options(**{f"ICL_{name}": value for name, value in options.items()})
        return ICL.problems(tiny.make_config("ICL"), own, stream)

    def stream_of(**changes):
        row = Example("a", "b", **changes) if "target" not in changes else Example("a", **changes)
        return Stream("x", (TaskData("x", (row,), (), (row,)),), {})

    assert problems(concepts(), same_concept=True) == []
    assert problems(tiny.micro_stream()) == []
    assert problems(tiny.micro_stream(), same_instance=True)[0].startswith(
        "ICL_same_instance: needs examples with concept"
    )
    both = problems(concepts(), same_instance=True, same_concept=True)
    assert both == ["ICL_same_instance, ICL_same_concept: expected one of them, got both"]
    assert "has chats" in problems(stream_of(messages=(("user", "a"), ("assistant", "b"))))[0]
    assert "answers of several lines" in problems(stream_of(target="b\nc"))[0]
