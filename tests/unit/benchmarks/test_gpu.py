"""The helpers of the GPU checks, on the CPU, so that they work where there is no GPU to try them on."""

import pytest

from benchmarks.gpu import measure, measure_launched, write_inputs
from utils.storage.files import read_json


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"), "micro", rows=20, words=12)


@pytest.mark.slow
def test_a_run_is_measured(options, tmp_path):
    plain = measure(tmp_path / "plain", *options)
    assert len(plain.losses) == 2 * 2 * 2
    assert plain.tokens_per_second > 0 and plain.peak_bytes > 1e7
    assert "tokens/s, peak " in str(plain)
    assert measure(tmp_path / "bf16", *options, "--mixed_precision", "bfloat16").losses != plain.losses


@pytest.mark.slow
def test_a_launch_is_measured(options, tmp_path):
    plain = measure(tmp_path / "one", *options)
    two = measure_launched(tmp_path / "two", "cpu_2", 2, *options)
    assert read_json(two.folder / "env.json")["processes"] == 2
    assert two.losses == pytest.approx(plain.losses, rel=1e-5)
