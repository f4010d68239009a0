"""Pseudo-samples: a model that has learned to write examples writes those of the tasks it has seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from utils.dataloader import Encoded
from utils.distributed.collectives import gather, share
from utils.logger import Aside, RunLog
from utils.model.architecture import Backbone, Model
from utils.model.generation import continuations
from utils.seed import seed_torch

TOKENS = 8192  # of the texts that are written together: a fixed number, so that what is drawn depends on no setting

SHOWN = 3  # samples in the text log

Pair = tuple[str, str]  # question, answer


def parse(text: str, eos: str, separator: str, keep: bool) -> Pair | None:
    """Question and answer of a written text; None unless it ends and holds exactly one separator between two parts.

    Args:
        text: Text with special tokens; what follows the first `eos` is dropped.
        eos: End-of-sequence token. A text without it was cut off, and its answer may be half of one.
        separator: Stands between question and answer.
        keep: The separator belongs to the question.

    >>> parse(" Where? __ans__ Here<eos>and more<eos>", "<eos>", "__ans__", False)
    ('Where?', 'Here')
    >>> parse("Where? Answer: Here<eos>", "<eos>", "Answer:", True)
    ('Where? Answer:', 'Here')
    """
    written, end, _ = text.partition(eos)
    parts = [part.strip() for part in written.split(separator)]
    if not end or len(parts) != 2 or not all(parts):
        return None
    question = written.partition(separator)[0] + separator if keep else parts[0]
    return question.strip(), parts[1]


def top_up(write: Callable[[int, int], Sequence[Pair | None]], requested: int, rounds: int) -> tuple[list[Pair], int]:
    """Write until `requested` samples are well formed, at most `rounds` times more after the first.

    Args:
        write: (round, count) -> that many samples, None for each that is malformed.
        requested: How many are wanted.
        rounds: 0: malformed samples are not replaced.

    Returns:
        The well-formed samples, and how many were written for them.
    """
    kept: list[Pair] = []
    written = 0
    for attempt in range(rounds + 1):
        missing = requested - len(kept)
        if missing == 0:
            break
        samples = write(attempt, missing)
        written += len(samples)
        kept += [sample for sample in samples if sample is not None]
    return kept, written


def sample_texts(
    backbone: Backbone,
    prompt: Sequence[int],
    count: int,
    longest: int,
    top_k: int,
    *seed: object,
    soft_prompt: Tensor | None = None,
    condition: Callable[[int], AbstractContextManager[Any]] = nullcontext,
) -> list[str]:
    """Sampled continuations of one prompt, with their special tokens, on every process.

    They are drawn in chunks, each from a generator of its own, which the processes share among them: what is drawn
    does not depend on how many processes there are.

    Args:
        backbone: Model and tokenizer; the model must be in eval mode.
        prompt: Token ids.
        count: Number of texts.
        longest: Most tokens of a text.
        top_k: At each step only the k best tokens can be drawn.
        seed: What the draws are for.
        soft_prompt: Virtual tokens before the prompt, see `answer_logits`.
        condition: Entered around each chunk with its number of texts; may draw what they are conditioned on.
    """
    size = max(1, TOKENS // longest)
    sizes = [min(size, count - start) for start in range(0, count, size)]
    mine, drawn = [], {"do_sample": True, "top_k": top_k, "eos_token_id": backbone.tokenizer.eos_token_id}
    for chunk in share(len(sizes)):
        seed_torch(*seed, chunk)
        with condition(sizes[chunk]):
            rows = continuations(backbone, [Encoded(prompt, ())] * sizes[chunk], longest, soft_prompt, **drawn)
        mine.append([backbone.tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in rows])
    return [text for texts in gather(mine, len(sizes)) for text in texts]


def answer_all(predict: Callable[[Sequence[Encoded]], list[str]], rows: Sequence[Encoded], size: int) -> list[str]:
    """Answers to encoded prompts in chunks of this size, shared among the processes, on every process."""
    chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
    mine = [predict(chunks[i]) for i in share(len(chunks))]
    return [answer for answers in gather(mine, len(chunks)) for answer in answers]


def tell(log: RunLog | Aside, task: int, old: int, requested: int, written: int, kept: Sequence[Pair]) -> None:
    """Log how many samples of task `old` (-1: of any) were written for `task`, and show some."""
    counts = {"requested": requested, "written": written, "well_formed": len(kept), "distinct": len(set(kept))}
    words = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
    of = f"task {old}" if old >= 0 else "earlier tasks"
    say = log.info if len(kept) == requested else log.warning
    say(f"task {task}: pseudo-samples of {of}: {words}")
    for question, answer in kept[:: max(1, len(kept) // SHOWN)][:SHOWN]:
        log.info(f"pseudo-sample: {question!r} -> {answer!r}")
    log.event("pseudo", task=task, of=old, **counts)


@torch.no_grad()
def make_room(model: Model, tokens: int) -> None:
    """Give every token of the tokenizer a row in embedding and head; nothing changes where there are spare rows.

    A new row is the mean of the others, so that its token is neither likely nor impossible.
    """
    known = model.get_input_embeddings().get_parameter("weight").shape[0]
    if known < tokens:
        model.resize_token_embeddings(tokens, mean_resizing=False)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            matrix = layer.get_parameter("weight")
            matrix[known:] = matrix[:known].mean(dim=0)
