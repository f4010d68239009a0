"""banking77 (scenario CIL): questions of bank customers in 77 intents, eleven intents per task.

Data: "Efficient Intent Detection with Dual Sentence Encoders" (Casanueva et al., 2020). It has no dev set.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from utils.dataset import Stream
from utils.errors import UserError
from utils.preprocess.shared.classes import HeldOutOptions, Labelled, RawClasses, check_once, hold_out, to_stream
from utils.preprocess.shared.raw import Origin, file_sha256, raw_file, read_raw_json, shown
from utils.preprocess.shared.records import Row, read_rows

TRAIN_FILE, TEST_FILE, CLASS_FILE = "banking77/train.csv", "banking77/test.csv", "banking77/categories.json"
ORIGIN = Origin("github.com/PolyAI-LDN/task-specific-datasets, banking_data", "CC BY 4.0", "1.1 MB")


class Options(HeldOutOptions):
    """Assignment of intents to tasks."""

    classes_per_task: int = Field(11, ge=1, description="Intents of each task; the last task gets the remainder.")


def build(raw_dir: Path | None, options: Options, seed: int) -> Stream:
    """Split the intents into tasks, in the order of categories.json.

    Args:
        raw_dir: Folder with banking77/train.csv, banking77/test.csv and banking77/categories.json; None: dataset/.
        options: See Options.
        seed: Used only for sampling and for a shuffled order.

    Raises:
        UserError: a file is missing or wrong, or has fewer intents than the tasks need.
    """
    paths = {name: raw_file(raw_dir, name) for name in (TRAIN_FILE, TEST_FILE, CLASS_FILE)}
    classes = _read_classes(paths[CLASS_FILE])
    position = {name: i for i, name in enumerate(classes)}
    rows, test = (
        [_read_row(row, position) for row in read_rows(paths[name], ORIGIN)] for name in (TRAIN_FILE, TEST_FILE)
    )
    train, dev = hold_out(rows, options.dev_share, seed)
    files = {name: file_sha256(path) for name, path in paths.items()}
    names = [name.replace("_", " ") for name in classes]
    facts = {"PROMPT_TYPE": "default", "MAX_SEQ_LENGTH": 64}
    raw = RawClasses("banking77", str(paths[CLASS_FILE].parent), names, train, dev, test, files, facts)
    return to_stream(raw, options, seed)


def _read_classes(path: Path) -> list[str]:
    classes = read_raw_json(path, ORIGIN)
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{path}: expected a list of texts, got {shown(classes)}")
    check_once(classes, path)
    return classes


def _read_row(row: Row, position: dict[str, int]) -> Labelled:
    text, category = row.text("text"), row.text("category").strip()
    if not text.strip():
        raise UserError(f"{row.where}: expected a text in the field 'text', got an empty one")
    if category not in position:
        raise UserError(f"{row.where}: expected a name of {CLASS_FILE} in the field 'category', got {shown(category)}")
    return Labelled(text, position[category])
