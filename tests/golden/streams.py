"""Streams of seed 1, whose bytes tests/golden/streams.json pins. `python -m tests.make DATASET` writes those of one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from utils.dataset import Stream, encode
from utils.preprocess import PREPROCESSORS, load
from utils.storage.files import read_json, write_json

FILE = Path(__file__).with_name("streams.json")
FIXTURES = Path(__file__).parents[1] / "fixtures"
# stream -> data set, the folder in tests/fixtures that is its dataset/ ("": fixtures itself), options. A data set that
# needs no options needs no row.
STREAMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    name: (name, "", {}) for name in PREPROCESSORS if name != "biography_qa"
}
STREAMS |= {
    "micro": ("biography_qa", "", {"preset": "micro", "num_task": 3}),
    "demo_task2": ("biography_qa", "", {"preset": "demo", "num_task": 2}),
    "demo_task6": ("biography_qa", "", {"preset": "demo", "num_task": 6}),
    "TRACE": ("TRACE", "", {"sub_sample_test": "3,-1,2,2,2,-1,-1,2"}),
    "safety_alignment_conversation": ("safety_alignment", "", {"loss_on": "conversation"}),
    "jsonl": ("jsonl", "jsonl", {}),
    "superni": ("superni", "", {"order": "748,363"}),
    "superni_drawn": ("superni", "", {"order": "748", "prompt": "olora", "answer": "drawn"}),
    "long_sequence": ("long_sequence", "", {"order": "mnli,copa,qqp"}),
    "long_sequence_olora": ("long_sequence", "", {"order": "qqp,copa,mnli", "prompt": "olora", "dev_share": 0.3}),
    "standard_cl": ("standard_cl", "", {"order": "amazon,agnews"}),
    "natural_instructions": ("natural_instructions", "natural_instructions", {"test_share": 0.3}),
    "concept_1k": ("concept_1k", "", {"num_task": 3}),
    "topic3datasets": ("topic3datasets", "", {"num_sample_train_per_class": 2, "num_sample_test_per_class": 1}),
    "clinc150": ("clinc150", "", {"classes_per_task": 2}),
    "clinc150_drawn": ("clinc150", "", {"class_order": "shuffled", "num_sample_train_per_class": 3}),
    "banking77": ("banking77", "", {"classes_per_task": 2, "dev_share": 0.25}),
    "fewrel": ("fewrel", "", {"classes_per_task": 2}),
    "tacred": ("tacred", "", {"classes_per_task": 2}),
    "fewnerd": ("fewnerd", "", {"base_task_entity": 2, "incremental_task_entity": 2}),
}


def build(name: str) -> Stream:
    """A stream of the table."""
    dataset, folder, options = STREAMS[name]
    module = load(dataset)
    return module.build(FIXTURES / folder, module.Options(**options), 1)


def digests(name: str) -> dict[str, str]:
    """SHA-256 of each file of a stream."""
    return {file: hashlib.sha256(text.encode()).hexdigest() for file, text in encode(build(name)).items()}


def write(datasets: Iterable[str]) -> None:
    """Compute the digests of these data sets' streams again; the others stay."""
    made = {name: digests(name) for name, (dataset, *_) in STREAMS.items() if dataset in datasets}
    write_json(FILE, read_json(FILE) | made)
