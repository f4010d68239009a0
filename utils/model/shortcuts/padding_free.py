"""Rows of a training batch without their padding, several in one sequence (`padding_free`).

transformers keeps the rows of a sequence apart by their positions, which begin again at 0: it builds a mask of blocks,
or gives FlashAttention the lengths. Whether a model does so is tested at the start of a run (utils/model/self_test.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from utils.config import Config
from utils.dataloader import Batch
from utils.model.adapters import innermost, virtual_tokens
from utils.model.architecture import Model, positions

# Sequences have at most this share of the padded tokens; with more, their mask costs more than they save.
GAIN = 0.9


class PaddingFree:
    """Training steps of a model without padding.

    Args:
        model: A decoder.
        limit: See `pack`.
    """

    def __init__(self, model: Model, limit: int | None):
        self.net, self.limit = innermost(model), limit

    @contextmanager
    def used(self) -> Iterator[None]:
        """`forward.answer_scores` and `forward.token_states` pack the rows of a batch inside the `with`."""
        vars(self.net)["padding_free"] = self
        try:
            yield
        finally:
            del vars(self.net)["padding_free"]


class Packed(NamedTuple):
    """A batch in S sequences of C tokens."""

    ids: Tensor  # (S, C) int64
    positions: Tensor  # (S, C) int64, from 0 in each row
    places: Tensor  # (B, T) int64: where each token of the batch is, in the sequences one after the other; 0 on padding


def limit_of(model: Model) -> int | None:
    """Tokens of a sequence of several rows; None: no limit.

    In a layer of width D, attention over L tokens costs L / (6 D) of the products with weights: with D / 2 tokens, 8 %.
    FlashAttention keeps the rows of one sequence apart, not of several, and its cost is that of the rows.
    """
    net = innermost(model)
    if "flash" in str(net.config._attn_implementation):
        return None
    width: int = net.config.get_text_config().hidden_size
    return min(width // 2, positions(net) or width)


def problems(config: Config, kind: str, has_prompt: bool) -> list[str]:
    """Why rows cannot be packed; empty if they can or need not.

    Args:
        config: Options.
        kind: Of the backbone.
        has_prompt: The method puts virtual tokens before texts.
    """
    if not config.padding_free:
        return []
    found = []
    if kind != "decoder":
        found.append(f"padding_free: needs a decoder, whose tokens read only what comes before them; got {kind}")
    if has_prompt or virtual_tokens(config):
        found.append("padding_free: rows with virtual tokens are not packed; leave it out")
    if config.keep_frozen_states is not None:
        found.append("padding_free: cannot be combined with keep_frozen_states, whose states are those of padded rows")
    return found


def pack(batch: Batch, limit: int | None) -> Packed | None:
    """The batch without padding; None where that would be hardly shorter.

    Args:
        batch: Rows padded on the left.
        limit: Tokens of a sequence, unless a row is longer; None: one sequence of all rows.
    """
    lengths, width = batch.lengths, batch.input_ids.shape[1]
    rooms = fill(lengths, sum(lengths) if limit is None else limit)
    size = max(sum(lengths[i] for i in room) for room in rooms)
    if len(rooms) * size > GAIN * batch.input_ids.numel():
        return None
    source, position_ids = torch.zeros(2, len(rooms), size, dtype=torch.int64)
    places = torch.zeros(len(lengths), width, dtype=torch.int64)
    for number, room in enumerate(rooms):
        at = 0
        for i in room:
            n = lengths[i]
            source[number, at : at + n] = torch.arange((i + 1) * width - n, (i + 1) * width)
            position_ids[number, at : at + n] = torch.arange(n)
            places[i, width - n :] = torch.arange(number * size + at, number * size + at + n)
            at += n
        # The rest of the sequence continues its last row, with positions that the longest row has.
        position_ids[number, at:] = torch.arange(n, n + size - at).clamp(max=max(lengths) - 1)
    source, position_ids, places = (
        t.to(batch.input_ids.device, non_blocking=True) for t in (source, position_ids, places)
    )
    return Packed(batch.input_ids.flatten()[source], position_ids, places)


def fill(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Places of the rows of each sequence: the longest first, each into the first sequence that has room for it.

    >>> fill([5, 2, 3, 4], 7), fill([9, 2], 7)
    ([[0, 1], [3, 2]], [[0], [1]])
    """
    rooms: list[list[int]] = []
    free: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        room = next((k for k, left in enumerate(free) if left >= lengths[i]), None)
        if room is None:
            rooms.append([])
            free.append(max(limit, *lengths))
            room = -1
        rooms[room].append(i)
        free[room] -= lengths[i]
    return rooms
