"""biography_qa (scenario CIT): questions about persons; each task is a block of persons.

Task 0 asks about persons whose biographies the backbone was pretrained on. It trains on some of them and tests on
others, so its score measures recall from pretraining, not memorised answers. Later tasks add new persons: they train on
the whole block and test on its first persons.

Dev has other persons than test. In task 0 they are held out, too, and in later tasks they are persons of the block.
Where all of these are tested (micro and demo), dev of task 0 has some of the training persons, and dev of a later task
has persons of no block. Such a dev split is used in tuning only, where it takes the place of test
(`utils.options.stream_view.for_tuning`). A stream from raw files is called biography_qa_task<n>, a stream of
invented persons biography_<preset>_task<n>, so that the published name means the published persons.
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
from utils.preprocess.shared.raw import file_sha256, raw_file
from utils.storage.files import read_json

RAW_FILE = "biography_qa/qa/all.json"


class Options(config.OptionGroup):
    """Assignment of persons to tasks."""

    preset: Literal["micro", "demo", "small", "paper"] | None = Field(
        None,
        description=f"Invent persons, at this size; none: read {RAW_FILE}, or demo if absent.",
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
        description="Share of the first block to train on; the rest is held out. none: all of it.",
    )
    dev_persons_first: int | None = Field(
        None,
        ge=1,
        description="Test persons of the first block, and dev persons if others are left; none: 2.5 % (demo: all).",
    )
    dev_persons_each: int | None = Field(None, ge=1, description="The same for each later block.")
    skip_first_task: bool = Field(False, description="Leave the first block out of the stream.")
    only_first_task: bool = Field(False, description="Make a stream of the first block alone.")


class Sizes(NamedTuple):
    """Persons of each block. The names are those of the options whose defaults these are."""

    num_task: int
    num_person: int
    num_person_first_task: int
    dev_persons_first: int
    dev_persons_each: int | None  # None: there are no later blocks

    @property
    def each(self) -> int:
        """Persons of each later block."""
        later = self.num_task - 1
        return (self.num_person - self.num_person_first_task) // later if later else 0


class Block(NamedTuple):
    """Persons of one task, as half-open ranges of person ids."""

    name: str
    train: range
    test: range
    dev: range
    is_by_heart: bool  # train has the persons of test


class Source(NamedTuple):
    """Questions of each person, and their source."""

    kind: str  # qa for raw files, otherwise the preset; part of the stream's name
    sizes: Sizes
    persons: list[list[Question]]
    spare: int  # id of the first person that is in no block, for dev
    chance: float
    files: dict[str, str]  # name -> sha256
    made_by: dict[str, Any]  # preset and seed
    notes: list[str]


def build(raw_dir: Path | None, options: Options, seed: int) -> Stream:
    """Assign the persons to tasks, in order of their ids.

    Args:
        raw_dir: Folder with biography_qa/qa/all.json, read if no preset is given. None: read dataset/ if it has
            that file, otherwise invent the persons of the preset demo and print so.
        options: See Options.
        seed: Determines the invented persons; raw files keep their order.

    Raises:
        UserError: the numbers do not fit together, or the raw file is wrong or too short.
    """
    path = raw_file(raw_dir, RAW_FILE)
    if options.preset is None and (raw_dir is not None or path.exists()):
        source = _from_file(path, options)
    else:
        if options.preset is None:
            print(f"{path} is absent (dataset/README.md says where to get it): made-up persons, --preset demo")
        source = _made_up(options.preset or "demo", options, seed)
    blocks = _blocks(options, source)
    tasks = tuple(_task(source.persons, block, k) for k, block in enumerate(blocks))
    return Stream(_stream_name(options, source), tasks, _config(options, blocks, tasks, source))


def _sizes(options: Options, default_first: int, default_each: int, dev_share: float) -> Sizes:
    """The numbers of the options, with defaults in place of None."""
    later = options.num_task - 1
    if later == 0 and not options.only_first_task:
        raise UserError("--num-task: expected at least 2, got 1; for the first block alone use --only-first-task")
    if options.only_first_task and options.skip_first_task:
        raise UserError("--only-first-task and --skip-first-task leave no task; give one of them")
    first = options.num_person_first_task or default_first
    total = options.num_person or first + later * default_each
    if options.only_first_task:
        later, total = 0, first
    elif total <= first or (total - first) % later:
        raise UserError(
            f"--num-person {total}: expected --num-person-first-task ({first}) and a multiple of {later}, "
            f"so that each later task gets the same number of persons"
        )
    held_out = first - _train_count(options, first)
    dev_first = _dev_count("dev-persons-first", options.dev_persons_first, dev_share, first, held_out or first)
    if later == 0:
        return Sizes(1, total, first, dev_first, options.dev_persons_each)
    each = (total - first) // later
    dev_each = _dev_count("dev-persons-each", options.dev_persons_each, dev_share, each, each)
    return Sizes(later + 1, total, first, dev_first, dev_each)


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


def _dev_count(name: str, given: int | None, share: float, block: int, available: int) -> int:
    count = given or min(available, max(1, round(share * block)))
    if count > available:
        raise UserError(f"--{name}: expected at most {available} persons, got {count}")
    return count


def _blocks(options: Options, source: Source) -> list[Block]:
    sizes = source.sizes
    first, each = sizes.num_person_first_task, sizes.each
    train = _train_count(options, first)
    name = f"persons 0-{first - 1}"
    if train < first:
        blocks = [_recalled(name, range(train), range(train, first), sizes.dev_persons_first)]
    else:
        blocks = [_by_heart(name, range(first), sizes.dev_persons_first, range(0))]
    if options.skip_first_task:
        blocks = []
    for k in range(sizes.num_task - 1):
        ids = range(first + k * each, first + (k + 1) * each)
        start = source.spare + k * each
        spare = range(start, min(start + each, len(source.persons)))
        blocks.append(_by_heart(f"persons {ids[0]}-{ids[-1]}", ids, sizes.dev_persons_each or each, spare))
    return blocks


def _recalled(name: str, train: range, held_out: range, count: int) -> Block:
    """A block that is tested on persons it does not train on; dev: other such persons, or a fifth of train."""
    test, rest = held_out[:count], held_out[count:]
    fifth = train[-max(1, len(train) // 5) :] if len(train) > 1 else test
    return Block(name, train, test, rest[:count] if len(rest) >= count else fifth, False)


def _by_heart(name: str, train: range, count: int, spare: range) -> Block:
    """A block that is tested on its first persons; dev: the next ones, or persons of no block."""
    test, rest = train[:count], train[count:]
    others = rest if len(rest) >= count else spare
    return Block(name, train, test, others[:count] if len(others) >= count else test, True)


def _task(persons: list[list[Question]], block: Block, k: int) -> TaskData:
    train, test = _examples(persons, block.train, k), _examples(persons, block.test, k)
    return TaskData(block.name, train, test if block.dev == block.test else _examples(persons, block.dev, k), test)


def _examples(persons: list[list[Question]], ids: Iterable[int], k: int) -> tuple[Example, ...]:
    return tuple(Example(prompt, answer, task=k) for i in ids for prompt, answer in persons[i])


def _made_up(name: str, options: Options, seed: int) -> Source:
    preset = PRESETS[name]
    sizes = _sizes(options, preset.first, preset.each, preset.dev_share)
    lists = read_lists(preset)
    # Far behind those of any number of blocks, so that dev persons of a stream are no test persons of another.
    spare = max(sizes.num_person, 10 * preset.first)
    count = spare + sizes.num_person - sizes.num_person_first_task if _needs_spare(sizes) else sizes.num_person
    persons = [ask(person, lists) for person in make_persons(lists, count, seed)]
    chance = sum(1 / n for n in lists.count().values()) / len(ATTRIBUTES)
    files = {"biography_synth/lists.json": file_sha256(LISTS_FILE)}
    return Source(name, sizes, persons, spare, chance, files, {"preset": name, "seed": seed}, [])


def _needs_spare(sizes: Sizes) -> bool:
    """True if later blocks have too few persons outside test."""
    return sizes.each < 2 * (sizes.dev_persons_each or 0)


def _from_file(path: Path, options: Options) -> Source:
    """The first persons of the file; values that an attribute can take are those of the persons in blocks."""
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise UserError(f'{path}: expected an object {{"0": person, "1": person, ..}}, got {str(raw)[:80]}')
    first, each, notes = _published_or_fewer(options, len(raw))
    sizes = _sizes(options, first, each, PRESETS["paper"].dev_share)
    count = sizes.num_person
    if len(raw) < count:
        raise UserError(f"{path}: got {len(raw)} persons, expected {count}; give --num-person[-first-task]")
    read = min(len(raw), 2 * count - sizes.num_person_first_task) if _needs_spare(sizes) else count
    persons = [_read_person(raw.pop(str(i), None), f"{path}, person {i}") for i in range(read)]
    answers = [{person[a][1] for person in persons[:count]} for a in range(len(ATTRIBUTES))]
    chance = sum(1 / len(seen) for seen in answers) / len(ATTRIBUTES)
    return Source("qa", sizes, persons, count, chance, {RAW_FILE: file_sha256(path)}, {"preset": None}, notes)


def _published_or_fewer(options: Options, available: int) -> tuple[int, int, list[str]]:
    """Persons of the first and of each later block: as published, or in that proportion if the file has fewer.

    The second case adds a note. Options that give a number of persons switch it off.
    """
    paper, later = PRESETS["paper"], options.num_task - 1
    wanted = paper.first + (0 if options.only_first_task else later * paper.each)
    ratio = paper.first // paper.each
    each = available // (ratio + later)
    is_given = options.num_person is not None or options.num_person_first_task is not None
    if available >= wanted or is_given or each == 0:
        return paper.first, paper.each, []
    note = f"{RAW_FILE} has {available} persons of the {wanted} published; sizes are in the published proportion"
    return ratio * each, each, [note]


def _read_person(row: Any, where: str) -> list[Question]:
    try:
        questions = [(row[a]["prompt"], row[a]["answer"]) for a in ATTRIBUTES]
        if all(isinstance(text, str) for question in questions for text in question):
            return questions
    except (KeyError, TypeError):
        pass
    wanted = ", ".join(ATTRIBUTES)
    raise UserError(f"{where}: expected {wanted}, each with the texts prompt and answer, got {str(row)[:80]}")


def _stream_name(options: Options, source: Source) -> str:
    """biography_qa_task<n> comes from raw files only; streams of invented persons are named after their preset."""
    if not options.only_first_task:
        return f"biography_{source.kind}_task{options.num_task - options.skip_first_task}"
    ratio = options.train_ratio_first_task
    return f"biography_{source.kind}_indomain_task1" + ("" if ratio is None else f"_ratio{ratio:.2f}")


def _config(options: Options, blocks: list[Block], tasks: tuple[TaskData, ...], source: Source) -> dict[str, Any]:
    count, sizes = len(tasks), source.sizes
    notes = {"notes": source.notes} if source.notes else {}
    return {
        "NUM_TASK": count,
        "NUM_PERSON": sizes.num_person,
        "NUM_PERSON_FIRST_TASK": sizes.num_person_first_task,
        "NUM_PERSON_EACH_TASK": sizes.each,
        "TASK_NAMES": [task.name for task in tasks],
        "IL_MODE": "CIT",
        "PROMPT_TYPE": "none",
        "METRIC": ["exact_match"] * count,
        "MAX_NEW_TOKENS": [32] * count,
        "MAX_SEQ_LENGTH": [128] * count,
        "CHANCE": [source.chance] * count,
        "DEV_IS_TEST": any(block.dev == block.test for block in blocks),
        "DEV_IS_TRAINED": [block.is_by_heart for block in blocks],
        "SOURCE": {"files": source.files, "options": options.model_dump() | sizes._asdict() | source.made_by} | notes,
    }
