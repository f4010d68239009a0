"""zsre (scenario CKE): edit counterfactual answers into a model; each task is a block of records.

train asks the question (efficacy), test a paraphrase of it. dev holds an unrelated question for each edit of the task
(locality): the reference is the model's answer before the edits, so these have no
target here. Data: zsRE (Levy et al., 2017) as prepared for MEND (Mitchell et al., 2022).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from utils import config
from utils.dataset import Example, Stream, TaskData
from utils.errors import UserError
from utils.preprocess.shared.raw import DATASET_DIR, Origin, file_sha256
from utils.preprocess.shared.records import Row, read_rows, remarks

RAW_FILE = "zsre/zsre_mend_train_10000.json"
ORIGIN = Origin("the editing data linked from github.com/zjunlp/EasyEdit", "MIT", "10000 records")


class Options(config.OptionGroup):
    """Assignment of records to tasks."""

    num_task: int = Field(10, ge=1, description="Number of tasks of equal size; a remainder at the end is dropped.")
    raw_file: str = Field(RAW_FILE, description="File with full records, inside the folder of raw data.")
    locality_answers: bool = Field(
        False, description="Store the true answers of locality questions; false: compare with the model's own."
    )


class Record(NamedTuple):
    """An edit: a question, its paraphrase, the new answer, and a question whose answer must not change."""

    question: str
    rephrased: str
    answer: str
    locality: str
    locality_answer: str


def build(raw_dir: Path | None, options: Options, seed: int) -> Stream:
    """Split the records into tasks, in the order of the file.

    Args:
        raw_dir: Folder with zsre/zsre_mend_train_10000.json (or `raw_file`); None: dataset/.
        options: See Options.
        seed: Not used; nothing is random.

    Raises:
        UserError: the file is missing or wrong, or has fewer records than tasks.
    """
    path = (raw_dir or DATASET_DIR) / options.raw_file
    if path.exists() and path.suffix not in (".json", ".jsonl"):
        raise UserError(f"--raw-file: expected full records as .json or .jsonl, with rephrase and loc, got {path}")
    records = [_record(row, options.locality_answers) for row in read_rows(path, ORIGIN)]
    each = len(records) // options.num_task
    if not each:
        raise UserError(f"--num-task: expected at most {len(records)} (records in {path}), got {options.num_task}")
    tasks = tuple(_task(records[k * each : (k + 1) * each], k, k * each) for k in range(options.num_task))
    dropped = len(records) - each * options.num_task
    source = {
        "files": {options.raw_file: file_sha256(path)},
        "options": options.model_dump(exclude={"raw_file"}),
        "dropped_records": dropped,
        "notes": ([f"{dropped} of {len(records)} records at the end are dropped"] if dropped else []) + _notes(tasks),
    }
    return Stream(f"zsre_task{options.num_task}", tasks, _facts(tasks, len(records), each) | {"SOURCE": source})


def _record(row: Row, with_locality_answer: bool) -> Record:
    texts = [row.text(name).strip() for name in ("src", "rephrase", "alt", "loc")]
    for name, text in (("src", texts[0]), ("alt", texts[2])):
        if not text:
            raise UserError(f"{row.where}: expected a text in the field {name!r}, got an empty one")
    question, rephrased, answer, locality = texts
    return Record(question, rephrased, answer, locality, row.text("loc_ans").strip() if with_locality_answer else "")


def _task(records: list[Record], k: int, first: int) -> TaskData:
    """Edits without a paraphrase or a locality question are trained on, but missing in that split."""
    train = tuple(Example(r.question, r.answer, task=k) for r in records)
    test = tuple(Example(r.rephrased, r.answer, task=k) for r in records if r.rephrased)
    dev = tuple(Example(_asked(r.locality), r.locality_answer, task=k) for r in records if r.locality)
    if not test:
        raise UserError(f"zsre, records {first + 1} to {first + len(records)}: none has a text in the field 'rephrase'")
    return TaskData(f"edits {first}-{first + len(records) - 1}", train, dev, test)


def _asked(question: str) -> str:
    """The text with a question mark, which most locality questions lack."""
    return question if question.endswith("?") else f"{question}?"


def _notes(tasks: tuple[TaskData, ...]) -> list[str]:
    lines = []
    for what, split in (("rephrased", "test"), ("locality", "dev")):
        missing = sum(len(task.train) - len(getattr(task, split)) for task in tasks)
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
