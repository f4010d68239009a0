"""zsre (scenario CKE): edit counterfactual answers into a model; each task is a block of records.

train asks the question (efficacy), test a paraphrase of it. dev holds an unrelated question for each edit of the task
(locality): the reference is the model's answer before the edits, so these have no
target here. Data: zsRE (Levy et al., 2017) as prepared for MEND (Mitchell et al., 2022); files of KnowEdit (Zhang et
al., 2024, arXiv 2401.01286) are read as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from utils import config
from utils.dataset import Example, Stream, TaskData
from utils.errors import UserError
from utils.preprocess.shared.raw import Origin, file_sha256, raw_file
from utils.preprocess.shared.records import Row, read_rows, remarks

RAW_FILE = "zsre/zsre_mend_train_10000.json"
ORIGIN = Origin("the editing data linked from github.com/zjunlp/EasyEdit", "MIT", "10000 records")
QUESTION, ANSWER = ("src", "prompt", "text"), ("alt", "target_new", "labels")  # names in MEND's files, in KnowEdit's
REPHRASED = ("rephrase", "rephrase_prompt")


class Options(config.OptionGroup):
    """Assignment of records to tasks."""

    num_task: int = Field(10, ge=1, description="Number of tasks of equal size; a remainder at the end is dropped.")
    raw_file: str = Field(RAW_FILE, description="File with full records, inside the folder of raw data.")
    target: Literal["alt", "answers"] = Field(
        "alt", description="Answer to learn: the new one, or the first true one, of which all are accepted."
    )
    test: Literal["rephrase", "portability"] = Field(
        "rephrase", description="Test question: the same in other words, or those whose answers follow from the edit."
    )
    locality_answers: bool = Field(
        False, description="Store the true answers of locality questions; false: compare with the model's own."
    )


class Asked(NamedTuple):
    """A question, and the texts that are accepted as its answer."""

    question: str
    answers: tuple[str, ...]

    def example(self, k: int) -> Example:
        """An example of task k."""
        several = self.answers if len(self.answers) > 1 else None
        return Example(self.question, self.answers[0], task=k, references=several)


class Record(NamedTuple):
    """An edit, the questions that test it, and those whose answers must not change."""

    edit: Asked
    test: tuple[Asked, ...]
    locality: tuple[Asked, ...]


def build(raw_dir: Path | None, options: Options, seed: int) -> Stream:
    """Split the records into tasks, in the order of the file.

    Args:
        raw_dir: Folder with zsre/zsre_mend_train_10000.json (or `raw_file`); None: dataset/.
        options: See Options.
        seed: Not used; nothing is random.

    Raises:
        UserError: the file is missing or wrong, or has fewer records than tasks.
    """
    path = raw_file(raw_dir, options.raw_file)
    if path.exists() and path.suffix not in (".json", ".jsonl"):
        raise UserError(f"--raw-file: expected full records as .json or .jsonl, with rephrase and loc, got {path}")
    records = [_record(row, options) for row in read_rows(path, ORIGIN)]
    each = len(records) // options.num_task
    if not each:
        raise UserError(f"--num-task: expected at most {len(records)} (records in {path}), got {options.num_task}")
    parts = [records[k * each : (k + 1) * each] for k in range(options.num_task)]
    tasks = tuple(_task(part, k, k * each, options.test) for k, part in enumerate(parts))
    dropped = len(records) - each * options.num_task
    source = {
        "files": {options.raw_file: file_sha256(path)},
        "options": options.model_dump(exclude={"raw_file", *_unused(options)}),
        "dropped_records": dropped,
        "notes": ([f"{dropped} of {len(records)} records at the end are dropped"] if dropped else [])
        + _notes(tasks, records[: each * options.num_task], options.test),
    }
    return Stream(f"zsre_task{options.num_task}", tasks, _facts(tasks, len(records), each) | {"SOURCE": source})


def _unused(options: Options) -> set[str]:
    """Options that came later: streams made without them keep their bytes."""
    return {name for name, usual in (("target", "alt"), ("test", "rephrase")) if getattr(options, name) == usual}


def _record(row: Row, options: Options) -> Record:
    question = Asked(_text(row, QUESTION, needed=True), _answers(row, options.target))
    if options.test == "portability":
        test = _nested(row, "portability")
    elif not any(name in row.fields for name in REPHRASED):
        has_others = "portability" in row.fields
        more = "--test portability asks the questions that are there" if has_others else "the field may be empty"
        raise UserError(f"{row.error(REPHRASED[0], 'a text', None)}; {more}")
    else:
        test = (Asked(rephrased, question.answers),) if (rephrased := _text(row, REPHRASED)) else ()
    return Record(question, test, _locality(row, options.locality_answers))


def _text(row: Row, names: tuple[str, ...], needed: bool = False) -> str:
    """The text of the first of these fields that the record has."""
    name = next((name for name in names if name in row.fields), None)
    if name is None and needed:
        listed = " or ".join(map(repr, names))
        raise UserError(f"{row.where}: expected a text in the field {listed}, got none of these fields")
    text = row.text(name or names[0]).strip()
    if needed and not text:
        raise UserError(f"{row.where}: expected a text in the field {name!r}, got an empty one")
    return text


def _answers(row: Row, target: str) -> tuple[str, ...]:
    if target == "alt":
        return (_text(row, ANSWER, needed=True),)
    name = "answers" if "answers" in row.fields or "ground_truth" not in row.fields else "ground_truth"
    return _texts(row, name, row.fields.get(name))


def _locality(row: Row, with_answers: bool) -> tuple[Asked, ...]:
    if "locality" in row.fields:
        return tuple(asked if with_answers else Asked(asked.question, ("",)) for asked in _nested(row, "locality"))
    question = row.text("loc").strip()
    answer = row.text("loc_ans").strip() if with_answers else ""
    return (Asked(_asked(question), (answer,)),) if question else ()


def _nested(row: Row, name: str) -> tuple[Asked, ...]:
    """Questions of KnowEdit: {kind: [{prompt, ground_truth}, ..]}; or one of EasyEdit: {New Question, New Answer}."""
    groups = row.fields.get(name)
    if groups is None:
        return ()
    if not isinstance(groups, dict):
        raise row.error(name, "an object of lists of {prompt, ground_truth}", groups)
    if "New Question" in groups:
        inner = Row(row.where, groups)
        return (Asked(inner.text("New Question").strip(), (inner.text("New Answer").strip(),)),)
    found = []
    for kind, items in groups.items():
        for item in items if isinstance(items, list) else [items]:
            inner = Row(f"{row.where}, {name}, {kind}", item if isinstance(item, dict) else {})
            prompt, *_ = _texts(inner, "prompt", inner.fields.get("prompt"))
            found.append(Asked(prompt, _texts(inner, "ground_truth", inner.fields.get("ground_truth"))))
    return tuple(found)


def _texts(row: Row, name: str, value: Any) -> tuple[str, ...]:
    """Different texts of a text, or of lists of texts inside each other; at least one."""
    cells, texts = [value], []
    while cells:
        cell = cells.pop(0)
        if isinstance(cell, list):
            cells = cell + cells
        else:
            texts.append(Row(row.where, {name: cell}).text(name).strip())
    found = tuple(dict.fromkeys(filter(None, texts)))
    if not found:
        raise UserError(f"{row.where}: expected a text in the field {name!r}, got an empty one")
    return found


def _task(records: list[Record], k: int, first: int, test: str) -> TaskData:
    """Edits without a test or a locality question are trained on, but missing in that split."""
    rows = {
        "train": tuple(record.edit.example(k) for record in records),
        "test": tuple(asked.example(k) for record in records for asked in record.test),
        "dev": tuple(asked.example(k) for record in records for asked in record.locality),
    }
    if not rows["test"]:
        raise UserError(f"zsre, records {first + 1} to {first + len(records)}: none has a text in the field {test!r}")
    return TaskData(f"edits {first}-{first + len(records) - 1}", **rows)


def _asked(question: str) -> str:
    """The text with a question mark, which most locality questions lack."""
    return question if question.endswith("?") else f"{question}?"


def _notes(tasks: tuple[TaskData, ...], records: list[Record], asked: str) -> list[str]:
    lines = []
    questions = "rephrased" if asked == "rephrase" else asked
    for what, split, field in ((questions, "test", "test"), ("locality", "dev", "locality")):
        missing = sum(not getattr(record, field) for record in records)
        if missing:
            lines.append(f"{missing} edits have no {what} question and are left out of {split}")
    train, test = (tuple(e for task in tasks for e in getattr(task, split)) for split in ("train", "test"))
    return lines + remarks([TaskData("all tasks", train, (), test)])


def _facts(tasks: tuple[TaskData, ...], total: int, each: int) -> dict[str, Any]:
    count = len(tasks)
    return {
        "NUM_TASK": count,
        "NUM_ALL_SAMPLES": total,
        "NUM_SAMPLES_EACH_TASK": each,
        "TASK_NAMES": [task.name for task in tasks],
        "METRIC": ["exact_match"] * count,
        "PROMPT_TYPE": "none",
        "MAX_NEW_TOKENS": [10] * count,
        "MAX_SEQ_LENGTH": [64] * count,
        "IL_MODE": "CKE",
        "DEV_IS_TEST": False,
        "LOCALITY_SPLIT": "dev",
    }
