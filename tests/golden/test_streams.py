"""Bytes of generated data for seed 1; a change here changes every published number and needs a reason."""

import json

import pytest

from tests.golden.streams import FILE, STREAMS, digests
from utils.preprocess import biography_synth
from utils.storage.files import read_json


def test_streams_keep_their_bytes():
    golden = read_json(FILE)
    assert [name for name in STREAMS if digests(name) != golden.get(name)] == []


@pytest.mark.parametrize("preset", ["micro", "demo"])
def test_raw_files(preset, tmp_path):
    biography_synth.write_raw(tmp_path, biography_synth.Options(preset=preset), 1, False)
    meta = json.loads((tmp_path / "biography_qa/meta.json").read_text(encoding="utf-8"))
    assert meta["sha256"] == read_json(FILE)[f"{preset}_raw"]
