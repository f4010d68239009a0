"""How much examples surprise the model: the losses by which `Replay_sampling_algorithm: surprise` fills a memory."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Literal

import torch

from models.Base import Method, Task
from models.common.losses import answer_loss
from models.common.measuring import measuring
from utils.dataloader import IGNORE, Encoded, collate
from utils.dataset import Example
from utils.distributed.collectives import gather, share


def note_surprise(method: Method, task: Task, when: Literal["before", "after"]) -> None:
    """Measure the examples that a finished task will offer to memory, if the options want it done at this moment."""
    config = method.config
    if method.memory is None or config.Replay_sampling_algorithm != "surprise" or config.Replay_surprise_when != when:
        return
    examples = list(dict.fromkeys(task.train))
    values = method.memory.surprise = surprises(method, examples, task, config.Replay_surprise_on)
    top = sorted(values, reverse=True)[: max(1, len(values) // 10)]
    text = f"mean loss {fmean(values):.3f} nats per token, of the most surprising tenth {fmean(top):.3f}"
    method.session.log.info(f"task {task.index}: {when} it is learned, {text}")


@torch.no_grad()
def surprises(
    method: Method, examples: Sequence[Example], task: Task, on: Literal["answer", "sequence"]
) -> list[float]:
    """-1/|y| sum_t log p(y_t | x, y_<t) of each example under the model as it is, in nats; on every process.

    Args:
        method: Its model reads, in eval mode.
        examples: Of the task.
        task: Decides the length of the texts, and with a classifier the classes that are known.
        on: answer: y is the answer, or the class; sequence: all tokens of prompt and answer but the first.
    """
    rows = method.encoder(examples, task.max_length)
    if on == "sequence":
        rows = [row._replace(labelled=tuple(range(1, len(row.prompt)))) for row in rows]
    size = method.config.evaluate_batch_size
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt))
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    mine = []
    with measuring(method):
        for chunk in (chunks[k] for k in share(len(chunks))):
            mine.append(_of_chunk(method, [rows[i] for i in chunk], [examples[i] for i in chunk], task))
    found = zip(order, (value for values in gather(mine, len(chunks)) for value in values), strict=True)
    return [value for _, value in sorted(found)]


def _of_chunk(method: Method, rows: Sequence[Encoded], examples: Sequence[Example], task: Task) -> list[float]:
    batch = collate(rows, examples, method.backbone.pad_id).to(method.model.device)
    scores, labels = method.scores(method.model, batch, task.index)
    counts = (labels != IGNORE).sum(dim=1).clamp(min=1).tolist()
    return [float(answer_loss(scores[i : i + 1], labels[i : i + 1], count)) for i, count in enumerate(counts)]
