"""TRACE (scenario CIT): eight tasks of instruction tuning, in Chinese, English, German and Python.

Strings are used unchanged. Test sets are reduced to their shortest examples, as in the published code, which counts
Pythia's tokens; here the default is to count characters, so that no tokenizer is needed. Data: "TRACE"
(Wang et al., 2023, arXiv 2310.06762).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from utils import config
from utils.dataset import Example, Stream, TaskData
from utils.errors import UserError
from utils.preprocess.shared.option_types import ALL, Names, Sizes, per_task
from utils.preprocess.shared.raw import DATASET_DIR, Origin, file_sha256, missing_text
from utils.preprocess.shared.records import read_rows, remarks

ORIGIN = Origin(
    "TRACE-Benchmark/LLM-CL-Benchmark_5000, linked from github.com/BeyonderXX/TRACE",
    "Apache-2.0, texts under the terms of their sources",
    "8 folders, 5000 training examples each",
)
FILES = {"train": "train.json", "dev": "eval.json", "test": "test.json"}
TRAIN_SIZE = 5000  # of every task in the published benchmark
MAX_SEQ_LENGTH = 1024
CHOICE = re.compile(r"^[A-Z]\. ", re.MULTILINE)


class Task(NamedTuple):
    """Published settings of one task."""

    metric: str
    max_new_tokens: int
    num_test: int  # -1: all
    metric_of_published_code: str = ""  # where it differs from the benchmark's


TASKS = {  # in the published order
    "C-STANCE": Task("exact_match", 3, 500),
    "FOMC": Task("exact_match", 3, ALL),
    "MeetingBank": Task("rouge_l", 256, 100),
    "Py150": Task("edit_similarity", 16, 100),
    "ScienceQA": Task("first_letter", 128, 100, "exact_match"),
    "NumGLUE-cm": Task("numeric", 8, ALL, "exact_match"),
    "NumGLUE-ds": Task("numeric", 8, ALL, "exact_match"),
    "20Minuten": Task("sari", 256, 100),
}


class Options(config.OptionGroup):
    """Tasks, their order, and numbers of examples."""

    num_task: int | None = Field(None, ge=1, description="Number of tasks: the first of the order; none: all.")
    task_order: Names | None = Field(None, description=f"Names, separated by commas; none: {','.join(TASKS)}.")
    sub_sample_eval: Sizes = Field((10,), description="First n examples for dev, -1: all; one number or one per task.")
    sub_sample_test: Sizes | None = Field(
        None,
        description="Shortest n examples for test, -1: all; one number or one per task; none: as published "
        f"({','.join(str(task.num_test) for task in TASKS.values())}).",
    )
    length: str = Field(
        "characters",
        description="Unit of length: characters, words, or a folder with tokenizer.json, whose tokens are counted.",
    )
    published_metrics: bool = Field(
        False, description="Score ScienceQA (with its explanation) and NumGLUE by exact match, as the published code."
    )


def build(raw_dir: Path | None, options: Options, seed: int) -> Stream:
    """Read the tasks; every split keeps the order of its file.

    Args:
        raw_dir: Folder with TRACE/<task>/{train,eval,test}.json, or with the folders of tasks; None: dataset/.
        options: See Options.
        seed: Not used; nothing is random.

    Raises:
        UserError: a file is missing or wrong, or an option does not fit the tasks.
    """
    names = _names(options)
    num_dev = per_task(options.sub_sample_eval, len(names), "sub-sample-eval")
    published = tuple(TASKS[name].num_test for name in names)
    num_test = per_task(options.sub_sample_test or published, len(names), "sub-sample-test")
    length, root = measure(options.length), find(raw_dir or DATASET_DIR)
    _check_files(root, names)
    files: dict[str, str] = {}
    tasks = []
    for k, name in enumerate(names):
        paths = {split: root / name / file for split, file in FILES.items()}
        read = {split: _read(path, k) for split, path in paths.items()}
        read["dev"] = read["dev"] if num_dev[k] == ALL else read["dev"][: num_dev[k]]
        read["test"] = shortest(read["test"], num_test[k], length)
        tasks.append(TaskData(name, **read))
        files |= {f"TRACE/{name}/{path.name}": file_sha256(path) for path in paths.values()}
    source = {"files": files, "options": _used(options, names, num_dev, num_test), "notes": _notes(tasks)}
    return Stream(f"TRACE_task{len(names)}", tuple(tasks), _facts(tasks, options) | {"SOURCE": source})


def find(raw_dir: Path) -> Path:
    """The folder with the folders of tasks: TRACE in the folder of raw data, a release in it, or that folder itself."""
    places = [raw_dir / "TRACE", raw_dir, *sorted(raw_dir.glob("LLM-CL-Benchmark_*"))]
    return next((place for place in places if any((place / task).is_dir() for task in TASKS)), places[0])


def _check_files(root: Path, names: list[str]) -> None:
    missing = [root / name / file for name in names for file in FILES.values() if not (root / name / file).is_file()]
    there = [name for name in TASKS if all((root / name / file).is_file() for file in FILES.values())]
    if missing:
        part = f"; or use the tasks that are there: --task-order {','.join(there)}" if there else ""
        more = f"; {len(missing) - 1} more files of these tasks are missing" if missing[1:] else ""
        raise UserError(f"{missing_text(missing[0], ORIGIN)}{more}{part}")


def measure(kind: str) -> Callable[[str], int]:
    """The function that measures a text.

    Args:
        kind: "characters", "words", or a folder with a tokenizer.json.

    Raises:
        UserError: neither of the two words nor such a folder.
    """
    if kind == "characters":
        return len
    if kind == "words":
        return lambda text: len(text.split())
    path = Path(kind) / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"--length: expected characters, words or a folder with tokenizer.json, got {kind!r}")
    from tokenizers import Tokenizer  # imported here: the other units need no package

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    return lambda text: len(tokenizer.encode(text).ids)


def shortest(examples: tuple[Example, ...], count: int, length: Callable[[str], int]) -> tuple[Example, ...]:
    """The `count` shortest examples (question and answer together), in order; ties go to the earlier one."""
    if count == ALL:
        return examples
    lengths = [length(example.input + example.target) for example in examples]
    chosen = sorted(range(len(examples)), key=lengths.__getitem__)[:count]
    return tuple(examples[i] for i in sorted(chosen))


def _names(options: Options) -> list[str]:
    names = list(options.task_order or TASKS)
    wrong = [name for name in names if name not in TASKS or names.count(name) > 1]
    if wrong:
        raise UserError(f"--task-order: expected different names of {', '.join(TASKS)}, got {wrong[0]!r}")
    if (options.num_task or 0) > len(names):
        raise UserError(f"--num-task: expected at most the {len(names)} tasks of the order, got {options.num_task}")
    return names[: options.num_task]


def _read(path: Path, k: int) -> tuple[Example, ...]:
    return tuple(Example(row.text("prompt"), row.text("answer"), task=k) for row in read_rows(path, ORIGIN))


def _notes(tasks: list[TaskData]) -> list[str]:
    parts = [f"{t.name} {len(t.train)}" for t in tasks if len(t.train) != TRAIN_SIZE]
    known = f"not the {TRAIN_SIZE} training examples of the published benchmark: {', '.join(parts)}"
    return ([known] if parts else []) + remarks(tasks)


def _used(options: Options, names: list[str], num_dev: list[int], num_test: list[int]) -> dict[str, Any]:
    """The resolved options; a tokenizer by its checksum, since its path depends on the machine."""
    folder = Path(options.length)
    is_folder = options.length not in ("characters", "words")
    return {
        "task_order": names,
        "sub_sample_eval": num_dev,
        "sub_sample_test": num_test,
        "length": f"tokenizer.json {file_sha256(folder / 'tokenizer.json')}" if is_folder else options.length,
        "published_metrics": options.published_metrics,
    }


def _facts(tasks: list[TaskData], options: Options) -> dict[str, Any]:
    settings = [TASKS[task.name] for task in tasks]
    metrics = [s.metric_of_published_code if options.published_metrics else "" for s in settings]
    metrics = [metric or s.metric for metric, s in zip(metrics, settings, strict=True)]
    return {
        "NUM_TASK": len(tasks),
        "TASK_NAMES": [task.name for task in tasks],
        "METRIC": metrics,
        "PROMPT_TYPE": "none",
        "MAX_NEW_TOKENS": [s.max_new_tokens for s in settings],
        "MAX_SEQ_LENGTH": [MAX_SEQ_LENGTH] * len(tasks),
        "CHANCE": [_chance(task, metric) for task, metric in zip(tasks, metrics, strict=True)],
        "IL_MODE": "CIT",
        "DEV_IS_TEST": False,
    }


def _chance(task: TaskData, metric: str) -> float | None:
    """Expected score of guessing among the offered letters; None where the answer is no letter."""
    if task.name in ("C-STANCE", "FOMC"):
        return 1 / 3
    if metric != "first_letter":
        return None
    choices = [len(CHOICE.findall(example.input.rpartition("Choices:")[2])) for example in task.test]
    return sum(1 / max(count, 1) for count in choices) / len(choices)
