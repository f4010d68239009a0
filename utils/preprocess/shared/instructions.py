r"""Tasks in the format of Natural Instructions: one definition, and instances of an input and its accepted outputs.

    {"Definition": ["..."], "Instances": [{"input": "...", "output": ["...", "..."]}, ..]}

`Definition` is a text, a list of texts, which are joined by line ends, or an empty list; an output is a text or a list
of texts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from utils import config
from utils.dataset import Example, TaskData
from utils.errors import UserError
from utils.preprocess.shared.raw import Origin, read_raw_json
from utils.preprocess.shared.records import Row

MAX_SEQ_LENGTH, MAX_NEW_TOKENS = 512, 50  # as published: tokens of prompt and answer
Rows = tuple[Example, ...]
Render = Callable[[str, str], str]  # of definition and input


class InstructionOptions(config.OptionGroup):
    """Prompts and answers."""

    prompt: Literal["sapt", "olora"] = Field(
        "sapt", description="Prompt as in the code of SAPT, or of O-LoRA, which names task and data set."
    )
    answer: Literal["first", "drawn"] = Field(
        "first",
        description="Training answer of a question with several: the first, or one drawn with the seed. Scores are the "
        "best over all.",
    )
    dev_share: float = Field(
        0, ge=0, lt=1, description="Share of each task's training examples to move to dev; 0: the dev file, or test."
    )


class Instance(NamedTuple):
    """A question and its different accepted answers, at least one."""

    input: str
    outputs: tuple[str, ...]


class Instructions(NamedTuple):
    """One split of a task."""

    definition: str  # without white space at the ends; may be empty
    instances: list[Instance]


def read_instructions(path: Path, origin: Origin) -> Instructions:
    """Read and check a file.

    Raises:
        UserError: the file is missing, is not JSON of this format, or has no instances.
    """
    content = read_raw_json(path, origin)
    instances = content.get("Instances") if isinstance(content, dict) else None
    if not isinstance(instances, list) or not instances:
        found = f"the fields {', '.join(content) or 'none'}" if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path}: expected an object with a list of Instances, as in Natural Instructions, got {found}")
    places = (f"{path}, instance {i}" for i in range(1, len(instances) + 1))
    return Instructions(_definition(content, path), list(map(_instance, instances, places)))


def _definition(content: dict[str, Any], path: Path) -> str:
    given = content.get("Definition", [])
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"{path}: expected a text or a list of texts in the field 'Definition', got {type(given).__name__}"
        )
    return "\n".join(text.strip() for text in texts).strip()


def _instance(record: Any, where: str) -> Instance:
    row = Row(where, record if isinstance(record, dict) else {})
    given = row.fields.get("output")
    outputs = given if isinstance(given, list) else [given]
    if not outputs:
        raise UserError(f"{where}: expected a text or a list of texts in the field 'output', got an empty list")
    texts = [Row(where, {"output": output}).text("output") for output in outputs]
    return Instance(row.text("input"), tuple(dict.fromkeys(texts)))


def examples(read: Instructions, render: Render, k: int) -> Rows:
    """Examples whose target is the first answer.

    Args:
        read: The split.
        render: Makes the prompt from definition and input.
        k: Position of the task.
    """
    return tuple(
        Example(render(read.definition, x.input), x.outputs[0], task=k, references=x.outputs if x.outputs[1:] else None)
        for x in read.instances
    )


def superni_prompt(name: str, options: InstructionOptions) -> Render:
    """The prompt of SuperNI in the code of SAPT; with `--prompt olora` behind the names that its options put there."""
    prefix = f"Task:CL\nDataset:{name}\n" if options.prompt == "olora" else ""
    return lambda definition, text: prefix + _without_examples(definition, text)


def _without_examples(definition: str, text: str) -> str:
    head = f"Definition: {definition}\n\n" if definition else ""
    return f"{head}Now complete the following example -\nInput: {text}\nOutput: "


def finish(name: str, rows: dict[str, Rows], options: InstructionOptions, seed: int) -> TaskData:
    """A task of these splits: with a dev split, and with drawn training answers if the options say so.

    Raises:
        UserError: too few training examples for a dev split.
    """
    train, test, dev = rows["train"], rows["test"], rows.get("dev", rows["test"])
    if options.dev_share:
        train, dev = move(train, options.dev_share, random.Random(f"{seed}:dev:{name}"), name)
    if options.answer == "drawn":
        rng = random.Random(f"{seed}:answers:{name}")
        train = tuple(replace(row, target=rng.choice(row.accepted)) for row in train)
    return TaskData(name, train, dev, test)


def move(rows: Rows, share: float, rng: random.Random, name: str) -> tuple[Rows, Rows]:
    """The rows that stay and those that move to another split: a share, at least one; both keep their order.

    Raises:
        UserError: none would stay.
    """
    count = max(1, round(share * len(rows)))
    if count >= len(rows):
        raise UserError(f"{name}: {len(rows)} instances are too few to divide")
    drawn = set(rng.sample(range(len(rows)), count))
    kept, moved = ([row for i, row in enumerate(rows) if (i in drawn) is wanted] for wanted in (False, True))
    return tuple(kept), tuple(moved)


def facts(tasks: Sequence[TaskData], metrics: Sequence[str], options: InstructionOptions) -> dict[str, Any]:
    """The facts that all streams of instructions state."""
    count = len(tasks)
    return {
        "NUM_TASK": count,
        "TASK_NAMES": [task.name for task in tasks],
        "METRIC": list(metrics),
        "PROMPT_TYPE": "none",
        "MAX_NEW_TOKENS": [MAX_NEW_TOKENS] * count,
        "MAX_SEQ_LENGTH": [MAX_SEQ_LENGTH] * count,
        "IL_MODE": "CIT",
        "DEV_IS_TEST": all(task.dev == task.test for task in tasks),
        "TASK_NAME_IN_PROMPT": options.prompt == "olora",
    }
