"""How far training moves a model: its divergence from the model before the stream, on the newest task's questions.

"RL's Razor" (Shenfeld et al., 2025, arXiv 2509.04259) finds that what is forgotten is a function of the forward
divergence on the new task, whatever the method. pi_0 is the model before the stream and pi_t the one that answers after
task t. With N training questions x of task t and one answer y to each, drawn at temperature 1,

    forward = 1/N sum_x sum_k KL( pi_0(. | x, y_<k) || pi_t(. | x, y_<k) ),   y ~ pi_0(. | x)
    reverse = 1/N sum_x sum_k KL( pi_t(. | x, y_<k) || pi_0(. | x, y_<k) ),   y ~ pi_t(. | x)

in nats per answer. The KL of each token is exact, over the whole vocabulary, so that only y is random. Answers end with
the stop token, or after the most tokens of the task. As their lengths differ between models, `forward_per_token` and
`reverse_per_token` divide by the tokens of the answers instead of N. The paper measures the forward divergence.

Questions depend on the task alone, so all methods and seeds are measured on the same ones; answers depend on the seed.
pi_0 is a copy of the parameters that the run trains, on the CPU: with adapters as small as these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from models.Base import Method, Task
from models.common.rollouts import Divergence, Sampling, divergence, sample, with_answers
from utils.dataloader import IGNORE, Batch, Encoded, collate
from utils.dataset import Example
from utils.distributed.collectives import gather, share
from utils.evaluation import autocast
from utils.model import adapters
from utils.model.head import PIECE, sum_over_pieces
from utils.model.weights import Weights, eval_mode, moved, snapshot
from utils.seed import random_for
from utils.storage import drift as stored
from utils.storage.drift import Row

DIRECTIONS: tuple[Divergence, ...] = ("forward", "reverse")


def trained(method: Method, tasks: Iterable[Task]) -> dict[str, nn.Parameter]:
    """The parameters that some task of the stream trains, by name."""
    return {name: w for task in tasks for name, w in method.learning(task).items()}


def first_weights(method: Method, tasks: Iterable[Task]) -> Weights:
    """Copies of them on the CPU; to be taken before anything is trained or loaded."""
    weights: Weights = moved(snapshot(trained(method, tasks)), torch.device("cpu"))
    return weights


def record(method: Method, first: Weights, task: Task, run: Path) -> None:
    """Measure after a task and write it to the run's folder, unless it is there already; arguments as in `measure`."""
    if task.index in {row["task"] for row in stored.rows(run)}:
        return
    row = measure(method, first, task, method.config.drift_questions)
    if method.session.accelerator.is_main_process:
        stored.add(run, row)
    method.session.accelerator.wait_for_everyone()
    method.session.log.info(f"drift after task {task.index}: {stored.text(row)}")
    method.session.log.event("drift", **row)


def measure(method: Method, first: Weights, task: Task, count: int) -> Row:
    """Both divergences of the model as it is from the one before the stream; the same on every process.

    Args:
        method: Its model answers.
        first: `first_weights`.
        task: Whose training questions are asked.
        count: Most questions.
    """
    if type(method).as_first is Method.as_first and adapters.count(method.model) > 1:
        raise RuntimeError(f"{type(method).__name__} adds adapters, so it must override as_first")
    row: Row = {"task": task.index}
    first = moved(first, method.home)
    rng = random_for("drift", task.name, len(task.train))
    examples = rng.sample(task.train, min(count, len(task.train)))
    prompts = method.encoder.for_prediction(examples, task.max_length)
    with eval_mode(method.model, method.extra), autocast(method.session), torch.no_grad():
        for direction in DIRECTIONS:
            seed = (method.config.seed, "drift", task.index, direction)
            with method.as_first(first) if direction == "forward" else nullcontext():
                drawn = sample(method.backbone, prompts, task.max_new_tokens, Sampling(), *seed)
            answers = with_answers(prompts, (answer.ids for (answer,) in drawn))
            total = _sum(method, first, answers, examples, direction)
            row[direction] = total / len(answers)
            row[f"{direction}_per_token"] = total / sum(len(answer.answer) for answer in answers)
    return row


def _sum(
    method: Method, first: Weights, rows: Sequence[Encoded], examples: Sequence[Example], direction: Divergence
) -> float:
    """The divergences at all tokens of these answers, summed in an order that does not depend on the processes."""
    chunks = _chunks(rows, max(1, PIECE // len(method.backbone.tokenizer)), method.config.evaluate_batch_size)
    mine = []
    for number in share(len(chunks)):
        chosen = chunks[number]
        batch = collate([rows[i] for i in chosen], [examples[i] for i in chosen], method.backbone.pad_id)
        mine.append(_of_batch(method, first, batch.to(method.model.device), direction))
    return sum(gather(mine, len(chunks)))


def _chunks(rows: Sequence[Encoded], tokens: int, size: int) -> list[list[int]]:
    """At most `size` rows whose answers have together at most so many tokens; a longer answer is alone."""
    chunks: list[list[int]] = [[]]
    for i, row in enumerate(rows):
        length = len(row.answer) + sum(len(rows[j].answer) for j in chunks[-1])
        if chunks[-1] and (length > tokens or len(chunks[-1]) == size):
            chunks.append([])
        chunks[-1].append(i)
    return chunks


def _of_batch(method: Method, first: Weights, batch: Batch, direction: Divergence) -> float:
    def term(now: Tensor, before: Tensor) -> Tensor:
        return divergence(now, before, direction).sum()

    with method.as_first(first):
        scores, labels = method.scores(method.model, batch, None)
        before = scores[labels != IGNORE].whole()
    scores, labels = method.scores(method.model, batch, None)
    return float(sum_over_pieces(term, scores[labels != IGNORE], before))
