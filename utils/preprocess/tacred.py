"""tacred (scenario CIL): the relationship between two marked entities, five of 40 relations per task.

Data: "Position-aware Attention and Supervised Data Improve Slot Filling" (Zhang et al., 2017), of the
Linguistic Data Consortium. It has no dev set.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from utils.dataset import Stream
from utils.preprocess.shared.classes import HeldOutOptions, RawClasses, hold_out, to_stream
from utils.preprocess.shared.raw import Origin, file_sha256
from utils.preprocess.shared.relations import find, read_relations

RAW_FILE = "tacred/TACRED-2021"  # .json or .pkl
ORIGIN = Origin(
    "catalog.ldc.upenn.edu/LDC2018T24, in the form TACRED-2021.pkl of github.com/shaoyijia/VAG, data",
    "LDC licence",
    "a few MB",
)
KINDS = {"org": "organization related", "per": "person related"}


class Options(HeldOutOptions):
    """Assignment of relations to tasks."""

    classes_per_task: int = Field(5, ge=1, description="Relations of each task; the last task gets the remainder.")


def build(raw_dir: Path | None, options: Options, seed: int) -> Stream:
    """Split the relations into tasks, in the order of the file; the dev lists of the file are not used.

    Args:
        raw_dir: Folder with tacred/TACRED-2021.json or tacred/TACRED-2021.pkl; None: dataset/.
        options: See Options.
        seed: Used only for sampling and for a shuffled order.

    Raises:
        UserError: the file is missing or wrong, or has fewer relations than the tasks need.
    """
    path = find(raw_dir, RAW_FILE, ORIGIN)
    relations = read_relations(path, ORIGIN)
    train, dev = hold_out(relations.splits["train"], options.dev_share, seed)
    facts = {"PROMPT_TYPE": "relation_classification_state", "MAX_SEQ_LENGTH": 128}
    files = {f"{RAW_FILE}{path.suffix}": file_sha256(path)}
    names = [readable(label) for label in relations.labels]
    groups = [label.partition(":")[0] for label in relations.labels]
    raw = RawClasses("tacred", str(path), names, train, dev, relations.splits["test"], files, facts, groups)
    return to_stream(raw, options, seed)


def readable(label: str) -> str:
    """A relation in words.

    >>> readable("per:cities_of_residence"), readable("org:number_of_employees/members")
    ('person related: city of residence', 'organization related: number of employees/members')
    """
    kind, colon, relation = label.partition(":")
    words = relation.replace("_", " ").replace("cities", "city")
    return f"{KINDS.get(kind, kind)}{colon} {words}".rstrip()
