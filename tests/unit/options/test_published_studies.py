"""The studies of config/published could start, and experiments/published.md is made from them."""

import pytest

from tests import published, tiny
from tests.unit.options.published import CONCEPT_1K, STREAMS, TABLE_7
from utils.options.parse import resolve
from utils.report.published import problems_of
from utils.study import read_study


def test_the_files_exist_and_the_published_numbers_are_of_their_rows():
    for file in published.STUDIES:
        study, path = read_study(file), file.relative_to(published.ROOT)
        rows = published.rows_of(study)
        assert not study.tune and study.prefix and study.source and study.published, path
        assert problems_of(study.published, [row.name for row in rows]) == [], path
        for row in rows:
            assert resolve(["--cfg", str(row.cfg), *row.words]).config.dataset, path
        assert file.read_text(encoding="utf-8").startswith(f"# python -m utils.study {path}\n"), path


def test_the_numbers_are_those_of_the_tables():
    for stream, file in zip(STREAMS, ("_topic3", "", "_banking77", "_fewrel", "_tacred"), strict=True):
        study = read_study(published.ROOT / f"config/published/learn_or_recall/study{file}.yaml")
        assert study.set["dataset"] == stream
        for name, cells in TABLE_7.items():
            last, mean = map(float, cells.split()[STREAMS.index(stream)].split("/"))
            own = study.published[name]
            assert (own["average_accuracy"], own["average_incremental_accuracy"]) == (last, mean), (stream, name)
    known = read_study(published.ROOT / "config/published/concept_1k/study.yaml").published
    for name, scores in CONCEPT_1K.items():
        own = known["PCLL_without_vae" if name == "PCLL" else name]
        assert tuple(value for metric, value in own.items() if metric != "mark") == scores[:4], name


def test_the_document_is_made_from_the_studies():
    text = published.DOCUMENT.read_text(encoding="utf-8")
    assert published.sections() in text, "run: python -m tests.published"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["concept_1k/study", "learn_or_recall/study", "learn_or_recall/study_i2b2"])
def test_a_dry_run_estimates_hours_and_memory(name):
    tiny.forget_processes()
    study = read_study(published.ROOT / f"config/published/{name}.yaml")
    found = published.estimates(study)
    assert len(found) == len(study.files) * len(study.seeds) and all(one.fits and one.hours[0] > 0 for one in found)
