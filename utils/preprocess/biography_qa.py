"""biography_qa (scenario CIT): questions about persons, whose blocks are the tasks.

Task 0 asks about persons that the backbone has read biographies of: it is trained on some of them and tested
on others, so that its score is knowledge got out, not answers learned. Later tasks teach new persons: they
train on the whole block and are tested on its first persons.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from utils import config
from utils.dataset import Example, Stream, TaskData
from utils.errors import UserError
from utils.preprocess.biography_synth import (
    ATTRIBUTES,
    LISTS_FILE,
    PRESETS,
    Question,
    ask,
    make_persons,
    read_lists,
)
from utils.preprocess.shared.raw import DATASET_DIR, file_sha256
from utils.storage.files import read_json

RAW_FILE = "biography_qa/qa/all.json"


class Options(config.OptionGroup):
    """How persons become tasks."""

    preset: Literal["micro", "demo", "small", "paper"] | None = Field(
        None,
        description=f"Make up persons, at this size; none: read {RAW_FILE}, or demo if absent.",
    )
    num_task: int = Field(2, ge=1, description="Number of blocks of persons.")
    num_person: int | None = Field(None, ge=1, description="Persons of all blocks; none: as the size says.")
    num_person_first_task: int | None = Field(
        None, ge=1, description="Persons of the first block; none: as the size says (100000 for raw files)."
    )
    train_ratio_first_task: float | None = Field(
        0.5,
        gt=0,
        lt=1,
        description="Share of the first block to train on, the rest is held out; none: all of it.",
    )
    dev_persons_first: int | None = Field(
        None,
        ge=1,
        description="Persons in dev and test of the first block; none: 2.5 % of it (micro, demo: all).",
    )
    dev_persons_each: int | None = Field(
        None, ge=1, description="Persons in dev and test of each later block; none: as above."
    )
    skip_first_task: bool = Field(False, description="Leave the first block out of the stream.")
    only_first_task: bool = Field(False, description="Make a stream of the first block alone.")


class Block(NamedTuple):
    """Persons of one task, as half-open ranges of person ids."""

    train: range
    dev: range  # test is the same
    name: str


class Source(NamedTuple):
    """Questions of each person, and where they come from."""

    persons: list[list[Question]]
    chance: float
    files: dict[str, str]  # name -> sha256


def build(raw_dir: Path | None, options: Options, seed: int) -> Stream:
    """Deal the persons to tasks, in order of their ids.

    Args:
        raw_dir: Folder with biography_qa/qa/all.json, read if no preset is given. None: read dataset/ if it has
            that file, and otherwise make up the persons of the preset demo.
        options: See Options.
        seed: Decides the made-up persons; raw files are taken in their own order.

    Raises:
        UserError: the numbers do not go together, or the raw file is wrong or too short.
    """
    path = (raw_dir or DATASET_DIR) / RAW_FILE
    is_raw = options.preset is None and (raw_dir is not None or path.exists())
    options = _complete(options, "paper" if is_raw else options.preset or "demo")
    blocks = _blocks(options)
    read = _from_file(path, options.num_person) if is_raw else _made_up(options, seed)
    tasks = tuple(_task(read.persons, block, k) for k, block in enumerate(blocks))
    return Stream(
        _stream_name(options, "qa" if is_raw else options.preset),
        tasks,
        _config(options, tasks, read, {"preset": None} if is_raw else {"seed": seed}),
    )


def _complete(options: Options, size: str) -> Options:
    """The same options with every None that means "as the size says" replaced by its number."""
    preset, later = PRESETS[size], options.num_task - 1
    if later == 0 and not options.only_first_task:
        raise UserError("--num-task: expected at least 2, got 1; for the first block alone use --only-first-task")
    if options.only_first_task and options.skip_first_task:
        raise UserError("--only-first-task and --skip-first-task leave no task; give one of them")
    first = options.num_person_first_task or preset.first
    total = options.num_person or first + later * preset.each
    if options.only_first_task:
        later, total = 0, first
    elif total <= first or (total - first) % later:
        raise UserError(
            f"--num-person {total}: expected --num-person-first-task ({first}) and a multiple of {later}, "
            f"so that each later task gets the same number of persons"
        )
    each = (total - first) // later if later else 0
    held_out = first - _train_count(options, first)
    sizes = {"num_task": later + 1, "num_person": total, "num_person_first_task": first}
    sizes["dev_persons_first"] = _dev_count(options, "dev_persons_first", preset.dev_share, first, held_out or first)
    if each:
        sizes["dev_persons_each"] = _dev_count(options, "dev_persons_each", preset.dev_share, each, each)
    return options.updated(**sizes, preset=size)


def _train_count(options: Options, first: int) -> int:
    """Training persons of the first block."""
    if options.train_ratio_first_task is None:
        return first
    count = round(options.train_ratio_first_task * first)
    if not 0 < count < first:
        raise UserError(
            f"--train-ratio-first-task {options.train_ratio_first_task}: expected at least one person to "
            f"train on and one held out, got {count} and {first - count} of {first}"
        )
    return count


def _dev_count(options: Options, name: str, share: float, block: int, available: int) -> int:
    count = getattr(options, name) or min(available, max(1, round(share * block)))
    if count > available:
        raise UserError(f"--{name.replace('_', '-')}: expected at most {available} persons, got {count}")
    return count


def _blocks(options: Options) -> list[Block]:
    first, train = options.num_person_first_task, _train_count(options, options.num_person_first_task)
    start = train if train < first else 0  # with nothing held out, dev and test are the first persons
    dev = range(start, start + options.dev_persons_first)
    blocks = [] if options.skip_first_task else [Block(range(train), dev, f"persons 0-{first - 1}")]
    for k in range(options.num_task - 1):
        each = (options.num_person - first) // (options.num_task - 1)
        ids = range(first + k * each, first + (k + 1) * each)
        blocks.append(Block(ids, ids[: options.dev_persons_each], f"persons {ids[0]}-{ids[-1]}"))
    return blocks


def _task(persons: list[list[Question]], block: Block, k: int) -> TaskData:
    train, dev = _examples(persons, block.train, k), _examples(persons, block.dev, k)
    return TaskData(block.name, train, dev, dev)


def _examples(persons: list[list[Question]], ids: Iterable[int], k: int) -> tuple[Example, ...]:
    return tuple(Example(prompt, answer, task=k) for i in ids for prompt, answer in persons[i])


def _made_up(options: Options, seed: int) -> Source:
    lists = read_lists(PRESETS[options.preset])
    persons = [ask(person, lists) for person in make_persons(lists, options.num_person, seed)]
    chance = sum(1 / n for n in lists.count().values()) / len(ATTRIBUTES)
    return Source(persons, chance, {"biography_synth/lists.json": file_sha256(LISTS_FILE)})


def _from_file(path: Path, count: int) -> Source:
    """The first `count` persons; values that an attribute can take are those seen in them."""
    raw = read_json(path)
    if not isinstance(raw, dict) or len(raw) < count:
        raise UserError(f"{path}: got {len(raw)} persons, expected {count}; give --num-person[-first-task]")
    persons = [_read_person(raw.pop(str(i), None), f"{path}, person {i}") for i in range(count)]
    answers = [{person[a][1] for person in persons} for a in range(len(ATTRIBUTES))]
    chance = sum(1 / len(seen) for seen in answers) / len(ATTRIBUTES)
    return Source(persons, chance, {RAW_FILE: file_sha256(path)})


def _read_person(row: Any, where: str) -> list[Question]:
    try:
        questions = [(row[a]["prompt"], row[a]["answer"]) for a in ATTRIBUTES]
        if all(isinstance(text, str) for question in questions for text in question):
            return questions
    except (KeyError, TypeError):
        pass
    wanted = ", ".join(ATTRIBUTES)
    raise UserError(f"{where}: expected {wanted}, each with the texts prompt and answer, got {str(row)[:80]}")


def _stream_name(options: Options, kind: str) -> str:
    """biography_qa_task2 is made from raw files alone; made-up persons have the name of their preset."""
    if not options.only_first_task:
        return f"biography_{kind}_task{options.num_task - options.skip_first_task}"
    ratio = options.train_ratio_first_task
    return f"biography_{kind}_indomain_task1" + ("" if ratio is None else f"_ratio{ratio:.2f}")


def _config(options: Options, tasks: tuple[TaskData, ...], read: Source, more: dict[str, Any]) -> dict[str, Any]:
    count, later = len(tasks), options.num_task - 1
    return {
        "NUM_TASK": count,
        "NUM_PERSON": options.num_person,
        "NUM_PERSON_FIRST_TASK": options.num_person_first_task,
        "NUM_PERSON_EACH_TASK": (options.num_person - options.num_person_first_task) // later if later else 0,
        "TASK_NAMES": [task.name for task in tasks],
        "IL_MODE": "CIT",
        "PROMPT_TYPE": "none",
        "METRIC": ["exact_match"] * count,
        "MAX_NEW_TOKENS": [32] * count,
        "MAX_SEQ_LENGTH": [128] * count,
        "CHANCE": [read.chance] * count,
        "DEV_IS_TEST": True,
        "SOURCE": {"files": read.files, "options": options.model_dump() | more},
    }
