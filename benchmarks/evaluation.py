"""Speed of the evaluation against generating every answer.

    python -m benchmarks.evaluation [--rounds 3] [--threads 1]          about four minutes on one core

The model has the shape of Pythia-70m (random weights, 6 layers, width 512, 8 heads, 50,304 tokens) and reads real
questions of Concept-1K if they are in ../shared/data, otherwise those of biography_demo_task2. The plain way and ours
alternate on the same examples; the median of the paired ratios and their range are printed. Every example must have
the same score both ways.

"Plain" is what the published code does: every row padded to max_seq_length (32), every answer generated with 10 new
tokens. Batches hold 32 rows both ways.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import GPTNeoXConfig

from benchmarks import common
from benchmarks.common import ROOT, compare, machine, seconds, train_tokenizer
from models.Base import Task
from models.SEQ import SEQ
from utils.backbone import load_backbone
from utils.config import Config
from utils.dataloader import IGNORE, Encoded, Encoder, collate, epoch_order
from utils.dataset import DATA_FILE, Example, Stream, encode, load_stream
from utils.distributed.modes import make_accelerator
from utils.evaluation import Cell, predict
from utils.logger import RunLog
from utils.model.generation import decode
from utils.preprocess import concept_1k
from utils.run.fit import fit
from utils.scoring import score
from utils.session import Session
from utils.storage.files import write_text

WIDTH, NEW_TOKENS, ROWS = 32, 10, 32  # max_seq_length, generated tokens and batch size of Concept-1K as published
EVALUATED, LEARNED, LEARN_EPOCHS, LEARN_RATE = 128, 64, 15, 5e-4


@dataclass
class Bench:
    """A model with a method around it, and the examples it works on."""

    method: SEQ
    session: Session
    examples: list[Example]

    def rows(self, examples: Sequence[Example]) -> list[Encoded]:
        """Token ids, no longer than the published code keeps."""
        return self.session.encoder(examples, WIDTH)

    def task(self, examples: Sequence[Example], epochs: int = 1) -> Task:
        """The task that `fit` trains on."""
        return Task(0, "bench", tuple(examples), epochs, WIDTH, NEW_TOKENS)


def main(argv: list[str]) -> int:
    """Run all measurements; returns the exit code."""
    parser = argparse.ArgumentParser("bench", description="Own evaluation against a plain one.")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of measurements (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    print(machine(options.threads))
    stream = find_stream()
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(stream, Path(folder))
        print(describe(bench, stream))
        print_costs(bench, stream, Path(folder))
    print(f"\n{'':48} {'plain':>10} {'own':>10} {'ratio':>7}  range over {options.rounds} rounds")
    compare_evaluation(bench, "untrained", options.rounds)
    learn(bench)
    compare_evaluation(bench, "half learned", options.rounds)
    return 0


def find_stream() -> Stream:
    """Real questions if they are there."""
    if (common.RAW / concept_1k.RAW_FILES[0]).exists():
        return concept_1k.build(common.RAW, concept_1k.Options(), seed=1)
    return load_stream("biography_demo_task2", ROOT / "dataset")


def prepare(stream: Stream, folder: Path) -> Bench:
    """A random model of Pythia-70m's shape, with a tokenizer trained on the stream's questions."""
    train_tokenizer(stream).save_pretrained(folder)
    GPTNeoXConfig(**common.SHAPE, max_position_embeddings=2048, bos_token_id=0, eos_token_id=0).save_pretrained(folder)
    config = Config(
        cfg=None,
        backbone=str(folder),
        backbone_random_init=True,
        il_mode="IIL",
        batch_size=ROWS,
        evaluate_batch_size=ROWS,
        lr=LEARN_RATE,
    )
    backbone = load_backbone(config)
    with torch.no_grad():  # the argmax is never an id that the small tokenizer lacks
        backbone.model.get_output_embeddings().weight[len(backbone.tokenizer) :] = 0
    encoder = Encoder(backbone.tokenizer, stream.prompt_type or "none")
    session = Session(config, make_accelerator(config), encoder, RunLog(config, is_main=False), fit)
    return Bench(SEQ(session, SEQ.Options(), backbone, stream), session, list(stream.tasks[0].train))


def describe(bench: Bench, stream: Stream) -> str:
    """Sizes that explain the ratios."""
    rows = bench.rows(bench.examples)
    prompt, answer = statistics.mean(len(r.prompt) for r in rows), statistics.mean(len(r.answer) for r in rows)
    millions = sum(w.numel() for w in bench.method.model.parameters()) / 1e6
    return (
        f"{stream.name}: {prompt:.1f} tokens per prompt, {answer:.1f} per answer with its end; "
        f"{millions:.1f} M parameters, batch {ROWS}, padded to {WIDTH} the plain way"
    )


def print_costs(bench: Bench, stream: Stream, folder: Path) -> None:
    """What reading, tokenising and batching cost, once for a whole stream."""
    examples = [example for task in stream.tasks for example in task.train]
    texts = encode(stream)
    for name, text in texts.items():
        write_text(folder / stream.name / name, text)
    encoder = Encoder(bench.session.encoder.tokenizer, stream.prompt_type or "none")
    rows = encoder(examples, WIDTH)
    lengths = [len(row.prompt) + len(row.answer) for row in rows]
    order = epoch_order(lengths, ROWS, random.Random(1))
    encoder.forget()
    parts: dict[str, Callable[[], object]] = {
        f"read and check {len(texts[DATA_FILE]) / 1e6:.1f} MB": lambda: load_stream(stream.name, folder),
        "tokenise": lambda: encoder(examples, WIDTH),
        "tokenise again (kept)": lambda: encoder(examples, WIDTH),
        "order of an epoch": lambda: epoch_order(lengths, ROWS, random.Random(1)),
        "all batches of an epoch": lambda: [collate([rows[i] for i in b], [examples[i] for i in b], 0) for b in order],
    }
    print(f"{len(examples)} examples: " + ", ".join(f"{name} {seconds(work):.2f} s" for name, work in parts.items()))


def padded(rows: Sequence[Encoded], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and labels, (B, WIDTH) int64 each, padded on the left."""
    ids = torch.full((len(rows), WIDTH), pad_id)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE)
    for i, row in enumerate(rows):
        start = WIDTH - len(row.prompt) - len(row.answer)
        ids[i, start:] = torch.tensor([*row.prompt, *row.answer])
        mask[i, start:] = 1
        labels[i, WIDTH - len(row.answer) :] = torch.tensor(row.answer)
    return ids, mask, labels


