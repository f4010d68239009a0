"""What only a GPU can show, in one script of at most ten minutes.

    python -m benchmarks.gpu [--out gpu.json] [--rounds 3] [--minutes 10]

Training: a random model of the shape of Pythia-160m learns short and long answers, all weights and LoRA, in bfloat16
autocast, with this program, transformers.Trainer and, where it is installed, TRL, on the same batches (see
benchmarks/training.py). For each: tokens per second (padding included, as this program pads), the share of the matrix
products per second that the device reaches on large bfloat16 matrices, peak memory, and what the plan (`--dry_run`)
says of this program's. Then evaluation (see benchmarks/evaluation.py), then `pytest -m gpu` in the time that is left. A
table is printed, and a JSON file written. Without a GPU the same runs on the CPU, where the figures say nothing.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from benchmarks import common, evaluation, training
from tests import tiny
from tests.e2e.test_cli import run
from tests.e2e.test_two_processes import launch, losses_of
from utils.config import Config
from utils.dataset import Example, Stream, TaskData, load_stream, save_stream
from utils.logger import environment
from utils.model.weights import assign
from utils.run.cost import peak_memory
from utils.run.plan.memory import memory_of
from utils.storage.files import read_json, write_json

SHAPES = {  # name -> layers, width, heads, vocabulary
    "micro": (2, 32, 2, tiny.VOCABULARY),
    "pythia-160m": (12, 768, 12, 50304),  # random weights, learned positions of GPT-NeoX, texts of about 250 tokens
}


class Figures(NamedTuple):
    """Figures of one run."""

    folder: Path
    losses: list[float]  # of every step
    tokens_per_second: float  # in training, padding included, of the last task
    peak_bytes: int  # on the device; without a GPU resident memory

    def __str__(self) -> str:
        return f"{self.tokens_per_second:,.0f} tokens/s, peak {self.peak_bytes / 2**20:,.0f} MiB"


def write_inputs(root: Path, shape: str, rows: int = 64, words: int = 60, answer: int = 1) -> list[str]:
    """A backbone and a stream of two tasks with answers of so many words; returns the options of a run on them."""
    layers, width, heads, vocabulary = SHAPES[shape]
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    ids = {"bos_token_id": None, "eos_token_id": tiny.EOS, "pad_token_id": tiny.PAD}
    dropout = {"attention_dropout": 0.0, "hidden_dropout": 0.0}
    torch.manual_seed(0)
    config = GPTNeoXConfig(vocab_size=vocabulary, intermediate_size=4 * width, **sizes, **ids, **dropout)
    AutoModelForCausalLM.from_config(config).save_pretrained(root / "backbone")
    tiny.tokenizer().save_pretrained(root / "backbone")
    save_stream(_stream(rows, words, answer), root)
    return [
        *("--cfg", "None", "--dataset", "gpu", "--dataset_path", str(root), "--backbone", str(root / "backbone")),
        *("--training_epochs", "2", "--batch_size", "16", "--lr", "1e-4", "--info_per_steps", "1"),
        *("--is_evaluate_init", "false", "--checkpoint_minutes", "0"),
    ]


def _stream(rows: int, words: int, answer: int) -> Stream:
    """Questions of many words and different lengths, so that rows are padded."""

    def example(task: int, i: int) -> Example:
        animals = [tiny.ANIMALS[(i * k + task) % 12] for k in range(1, words - i % 9)]
        sounds = [tiny.SOUNDS[(i + k) % 12] for k in range(answer)]
        return Example(f"{task} {i} {' '.join(animals)}", " ".join(sounds), task=task)

    data = [tuple(example(task, i) for i in range(rows)) for task in range(2)]
    facts = {"PROMPT_TYPE": "none", "IL_MODE": "CIT", "MAX_NEW_TOKENS": [8, 8], "MAX_SEQ_LENGTH": [512, 512]}
    return Stream("gpu", tuple(TaskData(f"task {k}", data[k], (), data[k][:16]) for k in range(2)), facts)


def measure(folder: Path, *options: str) -> Figures:
    """A run in this process, on its first device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return figures(run([*options], folder))


