import json
import random
import shutil

import pytest

from tests.unit.preprocess.raw_data import FIXTURES, as_windows, build, changed, sizes
from utils.dataset import SPLITS, Example, Stream, TaskData, encode, load_stream, save_stream
from utils.errors import UserError
from utils.preprocess import load
from utils.preprocess.shared.raw import Origin
from utils.preprocess.shared.tagged import OTHERS, Sentence, read_tagged, windows
from utils.preprocess.word_level import assign
from utils.prompt import render

TWO_TWO = {"base_task_entity": 2, "incremental_task_entity": 2}


def tags(examples) -> set[str]:
    return {tag[2:] for e in examples for tag in e.target.split(" ")} - {""}


def test_conll_stream():
    stream = build("conll2003", base_task_entity=2)
    config = stream.config
    assert [task.name for task in stream.tasks] == ["LOC, MISC", "ORG", "PER"]
    assert stream.name == "conll2003_task3_base2_inc1" and [s[0] for s in sizes(stream)] == [12, 6, 6]
    assert config["idx2label"] == ["O", "B-LOC", "I-LOC", "B-MISC", "I-MISC", "B-ORG", "I-ORG", "B-PER", "I-PER"]
    assert config["CUR_NUM_CLASS"] == [5, 2, 2] and config["CUR_CLASS"][1] == [5, 6]
    assert config["PRE_ACCUM_NUM_CLASS"] == [0, 5, 7] and config["label2idx"]["I-PER"] == 8
    assert (stream.metric(0), stream.il_mode, stream.chance(0)) == ("span_f1", "CIL", None)
    assert stream.is_word_level and not stream.dev_is_test
    for k, types in enumerate([{"LOC", "MISC"}, {"ORG"}, {"PER"}]):
        assert tags(stream.tasks[k].train) <= types  # other tasks' tags are hidden in training
    for k, types in enumerate([{"LOC", "MISC"}, {"LOC", "MISC", "ORG"}, {"LOC", "MISC", "ORG", "PER"}]):
        assert tags(stream.tasks[k].dev) <= types and tags(stream.tasks[k].test) == types
        assert all(tags([e]) for e in (*stream.tasks[k].dev, *stream.tasks[k].test))
    assert render(stream.tasks[2].test[0], stream.prompt_type) == (
        "Input sentence: Blue Sky Ltd of Bern won .\n The label:",
        " B-ORG I-ORG I-ORG O B-LOC O O",
    )


def test_seen_all_labels_is_a_real_boolean(tmp_path, capsys):
    from utils.dataformat_preprocess import main

    kept = build("conll2003", seen_all_labels=True)
    assert tags(kept.tasks[0].train) > {"LOC"} == tags(build("conll2003").tasks[0].train)
    command = ["--dataset", "conll2003", "--raw-dir", str(FIXTURES), "--out-dir", str(tmp_path)]
    assert main([*command, "--seen_all_labels", "False"]) == main([*command, "--seen_all_labels"]) - 2 == 0
    assert "has other content" in capsys.readouterr().err
    assert load_stream("conll2003_task4_base1_inc1", tmp_path).tasks == build("conll2003").tasks


def test_every_answer_fits():
    for name in ("conll2003", "fewnerd", "i2b2", "ontonotes5"):
        stream = build(name, base_task_entity=2, incremental_task_entity=1)
        for k, task in enumerate(stream.tasks):
            assert all(len(e.target.split(" ")) < stream.max_new_tokens(k) for e in task.test)
            assert stream.max_seq_length(k) == 128 + stream.max_new_tokens(k)


def test_fewnerd_runs_become_entities_and_types_are_shuffled():
    stream = build("fewnerd", **TWO_TWO)
    assert stream.name == "fewnerd_task3_base2_inc2" and [s[0] for s in sizes(stream)] == [8, 8, 8]
    whole = build("fewnerd", incremental_task_entity=0)
    assert whole.name == "fewnerd_task1_base6_inc0" and len(whole.tasks) == 1
    found = {e.input: e.target for e in whole.tasks[0].train}
    assert found["Dice Hill Dice Hill sold well ."] == "B-PRODUCT-GAME" + " I-PRODUCT-GAME" * 3 + " O O O"  # merged
    assert found["Night Train Old Sonata ."] == "B-ART-FILM I-ART-FILM B-ART-OTHER I-ART-OTHER O"
    assert "B-EVENT-ATTACK/BATTLE/WAR/MILITARYCONFLICT" in whole.config["label2idx"]
    assert "I-LOCATION-BODY-OF-WATER" in whole.config["label2idx"]
    assert stream.config["idx2label"] != build("fewnerd", seed=2, **TWO_TWO).config["idx2label"]
    assert stream == build("fewnerd", **TWO_TWO)


