"""The sections of experiments/published.md, which `python -m tests.published` writes, and dry runs of its studies.

Dry runs need neither data nor hub: streams are those of the fixtures, and backbones have the shapes of SHAPES.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from transformers import AutoTokenizer, BertConfig, GPTNeoXConfig, LlamaConfig, PretrainedConfig, T5Config

from tests import tiny
from tests.unit.preprocess.raw_data import write_instructions
from utils import backbone
from utils.config import Config
from utils.dataset import Example, Stream, TaskData
from utils.estimate import Estimate
from utils.jobs import choice, gpu_hours, runs
from utils.preprocess import load
from utils.preprocess.cl_benchmark import LONG_SEQUENCE, SUPERNI, Benchmark
from utils.report.published import MARKS, TITLES
from utils.report.tables import markdown
from utils.study import Study, read_study
from utils.sweep import jobs_of
from utils.tune.space import text_of

ROOT = Path(__file__).parents[1]
STUDIES = sorted((ROOT / "config/published").glob("*/study*.yaml"))
DOCUMENT = ROOT / "experiments/published.md"
BEGIN, END = "<!-- studies -->", "<!-- end of studies -->"


BARE = {"biography_qa_task2": (2, "CIT"), "concept_1k_task10": (10, "IIL")}  # have no fixture of this many tasks


def _pythia(width: int, layers: int, heads: int) -> PretrainedConfig:
    size = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return GPTNeoXConfig(**size, intermediate_size=4 * width, vocab_size=50_304, max_position_embeddings=2048)


SHAPES: dict[str, PretrainedConfig] = {
    "backbones/pythia-160m-bio": _pythia(768, 12, 12),
    "EleutherAI/pythia-410m-deduped": _pythia(1024, 24, 16),
    "meta-llama/Llama-2-7b-chat-hf": LlamaConfig(max_position_embeddings=4096),
    "google-t5/t5-large": T5Config(
        d_model=1024, d_kv=64, d_ff=4096, num_layers=24, num_heads=16, decoder_start_token_id=0, vocab_size=32_128
    ),
    "bert-base-cased": BertConfig(vocab_size=28_996),
}


def rows_of(study: Study) -> list[choice.Entry]:
    """The rows of a study."""
    settings = [(name, text_of(value)) for name, value in study.set.items()]
    return choice.entries([ROOT / file for file in study.files], study.methods, settings)


@cache
def stream(name: str) -> Stream:
    """A small stream in the place of a real one."""
    built = _bare(*BARE[name]) if name in BARE else _from_fixture(name.split("_task")[0].removesuffix("_llama2"))
    return replace(built, name=name)


def _bare(tasks: int, scenario: str) -> Stream:
    rows = [(Example(f"What is the birth city of person {k}?\nAnswer:", "Rome", task=k),) for k in range(tasks)]
    facts = {
        "PROMPT_TYPE": "none",
        "IL_MODE": scenario,
        "MAX_NEW_TOKENS": [32] * tasks,
        "MAX_SEQ_LENGTH": [128] * tasks,
    }
    return Stream("bare", tuple(TaskData(f"task {k}", row, row, row) for k, row in enumerate(rows)), facts)


def _from_fixture(dataset: str) -> Stream:
    module = load(dataset)
    few = {"classes_per_task": 2} if "classes_per_task" in module.Options.model_fields else {}  # fixtures are small
    with TemporaryDirectory() as folder:
        for benchmark in (SUPERNI, LONG_SEQUENCE):
            write_instructions(Path(folder) / benchmark.folder, benchmark.tasks)
        raw = Path(folder) if isinstance(module, Benchmark) else ROOT / "tests/fixtures"
        return module.build(raw, module.Options(**few), 1)


def _fetch(load_it: Any, config: Config, **_: Any) -> Any:
    shape = SHAPES[backbone.find_source(config)]
    if load_it.__self__ is not AutoTokenizer:
        return shape
    both = shape.model_type == "bert"
    return tiny.tokenizer(both=both, end=shape.model_type == "t5")


@contextmanager
def offline() -> Iterator[None]:
    """Plans are made without data and hub."""
    with (
        mock.patch.object(runs, "stream_of", lambda config: stream(config.dataset)),
        mock.patch.object(backbone, "_fetch", _fetch),
    ):
        yield


def estimates(study: Study) -> list[Estimate]:
    """Of all runs of a study."""
    tiny.forget_processes()
    with offline(), TemporaryDirectory() as folder:
        jobs = jobs_of(rows_of(study), study.seeds, study.orders, "published", Path(folder))
        found = gpu_hours.estimates(runs.check_all(jobs))
        return [found[job] for job in jobs if job in found]


def sections() -> str:
    """A section per study."""
    return "\n\n".join(map(section, STUDIES))


def section(file: Path) -> str:
    """Source, command, how the numbers were read, and the numbers in percent, of a study."""
    study = read_study(file)
    rows = study.published
    names = list(dict.fromkeys(name for own in rows.values() for name in own if name != "mark"))
    lines = [[row, *(f"{own[name]:g}" if name in own else "" for name in names)] for row, own in rows.items()]
    marks = ", ".join(mark for mark in MARKS if any(own["mark"] == mark for own in rows.values()))
    count = len(study.files) * len(study.seeds) * len(study.orders)
    command = f"```\npython -m utils.study {file.relative_to(ROOT)}\n```"
    said = f"{count} runs, not run. Read from: {marks}."
    return "\n\n".join([f"## {study.source}", command, said, markdown([["row", *(TITLES[n] for n in names)], *lines])])


def main() -> None:
    """Write the sections."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{sections()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
