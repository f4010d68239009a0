"""concept_1k (scenario IIL): short questions about 1,023 concepts, 102 concepts per task.

A raw record is a triple and two questions with the same answer. The first question is for training, the
second asks for the same fact in other words. Data: "Concept-1K" (Zheng et al., 2024, arXiv 2402.08526).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from utils import config
from utils.dataset import Example, Stream, TaskData
from utils.errors import UserError
from utils.preprocess.shared.classes import class_facts
from utils.preprocess.shared.raw import Origin, file_sha256, raw_file, read_raw

RAW_FILES = ("concept_1k/dataset_2024_1_30_11_40.txt", "concept_1k/dataset.txt")  # two names of the same file
ORIGIN = Origin("github.com/zzz47zzz/codebase-for-incremental-learning-with-llm", "none stated", "3.4 MB")
LABELS = (("Q1",), ("A1",), ("Q2",), ("A2", "Q2"))  # the published file says Q2 for the second answer


class Options(config.OptionGroup):
    """Assignment of concepts to tasks."""

    num_task: int = Field(
        10, ge=1, description="Number of tasks; the first task also gets the remainder of the concepts."
    )
    keep_last_record: bool = Field(
        True, description="Read the last record of the file, which the published counts (16653 records) leave out."
    )


class Record(NamedTuple):
    """A fact and two questions for it."""

    concept: str
    relation: str
    questions: tuple[str, str]
    answer: str


def build(raw_dir: Path | None, options: Options, seed: int) -> Stream:
    """Shuffle the concepts and assign them to tasks; the records of a task keep the order of the file.

    Args:
        raw_dir: Folder with concept_1k/dataset_2024_1_30_11_40.txt; None: dataset/.
        options: See Options.
        seed: Decides the order of the concepts.

    Raises:
        UserError: the file is missing or has fewer concepts than tasks.
    """
    path = _find(raw_dir)
    records, dropped = parse(read_raw(path, ORIGIN))
    if not options.keep_last_record:
        records = records[:-1]
    concepts = list(dict.fromkeys(record.concept for record in records))
    if len(concepts) < options.num_task:
        raise UserError(f"--num-task: expected at most {len(concepts)} (concepts in {path}), got {options.num_task}")
    random.Random(seed).shuffle(concepts)
    task_of = _assign(len(concepts), options.num_task)
    relations = list(dict.fromkeys(record.relation for record in records))
    tasks = _tasks(records, concepts, relations, task_of)
    source = {
        "files": {RAW_FILES[0]: file_sha256(path)},
        "options": options.model_dump() | {"seed": seed},
        "dropped_records": dropped,
    }
    if dropped:
        source["notes"] = [f"{dropped} records are dropped: no two questions with the same answer"]
    facts = _config(concepts, relations, task_of, tasks)
    return Stream(f"concept_1k_task{options.num_task}", tasks, facts | {"SOURCE": source})


def parse(text: str) -> tuple[list[Record], int]:
    """The well-formed records of a raw file, in order, and the number of others.

    A record is a line `(concept, relation, rest)` and the lines Q1, A1, Q2 and A2 (as published: Q2 again).
    Both answers must be the same. Commas in `rest` and `: ` in a question are text.
    """
    blocks: list[list[str]] = []
    for line in filter(None, map(str.strip, text.split("\n"))):
        if line.startswith("(") or not blocks:
            blocks.append([])
        blocks[-1].append(line)
    records = [record for record in map(_record, blocks) if record]
    return records, len(blocks) - len(records)


def _record(lines: list[str]) -> Record | None:
    triple = lines[0].removeprefix("(").removesuffix(")").split(", ", 2)
    parts = [line.partition(": ") for line in lines[1:]]
    labelled = len(parts) == len(LABELS) and all(p[0] in names for p, names in zip(parts, LABELS, strict=True))
    if len(triple) < 3 or not labelled:
        return None
    first, answer, second, again = (part[2].strip() for part in parts)
    if not (first and second and answer) or answer != again:
        return None
    return Record(triple[0].strip(), triple[1].strip(), (first, second), answer)


def _find(raw_dir: Path | None) -> Path:
    paths = [raw_file(raw_dir, name) for name in RAW_FILES]
    return next((path for path in paths if path.exists()), paths[0])


def _assign(num_concept: int, num_task: int) -> list[int]:
    """Task of each concept id: equal runs, the remainder in task 0."""
    each = num_concept // num_task
    first = num_concept - each * (num_task - 1)
    return [0 if i < first else 1 + (i - first) // each for i in range(num_concept)]


def _tasks(
    records: list[Record], concepts: list[str], relations: list[str], task_of: list[int]
) -> tuple[TaskData, ...]:
    concept_id = {name: i for i, name in enumerate(concepts)}
    relation_id = {name: i for i, name in enumerate(relations)}
    train: list[list[Example]] = [[] for _ in range(task_of[-1] + 1)]
    test: list[list[Example]] = [[] for _ in train]
    for i, record in enumerate(records):
        label = concept_id[record.concept]
        k, ids = task_of[label], (label, relation_id[record.relation], i)
        for rows, question in zip((train[k], test[k]), record.questions, strict=True):
            rows.append(Example(question, record.answer, label, label, ids, task=k))
    ranges = [_ids_of(task_of, k) for k in range(len(train))]
    names = [f"concepts {ids[0]}-{ids[-1]}" for ids in ranges]
    return tuple(TaskData(n, tuple(a), tuple(b), tuple(b)) for n, a, b in zip(names, train, test, strict=True))


def _ids_of(task_of: list[int], k: int) -> list[int]:
    return [i for i, task in enumerate(task_of) if task == k]


def _config(
    concepts: list[str], relations: list[str], task_of: list[int], tasks: tuple[TaskData, ...]
) -> dict[str, Any]:
    count = len(tasks)
    facts = class_facts(concepts, [len(_ids_of(task_of, k)) for k in range(count)])
    as_text = {"LABEL_LIST": concepts, "label2idx": [], "idx2label": []}  # answers are compared as text, not as classes
    return (
        {"NUM_TASK": count}
        | facts
        | as_text
        | {
            "NUM_CONCEPT": len(concepts),
            "CONCEPT_LIST": concepts,
            "RELATION_LIST": relations,
            "CONCEPT_2_TASK": task_of,
            "TASK_NAMES": [task.name for task in tasks],
            "IL_MODE": "IIL",
            "PROMPT_TYPE": "qa",
            "METRIC": ["exact_match"] * count,
            "MAX_NEW_TOKENS": [32] * count,
            "MAX_SEQ_LENGTH": [128] * count,
            "DEV_IS_TEST": True,
        }
    )
