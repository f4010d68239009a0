"""Named entities (scenario CIL, word level): fewnerd, i2b2, ontonotes5, conll2003; each task adds entity types.

A raw file has a word and its tag on each line and a blank line after each sentence. Training sentences are assigned
to tasks and keep only the tags of the task's types. The dev and test splits of task t are all sentences with a type
seen up to t, with the tags of the types seen up to t, so those of later tasks contain those of earlier ones.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from utils import config
from utils.dataset import LEVELS, SPLITS, Example, Stream, TaskData
from utils.errors import UserError
from utils.preprocess.shared.classes import class_facts
from utils.preprocess.shared.raw import Origin, file_sha256, raw_file
from utils.preprocess.shared.tagged import BARE, OUTSIDE, Sentence, Tagged, read_tagged, windows

MAX_SEQ_LENGTH = 128  # for the sentence; the longest answer is added

BASE_HELP = "Entity types of task 0."
EACH_HELP = "Entity types of each later task; 0: one task with all types."


class Options(config.OptionGroup):
    """Assignment of entity types to tasks."""

    base_task_entity: int = Field(6, ge=1, description=BASE_HELP)
    incremental_task_entity: int = Field(6, ge=0, description=EACH_HELP)
    seen_all_labels: bool = Field(
        False,
        description="Keep tags of other tasks in the training sentences; the published code always does.",
    )
    dev_may_lack_types: bool = Field(
        False, description="Accept a dev file without some of the types of train and test."
    )
    window: int | None = Field(
        None, ge=1, description="Split longer sentences into parts of at most n words, between entities; none: never."
    )


class EightAndTwo(Options):
    """Assignment of entity types to tasks."""

    base_task_entity: int = Field(8, ge=1, description=BASE_HELP)
    incremental_task_entity: int = Field(2, ge=0, description=EACH_HELP)


class OneAndOne(Options):
    """Assignment of entity types to tasks."""

    base_task_entity: int = Field(1, ge=1, description=BASE_HELP)
    incremental_task_entity: int = Field(1, ge=0, description=EACH_HELP)


class DataSet:
    """The properties in which the four data sets differ."""

    def __init__(self, name: str, options: type[Options], origin: Origin, runs: bool = False):
        self.name, self.Options, self.origin = name, options, origin
        self.runs = runs  # published tags are bare types, a run of them is one entity; and the order of types is drawn

    def build(self, raw_dir: Path | None, options: Options, seed: int) -> Stream:
        """Assign entity types and training sentences to tasks.

        Args:
            raw_dir: Folder with NAME/train.txt, NAME/dev.txt and NAME/test.txt; None: dataset/.
            options: See Options.
            seed: For training sentences that fit no task by their types, and in fewnerd for the order of types.

        Raises:
            UserError: a file is missing or wrong, or the options do not fit the number of types.
        """
        names = {split: f"{self.name}/{split}.txt" for split in SPLITS}
        paths = {split: raw_file(raw_dir, name) for split, name in names.items()}
        read = {split: read_tagged(path, self.origin) for split, path in paths.items()}
        splits = {split: file.sentences for split, file in read.items()}
        types = _types(splits, paths["train"].parent, options.dev_may_lack_types)
        if self.runs:
            random.Random(f"{seed}:types").shuffle(types)
        groups = _groups(types, options)
        order = {name: k for k, group in enumerate(groups) for name in group}
        train = assign(splits["train"], types, groups, random.Random(f"{seed}:leftover"))
        tasks = tuple(_task(train[k], splits, k, order, options) for k in range(len(groups)))
        dropped = len(splits["train"]) - sum(map(len, train))
        notes = [f"{dropped} training sentences fit in no task and are dropped"] if dropped else []
        used = options.model_dump(exclude=_unused(options))
        source = {
            "files": {names[split]: file_sha256(path) for split, path in paths.items()},
            "options": used | {"seed": seed},
            "dropped_records": dropped,
            "notes": notes + _notes(read, BARE if self.runs else "BIO", types, options),
        }
        base = len(groups[0])
        name = f"{self.name}_task{len(groups)}_base{base}_inc{options.incremental_task_entity}"
        return Stream(name, tasks, _facts(groups, tasks) | {"SOURCE": source})


def _unused(options: Options) -> set[str]:
    """Options that came later: streams made without them keep their bytes."""
    return {name for name in ("dev_may_lack_types", "window") if not getattr(options, name)}


def _notes(read: dict[str, Tagged], usual: str, types: list[str], options: Options) -> list[str]:
    """What was found out about the files."""
    lines = [f"{split}.txt: tags are {file.scheme}, made BIO" for split, file in read.items() if file.scheme != usual]
    lines += [f"{split}.txt: {file.loose} entities begin with I- or E-" for split, file in read.items() if file.loose]
    found = set().union(*(sentence.types for sentence in read["dev"].sentences))
    missing = [name for name in types if name not in found]
    lines += [f"dev.txt has no {', '.join(missing)}"] if missing else []
    longest = options.window or 0
    long = {split: sum(len(s.words) > longest for s in file.sentences) for split, file in read.items()}
    parts = ", ".join(f"{count} of {split}" for split, count in long.items() if longest and count)
    return lines + ([f"sentences in parts of at most {longest} words: {parts}"] if parts else [])


def _types(splits: dict[str, list[Sentence]], folder: Path, dev_may_lack: bool) -> list[str]:
    """The types in alphabetical order; all files must have the same."""
    found = {split: set().union(*(s.types for s in sentences)) for split, sentences in splits.items()}
    types = sorted(set().union(*found.values()))
    for split, present in found.items():
        missing = [name for name in types if name not in present]
        if missing and not (split == "dev" and dev_may_lack):
            hint = "; accept it with --dev-may-lack-types" if split == "dev" else ""
            raise UserError(
                f"{folder}: expected the same types in all files, but {split}.txt has no {missing[0]}{hint}"
            )
    if not types:
        raise UserError(f"{folder}: expected entities, but every tag is {OUTSIDE}")
    return types


def _groups(types: list[str], options: Options) -> list[list[str]]:
    """The types of each task."""
    base, each = options.base_task_entity, options.incremental_task_entity
    if each == 0:
        return [types]
    if base > len(types) or (len(types) - base) % each:
        raise UserError(
            f"--base-task-entity {base} --incremental-task-entity {each}: expected {len(types)} entity types in all, "
            f"as base + a multiple of incremental; {base} and {each} do not add up to that"
        )
    return [types[:base], *(types[i : i + each] for i in range(base, len(types), each))]


def assign(
    sentences: list[Sentence], types: list[str], groups: list[list[str]], rng: random.Random
) -> list[list[Sentence]]:
    """Training sentences of each task, in the order of the file.

    The capacity of a task is its share of the types, as a share of the sentences. A sentence goes to the task of its
    rarest type with room; otherwise to a random task with room; otherwise it is dropped.
    """
    room = [len(sentences) * len(group) // len(types) for group in groups]
    task_of = {name: k for k, group in enumerate(groups) for name in group}
    count = Counter(tag[2:] for sentence in sentences for tag in sentence.tags if tag[0] == "B")
    rank = {name: i for i, name in enumerate(sorted(types, key=count.__getitem__))}
    assigned: list[list[Sentence]] = [[] for _ in groups]
    for sentence in sentences:
        own = [task_of[name] for name in sorted(sentence.types, key=rank.__getitem__)]
        open_own = [k for k in own if room[k]]
        open_any = [k for k, left in enumerate(room) if left] if not open_own else []
        if open_own or open_any:
            k = open_own[0] if open_own else rng.choice(open_any)
            assigned[k].append(sentence)
            room[k] -= 1
    return assigned


def _task(
    train: list[Sentence], splits: dict[str, list[Sentence]], k: int, order: dict[str, int], options: Options
) -> TaskData:
    own = {name for name, task in order.items() if options.seen_all_labels or task == k}
    seen = {name for name, task in order.items() if task <= k}
    size = options.window
    chosen = {split: (s for s in splits[split] if s.types & seen) for split in ("dev", "test")}
    held = {split: _examples(sentences, seen, k, size) for split, sentences in chosen.items()}
    types = [name for name, task in order.items() if task == k]
    return TaskData(_task_name(types), train=_examples(train, own, k, size), **held)


def _task_name(types: list[str]) -> str:
    """The types of a task: all of them, or of many the first and the last.

    >>> _task_name(["LOC", "MISC"]), _task_name(["AGE", "CITY", "DATE", "ZIP"])
    ('LOC, MISC', 'AGE .. ZIP (4 types)')
    """
    return ", ".join(types) if len(types) < 4 else f"{types[0]} .. {types[-1]} ({len(types)} types)"


def _examples(sentences: Iterable[Sentence], kept: set[str], k: int, longest: int | None) -> tuple[Example, ...]:
    parts = (part for s in sentences for part in (windows(s, longest) if longest else [s]))
    return tuple(Example(" ".join(s.words), " ".join(_masked(s.tags, kept)), task=k) for s in parts)


def _masked(tags: list[str], kept: set[str]) -> Iterator[str]:
    return (tag if tag[2:] in kept else OUTSIDE for tag in tags)


def _facts(groups: list[list[str]], tasks: tuple[TaskData, ...]) -> dict[str, Any]:
    names = [OUTSIDE, *(f"{prefix}-{name}" for group in groups for name in group for prefix in "BI")]
    sizes = [2 * len(group) for group in groups]
    longest = [max((_tokens(e.target) for s in SPLITS for e in getattr(task, s)), default=1) for task in tasks]
    return (
        {"NUM_TASK": len(tasks)}
        | class_facts(names, [1 + sizes[0], *sizes[1:]])
        | {
            "PROMPT_TYPE": "default",
            "TASK_NAMES": [task.name for task in tasks],
            "METRIC": ["span_f1"] * len(tasks),
            "MAX_NEW_TOKENS": longest,
            "MAX_SEQ_LENGTH": [MAX_SEQ_LENGTH + count for count in longest],
            "IL_MODE": "CIL",
            "DEV_IS_TEST": False,
            "CLASSIFICATION_TYPE": LEVELS[1],
        }
    )


def _tokens(tags: str) -> int:
    """An upper bound in tokens: one for each O, one for each character of other tags, and EOS."""
    return 1 + sum(1 if tag == OUTSIDE else 1 + len(tag) for tag in tags.split(" "))


FEWNERD = DataSet(
    "fewnerd", Options, Origin("ningding97.github.io/fewnerd, supervised", "CC BY-SA 4.0", "about 60 MB"), runs=True
)
I2B2 = DataSet(
    "i2b2", EightAndTwo, Origin("the i2b2 2014 task, portal.dbmi.hms.harvard.edu", "data use agreement", "about 5 MB")
)
ONTONOTES5 = DataSet(
    "ontonotes5", EightAndTwo, Origin("catalog.ldc.upenn.edu/LDC2013T19", "LDC licence", "about 20 MB")
)
CONLL2003 = DataSet(
    "conll2003", OneAndOne, Origin("the CoNLL-2003 shared task", "Reuters terms, research only", "about 4 MB")
)
