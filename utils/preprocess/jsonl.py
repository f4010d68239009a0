"""jsonl: your own data as a stream, one task per file or folder.

    DIR/<task>.jsonl                           one file per task, split by --dev-ratio and --test-ratio
    DIR/<task>/{train,dev,test}.jsonl          one folder per task with given splits; dev is optional
    DIR/<task>_{train,dev,test}.jsonl          the same without folders
    DIR/dataset_info.json                      one task per entry, as in LLaMA-Factory

Files are .json (a list), .jsonl, .csv, .tsv, .parquet or .arrow. A record has a question and an answer, and for classes
a `label`; or it is a chat. What its fields are called is found out where there is no doubt (Alpaca, ShareGPT, OpenAI,
Natural Instructions, TRACE, lm-eval, KnowEdit, prompt and answer); otherwise --fields says it.
"""

from __future__ import annotations

import hashlib
import random
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from utils import config
from utils.dataset import CUT_SIDES, SPLITS, Example, Stream, TaskData
from utils.errors import UserError, printable
from utils.preprocess.own import names, notes, table
from utils.preprocess.own.advice import advice
from utils.preprocess.own.fields import Fields, Record, parse
from utils.preprocess.own.notes import Part, Task
from utils.preprocess.own.sources import Source, split_of, suffix
from utils.preprocess.own.table import Table
from utils.preprocess.own.tasks import ALONE, Files, check_apart, find, in_folder
from utils.preprocess.shared.classes import class_facts
from utils.preprocess.shared.option_types import Counts, Names, per_task
from utils.preprocess.shared.raw import file_sha256
from utils.preprocess.shared.records import are_in, distinct
from utils.prompt import PROMPT_TYPES
from utils.scoring import find as find_metric

AUTO = "auto"
USUAL = {"choices": "first_letter", "endings": "choice_likelihood"}  # metric by the role of the options
METRIC = "exact_match"  # elsewhere


class Options(config.OptionGroup):
    """Assignment of files to tasks."""

    task_order: Names | None = Field(
        None, description="Names of tasks, separated by commas; none: all, sorted by name."
    )
    task_names: Names | None = Field(None, description="Other names for the tasks, in their order.")
    fields: str | None = Field(None, description=config.Config.model_fields["fields"].description)
    fields_join: config.Joint = Field("\n", description=config.Config.model_fields["fields_join"].description)
    dev_ratio: float = Field(0.1, ge=0, lt=1, description="Share of the questions of a task's only file, for dev.")
    test_ratio: float = Field(0.2, gt=0, lt=1, description="The same for test.")
    metric: Names | None = Field(
        None,
        description="Metric; one for all tasks, or one per task separated by commas; none: first_letter where there "
        "are choices, choice_likelihood where these are endings, otherwise exact_match.",
    )
    max_new_tokens: Counts = Field((32,), description="Longest answer in tokens; one number, or one per task.")
    prompt_type: str = Field("none", description=f"Template around a question: {', '.join(PROMPT_TYPES)}.")
    strip: bool = Field(True, description="Remove white space around questions and answers; false, for code: keep it.")
    cut_side: Literal["left", "right", "middle"] = Field(
        "left", description="Where an over-long question loses tokens."
    )
    il_mode: Literal["CIL", "TIL", "IIL", "CIT", "CKE"] = Field(
        "CIT", description="Scenario that the stream is made for."
    )


def build(raw_dir: Path | None, options: Options, seed: int) -> Stream:
    """Make a stream of the files in a folder.

    Args:
        raw_dir: The folder.
        options: See Options.
        seed: Determines which questions of a file are for dev and test; the order of a file is kept.

    Raises:
        UserError: no folder, no tasks in it, or an error in a file.
    """
    if raw_dir is None or not raw_dir.is_dir():
        got = "nothing" if raw_dir is None else f"{raw_dir}, which is no folder"
        raise UserError(f"--raw-dir: expected the folder with your files, got {got}")
    found = {files.name: files for files in in_folder(raw_dir)}
    order = options.task_order or tuple(found)
    wrong = [name for name in order if name not in found or order.count(name) > 1]
    if wrong:
        raise UserError(f"--task-order: expected different names of {', '.join(found)}, got {wrong[0]!r}")
    stream = _stream([found[name] for name in order], options, seed)
    return replace(stream, name=f"{_clean(raw_dir.resolve().name)}_task{len(order)}")


