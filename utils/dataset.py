"""A stream of tasks, in memory and on disk.

On disk a stream is dataset/<name>/continual_data.json (the examples, one list per column) and continual_config.json
(facts that the preprocessor states). Both are checked here, once; all other code uses `Stream`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from utils.config import Config, per_task
from utils.errors import UserError, printable
from utils.storage import word_tags
from utils.storage.files import read_json, write_text
from utils.storage.large_json import read_large_json
from utils.storage.packed_columns import Rows, Texts

SPLITS = ("train", "dev", "test")
NEEDED_SPLITS = ("train", "test")  # dev may be empty: some benchmarks have none
DATA_FILE = "continual_data.json"
CONFIG_FILE = "continual_config.json"
ID_COLUMNS = ("concept_id", "relation_id", "instance_id")
COLUMN = (list, Texts)
CUT_SIDES = ("left", "right", "middle")  # of over-long prompts
LEVELS = ("sentence-level", "word-level")  # one label per text, or per word
LISTS = ("messages", "references", "choices")  # columns whose cells are lists or null
OPTIONAL_COLUMNS = ("label_idx_cil", "label_idx_til", *ID_COLUMNS, *LISTS)


@dataclass(frozen=True, slots=True)
class Example:
    """One question and its answer, before any prompt template."""

    input: str
    target: str
    label: int | None = None  # class id over the whole stream
    label_in_task: int | None = None  # class id inside the task
    ids: tuple[int, int, int] | None = None  # concept, relation, instance (concept_1k)
    task: int = 0  # position of the example's task in the stream
    source: str = "task"  # "task" | "memory" | "pseudo" ...: the role of the row in a method's loss
    view: str = "answer"  # the tokens with a loss: "answer" | "lm": question and answer
    messages: tuple[tuple[str, str], ...] | None = None  # a chat: (role, content); its last turn is the target
    references: tuple[str, ...] | None = None  # all accepted answers, if the target is not the only one
    choices: tuple[str, ...] | None = None  # all possible answers, the target among them, where there are few
    presentation: int = field(default=0, compare=False)  # in a reservoir: the number of the offer that put it there

    @property
    def accepted(self) -> tuple[str, ...]:
        """The answers that a prediction is compared with."""
        return self.references or (self.target,)


@dataclass(frozen=True)
class TaskData:
    """The examples of one task."""

    name: str
    train: Sequence[Example]
    dev: Sequence[Example]
    test: Sequence[Example]


@dataclass(frozen=True)
class Stream:
    """Tasks in the order they are learned, and the facts of continual_config.json."""

    name: str
    tasks: tuple[TaskData, ...]
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt_type(self) -> str | None:
        """The template stated by the preprocessor; None: none (see utils.prompt.choose)."""
        return self.config.get("PROMPT_TYPE")

    @property
    def strip(self) -> bool:
        """True if white space around questions and answers is removed (see utils.prompt.render)."""
        return self.config.get("STRIP", True)

    @property
    def cut_side(self) -> str:
        """Where an over-long prompt loses tokens."""
        return self.config.get("CUT_SIDE", CUT_SIDES[0])

    @property
    def il_mode(self) -> str | None:
        """The scenario of the stream (CIT, IIL, ...); None: not stated."""
        return self.config.get("IL_MODE")

    @property
    def is_word_level(self) -> bool:
        """True if inputs are words and targets are their tags, both joined by single spaces."""
        return self.config.get("CLASSIFICATION_TYPE") == LEVELS[1]

    @property
    def dev_is_test(self) -> bool:
        """True if dev and test hold the same examples; compared here if not stated."""
        return self.config.get("DEV_IS_TEST", all(task.dev == task.test for task in self.tasks))

    def metric(self, k: int) -> str:
        """Name of the score of task k."""
        return self._fact("METRIC", k, "exact_match")

    def max_new_tokens(self, k: int) -> int:
        """Longest answer to generate in task k, in tokens."""
        return self._fact("MAX_NEW_TOKENS", k, 10)

    def max_seq_length(self, k: int) -> int | None:
        """Longest prompt and answer together in task k, in tokens; None: no limit stated."""
        return self._fact("MAX_SEQ_LENGTH", k, None)

    def chance(self, k: int) -> float | None:
        """Expected score of guessing in task k, in 0..1; None: not defined."""
        return self._fact("CHANCE", k, None)

    def _fact(self, key: str, k: int, default: Any) -> Any:
        return self.config[key][k] if key in self.config else default


def metric_of(config: Config, stream: Stream, index: int) -> str:
    """Name of the score of a task: as the options say, else as the stream says."""
    return per_task(config.metric_for_each_task, stream.metric(index), index)


def spaced(examples: Sequence[Example], most: int) -> Sequence[Example]:
    """All examples, or `most` evenly spaced ones."""
    if len(examples) <= most:
        return examples
    return [examples[i * len(examples) // most] for i in range(most)]


def encode(stream: Stream) -> dict[str, str]:
    """The files of a stream, name -> text; the same stream gives the same text on every machine.

    Raises:
        UserError: `load_stream` would not accept the stream.
    """
    config = {"NUM_TASK": len(stream.tasks)} | stream.config | {"TASK_NAMES": [t.name for t in stream.tasks]}
    _check_config(config, len(stream.tasks), f"stream {stream.name}")
    for k, task in enumerate(stream.tasks):
        _check_sizes(task, f"stream {stream.name}, task {k}")
    columns, indent = (word_tags.split_columns, None) if stream.is_word_level else (_columns, 1)
    data = {str(k): {split: columns(getattr(task, split)) for split in SPLITS} for k, task in enumerate(stream.tasks)}
    return {DATA_FILE: _to_text(data, indent), CONFIG_FILE: _to_text(config, 1)}


def save_stream(stream: Stream, root: Path) -> Path:
    """Write a stream to root/<name>, replacing any files there, and return that folder."""
    for name, text in encode(stream).items():
        write_text(root / stream.name / name, text)
    return root / stream.name


def load_stream(name: str, root: Path) -> Stream:
    """Read and check a stream.

    Args:
        name: Folder of the stream inside `root`, e.g. biography_demo_task2.
        root: The folder of all data sets.

    Raises:
        UserError: a file is missing (names the command that makes it) or wrong (names the place).
    """
    path = root / name / DATA_FILE
    if not path.exists():
        raise UserError(f"{path} is missing; {_how_to_make(name)}")
    data, config = read_large_json(path), read_json(path.with_name(CONFIG_FILE))
    _check_task_keys(data, path)
    _check_config(config, len(data), str(path.with_name(CONFIG_FILE)))
    if word_tags.is_in(data["0"]):  # streams of the published code do not state their level
        config = {"CLASSIFICATION_TYPE": LEVELS[1]} | config
    if config.get("CLASSIFICATION_TYPE") == LEVELS[1]:
        data = {k: word_tags.join_splits(task, f"{path}, task {k}") for k, task in data.items()}
    names = list(map(printable, config.get("TASK_NAMES") or [f"task {k}" for k in range(len(data))]))
    # The columns of a task are dropped once it is read: a large stream is in memory only once.
    return Stream(name, tuple(_read_task(data.pop(str(k)), k, names[k], path) for k in range(len(data))), config)


def _how_to_make(name: str) -> str:
    """The command that makes a stream, or streams of this data set, or that lists the data sets."""
    script = (Path(__file__).parents[1] / "preprocess_dataset.sh").read_text(encoding="utf-8")
    made = dict(re.findall(r'^ *"(\S+) \|.* --dataset (\w+)', script, re.MULTILINE))
    if name in made:
        return f"make it with: bash preprocess_dataset.sh {name}"
    known = {one.lower(): one for one in made} | {dataset.lower(): one for one, dataset in reversed(made.items())}
    near = [known[one] for one in get_close_matches(name.lower(), known, n=1, cutoff=0.8)]
    hint = f"; did you mean {near[0]!r}, made with: bash preprocess_dataset.sh {near[0]}" if near else ""
    hint = hint or "; your own files: --dataset_files FILE, see docs/own-data.md"
    sets = [dataset for dataset in made.values() if name.startswith(f"{dataset}_")]
    which = f"--dataset {max(sets, key=len)} --help" if sets else "--help"
    command = f"python utils/dataformat_preprocess.py {which}"
    return f"preprocess_dataset.sh lists no stream of this name; options that make streams: {command}{hint}"


def _check_task_keys(data: Any, path: Path) -> None:
    if not isinstance(data, dict) or not data or set(data) != {str(k) for k in range(len(data))}:
        found = ", ".join(map(repr, data)) if isinstance(data, dict) else type(data).__name__
        raise UserError(f"{path}: expected the keys '0', '1', ... (one per task), got {found[:80] or 'none'}")


def _to_text(content: Any, indent: int | None) -> str:
    return json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def _columns(examples: Sequence[Example]) -> dict[str, list[Any]]:
    """One list per column; columns that no example fills are left out."""
    columns: dict[str, list[Any]] = {"input": [e.input for e in examples], "target": [e.target for e in examples]}
    if examples and examples[0].ids is not None:
        columns |= dict(zip(ID_COLUMNS, map(list, zip(*(e.ids or () for e in examples), strict=True)), strict=True))
    if examples and examples[0].label is not None:
        columns["label_idx_cil"] = [e.label for e in examples]
        columns["label_idx_til"] = [e.label_in_task for e in examples]
    for name in LISTS:
        if any(getattr(e, name) for e in examples):
            columns[name] = [getattr(e, name) for e in examples]
    return columns


def _read_task(task: Any, k: int, name: str, path: Path) -> TaskData:
    where = f"{path}, task {k}"
    missing = [s for s in SPLITS if not isinstance(task, dict) or not isinstance(task.get(s), dict)]
    if missing:
        raise UserError(f"{where}: expected the splits train, dev and test, got none named {missing[0]}")
    rows = {split: _read_split(task[split], k, f"{where}, {split}") for split in SPLITS}
    if rows["dev"] == rows["test"]:
        rows["dev"] = rows["test"]  # one copy
    read = TaskData(name, **rows)
    _check_sizes(read, where)
    return read


def _read_split(columns: dict[str, Any], k: int, where: str) -> Sequence[Example]:
    """Rows of one split; unknown columns are ignored."""
    _check_columns(columns, where)
    names = {"input": "input", "target": "target", "label": "label_idx_cil", "label_in_task": "label_idx_til"}
    cells = {name: columns[column] for name, column in names.items() if column in columns}
    if "concept_id" in columns:
        cells["ids"] = list(zip(*(columns[c] for c in ID_COLUMNS), strict=True))
    if "messages" in columns:
        cells["messages"] = [_chat(chat, f"{where}, row {i}") for i, chat in enumerate(columns["messages"])]
    for name in ("references", "choices"):
        if name in columns:
            pairs = zip(columns[name], columns["target"], strict=True)
            cells[name] = [_answers(*pair, f"{where}, row {i}, {name}") for i, pair in enumerate(pairs)]
    return Rows(partial(Example, task=k), cells)


def _answers(texts: Any, target: str, where: str) -> tuple[str, ...] | None:
    """All accepted, or all possible, answers; None if they are not listed."""
    if texts is None:
        return None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: expected a list of texts or null, got {_kind(texts)}")
    if target not in texts:
        raise UserError(f"{where}: expected the target among them, got {_kind(texts)}")
    return tuple(texts)


def _chat(chat: Any, where: str) -> tuple[tuple[str, str], ...] | None:
    """A chat as (role, content) pairs; None for a plain question."""
    if chat is None:
        return None
    turns = chat if isinstance(chat, list) else []
    if not turns or not all(isinstance(turn, list) and [type(x) for x in turn] == [str, str] for turn in turns):
        raise UserError(f"{where}, messages: expected a list of [role, content], got {_kind(chat)}")
    if turns[-1][0] != "assistant":
        raise UserError(f"{where}, messages: expected the last turn to be the assistant's, got {turns[-1][0]!r}")
    return tuple((role, content) for role, content in turns)


def _check_columns(columns: dict[str, Any], where: str) -> None:
    for name in ("input", "target"):
        if not isinstance(columns.get(name), COLUMN):
            raise UserError(f"{where}: expected a list named {name!r}, got {_kind(columns.get(name))}")
    present = {c: columns[c] for c in ("input", "target", *OPTIONAL_COLUMNS) if c in columns}
    for name, column in present.items():
        if not isinstance(column, COLUMN) or len(column) != len(columns["input"]):
            count = len(column) if isinstance(column, COLUMN) else _kind(column)
            raise UserError(f"{where}: {len(columns['input'])} inputs but {count} entries in {name!r}")
        expected = str if name in ("input", "target") else int
        if name in LISTS or (expected is str and isinstance(column, Texts)):
            continue  # _chat and _accepted check the former; Texts holds only texts
        row = next((i for i, cell in enumerate(column) if type(cell) is not expected), None)
        if row is not None:
            word = "a text" if expected is str else "an integer"
            raise UserError(f"{where}, {name}, row {row}: expected {word}, got {_kind(column[row])}")
    if 0 < len(present.keys() & set(ID_COLUMNS)) < len(ID_COLUMNS):
        raise UserError(f"{where}: expected all of {', '.join(ID_COLUMNS)} or none of them")


def _check_sizes(task: TaskData, where: str) -> None:
    for split in NEEDED_SPLITS:
        if not getattr(task, split):
            raise UserError(f"{where}: {split} has no examples, at least one is needed")


def _kind(cell: Any) -> str:
    return "nothing" if cell is None else f"{type(cell).__name__} {str(cell)[:40]!r}"


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_share(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value <= 1)


# Facts with one entry per task: name -> (test, expected values).
TASK_FACTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "TASK_NAMES": (lambda value: isinstance(value, str), "texts"),
    "METRIC": (lambda value: isinstance(value, str), "texts"),
    "MAX_NEW_TOKENS": (_is_count, "integers of at least 1"),
    "MAX_SEQ_LENGTH": (_is_count, "integers of at least 1"),
    "CHANCE": (_is_share, "numbers in 0..1 or null"),
    "CUR_NUM_CLASS": (_is_count, "integers of at least 1"),
    # In tuning, true: train has dev questions in the place of test questions; false: it has no dev questions.
    "DEV_IS_TRAINED": (lambda value: isinstance(value, bool), "true or false"),
}
# Facts of the whole stream: name -> (type, expected value).
STREAM_FACTS = {
    "PROMPT_TYPE": (str, "a text"),
    "IL_MODE": (str, "a text"),
    "CLASSIFICATION_TYPE": (str, "a text"),
    "DEV_IS_TEST": (bool, "true or false"),
    "STRIP": (bool, "true or false"),
    "NUM_CLASS": (int, "an integer"),
    "idx2label": (list, "a list of tags"),
}


def _check_config(config: Any, num_task: int, where: str) -> None:
    if not isinstance(config, dict) or config.get("NUM_TASK") != num_task:
        found = config.get("NUM_TASK") if isinstance(config, dict) else _kind(config)
        raise UserError(f"{where}: NUM_TASK is {found}, but {DATA_FILE} has {num_task} tasks")
    for key, (fits, wanted) in TASK_FACTS.items():
        values = config.get(key)
        is_full = isinstance(values, list) and len(values) == num_task and all(map(fits, values))
        if key in config and not is_full:
            raise UserError(f"{where}: {key}: expected {num_task} {wanted}, got {str(values)[:80]}")
    for key, (kind, wanted) in STREAM_FACTS.items():
        if key in config and not isinstance(config[key], kind):
            raise UserError(f"{where}: {key}: expected {wanted}, got {_kind(config[key])}")
    choices = {"CLASSIFICATION_TYPE": LEVELS, "LOCALITY_SPLIT": SPLITS, "CUT_SIDE": CUT_SIDES}
    for key, known in choices.items():
        if key in config and config[key] not in known:
            raise UserError(f"{where}: {key}: expected {' or '.join(known)}, got {config[key]!r}")
    if not all(isinstance(name, str) for name in config.get("idx2label", [])):
        raise UserError(f"{where}: idx2label: expected a list of tags")