def learn(bench: Bench) -> None:
    """Train until the model knows a good part of the first examples."""
    method, examples = bench.method, bench.examples[:LEARNED]
    took = seconds(lambda: fit(method, bench.task(examples, LEARN_EPOCHS), bench.session))
    print(f"(learned {LEARNED} of the {EVALUATED} examples for {LEARN_EPOCHS} epochs in {took:.0f} s)", flush=True)


def compare_evaluation(bench: Bench, state: str, rounds: int) -> None:
    """Exact match of the same examples, the plain way and through `utils.evaluation`."""
    method, examples = bench.method, bench.examples[:EVALUATED]
    cell = Cell(Path("unused"), 0, examples, "exact_match", WIDTH, NEW_TOKENS)
    config = bench.session.config.model_copy(update={"evaluation_mode": "generate"})
    own, generated = predict(method, bench.session, cell), predict(method, replace(bench.session, config=config), cell)
    scores = [row["score"] for row in own]
    assert scores == [row["score"] for row in generated], "verification and generation disagree"
    assert scores == plain_evaluation(bench, examples), "own and plain way disagree"
    undecided = sum(row["decided"] == "generated" for row in own)
    title = f"evaluation, {state}: {100 * sum(scores) / len(scores):.0f} % right, {undecided} undecided"
    plain_run, own_run = lambda: plain_evaluation(bench, examples), lambda: predict(method, bench.session, cell)
    compare(title, len(examples), "examples", plain_run, own_run, rounds)


@torch.no_grad()
def plain_evaluation(bench: Bench, examples: Sequence[Example]) -> list[float]:
    """Scores by generating every answer from a prompt that is padded to the full width."""
    backbone = bench.method.backbone
    model, texts = backbone.model.eval(), []
    prompts = [Encoded(row.prompt, ()) for row in bench.session.encoder.for_prediction(examples, WIDTH)]
    for start in range(0, len(prompts), ROWS):
        ids, mask, _ = padded(prompts[start : start + ROWS], backbone.pad_id)
        output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS)
        texts += [decode(backbone, row) for row in output[:, WIDTH:].tolist()]
    return score("exact_match", texts, [example.target for example in examples])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