def read_tasks(words: Sequence[str | Path], options: Options, seed: int) -> Stream:
    """Make a stream of what these words name, in this order.

    Args:
        words: Each a file, a folder with train, test and optionally dev, or another word of `own.tasks.find`.
        options: See Options; task_order is not used.
        seed: Determines which questions of a file are for dev and test.

    Raises:
        UserError: a file is missing, two tasks have one name, or there is an error in a file.
    """
    found = [files for word in words for files in find(str(word))]
    if options.task_names is None:
        check_apart(found)
    return _stream(found, options, seed)


class Questions(NamedTuple):
    """Records that are only asked."""

    name: str
    examples: Sequence[Example]


def read_questions(word: str, text: str) -> list[Questions]:
    """What a word names as sets of questions: the test split of a folder, or all of a file.

    Args:
        word: As in `read_tasks`.
        text: As the option `fields`. Options of a question that are found out are possible answers, not listed.

    Raises:
        UserError: as in `read_tasks`.
    """
    return [_questions(files, text) for files in find(word)]


def _questions(files: Files, text: str) -> Questions:
    fields, preset = _fields(files, text, "\n")
    if preset == "lm_eval":
        fields, _ = _fields(files, names.UNLISTED, "\n")
    found = _table(files.splits.get("test") or files.splits[ALONE], fields)
    return Questions(files.name, found.rows(range(len(found)), 0, dict.fromkeys(found.labels or (), 0), 0))


def _stream(found: list[Files], options: Options, seed: int) -> Stream:
    if options.dev_ratio + options.test_ratio >= 1:
        raise UserError("--dev-ratio, --test-ratio: expected a sum below 1, so that training questions remain")
    found = _named(found, options.task_names)
    wanted = per_task(tuple((options.fields or AUTO).split(";")), len(found), "fields")
    tasks = [_read(files, text.strip(), options, seed) for files, text in zip(found, wanted, strict=True)]
    _check_alike(tasks)
    classes = _classes(tasks)
    made = [_task(task, k, classes) for k, task in enumerate(tasks)]
    source = {
        "files": _digests(tasks),
        "options": options.model_dump(mode="json", exclude={"task_order"}) | {"seed": seed},
        "fields": {task.name: task.fields.text for task in tasks},
        "notes": notes.of(tasks, made),
    }
    return Stream(f"jsonl_task{len(made)}", tuple(made), _facts(tasks, made, options, classes) | {"SOURCE": source})


def _digests(tasks: list[Task]) -> dict[str, str]:
    """Of all files by name; a name that other files have too, behind that of its task."""
    found: dict[str, str] = {}
    for task in tasks:
        for name, digest in task.files.items():
            found[name if found.get(name, digest) == digest else f"{task.name}: {name}"] = digest
    return found


def _named(found: list[Files], task_names: Sequence[str] | None) -> list[Files]:
    """The tasks under their own names or those of the user, which must differ."""
    if task_names is not None and len(task_names) != len(found):
        was = ", ".join(files.name for files in found)
        raise UserError(
            f"task_names: expected {len(found)} name{'s'[: len(found) - 1]}, for {was}, got {len(task_names)}"
        )
    if task_names is not None:
        found = [f._replace(name=printable(name)) for f, name in zip(found, task_names, strict=True)]
    given = [files.name for files in found]
    if len(set(given)) != len(given) or not given:
        raise UserError(
            f"expected files or folders with different names, one per task, got {', '.join(given) or 'none'}; "
            "task_names gives others"
        )
    return found


