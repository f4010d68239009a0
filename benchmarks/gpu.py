"""Runs of main_CL.py on the first device, with their speed and memory."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from tests import tiny
from tests.e2e.test_cli import run
from tests.e2e.test_two_processes import launch, losses_of
from utils.dataset import Example, Stream, TaskData, save_stream
from utils.storage.files import read_json

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


def write_inputs(root: Path, shape: str, rows: int = 64, words: int = 60) -> list[str]:
    """A backbone and a stream of two tasks; returns the options of a run on them."""
    layers, width, heads, vocabulary = SHAPES[shape]
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    ids = {"bos_token_id": None, "eos_token_id": tiny.EOS, "pad_token_id": tiny.PAD}
    dropout = {"attention_dropout": 0.0, "hidden_dropout": 0.0}
    torch.manual_seed(0)
    config = GPTNeoXConfig(vocab_size=vocabulary, intermediate_size=4 * width, **sizes, **ids, **dropout)
    AutoModelForCausalLM.from_config(config).save_pretrained(root / "backbone")
    tiny.tokenizer().save_pretrained(root / "backbone")
    save_stream(_stream(rows, words), root)
    return [
        *("--cfg", "None", "--dataset", "gpu", "--dataset_path", str(root), "--backbone", str(root / "backbone")),
        *("--training_epochs", "2", "--batch_size", "16", "--lr", "1e-4", "--info_per_steps", "1"),
        *("--is_evaluate_init", "false", "--checkpoint_minutes", "0"),
    ]


def _stream(rows: int, words: int) -> Stream:
    """Questions of many words and different lengths, so that rows are padded."""

    def example(task: int, i: int) -> Example:
        animals = [tiny.ANIMALS[(i * k + task) % 12] for k in range(1, words - i % 9)]
        return Example(f"{task} {i} {' '.join(animals)}", tiny.SOUNDS[i % 12], task=task)

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
