"""The table of data sets. To add one: a file here, a line below, a raw fixture in tests/."""

from __future__ import annotations

import importlib
from typing import Any

PREPROCESSORS = {  # name on the command line -> module, or module:object, with Options and build() -> Stream
    "biography_qa": "utils.preprocess.biography_qa",
    "concept_1k": "utils.preprocess.concept_1k",
    "topic3datasets": "utils.preprocess.topic3datasets",
    "clinc150": "utils.preprocess.clinc150",
    "banking77": "utils.preprocess.banking77",
    "fewrel": "utils.preprocess.fewrel",
    "tacred": "utils.preprocess.tacred",
    "fewnerd": "utils.preprocess.word_level:FEWNERD",
    "i2b2": "utils.preprocess.word_level:I2B2",
    "ontonotes5": "utils.preprocess.word_level:ONTONOTES5",
    "conll2003": "utils.preprocess.word_level:CONLL2003",
    "TRACE": "utils.preprocess.trace",
    "zsre": "utils.preprocess.zsre",
    "safety_alignment": "utils.preprocess.safety_alignment",
    "superni": "utils.preprocess.cl_benchmark:SUPERNI",
    "long_sequence": "utils.preprocess.cl_benchmark:LONG_SEQUENCE",
    "standard_cl": "utils.preprocess.cl_benchmark:STANDARD_CL",
    "natural_instructions": "utils.preprocess.natural_instructions",
    "jsonl": "utils.preprocess.jsonl",
}
GENERATORS = {  # name on the command line -> module with Options and write_raw() -> lines to print
    "biography_synth": "utils.preprocess.biography_synth",
}


def load(name: str) -> Any:
    """Import the module, or the object in it, of one data set.

    Raises:
        KeyError: the name is in neither table.
    """
    path, _, entry = (PREPROCESSORS | GENERATORS)[name].partition(":")
    module = importlib.import_module(path)
    return getattr(module, entry) if entry else module
