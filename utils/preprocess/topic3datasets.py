"""topic3datasets (scenario CIL): the topic of a text: 25 topics of agnews, dbpedia and yahoo, five per task.

Data: "Character-level Convolutional Networks for Text Classification" (Zhang et al., 2015). Three topics of
yahoo are left out because agnews has them.
"""

from __future__ import annotations

import csv
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from utils.dataset import SPLITS, Stream
from utils.errors import UserError
from utils.preprocess.shared.classes import ClassOptions, Labelled, Naming, RawClasses, name_classes, to_stream
from utils.preprocess.shared.option_types import Names
from utils.preprocess.shared.raw import Origin, file_sha256, need, raw_file, read_raw, shown

ORIGINS = {
    "agnews": Origin("github.com/mhjabreel/CharCnn_Keras, data/ag_news_csv", "research, non-commercial", "31 MB"),
    "dbpedia": Origin("dbpedia_csv of Zhang et al. (2015)", "CC BY-SA 3.0", "197 MB"),
    "yahoo": Origin("yahoo_answers_csv of Zhang et al. (2015)", "Yahoo Webscope, research only", "761 MB"),
}
CELLS = {"agnews": 3, "dbpedia": 3, "yahoo": 4}  # of a line: class number from 1, then texts
OVERLAP = ("Sports", "Business & Finance", "Science & Mathematics")  # of yahoo, with agnews
READABLE = {"Sci/Tech": "Science and Technology", "MeanOfTransportation": "Mean of Transportation"}
LEAST_DEV = 10  # dev gets at least 1 of 10 training texts


class Options(ClassOptions):
    """Assignment of topics to tasks."""

    sources: Names = Field(tuple(ORIGINS), description="The data sets to use, separated by commas.")
    classes_per_task: int = Field(5, ge=1, description="Topics of each task; the last task gets the remainder.")
    class_order: Literal["file", "shuffled"] = Field(
        "shuffled", description="Order of the topics: that of the raw data, or shuffled with the seed."
    )
    num_sample_train_per_class: int = Field(
        3000, ge=-1, description="Training examples to sample per topic with the seed; -1: all."
    )
    num_sample_test_per_class: int = Field(2000, ge=-1, description="The same for dev and for test.")
    published_names: bool = Field(
        False, description="Name topics by their numbers before the shuffle, as the published code does (wrong names)."
    )


class Line(NamedTuple):
    """A line of a csv file."""

    number: int
    text: str
    label: int


class Topics(NamedTuple):
    """The sample from one of the three data sets."""

    names: list[str]
    splits: dict[str, list[Line]]
    empty: int  # lines without text, which are left out


def build(raw_dir: Path | None, options: Options, seed: int) -> Stream:
    """Sample texts of every topic and assign the topics to tasks.

    train and dev are disjoint samples of train.csv, test is a sample of test.csv. dev is sampled from the texts that
    train does not use, or gets a tenth of all texts where fewer would remain.

    Args:
        raw_dir: Folder with topic3datasets/SOURCE/{classes.txt,train.csv,test.csv}; None: dataset/.
        options: See Options.
        seed: Determines the samples and the order of the topics.

    Raises:
        UserError: a file is missing or wrong, or there are fewer topics than the tasks need.
    """
    sources = options.sources
    if not set(sources) <= ORIGINS.keys() or len(set(sources)) < len(sources):
        raise UserError(f"--sources: expected some of {','.join(ORIGINS)}, got {','.join(sources)!r}")
    topics = [_read_source(raw_dir, source, options, seed) for source in sources]
    files = {file: file_sha256(raw_file(raw_dir, file)) for source in sources for file in _files(source)}
    name = "_".join(["topic3datasets", *(sources if len(sources) < len(ORIGINS) else ())])
    names = [topic for one in topics for topic in one.names]
    train, dev, test = (_joined(topics, split) for split in SPLITS)
    facts = {"PROMPT_TYPE": "default", "MAX_SEQ_LENGTH": 256}
    groups = [source for source, one in zip(sources, topics, strict=True) for _ in one.names]
    place = str(raw_file(raw_dir, _files(sources[0])[0]).parents[1])
    raw = RawClasses(name, place, names, train, dev, test, files, facts, groups)
    stream = to_stream(raw, options, seed, _naming(names, options, seed))
    source = stream.config["SOURCE"] | {"dropped_records": sum(one.empty for one in topics)}
    return Stream(stream.name, stream.tasks, stream.config | {"SOURCE": source})


