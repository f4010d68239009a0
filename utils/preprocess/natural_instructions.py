"""natural_instructions (scenario CIT): tasks of Natural Instructions, from any of its 1,600 files.

    DIR/<task>.json                      one file per task, split by --test-share and --dev-share
    DIR/<task>/{train,dev,test}.json     one folder per task with given splits; dev is optional
    DIR/{train,dev,test}.json            a single task

Data: "Super-NaturalInstructions" (Wang et al., EMNLP 2022).
"""

from __future__ import annotations

import random
from pathlib import Path

from pydantic import Field

from utils.dataset import SPLITS, Stream, TaskData
from utils.errors import UserError
from utils.preprocess.shared.instructions import (
    InstructionOptions,
    Rows,
    examples,
    facts,
    finish,
    move,
    read_instructions,
    superni_prompt,
)
from utils.preprocess.shared.option_types import Names, per_task
from utils.preprocess.shared.raw import DATASET_DIR, Origin, file_sha256
from utils.preprocess.shared.records import remarks
from utils.scoring import find

ORIGIN = Origin("github.com/allenai/natural-instructions, tasks", "Apache-2.0", "about 1,600 files")


class Options(InstructionOptions):
    """Tasks, their order, prompts and answers."""

    task_order: Names | None = Field(
        None, description="Tasks, separated by commas, such as task748,task073; none: all, sorted by name."
    )
    test_share: float = Field(0.1, gt=0, lt=1, description="Share of the instances of a task's only file, for test.")
    metric: Names = Field(
        ("rouge_l_stemmed",), description="Metric; one for all tasks, or one per task separated by commas."
    )


def build(raw_dir: Path | None, options: Options, seed: int) -> Stream:
    """Read the tasks; every split keeps the order of its file.

    Args:
        raw_dir: Folder with task files or folders; None: dataset/natural_instructions.
        options: See Options.
        seed: Determines which instances of a file are for test and dev, and which answers are drawn.

    Raises:
        UserError: no task is there, a file is wrong, or an option does not fit the tasks.
    """
    root = raw_dir or DATASET_DIR / "natural_instructions"
    places = _find(root)
    names = [_full(name, places) for name in options.task_order or places]
    if len(set(names)) < len(names):
        raise UserError(f"--task-order: expected different tasks, got {','.join(names)}")
    metrics = [find(name, "--metric").name for name in per_task(options.metric, len(names), "metric")]
    files: dict[str, str] = {}
    tasks = tuple(_task(places[name], k, options, seed, files) for k, name in enumerate(names))
    used = options.model_dump(mode="json") | {"task_order": names, "seed": seed}
    source = {"files": files, "options": used, "notes": [*_unread(root, places), *remarks(tasks)]}
    return Stream(f"natural_instructions_task{len(tasks)}", tasks, facts(tasks, metrics, options) | {"SOURCE": source})


def _find(root: Path) -> dict[str, Path]:
    """Name -> file or folder of each task."""
    if (root / "train.json").is_file():
        return {root.resolve().name: root}
    entries = sorted(root.iterdir()) if root.is_dir() else []
    found = [p for p in entries if (p / "train.json").is_file() or (p.is_file() and p.suffix == ".json")]
    if not found:
        raise UserError(
            f"--raw-dir: expected task files (task*.json), or folders with train.json and test.json, in {root}, got "
            f"none; they come from {ORIGIN.place} (licence: {ORIGIN.licence})"
        )
    return {path.stem if path.is_file() else path.name: path for path in found}


def _unread(root: Path, places: dict[str, Path]) -> list[str]:
    others = set(root.iterdir()) - {*places.values()} if root not in places.values() else set()
    names = sorted(path.name for path in others if not path.name.startswith("."))
    return [f"not read, as they are no tasks: {', '.join(names)}"] if names else []


def _full(name: str, places: dict[str, Path]) -> str:
    found = [place for place in places if place == name or place.startswith((f"{name}_", f"task{name}_"))]
    if not found:
        raise UserError(f"--task-order: expected tasks of {', '.join(places)[:200]}, got {name!r}")
    return found[0]


def _task(place: Path, k: int, options: Options, seed: int, files: dict[str, str]) -> TaskData:
    name = place.stem if place.is_file() else place.name
    render = superni_prompt(name, options)
    paths = [place] if place.is_file() else [place / f"{split}.json" for split in SPLITS]
    read = {
        p.stem: examples(read_instructions(p, ORIGIN), render, k) for p in paths if p.stem == "train" or p.is_file()
    }
    files.update({str(path.relative_to(place.parent)): file_sha256(path) for path in paths if path.is_file()})
    rows: dict[str, Rows] = read
    if place.is_file():
        train, test = move(read[name], options.test_share, random.Random(f"{seed}:test:{name}"), name)
        rows = {"train": train, "test": test}
    elif "test" not in read:
        raise UserError(f"{place}: expected train.json and test.json, got no test.json")
    return finish(name, rows, options, seed)
