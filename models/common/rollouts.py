"""Rollouts: answers that the model being trained samples, and divergences between two models on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.dataloader import Encoded
from utils.distributed.collectives import gather, share
from utils.model.architecture import Backbone
from utils.model.generation import continuations, decode
from utils.seed import seed_torch

TOKENS = 16384  # prompts and answers sampled together: a constant, so that samples do not depend on any setting

Divergence = Literal["reverse", "forward", "jsd"]


class Rollout(NamedTuple):
    """A sampled answer."""

    ids: tuple[int, ...]  # with the stop token, unless the answer was cut at the limit
    text: str
    ended: bool  # False: cut at the limit


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    count: int = 1  # answers to each question
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: from the whole vocabulary
    repetition_penalty: float = 1.0  # divides the scores of tokens that are in the text already


def sample(
    backbone: Backbone,
    rows: Sequence[Encoded],
    longest: int,
    how: Sampling,
    *seed: object,
    soft_prompt: Tensor | None = None,
) -> list[list[Rollout]]:
    """Answers to each prompt by the weights as they are now, on every process.

    Questions of similar length are sampled together in chunks, each with one random generator; the processes share the
    chunks. So answers depend on the seed, the questions and the weights, not on the number of processes or on what was
    sampled before.

    Args:
        backbone: Model and tokenizer; the model must be in eval mode.
        rows: Encoded prompts, as in evaluation.
        longest: Most tokens of an answer.
        how: The distribution that is drawn from; the checkpoint's own settings for generation are ignored.
        seed: Seed of the samples.
        soft_prompt: Virtual tokens before each prompt, see `answer_logits`.
    """
    order = sorted((i for i in range(len(rows)) for _ in range(how.count)), key=lambda i: len(rows[i].prompt))
    chunks = _chunks(order, rows, longest)
    mine = []
    options = {"do_sample": True} | {name: value for name, value in asdict(how).items() if name != "count"}
    for number in share(len(chunks)):
        seed_torch(*seed, number)
        asked = [rows[i] for i in chunks[number]]
        mine.append(continuations(backbone, asked, longest, soft_prompt, **options))
    answers: list[list[Rollout]] = [[] for _ in rows]
    for chunk, written in zip(chunks, gather(mine, len(chunks)), strict=True):
        for i, ids in zip(chunk, written, strict=True):
            answers[i].append(_finished(backbone, ids))
    return answers


def _chunks(order: list[int], rows: Sequence[Encoded], longest: int) -> list[list[int]]:
    """The order cut into pieces of at most TOKENS tokens, padding included, at least one question each."""
    chunks: list[list[int]] = [[]]
    for i in order:  # ascending lengths: the last one of a piece is its longest
        if chunks[-1] and (len(chunks[-1]) + 1) * (len(rows[i].prompt) + longest) > TOKENS:
            chunks.append([])
        chunks[-1].append(i)
    return chunks


def _finished(backbone: Backbone, ids: Sequence[int]) -> Rollout:
    """The answer up to its first stop token."""
    end = next((k + 1 for k, token in enumerate(ids) if token in backbone.stop_ids), None)
    return Rollout(tuple(ids[:end]), decode(backbone, ids), end is not None)


def with_answers(prompts: Sequence[Encoded], answers: Iterable[Sequence[int]]) -> list[Encoded]:
    """Encoded prompts with these ids as answers."""
    return [prompt._replace(answer=ids) for prompt, ids in zip(prompts, answers, strict=True)]


def added(sums: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Sums of what is logged at the end of a task, numbers or () tensors, after more values.

    >>> added({"length": 3.0}, {"length": 2.0, "steps": 1})
    {'length': 5.0, 'steps': 1}
    """
    return sums | {name: sums.get(name, 0) + value for name, value in values.items()}


def listed(means: dict[str, float]) -> str:
    """Means for a line of the log."""
    return ", ".join(f"{name} {value:.3g}" for name, value in means.items())


def statistics(answers: Sequence[Rollout]) -> dict[str, float]:
    """What shows whether sampling degenerates: mean length, share that ended, share of repeated tokens.

    >>> statistics([Rollout((5, 5, 5, 0), "a a a", True), Rollout((5, 6), "a b", False)])
    {'length': 3.0, 'ended': 0.5, 'repeated': 0.25}
    """
    return {
        "length": fmean(len(answer.ids) for answer in answers),
        "ended": fmean(answer.ended for answer in answers),
        "repeated": fmean(1 - len(set(answer.ids)) / len(answer.ids) for answer in answers),
    }


def divergence(student: Tensor, teacher: Tensor, kind: Divergence, top_k: int | None = None) -> Tensor:
    """Divergence between two distributions over the vocabulary, at each of N positions, (N) float32 in nats.

    Args:
        student: (N, V) float, logits.
        teacher: (N, V) float, logits without gradient.
        kind: reverse: KL(student || teacher); forward: KL(teacher || student); jsd: the Jensen-Shannon divergence,
            with m their mean, (KL(student || m) + KL(teacher || m)) / 2.
        top_k: The student's k most likely tokens are compared one by one, all others as one; None: all one by one.
    """
    p, q = (F.log_softmax(logits.float(), dim=-1) for logits in (student, teacher))
    if top_k is not None and top_k < p.shape[-1]:
        top = p.detach().topk(top_k, dim=-1).indices
        p, q = _with_tail(p, top), _with_tail(q, top)
    return _KINDS[kind](p, q)


def _with_tail(log_p: Tensor, top: Tensor) -> Tensor:
    """Log-probabilities of the chosen tokens and, last, of all others together: (N, V), (N, k) -> (N, k + 1)."""
    rest = log_p.scatter(-1, top, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([log_p.gather(-1, top), rest], dim=-1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q), (N, V) each -> (N)."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1)


def _jsd(log_p: Tensor, log_q: Tensor) -> Tensor:
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0))
    return (_kl(log_p, log_m) + _kl(log_q, log_m)) / 2


_KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "reverse": _kl,
    "forward": lambda log_p, log_q: _kl(log_q, log_p),
    "jsd": _jsd,
}
