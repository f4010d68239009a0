"""fewrel (scenario CIL): the relationship between two marked entities, ten of 80 relations per task.

Data: "FewRel: A Large-Scale Supervised Few-Shot Relation Classification Dataset" (Han et al., 2018).
"""

from __future__ import annotations

from pathlib import Path

from utils.dataset import Stream
from utils.preprocess.shared.classes import ClassOptions, RawClasses, to_stream
from utils.preprocess.shared.raw import DATASET_DIR, Origin, file_sha256
from utils.preprocess.shared.relations import find, read_relations

RAW_FILE = "fewrel/FewRel-2021"  # .json or .pkl
ORIGIN = Origin(
    "github.com/thunlp/FewRel, in the form of continual-learning code (FewRel-2021.pkl)",
    "MIT, sentences CC BY-SA from Wikipedia",
    "about 13 MB",
)


class Options(ClassOptions):
    """Assignment of relations to tasks."""


def build(raw_dir: Path | None, options: Options, seed: int) -> Stream:
    """Split the relations into tasks, in the order of the file.

    Args:
        raw_dir: Folder with fewrel/FewRel-2021.json or fewrel/FewRel-2021.pkl; None: dataset/.
        options: See Options.
        seed: Used only for sampling and for a shuffled order.

    Raises:
        UserError: the file is missing or wrong, or has fewer relations than the tasks need.
    """
    path = find(raw_dir or DATASET_DIR, RAW_FILE, ORIGIN)
    relations = read_relations(path, ORIGIN)
    facts = {"PROMPT_TYPE": "relation_classification_state", "MAX_SEQ_LENGTH": 100}
    files = {f"{RAW_FILE}{path.suffix}": file_sha256(path)}
    raw = RawClasses("fewrel", str(path), relations.labels, **relations.splits, files=files, facts=facts)
    return to_stream(raw, options, seed)
