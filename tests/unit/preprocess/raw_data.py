"""Helpers for tests of data sets: build a stream from fixtures, from changed copies of them, from real raw data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from utils.dataset import SPLITS, Stream
from utils.preprocess import load

ROOT = Path(__file__).parents[3]
FIXTURES = ROOT / "tests/fixtures"
REAL = ROOT / "../shared/data"


def real(name: str) -> list[pytest.MarkDecorator]:
    """Marks of a test that needs the real raw data in the folder `name`."""
    return [pytest.mark.realdata, pytest.mark.skipif(not (REAL / name).exists(), reason="raw data absent")]


def build(name: str, raw_dir: Path = FIXTURES, seed: int = 1, **options: object) -> Stream:
    """The stream of a data set."""
    module = load(name)
    return module.build(raw_dir, module.Options(**options), seed)


def changed(tmp_path: Path, file: str, change: Callable[[str], str], source: str | None = None) -> Path:
    """A copy of a data set's fixtures (of `source`, if it has none) with one file changed."""
    name = file.split("/")[0]
    shutil.copytree(FIXTURES / (source or name), tmp_path / name)
    path = tmp_path / file
    text = path.read_text(encoding="utf-8")
    path.write_text(change(text), encoding="utf-8", newline="")
    assert change(text) != text
    return tmp_path


def write_instructions(folder: Path, tasks: Iterable[str]) -> None:
    """Raw files of three instances for each task of a benchmark, in the format of Natural Instructions."""
    content = {"Definition": ["What is it?"], "Instances": [{"input": f"text {i}", "output": f"{i}"} for i in range(3)]}
    for task in tasks:
        (folder / task).mkdir(parents=True)
        for split in ("train", "test"):
            (folder / task / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def as_windows(tmp_path: Path, name: str) -> Path:
    """A copy of a data set's fixtures with CRLF line ends, byte order marks and another blank line at the end."""
    shutil.copytree(FIXTURES / name, tmp_path / name)
    for path in (tmp_path / name).rglob("*.*"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    return tmp_path


def sizes(stream: Stream) -> list[tuple[int, ...]]:
    """Number of examples of each task's train, dev and test."""
    return [tuple(len(getattr(task, split)) for split in SPLITS) for task in stream.tasks]


def check_classes(stream: Stream) -> None:
    """Labels, targets and facts of a stream of classes agree."""
    config = stream.config
    assert config["NUM_TASK"] == len(stream.tasks) and sum(config["CUR_NUM_CLASS"]) == config["NUM_CLASS"]
    assert [c for classes in config["CUR_CLASS"] for c in classes] == config["LABEL_LIST"]
    assert config["label2idx"] == {name: i for i, name in enumerate(config["idx2label"])}
    for k, task in enumerate(stream.tasks):
        for split in SPLITS:
            for e in getattr(task, split):
                assert e.label in config["CUR_CLASS"][k] and e.label_in_task == e.label - config["CUR_CLASS"][k][0]
                assert e.target == config["idx2label"][e.label] and e.task == k and e.input.strip()
                assert len(e.target.encode()) < config["MAX_NEW_TOKENS"][k]
        assert {e.label for e in task.train} == {e.label for e in task.test} == set(config["CUR_CLASS"][k])
        assert stream.chance(k) == 1 / config["ACCUM_NUM_CLASS"][k] and stream.metric(k) == "exact_match"
    assert stream.il_mode == "CIL" and not stream.is_word_level
