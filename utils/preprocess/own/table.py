"""The examples of one file or split as columns: packed in memory, or in Arrow files of the library's cache.

Large files are read once: their examples are written as an Arrow file into the cache of the library `datasets`, named
by the digest of what they are made from, and mapped into memory from there, at the next start too.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.dataset import LISTS, Example
from utils.errors import UserError
from utils.preprocess.own.fields import Noticed, Record
from utils.preprocess.shared.records import Counted, question
from utils.storage.files import read_json, write_json
from utils.storage.packed_columns import Column, Picked, Rows, Texts

LARGE = 256_000_000  # bytes of a file whose examples are not kept in memory
FOLDER = "own_files"  # in the library's cache
NO_QUESTION, NO_ANSWER = 1, 2
BLOCK = 10_000  # examples that are written at once


class Table(NamedTuple):
    """Examples in columns, in the order of their file."""

    inputs: Sequence[str]
    targets: Sequence[str]
    others: Sequence[str] | None  # JSON of messages, references and choices; None: no example has any
    labels: Sequence[str] | None  # names of classes; None: there are none
    questions: NDArray[np.uint64]  # digests
    blanks: bytes  # of each example NO_QUESTION and NO_ANSWER, added
    is_chat: bool
    first: str  # place of the first record
    noticed: Noticed
    digest: str | None = None  # of inputs, targets, others and labels; None: they are in memory

    def rows(self, places: Sequence[int], task: int, classes: dict[str, int], before: int) -> Sequence[Example]:
        """The examples at these places, as those of a task.

        Args:
            places: Of the examples.
            task: Position of the task in the stream.
            classes: Numbers of the classes in the task, by name.
            before: Number of classes of earlier tasks.
        """
        columns: dict[str, Sequence[Any]] = {"input": self.inputs, "target": self.targets}
        if self.others is not None:
            columns["others"] = self.others
        if self.labels is not None:
            columns["label"] = array("q", (classes[name] for name in self.labels))
        make = partial(_example, task=task, before=before)
        return Rows(
            make, {name: Picked(cells, places) for name, cells in columns.items()}, self._digest(places, classes)
        )

    def _digest(self, places: Sequence[int], classes: dict[str, int]) -> str | None:
        if self.digest is None:
            return None
        chosen = hashlib.sha256(np.asarray(places, np.uint64).tobytes()).hexdigest()
        return hashlib.sha256(f"{self.digest} {classes} {chosen}".encode()).hexdigest()

    def counted(self, places: Sequence[int]) -> Counted:
        """What is in these examples, without reading them."""
        chosen = np.asarray(places, np.int64)
        blanks = np.frombuffer(self.blanks, np.uint8)[chosen]
        without_question, without_answer = (int((blanks & kind > 0).sum()) for kind in (NO_QUESTION, NO_ANSWER))
        return Counted(self.questions[chosen], without_question, without_answer)

    def __len__(self) -> int:
        return len(self.questions)


def in_memory(records: Iterable[Record], noticed: Noticed) -> Table:
    """Collect the columns.

    Args:
        records: All records, which are read here.
        noticed: Filled while they are read.

    Raises:
        UserError: some records are chats, or have a class, and others not.
    """
    inputs, targets, others, labels = Texts(), Texts(), Texts(), Texts()
    questions, blanks, first = array("Q"), bytearray(), None
    for record in records:
        first = first or record
        _check_alike(record, first)
        inputs.append(record.example.input)
        targets.append(record.example.target)
        others.append(_others(record.example))
        labels.append(record.label or "")
        questions.append(question(record.example))
        blanks.append(_blank(record.example))
    has_label = first is not None and first.label is not None
    has_others = any(others)
    where = "" if first is None else first.where
    kept = (others if has_others else None, labels if has_label else None)
    is_chat = first is not None and first.example.messages is not None
    digests = np.frombuffer(questions, np.uint64)
    return Table(inputs, targets, *kept, digests, bytes(blanks), is_chat, where, noticed)


def on_disk(records: Iterable[Record], noticed: Noticed, key: str) -> Table:
    """The same in an Arrow file, which is made if there is none.

    Args:
        records: All records, which are read only if there is no file.
        noticed: Filled while they are read.
        key: Digest of all that decides what is read.

    Raises:
        UserError: see `in_memory`; or the cache cannot be written.
    """
    import datasets
    import pyarrow

    folder = Path(datasets.config.HF_DATASETS_CACHE) / FOLDER
    data, facts = folder / f"{key}.arrow", folder / f"{key}.json"
    try:
        if not facts.is_file():  # it is written last
            write_json(facts, _write(data, records, noticed))
        known = read_json(facts)
        table = pyarrow.ipc.open_stream(pyarrow.memory_map(str(data))).read_all()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{folder} cannot be used: {error}; set HF_HOME to a folder with enough space") from None
    columns = {name: Column(table.column(name)) for name in ("input", "target", "others", "label") if known[name]}
    questions = table.column("question").to_numpy()
    blanks = table.column("blank").to_numpy().tobytes()
    was = Noticed(*(set(known[name]) for name in Noticed._fields))
    texts = (columns["input"], columns["target"], columns.get("others"), columns.get("label"))
    return Table(*texts, questions, blanks, known["is_chat"], known["first"], was, known["digest"])


def _write(path: Path, records: Iterable[Record], noticed: Noticed) -> dict[str, Any]:
    """Write an Arrow file in blocks; returns what it does not hold."""
    import pyarrow

    kinds = dict.fromkeys(("input", "target", "others", "label"), pyarrow.large_string())
    kinds |= {"question": pyarrow.uint64(), "blank": pyarrow.uint8()}
    schema = pyarrow.schema(list(kinds.items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    facts: dict[str, Any] = {"input": True, "target": True, "others": False, "label": False}
    facts |= {"is_chat": False, "first": ""}
    content = hashlib.sha256()
    try:
        with pyarrow.OSFile(str(draft), "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
            for block in _blocks(records):
                *columns, places, chats = [list(column) for column in zip(*block, strict=True)]
                facts |= {"others": facts["others"] or any(columns[2]), "label": columns[3][0] is not None}
                facts |= {"first": facts["first"] or places[0], "is_chat": chats[0]}
                content.update(repr(columns[:4]).encode("utf-8", "surrogatepass"))
                arrays = [pyarrow.array(c, kind) for c, kind in zip(columns, kinds.values(), strict=True)]
                writer.write_batch(pyarrow.record_batch(arrays, schema=schema))
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    facts["digest"] = content.hexdigest()
    return facts | {name: sorted(names) for name, names in noticed._asdict().items()}


def _blocks(records: Iterable[Record]) -> Iterator[list[tuple[Any, ...]]]:
    block: list[tuple[Any, ...]] = []
    first = None
    for record in records:
        first = first or record
        _check_alike(record, first)
        e = record.example
        cells = (e.input, e.target, _others(e), record.label, question(e), _blank(e))
        block.append((*cells, record.where, e.messages is not None))
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block


def _check_alike(record: Record, first: Record) -> None:
    for what, one, other in (
        ("messages", record.example.messages is not None, first.example.messages is not None),
        ("label", record.label is not None, first.label is not None),
    ):
        if one != other:
            raise not_alike(what, record.where, one, first.where)


def not_alike(what: str, where: str, is_there: bool, first: str) -> UserError:
    """An error about records of one stream that are of two kinds."""
    return UserError(
        f"{where}: expected the field {what!r} in all records of a stream or in none, but it is "
        f"{'there' if is_there else 'absent'} here and not so in {first}"
    )


def _blank(example: Example) -> int:
    return NO_QUESTION * (not example.input.strip()) + NO_ANSWER * (not example.target.strip())


def _others(example: Example) -> str:
    """The other parts of an example than question and answer, as JSON; "" if there are none."""
    more = {name: value for name in LISTS if (value := getattr(example, name)) is not None}
    return json.dumps(more, ensure_ascii=False) if more else ""


def _example(input: str, target: str, task: int, before: int, others: str = "", label: int | None = None) -> Example:
    more = json.loads(others) if others else {}
    if "messages" in more:
        more["messages"] = tuple(map(tuple, more["messages"]))
    more |= {name: tuple(more[name]) for name in ("references", "choices") if name in more}
    place: dict[str, Any] = {} if label is None else {"label": before + label, "label_in_task": label}
    return Example(input, target, task=task, **place, **more)
