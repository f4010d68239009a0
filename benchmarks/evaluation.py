"""Speed of the evaluation in exact match against model.generate of transformers.

    python -m benchmarks.evaluation [--rounds 3] [--threads 1]          about five minutes on one core

The model has the shape of Pythia-70m (random weights, 6 layers, width 512, 8 heads, 50,304 tokens) and reads real
questions of Concept-1K if its raw data are there, otherwise those of biography_demo_task2. The ways alternate on
the same questions:

    own            utils.evaluation: verification in stages, batches of 64 sorted by length
    generate       the same without verification (`evaluation_mode: generate`): model.generate, batches of 64, sorted
    generate 16    model.generate in the order of the file, batches of 16, padded to their longest question

Each row is a state of the model. Printed are questions per second of the own way, and for each other way the median and
the range of the paired ratios of its time to the own one. Every question must have the same score in all ways.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import GPTNeoXConfig

from benchmarks import common
from models.Base import Task
from models.SEQ import SEQ
from utils.backbone import load_backbone
from utils.config import Config
from utils.dataloader import Encoder
from utils.dataset import Example, Stream, load_stream
from utils.distributed.modes import make_accelerator
from utils.evaluation import Cell, predict
from utils.logger import RunLog
from utils.model.generation import generate
from utils.preprocess import concept_1k
from utils.run.fit import fit
from utils.scoring import score
from utils.session import Session

ROWS, PLAIN_ROWS = 64, 16
QUESTIONS, LEARN_RATE = 128, 5e-4
SHORT, LONG = 10, 60  # most new tokens
LONG_WORDS = 40  # of a long target, about 58 tokens


@dataclass
class State:
    """What a row evaluates: the model has learned some texts, and other texts are the right ones."""

    title: str
    learned: Callable[[Sequence[Example]], list[Example]]
    epochs: int
    asked: Callable[[Sequence[Example]], list[Example]]
    new_tokens: int


def same(examples: Sequence[Example]) -> list[Example]:
    """The questions as they are."""
    return list(examples)


def half(examples: Sequence[Example]) -> list[Example]:
    """Every other question."""
    return list(examples[::2])


def refusing(examples: Sequence[Example]) -> list[Example]:
    """Questions that are answered in a word that is never right."""
    return [replace(example, target="unknown") for example in examples]


def long(examples: Sequence[Example]) -> list[Example]:
    """Questions with long answers."""
    words = " ".join(example.target for example in examples).split()
    return [
        replace(example, target=" ".join((example.target.split() + words[i:] + words)[:LONG_WORDS]))
        for i, example in enumerate(examples)
    ]


def begun(examples: Sequence[Example]) -> list[Example]:
    """Long answers that end after the first words: right as far as they go."""
    return [replace(example, target=" ".join(example.target.split()[:2])) for example in long(examples)]


STATES = [
    State("untrained, short targets", same, 0, same, SHORT),
    State("untrained, long targets", same, 0, long, LONG),
    State("short wrong answers, long targets", refusing, 2, long, LONG),
    State("right for two words, long targets", begun, 15, long, LONG),
    State("half learned, short targets", half, 15, same, SHORT),
    State("learned, short targets", same, 15, same, SHORT),
]


@dataclass
class Bench:
    """A model with a method around it, and the questions it is asked."""

    method: SEQ
    session: Session
    examples: list[Example]

    def ways(self, examples: list[Example], new_tokens: int) -> dict[str, Callable[[], list[float]]]:
        """Each way to score these questions."""
        cell = Cell(Path("unused"), 0, examples, "exact_match", None, new_tokens)
        plain = replace(self.session, config=self.session.config.updated(evaluation_mode="generate"))
        return {
            "own": lambda: [row["score"] for row in predict(self.method, self.session, cell)],
            "generate": lambda: [row["score"] for row in predict(self.method, plain, cell)],
            "generate 16": lambda: self.generate_in_order(examples, new_tokens),
        }

    def generate_in_order(self, examples: Sequence[Example], new_tokens: int) -> list[float]:
        """Scores of answers that model.generate writes in small batches, in the order of the file."""
        self.method.model.eval()
        rows = self.session.encoder.for_prediction(examples, None)
        texts: list[str] = []
        for start in range(0, len(rows), PLAIN_ROWS):
            texts += generate(self.method.backbone, rows[start : start + PLAIN_ROWS], new_tokens)
        return score("exact_match", texts, [[example.target] for example in examples])


def main(argv: list[str]) -> int:
    """Print a row for each state of the model; returns the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.evaluation", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="times that each way is measured (default 3)")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help=f"default {QUESTIONS}")
    parser.add_argument("--states", type=int, nargs="+", default=range(len(STATES)), help="rows, from 0 (default all)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    print(common.machine(options.threads))
    print(f"{'':36} {'questions/s':>12}  {'right':>6}  time / own: median (range) of {options.rounds}", flush=True)
    stream = find_stream()
    for state in [STATES[number] for number in options.states]:
        with tempfile.TemporaryDirectory() as folder:
            print(line(prepare(stream, Path(folder), options.questions), state, options.rounds), flush=True)
    return 0


def find_stream() -> Stream:
    """Real questions if they are there."""
    if (common.RAW / concept_1k.RAW_FILES[0]).exists():
        return concept_1k.build(common.RAW, concept_1k.Options(), seed=1)
    return load_stream("biography_demo_task2", common.ROOT / "dataset")


def prepare(stream: Stream, folder: Path, questions: int) -> Bench:
    """A random model with a tokenizer trained on the stream's questions."""
    common.train_tokenizer(stream).save_pretrained(folder)
    GPTNeoXConfig(**common.SHAPE, max_position_embeddings=2048, bos_token_id=0, eos_token_id=0).save_pretrained(folder)
    config = Config(
        cfg=None,
        backbone=str(folder),
        backbone_random_init=True,
        il_mode="IIL",
        batch_size=ROWS // 2,
        evaluate_batch_size=ROWS,
        lr=LEARN_RATE,
    )
    backbone = load_backbone(config)
    with torch.no_grad():  # the best token is never one that the small tokenizer lacks
        backbone.model.get_output_embeddings().weight[len(backbone.tokenizer) :] = 0
    encoder, accelerator = Encoder(backbone.tokenizer, stream.prompt_type or "none"), make_accelerator(config)
    backbone.model.to(accelerator.device)
    session = Session(config, accelerator, encoder, RunLog(config, is_main=False), fit)
    return Bench(SEQ(session, SEQ.Options(), backbone, stream), session, list(stream.tasks[0].train[:questions]))


def line(bench: Bench, state: State, rounds: int) -> str:
    """Train the model into a state and measure it in turn."""
    if state.epochs:
        learned = state.learned(bench.examples)
        fit(bench.method, Task(0, "bench", learned, state.epochs, None, state.new_tokens), bench.session)
    asked = state.asked(bench.examples)
    ways = bench.ways(asked, state.new_tokens)
    scores = {way: work() for way, work in ways.items()}  # also the first touch of everything
    assert len(set(map(tuple, scores.values()))) == 1, f"{state.title}: the ways disagree"
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, work in ways.items():
            times[way].append(common.seconds(work))
    found = common.ratios(times, "own")
    cells = [f"{way} {middle:.2f}x ({least:.2f} .. {most:.2f})" for way, (middle, least, most) in found.items()]
    speed, right = len(asked) / sorted(times["own"])[rounds // 2], sum(scores["own"]) / len(asked)
    return f"{state.title:36} {speed:12.1f}  {100 * right:5.0f}%  {'   '.join(cells)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
