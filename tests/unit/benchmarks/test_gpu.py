"""The helpers of the GPU checks, on the CPU, so that they work where there is no GPU to try them on."""

import pytest

from benchmarks import common, gpu, training
from benchmarks.gpu import measure, measure_launched, write_inputs
from tests.tiny import forget_processes
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


@pytest.mark.slow
def test_the_whole_script_in_miniature(monkeypatch, tmp_path, capsys):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    monkeypatch.setattr(common, "SHAPE", common.SHAPE | shape | {"vocab_size": 2000})
    monkeypatch.setattr(common, "RAW", tmp_path)
    monkeypatch.setattr(common, "WORDS", 1500)
    monkeypatch.setattr(gpu, "SIZES", {"short": (8, 1), "long": (4, 3)})
    monkeypatch.setattr(gpu, "STATES", (0,))
    monkeypatch.setattr(training, "has_trl", lambda: False)
    forget_processes()
    words = ["--shape", "micro", "--rounds", "1", "--steps", "2", "--questions", "4", "--out", str(tmp_path / "x.json")]
    assert gpu.main(words) == 0
    found = read_json(tmp_path / "x.json")
    assert [(row["trained"], row["answers"], row["way"]) for row in found["training"]] == [
        (trained, answers, way) for trained in ("full", "LoRA") for answers in ("short", "long")
        for way in ("own", "trainer")
    ]  # fmt: skip
    assert all(row["tokens_per_second"] > 0 and row["share_of_matmul_peak"] > 0 for row in found["training"])
    assert all(row["planned_bytes"] > 1e5 for row in found["training"] if row["way"] == "own")
    assert "the losses differ" not in capsys.readouterr().out
    assert len(found["evaluation"]) == 1 and "generate 16" in found["evaluation"][0]
    assert found["machine"]["versions"]["torch"] and found["matmul_flops_per_second"] > 0
