import json

import pytest

from tests import tiny
from tests.unit.preprocess.raw_data import FIXTURES, REAL, build, changed, real, sizes
from utils.errors import UserError
from utils.options.checks import watching_fits
from utils.preprocess import cl_benchmark

GLUCOSE = "task748_glucose_reverse_cause_event_detection"
FILE = f"cl_benchmark/SuperNI/{GLUCOSE}/train.json"


def test_superni_has_its_prompt_several_answers_and_facts():
    stream = build("superni", order="748,task363_sst2_polarity_classification")
    assert stream.name == "superni_task2_own" and sizes(stream) == [(3, 3, 3)] * 2
    assert [task.name for task in stream.tasks] == [GLUCOSE, "task363_sst2_polarity_classification"]
    first, _, third = stream.tasks[0].train
    assert first.input == (
        "Definition: Name an event that {one} sentence causes.\n\nNow complete the following example -\n"
        "Input: story: It rains.\nOutput: "
    )
    assert first.target == "The street gets wet" and first.accepted == ("The street gets wet", "The street is wet")
    assert third.input.endswith("Input: story: The sun {0} sets.\nOutput: ") and third.references is None
    assert stream.tasks[1].train[0].target == "POS"  # a text, not its first letter
    assert stream.config["METRIC"] == ["rouge_l_stemmed"] * 2 and stream.config["CHANCE"] == [None, None]
    assert (stream.il_mode, stream.dev_is_test, stream.max_new_tokens(0), stream.max_seq_length(0)) == (
        *("CIT", True),
        *(50, 512),
    )
    assert stream.config["ORDER"] == "748,task363_sst2_polarity_classification"


def test_long_sequence_has_its_prompt_and_reports_questions_without_a_label():
    stream = build("long_sequence", order="mnli,copa")
    assert stream.config["METRIC"] == ["exact_match_bare"] * 2 and stream.config["CHANCE"] == [1 / 3, 1 / 2]
    mnli, copa = stream.tasks
    assert mnli.train[0].input.startswith(
        'What is the relationship between the "sentence 1" and the "sentence 2"?\nsen'
    )
    assert mnli.train[0].input.endswith("It is wet.\nOutput: ")
    assert copa.train[0].input.startswith("What is the cause of") and copa.train[0].input.endswith("hot.\nOutput: ")
    note = "mnli: 1 of 3 test questions have no label: "
    assert stream.config["SOURCE"]["notes"] == [f"{note}score 0; leave them out with --drop-unlabelled"]
    dropped = build("long_sequence", order="mnli,copa", drop_unlabelled=True)
    assert sizes(dropped) == [(3, 2, 2), (3, 3, 3)] and dropped.config["SOURCE"]["notes"] == [f"{note}left out"]


def test_the_prompt_of_olora_names_task_data_set_and_options():
    stream = build("long_sequence", order="qqp,copa,amazon", prompt="olora")
    assert (
        stream.config["TASK_NAME_IN_PROMPT"] and not build("long_sequence", order="qqp").config["TASK_NAME_IN_PROMPT"]
    )
    qqp, copa, amazon = (task.train[0].input for task in stream.tasks)
    assert qqp == (
        'Task:QQP\nDataset:QQP\nWhether the "first sentence" and the "second sentence" have the same meaning? '
        "Choose one from the option.\nOption: no, yes \nfirst sentence: Who?\nsecond sentence: Who is it?\nAnswer:"
    )  # labels.json says False and True
    assert copa.startswith("Task:COPA\nDataset:COPA\nWhat is the cause") and copa.endswith("\nAnswer:")
    assert "Option: negative, neutral, positive \nTitle: Fine" in amazon  # as labels.json orders them
    superni = build("superni", order="748", prompt="olora").tasks[0].train[0].input
    assert superni.startswith(f"Task:CL\nDataset:{GLUCOSE}\nDefinition: Name")


def test_orders_are_the_published_ones():
    assert len(set(cl_benchmark.SUPERNI.tasks)) == len(set(cl_benchmark.LONG_SEQUENCE.tasks)) == 15
    for benchmark in (cl_benchmark.SUPERNI, cl_benchmark.LONG_SEQUENCE, cl_benchmark.STANDARD_CL):
        for number, order in benchmark.orders.items():
            names, suffix = benchmark._order([number])
            assert sorted(names) == sorted(benchmark.tasks) and len(order) == len(names), number
            assert suffix == ("" if number == next(iter(benchmark.orders)) else f"_order{number}")
    second, _ = cl_benchmark.SUPERNI._order("2")
    assert second[0] == GLUCOSE and second[-1] == "task875_emotion_classification"


