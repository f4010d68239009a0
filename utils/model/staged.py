"""Greedy answers to questions whose right answer is known: checked in stages, and written only where that is needed.

Each pass reads what is known to be the model's answer so far, and guesses that it continues as the target does. The
model's best tokens show how far that is true. A row ends when it has said the target, or can no longer say it. Keys and
values are kept, so that no token is read twice. Shapes: B rows, C columns read so far, W columns of one pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.dataloader import Encoded, collate
from utils.dataset import Example
from utils.model import adapters
from utils.model.architecture import Backbone, Model, kind_of
from utils.model.forward import model_inputs
from utils.model.generation import Answer, cannot_be, decide, decode
from utils.scoring import normalise

if TYPE_CHECKING:
    from transformers import Cache  # seconds to import: not for --help

# Guesses in each pass; the last number is repeated. A CPU pays for every token, so a wrong answer should be noticed
# before more is read; on a GPU a pass over a few tokens takes as long as one over a single token.
STAGES = {"cpu": (0, 2, 4, 8, 16), "other": (8, 16)}

KEPT = {"full_attention", "sliding_attention"}  # kinds of layers


def can_answer(model: Model) -> bool:
    """True if all that a model keeps of what it has read are keys and values of each token, in all layers.

    A layer with a sliding window keeps all of them here, and masks them: rows that leave their targets lose columns.
    """
    from transformers import DynamicCache  # seconds to import: not for --help

    net = adapters.innermost(model)
    kinds = getattr(net.config, "layer_types", None) or ["full_attention"]
    if kind_of(net.config) != "decoder" or not KEPT.issuperset(kinds) or getattr(net, "_is_stateful", False):
        return False
    layers = DynamicCache(config=net.config).layers
    keeps = all(type(layer).__name__ in ("DynamicLayer", "DynamicSlidingWindowLayer") for layer in layers)
    return keeps and "past_key_values" in inspect.signature(net.forward).parameters


@torch.no_grad()
def answer(
    backbone: Backbone,
    rows: Sequence[Encoded],
    accepted: Sequence[Sequence[str]],
    max_new_tokens: int,
    prompt: Tensor | None = None,
    compared: Callable[[str], str] = normalise,
) -> list[Answer]:
    """What greedy decoding answers, or its beginning where that shows that the answer is wrong.

    Args:
        backbone: Model and tokenizer; the model must be in eval mode, and `can_answer` true of it.
        rows: Encoded examples, prompt and answer.
        accepted: The accepted answers to each.
        max_new_tokens: Most tokens of an answer.
        prompt: Virtual tokens before each text, see `answer_logits`.
        compared: What exact match compares of a text, see `scoring.Metric.compared`.
    """
    wanted = [list(row.answer[:max_new_tokens]) for row in rows]
    answers: dict[int, Answer] = {}
    parted: list[_Read] = []  # rows that have left their targets, but may still be right
    live, at, read = list(range(len(rows))), 0, None  # the first `at` tokens of each live row's target are said
    for size in _stages(backbone):
        width = min(size, max(len(wanted[i]) for i in live) - 1 - at)
        guesses = [(wanted[i][at : at + width] + [backbone.pad_id] * width)[:width] for i in live]
        if read is None:
            read, best = _begin(backbone, [row.prompt for row in rows], guesses, prompt)
        else:
            best = read.on(guesses)
        stay, leave, lacking = [], [], []
        for k, i in enumerate(live):
            is_wrong = partial(cannot_be, accepted[i], compared)
            found, same = decide(backbone, best[k], wanted[i], is_wrong, max_new_tokens, at)
            read.said[k] = wanted[i][:same] + best[k][same - at :][:1]
            if found is not None:
                answers[i] = found
            elif same > at + width:
                stay.append(k)
            else:
                leave.append(k)
                lacking.append(at + width - same)
        if leave:
            parted.append(read.only(leave).without(lacking))
        if not stay:
            break
        read = read.only(stay) if len(stay) < len(live) else read
        live, at = read.rows, at + width + 1
    answers |= {i: Answer(text, "generated") for i, text in _written(parted, backbone, max_new_tokens)}
    return [answers[i] for i in range(len(rows))]


def _stages(backbone: Backbone) -> Iterator[int]:
    sizes = STAGES.get(backbone.model.device.type, STAGES["other"])
    yield from sizes
    yield from repeat(sizes[-1])


def _written(parted: list[_Read], backbone: Backbone, max_new_tokens: int) -> Iterator[tuple[int, str]]:
    """Rows and their answers, written to their ends token by token; a row that has ended is not read on."""
    read = _joined(parted) if parted else None
    while read is not None and read.rows:
        best, going = read.on([[]] * len(read.rows)), []
        for k, (token,) in enumerate(best):
            read.said[k].append(token)
            if token in backbone.stop_ids or len(read.said[k]) == max_new_tokens:
                yield read.rows[k], decode(backbone, read.said[k])
            else:
                going.append(k)
        read = read.only(going) if len(going) < len(best) else read


@dataclass
class _Read:
    """Rows of which the model has read the same number of columns, padded on the left."""

    backbone: Backbone
    rows: list[int]  # places in the batch that is answered
    said: list[list[int]]  # their answers so far; the last token of each is not yet read
    mask: Tensor  # (B, C) int64, 0 on padding
    cache: Cache  # keys and values (B, heads, C, D) of each layer

    def on(self, guesses: list[list[int]]) -> list[list[int]]:
        """Read the last token of each answer and as many guesses; returns the best next token after each of them."""
        net = adapters.innermost(self.backbone.model)
        ids = torch.tensor([[said[-1], *more] for said, more in zip(self.said, guesses, strict=True)]).to(self.mask)
        self.mask = F.pad(self.mask, (0, ids.shape[1]), value=1)
        given = {"input_ids": ids, "attention_mask": self.mask, "past_key_values": self.cache, "use_cache": True}
        if "position_ids" in inspect.signature(net.forward).parameters:
            given["position_ids"] = (self.mask.cumsum(dim=1) - 1)[:, -ids.shape[1] :]
        return _best(net(**given).logits, ids.shape[1])

    def only(self, places: list[int]) -> _Read:
        """These rows; `places` are among the present ones."""
        index = torch.tensor(places, dtype=torch.int64, device=self.mask.device)
        cache = _cache([(keys[index], values[index]) for keys, values in self._states()])
        rows, said = [self.rows[k] for k in places], [self.said[k] for k in places]
        return _Read(self.backbone, rows, said, self.mask[index], cache)

    def without(self, columns: list[int]) -> _Read:
        """The same without so many of the last columns of each row."""
        source = (
            torch.arange(self.mask.shape[1], device=self.mask.device) - torch.tensor(columns).to(self.mask)[:, None]
        )
        inside, source = source >= 0, source.clamp(min=0)
        places = source[:, None, :, None]
        cache = _cache([(k.take_along_dim(places, 2), v.take_along_dim(places, 2)) for k, v in self._states()])
        return _Read(self.backbone, self.rows, self.said, self.mask.gather(1, source) * inside, cache)

    def padded(self, gap: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer after so many more columns of padding."""
        return [(F.pad(keys, (0, 0, gap, 0)), F.pad(values, (0, 0, gap, 0))) for keys, values in self._states()]

    def _states(self) -> list[tuple[Tensor, Tensor]]:
        layers: Any = self.cache.layers
        return [(layer.keys, layer.values) for layer in layers]


