"""What only a GPU can show: precision, attention, memory, speed, several devices.

    python -m pytest -m gpu tests/gpu -n 0 -s

prints the figures too. A model of the shape of Pythia-160m with random weights learns 2 x 64 texts of about 250 tokens.
Tolerances: in float32 the order of sums differs; in bfloat16 a number has eight bits.
"""

import importlib.util
import shutil

import pytest
import torch

from benchmarks.gpu import Figures, measure, measure_launched, write_inputs
from tests.e2e.test_cli import call
from tests.e2e.test_two_processes import losses_of
from utils.run.checkpoint import checkpoints
from utils.storage.files import read_json, read_jsonl

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
BF16 = ("--mixed_precision", "bfloat16")
WHOLLY_BF16 = ("--backbone_dtype", "bfloat16")
HAS_FLASH = importlib.util.find_spec("flash_attn") is not None
MODES = ["gpu_8", "zero_1", "zero_2", "zero_2_offload", "zero_3", "zero_3_offload", "fsdp_2"]  # config/accelerate


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"), "pythia-160m")


@pytest.fixture(scope="module")
def plain(options, tmp_path_factory):
    """The run in float32 that others are compared with."""
    measure(tmp_path_factory.mktemp("warm up"), *options)  # loads kernels
    return told("float32", measure(tmp_path_factory.mktemp("plain"), *options))


def told(name: str, figures: Figures) -> Figures:
    """Print figures."""
    print(f"\n{torch.cuda.get_device_name()}, {torch.cuda.device_count()} GPU(s), {name}: {figures}")
    return figures


def test_the_gpu_is_used(plain):
    assert "cuda" in read_json(plain.folder / "env.json")["device"]
    assert plain.peak_bytes > 4 * 4 * 100e6  # weights, gradients and AdamW's two tensors of more than 100 M parameters


@pytest.mark.parametrize("words", [BF16, WHOLLY_BF16], ids=["autocast", "weights"])
def test_bfloat16(words, options, plain, tmp_path):
    found = told(" ".join(words), measure(tmp_path, *options, *words))
    assert found.losses != plain.losses
    assert found.losses == pytest.approx(plain.losses, rel=0.05)
    if words == WHOLLY_BF16:
        assert found.peak_bytes < 0.7 * plain.peak_bytes


@pytest.mark.parametrize("name", ["eager", "sdpa", "flash_attention_2"])
def test_attention(name, options, tmp_path):
    if name == "flash_attention_2" and not HAS_FLASH:
        pytest.skip("flash_attn is not installed")
    words = [*options, *WHOLLY_BF16, "--attn_implementation"]
    eager = measure(tmp_path / "reference", *words, "eager")
    found = told(f"attention {name}", measure(tmp_path / name, *words, name))
    assert found.losses == pytest.approx(eager.losses, rel=0.05)


def test_gradient_checkpointing(options, plain, tmp_path):
    found = told("gradient checkpointing", measure(tmp_path, *options, "--gradient_checkpointing", "true"))
    assert found.losses == pytest.approx(plain.losses, rel=1e-3)
    assert found.peak_bytes < plain.peak_bytes


def test_accumulation(options, plain, tmp_path):
    found = told("accumulation 8", measure(tmp_path, *options, "--gradient_accumulation_steps", "8"))
    assert found.losses == pytest.approx(plain.losses, rel=1e-3)
    assert found.peak_bytes < plain.peak_bytes


def test_an_interrupted_run_is_resumed(options, plain, tmp_path):
    """A run interrupted inside task 1 ends like an uninterrupted one."""
    whole = measure(tmp_path, *options, "--save_llm_ckpt", "true", "--save_llm_ckpt_step_interval", "3")
    places = checkpoints(whole.folder / "checkpoints")
    for place in places[next(i for i, p in enumerate(places) if p.task == 1) + 1 :]:
        shutil.rmtree(whole.folder / "checkpoints" / place.name)
    shutil.rmtree(whole.folder / "predictions" / "after_1")
    before = losses_of(whole.folder)
    assert call(["--resume", str(whole.folder)]) == 0
    assert any(row["event"] == "resume" for row in read_jsonl(whole.folder / "log.jsonl"))
    assert losses_of(whole.folder) == pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_several_gpus(mode, options, plain, tmp_path):
    """The number of devices changes no number."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    found = told(f"two GPUs, {mode}", measure_launched(tmp_path, mode, 2, *options, "--mixed_precision", "float32"))
    env = read_json(found.folder / "env.json")
    assert env["processes"] == 2
    assert found.losses == pytest.approx(plain.losses, rel=1e-3)