def _read(files: Files, text: str, options: Options, seed: int) -> Task:
    """Read the files of a task, and split a file that is alone."""
    fields, preset = _fields(files, text, options.fields_join)
    tables = {split: _table(sources, fields) for split, sources in files.splits.items() if sources}
    if ALONE in tables:
        splits = _divide(tables[ALONE], options, random.Random(f"{seed}:{files.name}"), files.place)
    else:
        first = next(iter(tables.values()))
        splits = {s: Part(tables[s], range(len(tables[s]))) if s in tables else Part(first, ()) for s in SPLITS}
    digests = {
        _file_name(source, files.name, split): source.digest for split, s in files.splits.items() for source in s
    }
    return Task(files.name, list(tables.values()), splits, fields, preset, digests, files.unread)


def _file_name(source: Source, task: str, split: str) -> str:
    if isinstance(source.place, str):
        return str(source)
    if split == ALONE:
        return source.place.name
    folder = source.place.parent.name
    inner = f"{folder}/" if split_of(folder) and folder != task else ""  # the folder of a split
    return f"{task}/{inner}{source.place.name}"


def _fields(files: Files, text: str, joint: str) -> tuple[Fields, str | None]:
    """How the records of a task are read, and the preset that was found out."""
    if text == AUTO and files.fields is not None:
        return files.fields, None
    if text != AUTO and "=" in text:
        return parse(text, joint), None
    row = next(chain.from_iterable(source.rows() for s in files.splits.values() for source in s), None)
    if row is None:
        raise UserError(f"{files.place} holds no records, at least one is needed")
    if text == AUTO:
        found = names.detect(row.fields)
        if found is None:
            raise UserError(f"{row.where}: which fields are question and answer? {advice(row.fields)}{_of(files)}")
        return parse(found.text, joint, is_given=False), found.preset
    if text not in names.PRESETS:
        raise UserError(f"fields: expected ROLE=FIELD,... or one of {', '.join(names.PRESETS)}, got {text!r}")
    fitting = names.fitting(text, row.fields)
    if fitting is None:
        wanted = " or ".join(names.PRESETS[text][:2])
        raise UserError(f"{row.where}: preset {text} reads {wanted}; {advice(row.fields)}")
    return parse(fitting, joint, is_given=False), None


def _of(files: Files) -> str:
    """A reminder of what a table begins with."""
    first = next(source for sources in files.splits.values() for source in sources).place
    is_table = isinstance(first, Path) and suffix(first) in (".csv", ".tsv")
    return " (the first line of the file holds the names)" if is_table else ""


def _table(sources: list[Source], fields: Fields) -> Table:
    """The examples of some files that are one split."""

    def records() -> Iterator[Record]:
        return (fields.read(row) for source in sources for row in source.rows())

    if sum(source.size for source in sources) >= table.LARGE:
        parts = [*(source.digest for source in sources), *map(str, sources), repr(fields), _code()]
        found = table.on_disk(records(), fields.noticed, hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32])
    else:
        found = table.in_memory(records(), fields.noticed)
    if not len(found):
        raise UserError(f"{sources[0]} holds no records, at least one is needed")
    for mine, seen in zip(fields.noticed, found.noticed, strict=True):
        mine.update(seen)
    fields.check_places(str(sources[0]))
    return found


@cache
def _code() -> str:
    """Digest of the files that decide what is read."""
    folder = Path(__file__).parent
    return "".join(map(file_sha256, [*sorted((folder / "own").glob("*.py")), folder / "shared/records.py"]))