def _begin(
    backbone: Backbone, prompts: Sequence[Sequence[int]], guesses: list[list[int]], prompt: Tensor | None
) -> tuple[_Read, list[list[int]]]:
    """Read prompts and guesses, as many for each; also returns the best next token after the prompt and each guess."""
    rows = [Encoded(ids, more) for ids, more in zip(prompts, guesses, strict=True)]
    batch = collate(rows, [Example("", "")] * len(rows), backbone.pad_id).to(backbone.model.device)
    net, columns = adapters.innermost(backbone.model), len(guesses[0]) + 1
    given = model_inputs(backbone.model, net, batch, prompt, logits_to_keep=columns)
    given = {"past_key_values": _cache([])} | given | {"use_cache": True}
    best, mask = _best(net(**given).logits, columns), given["attention_mask"]
    return _Read(backbone, list(range(len(rows))), [[] for _ in rows], mask, given["past_key_values"]), best


def _joined(parts: list[_Read]) -> _Read:
    """The rows of all parts, with more padding where a part has fewer columns."""
    longest = max(part.mask.shape[1] for part in parts)
    gaps = [longest - part.mask.shape[1] for part in parts]
    mask = torch.cat([F.pad(part.mask, (gap, 0)) for part, gap in zip(parts, gaps, strict=True)])
    layers = zip(*(part.padded(gap) for part, gap in zip(parts, gaps, strict=True)), strict=True)
    cache = _cache([[torch.cat(tensors) for tensors in zip(*layer, strict=True)] for layer in layers])
    rows, said = [row for part in parts for row in part.rows], [text for part in parts for text in part.said]
    return _Read(parts[0].backbone, rows, said, mask, cache)


def _cache(states: Iterable[Sequence[Tensor]]) -> Cache:
    """A cache of keys and values, layer by layer."""
    from transformers import DynamicCache  # seconds to import: not for --help

    cache = DynamicCache()
    for layer, (keys, values) in enumerate(states):
        cache.update(keys, values, layer)
    return cache


def _best(logits: Tensor, columns: int) -> list[list[int]]:
    """The best token in each of the last columns."""
    return logits[:, -columns:].argmax(dim=-1).tolist()
