"""Every YAML in config/ is a run that could start: options are valid and fit the stream; headers say what is known."""

import itertools
import re
from functools import cache
from pathlib import Path

from tests import tiny
from tests.unit.options.published import PUBLISHED
from tests.unit.preprocess.raw_data import write_instructions
from utils.factory import check_capability, load_method
from utils.options.checks import stream_fits
from utils.options.parse import Resolved, resolve
from utils.preprocess import load
from utils.preprocess.cl_benchmark import LONG_SEQUENCE, SUPERNI, Benchmark

ROOT = Path(__file__).parents[3]
FILES = sorted(
    p.relative_to(ROOT)
    for p in ROOT.glob("config/**/*.yaml")
    if p.parent.name != "accelerate" and not p.name.startswith("study")
)
FROM_FIXTURES = {
    "TRACE_task8": "TRACE",
    "zsre_task10": "zsre",
    "safety_alignment_llama2_task2": "safety_alignment",
    "topic3datasets_task5": "topic3datasets",
    "topic3datasets_agnews_dbpedia_small_task4": "topic3datasets",
    "clinc150_task15": "clinc150",
    "banking77_task7": "banking77",
    "fewrel_task8": "fewrel",
    "tacred_task8": "tacred",
    "i2b2_task5_base8_inc2": "i2b2",
    "ontonotes5_task6_base8_inc2": "ontonotes5",
    "superni_task15": "superni",
    "long_sequence_task15": "long_sequence",
    "standard_cl_task4": "standard_cl",
}


@cache
def read(path: Path) -> Resolved:
    return resolve(["--cfg", str(ROOT / path)])


def test_options_are_valid_and_the_header_runs_this_file():
    shared = (
        "smollm2_",
        "minilm_",
        "topics_heads",
        "learn_or_recall",
        "recipes",
        "published",
    )  # folders of files on several streams
    for path in FILES:
        config = read(path).config
        assert config.dataset in path.parts or path.parts[1].startswith(shared), path
        assert check_capability(config, load_method(config.method)) == [], path
        header = (ROOT / path).read_text(encoding="utf-8").split("il_mode")[0]
        assert f"python main_CL.py --cfg {path}" in header, path


def test_options_fit_the_stream(tmp_path):
    for benchmark in (SUPERNI, LONG_SEQUENCE):
        write_instructions(tmp_path / benchmark.folder, benchmark.tasks)
    for folder, dataset in FROM_FIXTURES.items():
        module = load(dataset)
        few = {"classes_per_task": 2} if "classes_per_task" in module.Options.model_fields else {}  # fixtures are small
        raw = tmp_path if isinstance(module, Benchmark) else ROOT / "tests/fixtures"
        stream = module.build(raw, module.Options(**few), 1)
        assert stream.name == folder or few, folder
        for path in (path for path in FILES if path.parent.name == folder):
            config = read(path).config
            assert stream_fits(tiny.plan(config, stream=stream)) == [], path
            told = "TIL" if stream.il_mode == "CIL" or config.method == "PEFT" else stream.il_mode
            assert config.il_mode in (stream.il_mode, told), path


def test_the_unit_that_is_classified_fits_the_stream():
    module = load("conll2003")
    stream = module.build(ROOT / "tests/fixtures", module.Options(base_task_entity=2), 1)
    for unit, count in (("auto", 0), ("sentence-level", 1)):
        config = resolve(["--cfg", "None", "--classification_type", unit]).config
        assert len(stream_fits(tiny.plan(config, stream=stream))) == count


def header(path: Path) -> str:
    """The comment above the first option, in one line, without options of commands."""
    lines = (ROOT / path).read_text(encoding="utf-8").split("\n")
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    text = " ".join(line.removeprefix("#").strip() for line in comment)
    return re.sub(r'--[\w-]+ ("[^"]*"|\S+)|arXiv \S+', "", text)


def figures(text: str) -> set[float]:
    """Numbers that could be scores: percentages and decimals."""
    return {float(number) for number in re.findall(r"(?<![\d.])(\d+\.\d+|\d+(?= %))", text)}


def values(options: Resolved) -> set[float]:
    """The numbers among a run's options, and their percentages."""
    given = [*options.config.model_dump().values(), *options.method_options.model_dump().values()]
    numbers = {x for x in given if isinstance(x, int | float)}
    return numbers | {round(100 * x, 6) for x in numbers}


def test_figures_in_headers_are_options_or_published_and_no_results_of_this_program():
    for path in FILES:
        text = header(path)
        stated, *_ = re.split(r"(?=Hardware:|Cost:|Published|Not measured|Results:)", text)
        published = "".join(re.findall(r"Published.*?(?=Not measured|Results:|$)", text))
        assert figures(stated) <= values(read(path)), f"{path}: not an option of this file: {stated}"
        assert figures(published) == set(PUBLISHED.get(path.with_suffix("").parts[1:], ())), f"{path}: {published}"
        assert ("Results: experiments/README.md" in text) != ("Not measured here" in text), path
        assert "Expect" not in text, path
    assert set(PUBLISHED) <= {path.with_suffix("").parts[1:] for path in FILES}