def _divide(found: Table, options: Options, rng: random.Random, place: str) -> dict[str, Part]:
    """Assign the questions of a file to splits; repetitions of a question stay in one split."""
    questions = _packed(distinct(found.questions))
    rng.shuffle(questions)
    num_test = max(round(options.test_ratio * len(questions)), 1)
    num_dev = round(options.dev_ratio * len(questions))
    if num_test + num_dev >= len(questions):
        raise UserError(f"{place}: {len(questions)} different questions are too few for train, dev and test")
    drawn = np.frombuffer(questions, np.uint64)
    own = {"test": drawn[:num_test], "dev": drawn[num_test : num_test + num_dev]}
    held = {split: are_in(found.questions, np.sort(some)) for split, some in own.items()}
    held["train"] = ~(held["test"] | held["dev"])
    return {split: Part(found, _packed(np.flatnonzero(held[split]))) for split in SPLITS}


def _packed(numbers: NDArray[Any]) -> array[int]:
    """The same as a sequence of Python's numbers, 8 bytes each."""
    found = array("Q")
    found.frombytes(numbers.astype(np.uint64, copy=False).tobytes())
    return found


def _check_alike(tasks: list[Task]) -> None:
    """Check that all files hold chats or none, and all have classes or none."""
    tables = [one for task in tasks for one in task.tables]
    for what, has in (("messages", lambda t: t.is_chat), ("label", lambda t: t.labels is not None)):
        other = next((one for one in tables if has(one) != has(tables[0])), None)
        if other is not None:
            raise table.not_alike(what, other.first, has(other), tables[0].first)


def _classes(tasks: list[Task]) -> list[list[str]]:
    """Sorted class names of each task; empty lists if there are no labels."""
    classes = [sorted({label for one in task.tables for label in one.labels or ()}) for task in tasks]
    owner: dict[str, str] = {}
    for task, mine in zip(tasks, classes, strict=True):
        for label in mine:
            if label in owner:
                raise UserError(
                    f"label {label!r} is in the tasks {owner[label]!r} and {task.name!r}, but a class belongs to one "
                    "task; leave the field out, answers are compared as text then"
                )
            owner[label] = task.name
    return classes


def _task(task: Task, k: int, classes: list[list[str]]) -> TaskData:
    before = sum(map(len, classes[:k]))
    numbers = {name: i for i, name in enumerate(classes[k])}
    return TaskData(task.name, **{s: p.table.rows(p.places, k, numbers, before) for s, p in task.splits.items()})


def _facts(tasks: list[Task], made: list[TaskData], options: Options, classes: list[list[str]]) -> dict[str, Any]:
    if options.prompt_type not in PROMPT_TYPES:
        raise UserError(f"--prompt-type: expected one of {', '.join(PROMPT_TYPES)}, got {options.prompt_type!r}")
    if options.il_mode == "CIL" and not any(classes):
        raise UserError(
            "--il-mode: CIL needs the class of each record, and none has a label; name its field in --fields"
        )
    count = len(tasks)
    usual = [next((USUAL[role] for role in task.fields.parts if role in USUAL), METRIC) for task in tasks]
    metrics = per_task(options.metric, count, "metric") if options.metric else usual
    facts = {
        "NUM_TASK": count,
        "TASK_NAMES": [task.name for task in tasks],
        "METRIC": [find_metric(metric, "--metric").name for metric in metrics],
        "PROMPT_TYPE": options.prompt_type,
        "MAX_NEW_TOKENS": per_task(options.max_new_tokens, count, "max-new-tokens"),
        "IL_MODE": options.il_mode,
        "STRIP": options.strip,
        "FIELDS_JOIN": options.fields_join,
        "DEV_IS_TEST": all(task.dev == task.test for task in made),
        **_class_facts(classes),
    }
    return facts if options.cut_side == CUT_SIDES[0] else facts | {"CUT_SIDE": options.cut_side}


def _class_facts(classes: list[list[str]]) -> dict[str, Any]:
    if not any(classes):
        return {}
    every = [name for mine in classes for name in mine]
    return class_facts(every, [len(mine) for mine in classes]) | {"CLASSIFICATION_TYPE": "sentence-level"}


def _clean(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name).lstrip(".+-") or "stream"
