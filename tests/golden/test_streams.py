"""Bytes of generated data for seed 1; a change here changes every published number and needs a reason."""

import hashlib
import json
from pathlib import Path

import pytest

from utils.dataset import encode
from utils.preprocess import biography_qa, biography_synth, load

FIXTURES = Path(__file__).parents[1] / "fixtures"
GOLDEN = json.loads(Path(__file__).with_name("streams.json").read_text(encoding="utf-8"))
STREAMS = {
    "micro": {"preset": "micro", "num_task": 3},
    "demo_task2": {"preset": "demo", "num_task": 2},
    "demo_task6": {"preset": "demo", "num_task": 6},
}
FROM_FIXTURES = {  # stream -> data set, its folder of raw data, options
    "TRACE": ("TRACE", "", {"sub_sample_test": "3,-1,2,2,2,-1,-1,2"}),
    "zsre": ("zsre", "", {}),
    "safety_alignment": ("safety_alignment", "", {}),
    "safety_alignment_conversation": ("safety_alignment", "", {"loss_on": "conversation"}),
    "jsonl": ("jsonl", "jsonl", {}),
    "concept_1k": ("concept_1k", "", {"num_task": 3}),
    "topic3datasets": ("topic3datasets", "", {"num_sample_train_per_class": 2, "num_sample_test_per_class": 1}),
    "clinc150": ("clinc150", "", {"classes_per_task": 2}),
    "clinc150_drawn": ("clinc150", "", {"class_order": "shuffled", "num_sample_train_per_class": 3}),
    "banking77": ("banking77", "", {"classes_per_task": 2, "dev_share": 0.25}),
    "fewrel": ("fewrel", "", {"classes_per_task": 2}),
    "tacred": ("tacred", "", {"classes_per_task": 2}),
    "fewnerd": ("fewnerd", "", {"base_task_entity": 2, "incremental_task_entity": 2}),
    "conll2003": ("conll2003", "", {}),
    "i2b2": ("i2b2", "", {}),
    "ontonotes5": ("ontonotes5", "", {}),
}


@pytest.mark.parametrize("name", FROM_FIXTURES)
def test_stream_from_fixtures(name):
    dataset, folder, options = FROM_FIXTURES[name]
    module = load(dataset)
    stream = module.build(FIXTURES / folder, module.Options(**options), 1)
    digests = {file: hashlib.sha256(text.encode()).hexdigest() for file, text in encode(stream).items()}
    assert digests == GOLDEN[name]


@pytest.mark.parametrize("name", STREAMS)
def test_stream(name, tmp_path):
    stream = biography_qa.build(tmp_path, biography_qa.Options(**STREAMS[name]), 1)
    digests = {file: hashlib.sha256(text.encode()).hexdigest() for file, text in encode(stream).items()}
    assert digests == GOLDEN[name]


@pytest.mark.parametrize("preset", ["micro", "demo"])
def test_raw_files(preset, tmp_path):
    biography_synth.write_raw(tmp_path, biography_synth.Options(preset=preset), 1, False)
    meta = json.loads((tmp_path / "biography_qa/meta.json").read_text(encoding="utf-8"))
    assert meta["sha256"] == GOLDEN[f"{preset}_raw"]
