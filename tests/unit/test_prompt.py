import pytest

from utils.dataset import Example, Stream
from utils.errors import UserError
from utils.prompt import PROMPT_TYPES, choose, render, strips

RELATION = Example("[E11] avenger field [E12] is near [E21] sweetwater [E22] .", "place served")
SENTENCE = "avenger field is near sweetwater ."

EXPECTED = {
    "none": ("q?\nAnswer:", "q?\nAnswer:"),
    "default": (" what ", "Input sentence: what\n The label:"),
    "qa": ("Who? ", "Question: Who?\n Short Answer:"),
    "relation_classification_state": (
        RELATION.input,
        f"Input sentence: {SENTENCE}\n The relationship between avenger field and sweetwater is",
    ),
    "relation_classification_qa": (
        RELATION.input,
        f"Input sentence: {SENTENCE}\n "
        "Question: What is the relationship between avenger field and sweetwater?\n Answer:",
    ),
    "relation_classification_state_no_pos": (
        RELATION.input,
        f"Input sentence: {SENTENCE}\n The relationship:",
    ),
}


@pytest.mark.parametrize("name", PROMPT_TYPES)
def test_templates(name):
    text, prompt = EXPECTED[name]
    assert render(Example(text, " yes\n"), name) == (prompt, " yes")


def test_white_space_is_kept_by_option():
    example = Example("def f():\n    ", "    return 1\n")
    assert render(example, "none", strip=False) == (example.input, example.target)
    assert render(example, "none") == ("def f():", " return 1")
    assert render(Example(" a ", " b"), "qa", strip=False) == ("Question:  a \n Short Answer:", " b")
    stream = Stream("s", (), {"STRIP": False})
    assert [strips(option, stream) for option in (None, True, False)] == [False, True, False]
    assert strips(None, Stream("s", ()))


def test_texts_are_not_templates():
    assert render(Example("f{x} {e1} \\1 {", "{y}"), "qa") == (
        "Question: f{x} {e1} \\1 {\n Short Answer:",
        " {y}",
    )


def test_the_order_of_the_entities_in_the_sentence_is_free():
    example = Example("[E21] b [E22]sees[E11] a [E12]", "r")
    prompt, _ = render(example, "relation_classification_state")
    assert prompt == "Input sentence: b sees a\n The relationship between a and b is"


def test_missing_markers_are_reported():
    with pytest.raises(UserError, match=r"expected the marker \[E12\] once in '\[E11\] a"):
        render(Example("[E11] a [E21] b [E22]", "r"), "relation_classification_qa")


def test_unknown_prompt_types_are_reported():
    with pytest.raises(UserError, match=r"expected one of auto, .*got 'defualt'; did you mean 'default'"):
        render(RELATION, "defualt")
    with pytest.raises(UserError, match=r"got 'x'$"):
        choose("x", Stream("s", ()))


def test_auto_is_the_stream_s_prompt_type_or_follows_from_its_name():
    assert choose("auto", Stream("fewrel_task8", (), {"PROMPT_TYPE": "qa"})) == "qa"
    assert choose("default", Stream("fewrel_task8", (), {"PROMPT_TYPE": "qa"})) == "default"
    names = ["concept_1k_task10", "clinc150_task15", "tacred_task8", "biography_qa_task6", "my_own"]
    expected = ["qa", "default", "relation_classification_state", "none", "none"]
    assert [choose("auto", Stream(name, ())) for name in names] == expected
