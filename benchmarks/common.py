"""What the benches share: timing in turn, the machine, a model of Pythia-70m's shape with a tokenizer of a stream."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from utils.dataset import Stream
from utils.prompt import render

ROOT = Path(__file__).resolve().parents[1]
RAW = ROOT / "dataset"
WORDS = 20000  # of the tokenizer
SHAPE = {  # of Pythia-70m
    "vocab_size": 50304, "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8,
    "intermediate_size": 2048,
}  # fmt: skip


def machine(threads: int) -> str:
    """What the numbers depend on."""
    facts = Path("/proc/cpuinfo")  # Linux only
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.processor())
    return f"{name}, {os.cpu_count()} cores, {threads} thread(s), torch {torch.__version__}"


def seconds(work: Callable[[], object]) -> float:
    """Time of one call; on a CPU with one thread the processor's time, which a busy machine changes little."""
    has_gpu = torch.cuda.is_available()
    clock = time.process_time if torch.get_num_threads() == 1 and not has_gpu else time.perf_counter
    if has_gpu:
        torch.cuda.synchronize()
    began = clock()
    work()
    if has_gpu:
        torch.cuda.synchronize()
    return clock() - began


def compare(title: str, amount: float, unit: str, plain: Callable, own: Callable, rounds: int) -> None:
    """Time two ways in turn and print one line: both speeds, median and range of the paired ratios plain / own."""
    times = [(seconds(plain), seconds(own)) for _ in range(rounds)]
    ratios = sorted(a / b for a, b in times)
    medians = [amount / statistics.median(column) for column in zip(*times, strict=True)]
    ratio = statistics.median(ratios)
    print(
        f"{title:48} {medians[0]:10.1f} {medians[1]:10.1f} {ratio:6.2f}x  {ratios[0]:.2f} .. {ratios[-1]:.2f}  "
        f"({unit} per second)",
        flush=True,
    )


def train_tokenizer(stream: Stream) -> PreTrainedTokenizerFast:
    """Byte-level BPE without a padding token, as Pythia's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for task in stream.tasks for e in task.train for text in render(e, stream.prompt_type or "none"))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def ratios(times: dict[str, list[float]], own: str) -> dict[str, tuple[float, float, float]]:
    """Of each other way: median, least and largest of its times divided by the own way's of the same round."""
    found = {}
    for way, column in times.items():
        pairs = sorted(a / b for a, b in zip(column, times[own], strict=True))
        found[way] = (statistics.median(pairs), pairs[0], pairs[-1])
    return {way: triple for way, triple in found.items() if way != own}
