import shutil

import pytest

from tests.unit.preprocess.raw_data import FIXTURES, REAL, as_windows, build, changed, check_classes, real, sizes
from utils.dataset import SPLITS
from utils.errors import UserError
from utils.preprocess.topic3datasets import readable
from utils.prompt import render

WORDS = {
    "Sports": "goalkeeper",
    "Science and Technology": "microchip",
    "Office Holder": "senator",
    "Health": "headache",
}
TRAIN = "topic3datasets/yahoo/train.csv"


def examples(stream):
    return [e for task in stream.tasks for split in SPLITS for e in getattr(task, split)]


def test_stream():
    stream = build("topic3datasets")
    check_classes(stream)
    assert stream.name == "topic3datasets_task5" and stream.config["CUR_NUM_CLASS"] == [5] * 5
    assert sizes(stream) == [(15, 5, 15)] * 5 and not stream.dev_is_test  # a tenth of 4, at least one, is dev
    assert {"Mean of Transportation", "Written Work", "Society and Culture"} < set(stream.config["idx2label"])
    assert not {"Business and Finance", "Science and Mathematics"} & set(stream.config["idx2label"])
    assert stream.config["SOURCE"]["dropped_records"] == 1


def test_every_text_has_the_name_of_its_class():
    """The published code numbers classes anew and leaves their names where they were."""
    found = examples(build("topic3datasets"))
    assert all(word in e.input.lower() for e in found for name, word in WORDS.items() if e.target == name)
    published = examples(build("topic3datasets", published_names=True))
    wrong = [e for e in published for name, word in WORDS.items() if e.target == name and word not in e.input.lower()]
    assert wrong and [e.label for e in published] == [e.label for e in found]


def test_empty_cells_and_quotes():
    texts = {e.input for e in examples(build("topic3datasets"))}
    assert 'Headache? "Yes", of course.' in texts and "How do I explain a nephew? To a child." in texts
    assert not any("nan" in text.split() for text in texts)
    assert 'The Old One  The Old One is a "famous" painter.' in texts  # cells as they are, one space between them
    assert 'The goalkeeper again AP - "No comment", said the goalkeeper.\\It rained.' in texts


def test_splits_do_not_overlap_and_are_drawn_with_the_seed():
    stream = build("topic3datasets", num_sample_train_per_class=2, num_sample_test_per_class=1)
    assert sizes(stream) == [(10, 5, 5)] * 5
    for task in stream.tasks:
        train, dev, test = ({e.input for e in getattr(task, split)} for split in SPLITS)
        assert not train & dev and not dev & test and len(train) == 10
    assert stream == build("topic3datasets", num_sample_train_per_class=2, num_sample_test_per_class=1)
    assert stream.tasks != build("topic3datasets", seed=2, num_sample_train_per_class=2).tasks
    assert sizes(build("topic3datasets", num_sample_train_per_class=-1, num_sample_test_per_class=-1)) == sizes(
        build("topic3datasets")
    )


def test_some_of_the_data_sets(tmp_path):
    for name in ("agnews", "dbpedia"):
        shutil.copytree(FIXTURES / "topic3datasets" / name, tmp_path / "topic3datasets" / name)
    stream = build("topic3datasets", tmp_path, sources="agnews,dbpedia")
    check_classes(stream)
    assert stream.name == "topic3datasets_agnews_dbpedia_task4" and stream.config["CUR_NUM_CLASS"] == [5, 5, 5, 3]
    assert build("topic3datasets", sources="yahoo").config["NUM_CLASS"] == 10  # nothing left out without agnews
    drawn = {e.input for e in examples(stream)}  # what is drawn from one data set does not depend on the others
    assert drawn < {e.input for e in examples(build("topic3datasets"))}
    with pytest.raises(UserError, match=r"topic3datasets/yahoo/classes\.txt is missing; it comes from .*research only"):
        build("topic3datasets", tmp_path)
    for wrong in ("agnews,imdb", "agnews,agnews", ""):
        with pytest.raises(UserError, match="--sources: expected some of agnews,dbpedia,yahoo, got"):
            build("topic3datasets", tmp_path, sources=wrong)


def test_prompt():
    e = next(e for e in examples(build("topic3datasets")) if e.target == "Science and Technology" and "AP" in e.input)
    assert render(e, "default")[0].startswith("Input sentence: The microchip again AP - ")


def test_files_from_windows_give_the_same_stream(tmp_path):
    assert build("topic3datasets", as_windows(tmp_path, "topic3datasets")).tasks == build("topic3datasets").tasks


def test_names_of_topics():
    assert readable("MeanOfTransportation") == "Mean of Transportation"
    assert readable("Computers & Internet") == "Computers and Internet"


MISTAKES = {
    "record 1 (line 1): expected 4 cells, got 3": lambda text: text.replace(',"","It is', ',"It is', 2),
    "expected a class of 1..10 in cell 1, got '11'": lambda text: text + '"11","a","b","c"\n',
    "expected a class of 1..10 in cell 1, got 'x'": lambda text: text + '"x","a","b","c"\n',
    "is not csv": lambda text: text + '"1","cut off',
    "train has none of 'Health'": lambda text: "\n".join(s for s in text.split("\n") if not s.startswith('"3"')),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_broken_data(message, tmp_path):
    with pytest.raises(UserError) as error:
        build("topic3datasets", changed(tmp_path, TRAIN, MISTAKES[message]))
    assert message in str(error.value) and "topic3datasets" in str(error.value)


def test_other_bytes(tmp_path):
    shutil.copytree(FIXTURES / "topic3datasets", tmp_path / "topic3datasets")
    (tmp_path / TRAIN).write_bytes('"1","Zürich","",""\n'.encode("latin-1"))
    with pytest.raises(UserError, match=r"yahoo/train\.csv: expected UTF-8 text"):
        build("topic3datasets", tmp_path)


@pytest.mark.parametrize("sources", [pytest.param("agnews,dbpedia", marks=real("topic3datasets/agnews"))])
def test_real_topics(sources):
    stream = build("topic3datasets", REAL, sources=sources)
    check_classes(stream)
    train, dev, test = map(sum, zip(*sizes(stream), strict=True))
    assert (train + dev, test) == (4000 + 5500, 4 * 1900 + 14 * 150)
    lake = [e.target for e in examples(stream) if e.input.startswith("Dajia Lake")]
    assert set(lake) <= {"Natural Place"}
    texts = {name: [e.input for e in examples(stream) if e.target == name] for name in ("Album", "Plant", "Village")}
    assert all(sum(name.lower() in t.lower() for t in found) > len(found) / 4 for name, found in texts.items())
