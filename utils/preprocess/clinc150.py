"""clinc150 (scenario CIL): questions in 150 intents, ten intents per task.

Data: "An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction" (Larson et al., 2019);
the out-of-scope questions are not used. The order of the intents is that of label_dict.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from utils.dataset import Stream
from utils.errors import UserError
from utils.preprocess.shared.classes import ClassOptions, Labelled, Naming, RawClasses, name_classes, to_stream
from utils.preprocess.shared.raw import Origin, file_sha256, raw_file, read_raw_json, shown
from utils.preprocess.shared.records import Row

DATA_FILE, LABEL_FILE = "clinc150/data_full.json", "clinc150/label_dict.json"
OUT_OF_SCOPE = "oos"
ORIGIN = Origin("github.com/shaoyijia/VAG, data/clinc150", "CC BY 3.0", "2 MB")


class Options(ClassOptions):
    """Assignment of intents to tasks."""

    variant: Literal["numbertarget", "classidxplusone"] | None = Field(
        None,
        description="numbertarget: the answer is the class number; classidxplusone: all class ids move on by "
        "one (the last becomes 0), and the tasks with them.",
    )


def build(raw_dir: Path | None, options: Options, seed: int) -> Stream:
    """Split the intents into tasks, in the order of label_dict.json.

    Args:
        raw_dir: Folder with clinc150/data_full.json and clinc150/label_dict.json; None: dataset/.
        options: See Options.
        seed: Used only for sampling and for a shuffled order.

    Raises:
        UserError: a file is missing or wrong, or has fewer intents than the tasks need.
    """
    path, label_path = raw_file(raw_dir, DATA_FILE), raw_file(raw_dir, LABEL_FILE)
    intents = _read_intents(label_path)
    data = read_raw_json(path, ORIGIN)
    train, dev, test = (_read_split(data, key, intents, path) for key in ("train", "val", "test"))
    files = {DATA_FILE: file_sha256(path), LABEL_FILE: file_sha256(label_path)}
    facts = {"PROMPT_TYPE": "default", "MAX_SEQ_LENGTH": 50}
    names = [intent.replace("_", " ") for intent in intents]
    raw = RawClasses("clinc150", str(path), names, train, dev, test, files, facts)
    naming = _naming(names, options, seed)
    stream = to_stream(raw, options, seed, naming)
    suffix = f"_{options.variant}" if options.variant else ""
    classes = {"CLASSNAME_LIST": [names[position] for position in naming.order[: stream.config["NUM_CLASS"]]]}
    return Stream(stream.name + suffix, stream.tasks, stream.config | classes)


def _naming(names: list[str], options: Options, seed: int) -> Naming:
    order, targets = name_classes(names, options, seed)
    if options.variant == "numbertarget":
        targets = [str(i) for i in range(len(names))]
    if options.variant == "classidxplusone":
        order, targets = [*order[-1:], *order[:-1]], [*targets[-1:], *targets[:-1]]
    return Naming(order, targets)


def _read_intents(path: Path) -> dict[str, int]:
    """Intent -> position, by their numbers in the file, without out-of-scope."""
    numbers = read_raw_json(path, ORIGIN)
    if not isinstance(numbers, dict) or not all(type(number) is int for number in numbers.values()):
        raise UserError(f'{path}: expected {{"intent": number, ...}}, got {shown(numbers)}')
    intents = sorted(numbers.keys() - {OUT_OF_SCOPE}, key=numbers.__getitem__)
    if len({numbers[intent] for intent in intents}) < len(intents):
        raise UserError(f"{path}: expected every number once, got one of them twice")
    return {intent: i for i, intent in enumerate(intents)}


def _read_split(data: Any, split: str, intents: dict[str, int], path: Path) -> list[Labelled]:
    if not isinstance(data, dict) or not isinstance(data.get(split), list):
        raise UserError(f"{path}: expected a list named {split!r}, got none")
    return [_read_row(cell, f"{path}, {split}, record {i}", intents) for i, cell in enumerate(data[split], start=1)]


def _read_row(cell: Any, where: str, intents: dict[str, int]) -> Labelled:
    if not isinstance(cell, list) or len(cell) != 2:
        raise UserError(f"{where}: expected [text, intent], got {shown(cell)}")
    row = Row(where, dict(zip(("text", "intent"), cell, strict=True)))
    text, intent = row.text("text"), row.text("intent")
    if not text.strip():
        raise UserError(f"{where}: expected a text in the field 'text', got an empty one")
    if intent not in intents:
        raise UserError(f"{where}: expected an intent of {LABEL_FILE} in the field 'intent', got {shown(intent)}")
    return Labelled(text, intents[intent])