def test_letters_that_are_not_followed_by_a_hyphen_are_no_types(tmp_path):
    (tmp_path / "a.txt").write_text("Ann B_PER\nLee I_PER\n\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"expected the tag O, B-TYPE or I-TYPE .*, got .*B_PER"):
        read_tagged(tmp_path / "a.txt", Origin("made up", "none", "a line"))


def test_bare_types_and_bio_tags_are_read_alike(tmp_path):
    (tmp_path / "a.txt").write_text("Tom\tB-person_actor\nHanks\tI-person_actor\nTom\tB-person_actor\nran\tO\n")
    (tmp_path / "b.txt").write_text("Tom\tperson_actor\nHanks\tperson_actor\nran\tO\n")
    origin = Origin("x", "y", "z")
    ((bio,), *_), ((bare,), scheme, _) = (read_tagged(tmp_path / name, origin) for name in ("a.txt", "b.txt"))
    assert scheme == "bare types"
    assert bio.tags == ["B-PERSON_ACTOR", "I-PERSON_ACTOR", "B-PERSON_ACTOR", "O"]
    assert bare.tags == ["B-PERSON_ACTOR", "I-PERSON_ACTOR", "O"]


def test_assignment_by_hand():
    """12 sentences, types A (common) and B (rare), a task each with room for 6."""
    common, rare, both, none = (
        Sentence(["w", "w"], tags) for tags in (["B-A", "O"], ["B-B", "O"], ["B-A", "B-B"], ["O", "O"])
    )
    sentences = [*[common] * 7, rare, both, none, none, none]
    assigned = assign(sentences, ["A", "B"], [["A"], ["B"]], random.Random(1))
    assert assigned[0] == [common] * 6  # full; the seventh goes to task 1 because there is room
    assert assigned[1] == [common, rare, both, none, none, none]
    odd = assign([common] * 5, ["A", "B"], [["A"], ["B"]], random.Random(1))
    assert [len(part) for part in odd] == [2, 2]  # 5 * 1 // 2 each; the last one is dropped


def test_defaults_of_the_data_sets():
    shown = {
        name: (load(name).Options().base_task_entity, load(name).Options().incremental_task_entity)
        for name in ("fewnerd", "i2b2", "ontonotes5", "conll2003")
    }
    assert shown == {"fewnerd": (6, 6), "i2b2": (8, 2), "ontonotes5": (8, 2), "conll2003": (1, 1)}


TYPES = {  # in the order of the tasks: eight, then two a task
    "i2b2": "AGE CITY COUNTRY DATE DOCTOR HOSPITAL IDNUM MEDICALRECORD ORGANIZATION PATIENT PHONE PROFESSION STATE "
    "STREET USERNAME ZIP",
    "ontonotes5": "CARDINAL DATE EVENT FAC GPE LANGUAGE LAW LOC MONEY NORP ORDINAL ORG PERCENT PERSON PRODUCT QUANTITY "
    "TIME WORK_OF_ART",
}


@pytest.mark.parametrize("name", TYPES)
def test_the_published_cut_of_i2b2_and_ontonotes5(name):
    stream, types = build(name), TYPES[name].split()
    count = 1 + (len(types) - 8) // 2
    assert stream.name == f"{name}_task{count}_base8_inc2" and (stream.metric(0), stream.il_mode) == ("span_f1", "CIL")
    assert [size[0] for size in sizes(stream)] == [16] + [4] * (count - 1)  # two sentences for each type
    assert stream.config["CUR_NUM_CLASS"] == [17] + [4] * (count - 1)
    assert stream.config["idx2label"] == ["O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]
    for k, task in enumerate(stream.tasks):
        seen, own = set(types[: 8 + 2 * k]), set(types[6 + 2 * k if k else 0 : 8 + 2 * k])
        assert tags(task.test) == tags(task.dev) == seen and set() < tags(task.train) <= own


@pytest.mark.parametrize("name", TYPES)
def test_types_that_do_not_add_up_are_reported(name, tmp_path):
    shutil.copytree(FIXTURES / "conll2003", tmp_path / name)
    with pytest.raises(UserError, match="--base-task-entity 8 --incremental-task-entity 2: expected 4 entity types"):
        build(name, tmp_path)


def test_files_from_windows_give_the_same_stream(tmp_path):
    for name in ("conll2003", "fewnerd", "i2b2", "ontonotes5"):
        root = as_windows(tmp_path, name)
        assert build(name, root, **TWO_TWO).tasks == build(name, **TWO_TWO).tasks


def test_four_columns_and_entities_that_begin_with_i(tmp_path):
    def as_published(text: str) -> str:
        lines = [f"{line.split()[0]} NN I-NP {line.split()[1]}" if line else "" for line in text.split("\n")]
        return "\n".join(line.replace(" B-", " I-") for line in lines)

    raw = changed(tmp_path, "conll2003/dev.txt", as_published)
    assert build("conll2003", raw).tasks[3].dev == build("conll2003").tasks[3].dev


MISTAKES = {
    "test.txt, line 1: expected a word and a tag": lambda text: "lonely\n" + text,
    "test.txt, line 2: expected a word and a tag": lambda text: "a O\n\tO\n" + text,
    f"test.txt, line 1: expected the tag O, B-TYPE or I-TYPE (BIO, IOB1), or one of {OTHERS}, got 'PER'": lambda text: (
        "a PER\n" + text
    ),
    f"test.txt, line 1: expected the tag O, B-TYPE or I-TYPE (BIO, IOB1), or one of {OTHERS}, got 'B-'": lambda text: (
        "a B-\n" + text
    ),
    "test.txt has no PER": lambda text: text.replace("PER", "LOC"),
    "train.txt has no NEW": lambda text: text.replace("PER", "NEW"),
    "test.txt holds no sentences": lambda text: "\n\n",
}


@pytest.mark.parametrize("message", MISTAKES)
def test_broken_data(message, tmp_path):
    with pytest.raises(UserError) as error:
        build("conll2003", changed(tmp_path, "conll2003/test.txt", MISTAKES[message]))
    assert message in str(error.value)


SCHEMES = {  # the same sentence
    "BIO": "Ada B-PER\nMay I-PER\nEve B-PER\nran O\n\nRome B-LOC\n",
    "IOB1": "Ada I-PER\nMay I-PER\nEve B-PER\nran O\n\nRome I-LOC\n",
    "IOBES": "Ada B-PER\nMay E-PER\nEve S-PER\nran O\n\nRome S-LOC\n",
    "BILOU": "Ada B-PER\nMay L-PER\nEve U-PER\nran O\n\nRome U-LOC\n",
    "BMES": "Ada B-PER\nMay E-PER\nEve S-PER\nran O\n\nRome S-LOC\n\nAn B-X\nna M-X\nLee E-X\n",
    "BMEWO": "Ada B-PER\nMay E-PER\nEve W-PER\nran O\n\nRome W-LOC\n",
    "IOE": "Ada I-PER\nMay E-PER\nEve E-PER\nran O\n\nRome E-LOC\n",
}


def indexed(text: str, first: int, comment: str = "") -> str:
    """The lines with the number of the word in its sentence in front, and another column."""
    blocks = (block.split("\n") for block in text.strip().split("\n\n"))
    made = (
        "\n".join(f"{i}\t{word}\tX\t{tag}" for i, (word, tag) in enumerate(map(str.split, rows), start=first))
        for rows in blocks
    )
    return "\n\n".join(comment + block for block in made)


def test_the_scheme_of_tags_and_an_index_are_found_out(tmp_path):
    path = tmp_path / "a.txt"
    for scheme, text in SCHEMES.items():
        for layout in (text, indexed(text, 0), indexed(text, 1), indexed(text, 1, "#\tfrom a paper\n")):
            path.write_text(layout, encoding="utf-8")
            read = read_tagged(path, Origin("x", "y", "z"))
            assert [s.words for s in read.sentences[:2]] == [["Ada", "May", "Eve", "ran"], ["Rome"]], layout
            assert [s.tags for s in read.sentences[:2]] == [["B-PER", "I-PER", "B-PER", "O"], ["B-LOC"]], layout
            assert all(s.tags == ["B-X", "I-X", "I-X"] for s in read.sentences[2:]), layout
            assert read[1:] == (scheme, 0), layout
    path.write_text("Ada I-PER\nran O\nRome B-LOC\n", encoding="utf-8")
    assert read_tagged(path, Origin("x", "y", "z"))[1:] == ("BIO", 1)
    path.write_text("Ada B-PER\nRome LOC\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 2: expected the tag O, B-TYPE"):
        read_tagged(path, Origin("x", "y", "z"))


def test_what_was_found_out_is_in_the_notes(tmp_path):
    raw = changed(tmp_path, "conll2003/dev.txt", lambda text: text.replace("B-", "I-").replace("PER", "LOC"))
    with pytest.raises(UserError, match=r"dev.txt has no PER; accept it with --dev-may-lack-types"):
        build("conll2003", raw)
    stream = build("conll2003", raw, dev_may_lack_types=True, window=3)
    assert stream.config["SOURCE"]["notes"] == [
        *("dev.txt: tags are IOB1, made BIO", "dev.txt has no PER"),
        stream.config["SOURCE"]["notes"][-1],
    ]
    assert "sentences in parts of at most 3 words: " in stream.config["SOURCE"]["notes"][-1]
    assert stream.config["SOURCE"]["options"]["window"] == 3


def test_long_sentences_come_in_parts_that_cut_no_entity():
    whole, parts = build("conll2003"), build("conll2003", window=3)
    for split in SPLITS:
        for a, b in zip(whole.tasks, parts.tasks, strict=True):
            one, two = getattr(a, split), getattr(b, split)
            assert len(two) > len(one) and max(len(e.input.split(" ")) for e in two) == 3
            assert " ".join(e.input for e in one) == " ".join(e.input for e in two)
            assert " ".join(e.target for e in one) == " ".join(e.target for e in two)  # none begins with I-
    longest = list(windows(Sentence(list("abcd"), ["B-X", "I-X", "I-X", "O"]), 2))
    assert longest == [(["a", "b"], ["B-X", "I-X"]), (["c", "d"], ["B-X", "O"])]  # longer than a part


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"i2b2/train\.txt is missing; it comes from .*data use agreement.*--raw-dir"):
        build("i2b2", tmp_path)


def small() -> Stream:
    rows = (Example("Ada met\u00a0him \u2028x .", "B-PER O O O", task=0),)
    return Stream("s", (TaskData("types 0-0", rows, (), rows),), {"CLASSIFICATION_TYPE": "word-level"})


def test_words_on_disk_texts_in_memory(tmp_path):
    stored = json.loads(encode(small())["continual_data.json"])["0"]
    assert stored["train"] == {
        "input": [["Ada", "met\u00a0him", "\u2028x", "."]],
        "label_idx_cil": [["B-PER", "O", "O", "O"]],
    }
    save_stream(small(), tmp_path)
    assert load_stream("s", tmp_path).tasks == small().tasks
    real = build("fewnerd", **TWO_TWO)
    save_stream(real, tmp_path)
    assert load_stream(real.name, tmp_path).tasks == real.tasks
    (tmp_path / "s/continual_config.json").write_text('{"NUM_TASK": 1}', encoding="utf-8")  # one made elsewhere
    assert load_stream("s", tmp_path).is_word_level


CELLS = {
    "row 0: expected a list of words and one tag per word": ([["a", "b"]], [["O"]]),
    "row 1: expected a list of words and one tag per word": ([["a"], ["b c"]], [["O"], ["O"]]),
    "row 1: expected a list of words": ([["a"], "b"], [["O"], "O"]),
    "row 0: expected a list of words": ([[" "]], [["O"]]),
    "expected lists 'input' and 'label_idx_cil' of the same length": ([["a"]], []),
}


@pytest.mark.parametrize("message", CELLS)
def test_wrong_columns(message, tmp_path):
    words, labels = CELLS[message]
    split = {"input": [["a"]], "label_idx_cil": [["O"]]}
    data = {"0": dict.fromkeys(SPLITS, split) | {"test": {"input": words, "label_idx_cil": labels}}}
    (tmp_path / "s").mkdir()
    (tmp_path / "s/continual_data.json").write_text(json.dumps(data), encoding="utf-8")
    (tmp_path / "s/continual_config.json").write_text('{"NUM_TASK": 1}', encoding="utf-8")
    with pytest.raises(UserError, match=r"continual_data\.json, task 0, test") as error:
        load_stream("s", tmp_path)
    assert message in str(error.value)


def test_a_wrong_level_is_reported():
    wrong = Stream("s", small().tasks, {"CLASSIFICATION_TYPE": "letter-level"})
    with pytest.raises(UserError, match="expected sentence-level or word-level, got 'letter-level'"):
        encode(wrong)