def measure_launched(folder: Path, file: str, processes: int, *options: str) -> Figures:
    """A run in several processes, as a user starts them."""
    words = ["--config_file", f"config/accelerate/{file}.yaml", "--num_processes", str(processes)]
    done = launch([*words, "main_CL.py", *options, "--dump_path", str(folder)])
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    (found,) = folder.glob("*/*")
    return figures(found)


def figures(folder: Path) -> Figures:
    """The figures that a run logged."""
    cost = read_json(folder / "cost.json")
    speed = cost["train_tokens"][-1] / cost["train_seconds"][-1]
    return Figures(folder, list(losses_of(folder).values()), speed, cost["peak_memory_bytes"])


SIZES = {"short": (60, 1), "long": (20, 40)}  # words of a question, of an answer
STATES = (0, 4, 5)  # of benchmarks.evaluation
FOR_TRAINING, FOR_ALL_BUT_TESTS = 0.6, 0.8  # shares of the time, after which no row is started


def main(argv: list[str]) -> int:
    """Measure everything; returns the exit code of the tests."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="file of the figures (default gpu.json)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each way (default 3)")
    parser.add_argument("--minutes", type=float, default=10, help="limit of the whole script (default 10)")
    parser.add_argument("--shape", choices=SHAPES, default="pythia-160m", help="of the model (default pythia-160m)")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of a measurement (default 20)")
    parser.add_argument("--questions", type=int, default=64, help="of the evaluation (default 64)")
    parser.add_argument("--no-tests", action="store_true", help="leave pytest out")
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    began, limit = time.monotonic(), 60 * options.minutes
    peak = matmul_peak(8192 if torch.cuda.is_available() else 256)
    found: dict[str, Any] = {"machine": environment(Config(cfg=None), device(), 1), "matmul_flops_per_second": peak}
    print(f"{device()}, torch {torch.__version__}: {peak / 1e12:,.2f} Tflop/s in bfloat16 matrix products", flush=True)
    found["training"], found["evaluation"] = [], []
    print(f"{'':14}{'way':>10}{'tokens/s':>12}{'of peak':>9}{'peak MB':>9}{'plan MB':>9}{'loss':>9}", flush=True)
    for trained in ("full", "LoRA"):
        for answers in SIZES:
            if time.monotonic() - began < FOR_TRAINING * limit:
                found["training"] += train_row(options, trained, answers, peak)
                write_json(options.out, found)  # what comes next may be cut off
    stream = evaluation.find_stream()
    for state in STATES:
        if time.monotonic() - began < FOR_ALL_BUT_TESTS * limit:
            found["evaluation"].append(evaluate_row(options, stream, evaluation.STATES[state]))
            write_json(options.out, found)
    if options.no_tests or not torch.cuda.is_available():
        return 0
    found["tests"] = run_tests(limit - (time.monotonic() - began))
    write_json(options.out, found)
    return int(found["tests"]["exit_code"])


def device() -> str:
    """The name of the first device."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def matmul_peak(size: int) -> float:
    """Operations per second of a product of two square bfloat16 matrices: the best of ten."""
    a, b = (torch.randn(size, size, device=_place(), dtype=torch.bfloat16) for _ in range(2))
    a @ b
    return 2 * size**3 / min(common.seconds(lambda: a @ b) for _ in range(10))