def readable(name: str) -> str:
    """A topic in words.

    >>> readable("Sci/Tech"), readable("OfficeHolder"), readable("Politics & Government")
    ('Science and Technology', 'Office Holder', 'Politics and Government')
    """
    return READABLE.get(name) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("&", "and")


def _naming(names: list[str], options: Options, seed: int) -> Naming:
    order, targets = name_classes(names, options, seed)
    return Naming(order, names if options.published_names else targets)


def _joined(topics: list[Topics], split: str) -> list[Labelled]:
    """Rows of all data sets, with topics numbered consecutively."""
    rows: list[Labelled] = []
    start = 0
    for one in topics:
        rows += [Labelled(line.text, start + line.label) for line in one.splits[split]]
        start += len(one.names)
    return rows


def _files(source: str) -> list[str]:
    return [f"topic3datasets/{source}/{file}" for file in ("classes.txt", "train.csv", "test.csv")]


def _read_source(raw_dir: Path | None, source: str, options: Options, seed: int) -> Topics:
    class_file, train_file, test_file = (raw_file(raw_dir, file) for file in _files(source))
    classes = [line.strip() for line in read_raw(class_file, ORIGINS[source]).split("\n") if line.strip()]
    left_out = OVERLAP if source == "yahoo" and "agnews" in options.sources else ()
    names = [name for name in classes if name not in left_out]
    label_of = {str(i): names.index(name) if name in names else None for i, name in enumerate(classes, start=1)}
    num_train, num_test = options.num_sample_train_per_class, options.num_sample_test_per_class
    num_both = -1 if -1 in (num_train, num_test) else num_train + num_test
    pools, empty = _draw(_read_lines(train_file, source, label_of), num_both, f"{seed}:{source}:train")
    tests, empty_test = _draw(_read_lines(test_file, source, label_of), num_test, f"{seed}:{source}:test")
    halves = [_cut(pools[label], num_train, num_test) for label in sorted(pools)]
    splits = {
        "train": [line for train, _ in halves for line in train],
        "dev": [line for _, dev in halves for line in dev],
        "test": [line for test in tests.values() for line in test],
    }
    splits = {split: sorted(lines) for split, lines in splits.items()}  # back to the order of the file
    return Topics([readable(name) for name in names], splits, empty + empty_test)


def _read_lines(path: Path, source: str, label_of: dict[str, int | None]) -> Iterator[Line]:
    """Lines of a csv file without header, of topics that have a label; empty cells add nothing to the text."""
    with open(need(path, ORIGINS[source]), encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        try:
            for number, cells in enumerate(filter(None, reader), start=1):
                where = f"{path}, record {number} (line {reader.line_num})"
                if len(cells) != CELLS[source]:
                    raise UserError(f"{where}: expected {CELLS[source]} cells, got {len(cells)}")
                if cells[0] not in label_of:
                    raise UserError(f"{where}: expected a class of 1..{len(label_of)} in cell 1, got {shown(cells[0])}")
                if (label := label_of[cells[0]]) is not None:
                    yield Line(number, " ".join(cell for cell in cells[1:] if cell.strip()), label)
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num} is not csv (truncated while copying?): {error}") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: expected UTF-8 text, got other bytes ({error})") from None


def _draw(lines: Iterable[Line], count: int, seed: str) -> tuple[dict[int, list[Line]], int]:
    """At most `count` lines of each label in random order (-1: all), and the number of lines without text.

    Only the sample is held in memory (reservoir sampling; Vitter, 1985).
    """
    pools: dict[int, list[Line]] = defaultdict(list)
    seen: Counter[int] = Counter()
    rng, empty = random.Random(seed), 0
    for line in lines:
        if not line.text:
            empty += 1
            continue
        pool = pools[line.label]
        seen[line.label] += 1
        if count == -1 or len(pool) < count:
            pool.append(line)
        elif (slot := rng.randrange(seen[line.label])) < count:
            pool[slot] = line
    for pool in pools.values():
        rng.shuffle(pool)
    return pools, empty


def _cut(pool: list[Line], num_train: int, num_dev: int) -> tuple[list[Line], list[Line]]:
    """Lines for train and for dev."""
    left = max(len(pool) - num_train if num_train != -1 else 0, -(-len(pool) // LEAST_DEV))
    size = left if num_dev == -1 else min(left, num_dev)
    train = pool[size:]
    return train if num_train == -1 else train[:num_train], pool[:size]