def test_drawn_answers_and_a_dev_split_depend_on_the_seed_alone():
    plain = build("superni", order="748").tasks[0]
    seen = {build("superni", seed=seed, order="748", answer="drawn").tasks[0].train[0].target for seed in range(9)}
    assert seen == {"The street gets wet", "The street is wet"}
    held = build("superni", order="748", dev_share=0.3)
    assert sizes(held) == [(2, 1, 3)] and not held.dev_is_test
    assert sorted(map(repr, held.tasks[0].train + held.tasks[0].dev)) == sorted(map(repr, plain.train))
    assert held.tasks == build("superni", order="748", dev_share=0.3).tasks


def test_the_best_checkpoint_is_never_chosen_on_the_test_file():
    config = tiny.make_config(keep_best=True, evaluate_interval=1)
    is_refused = [
        bool(watching_fits(tiny.plan(config, stream=build("superni", order="748", **more))))
        for more in ({}, {"dev_share": 0.3})
    ]
    assert is_refused == [True, False]


def test_the_folder_of_raw_data_may_be_any_of_those_above_the_tasks(tmp_path):
    inside = ("", "cl_benchmark", "cl_benchmark/SuperNI")
    assert {build("superni", FIXTURES / part, order="748").tasks for part in inside} == {
        build("superni", order="748").tasks
    }


def test_missing_files_are_reported_together_with_the_tasks_that_are_complete():
    with pytest.raises(
        UserError, match=r"cb/train.json and 19 more files of the 15 tasks missing, which github.com/circle"
    ) as e:
        build("long_sequence")
    assert str(e.value).endswith("or use the tasks that are complete: --order mnli,copa,qqp,amazon,agnews")


MISTAKES = {
    "expected an object with a list of Instances, as in Natural Instructions, got list": lambda text: "[1]",
    "got the fields input": lambda text: '{"input": "a"}',
    "instance 2: expected a text or a list of texts in the field 'output', got an empty list": lambda text: (
        text.replace('[\n    "The class ends"\n   ]', "[]")
    ),
    "instance 2: expected a text in the field 'input', got nothing": lambda text: text.replace(
        '"input": "story: The bell', '"question": "story: The bell'
    ),
    "expected a text in the field 'output', got int": lambda text: text.replace('"The class ends"', "3"),
    "expected a text or a list of texts in the field 'Definition', got int": lambda text: json.dumps(
        json.loads(text) | {"Definition": 3}
    ),
    "is not JSON (truncated while copying?)": lambda text: text[:-9],
}


def test_wrong_files_and_options_are_one_sentence(tmp_path):
    for i, (message, change) in enumerate(MISTAKES.items()):
        raw = changed(tmp_path / str(i), FILE, change)
        with pytest.raises(UserError) as error:
            build("superni", raw, order="748")
        assert message in str(error.value) and f"{GLUCOSE}/train.json" in str(error.value)
    for order, message in {"7": "got '7'", "748,task748": "expected different tasks, got 748,task748"}.items():
        with pytest.raises(UserError, match=f"--order: .*{message}"):
            build("superni", order=order)


@pytest.mark.parametrize("name", [pytest.param("superni", marks=real("cl_benchmark.tar.xz"))])
def test_real_superni(name, tmp_path):
    import tarfile

    with tarfile.open(REAL / "cl_benchmark.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    assert (tmp_path / "cl_benchmark/SuperNI/task181_outcome_extraction/test.json").stat().st_size == 17_006
    stream = build(name, tmp_path)
    assert sizes(stream)[0] == (160, 20, 20) and sizes(stream)[3] == (338, 43, 43) and stream.name == "superni_task15"
    several = [[sum(e.references is not None for e in split) for split in (t.train, t.test)] for t in stream.tasks]
    assert [pair for pair in several if pair != [0, 0]] == [[105, 17], [223, 23]]
    long = build("long_sequence", tmp_path, order="boolq,mnli,cb")
    first = long.tasks[0].train[0].input
    begin = "According to the following passage, is the question true or false? Choose one from the option."
    assert first.startswith(begin) and first.endswith("Output: ")
    assert sizes(long) == [(2000, 3270, 3270), (3000, 7600, 7600), (250, 56, 56)]
    assert "mnli: 131 of 7600 test questions have no label" in long.config["SOURCE"]["notes"][0]