def _place() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def train_row(options: argparse.Namespace, trained: str, answers: str, peak: float) -> list[dict[str, Any]]:
    """The figures of each way to train, printed."""
    ways = ["own", "trainer", *(["trl"] if training.has_trl() else [])]
    with tempfile.TemporaryDirectory() as folder:
        bench = make_bench(options, trained, answers, Path(folder))
        training.START["own"](bench, Path(folder))()  # the first touch of everything
        tokens = padded_tokens(bench)
        flops = tokens * operations_per_token(bench.model, trained)
        rows = [measure_way(bench, way, options.rounds, Path(folder)) for way in ways]
        planned = sum(memory_of(bench.method, bench.task, 1, None).values())  # empties the model: it comes last
    rows[0]["planned_bytes"] = planned
    for row in rows:
        row |= {"trained": trained, "answers": answers, "tokens_per_second": tokens / row["seconds"]}
        row["share_of_matmul_peak"] = flops / row["seconds"] / peak
        memory = f"{row['peak_memory_bytes'] / 1e6:9,.0f}"
        memory += f"{row['planned_bytes'] / 1e6:9,.0f}" if "planned_bytes" in row else " " * 9
        differs = "" if abs(row["loss"] / rows[0]["loss"] - 1) < BF16_LOSSES_AGREE else "  the losses differ"
        print(
            f"{f'{trained} {answers}':14}{row['way']:>10}{row['tokens_per_second']:12,.0f}"
            f"{row['share_of_matmul_peak']:9.1%}{memory}{row['loss']:9.4f}{differs}",
            flush=True,
        )
    return rows


BF16_LOSSES_AGREE = 1e-2  # largest relative difference of the mean losses


def make_bench(options: argparse.Namespace, trained: str, answers: str, folder: Path) -> training.Bench:
    """Model, method and batches of a row."""
    words, answer = SIZES[answers]
    data = training.Data("", 32, options.steps, 512)
    write_inputs(folder, options.shape, rows=data.rows * data.steps, words=words, answer=answer)
    config = Config(
        cfg=None,
        backbone=str(folder / "backbone"),
        mixed_precision="bfloat16",
        batch_size=data.rows,
        lr=training.RATE,
        weight_decay=training.DECAY,
        **training.TRAINED[trained],
    )
    return training.assemble(config, load_stream("gpu", folder), data)


def operations_per_token(model: torch.nn.Module, trained: str) -> int:
    """Operations in the products with the weights of the layers: two per weight forward, and for each gradient.

    Attention and head are left out, so the share of the peak is a lower bound.
    """
    weights = sum(w.numel() for name, w in model.named_parameters() if w.ndim == 2 and "embed" not in name)
    return 2 * weights * (3 if trained == "full" else 2)


def padded_tokens(bench: training.Bench) -> int:
    """Tokens of all batches of our loop, padding included."""
    size = bench.data.rows
    lengths = [len(row.prompt) + len(row.answer) for row in bench.rows]
    return sum(size * max(lengths[start : start + size]) for start in range(0, len(lengths), size))


def measure_way(bench: training.Bench, way: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Median time of one way, its peak memory and its mean loss."""
    times, losses = [], list[float]()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(rounds):
        assign(bench.method.named(), bench.start)
        train: Callable[[], float] = training.START[way](bench, folder)
        times.append(common.seconds(lambda train=train: losses.append(train())))  # type: ignore[misc]
    memory = peak_memory(bench.session.accelerator.device)
    return {"way": way, "seconds": statistics.median(times), "loss": losses[-1], "peak_memory_bytes": memory}


def evaluate_row(options: argparse.Namespace, stream: Stream, state: evaluation.State) -> str:
    """The line of benchmarks.evaluation for one state of the model, printed."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            line = evaluation.line(evaluation.prepare(stream, Path(folder), options.questions), state, options.rounds)
        except AssertionError as error:  # near ties: kernels of a GPU depend on the shape of a batch
            line = str(error)
    print(line, flush=True)
    return line


def run_tests(seconds: float) -> dict[str, Any]:
    """`pytest -m gpu` in a separate process, for at most so many seconds."""
    words = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-n", "0", "-s", "-q"]
    try:
        done = subprocess.run(words, cwd=common.ROOT, stdout=subprocess.PIPE, text=True, timeout=max(1, seconds))
    except subprocess.TimeoutExpired as error:
        text = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        return {"exit_code": 124, "output": text[-6000:], "seconds": seconds}
    print(done.stdout[-6000:], flush=True)
    return {"exit_code": done.returncode, "output": done.stdout[-6000:]}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
