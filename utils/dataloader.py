"""From examples to batches of token ids.

Prompt and answer are tokenised separately and joined, so the loss mask is exact with and without a BOS token. Text in
data is text: what is spelled like a special token there does not become one. An over-long example loses prompt tokens
on one side or in the middle, never a token of its answer. Rows are padded on the left to the longest row of the batch.
Shapes: B rows, T tokens.
"""

from __future__ import annotations

import math
import random
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from utils.dataset import CUT_SIDES, Example
from utils.prompt import DEFAULT_DAY, ChatTemplate, SpecialTexts, render

OVERHEAD = 200  # bytes of an entry of the cache of token ids, without its text and ids
KEPT = 2**28  # bytes that the cache may take: texts of a larger task are tokenised in each epoch
BLOCK = 10_000  # texts that are tokenised at once
IGNORE = -100  # label of a position without a loss


class Encoded(NamedTuple):
    """Token ids of one example."""

    prompt: Sequence[int]  # with BOS where the tokenizer adds one
    answer: Sequence[int]  # with EOS at the end
    labelled: Sequence[int] = ()  # places in the prompt that have a loss too: earlier assistant turns of a chat
    classes: Sequence[tuple[int, int]] = ()  # places in the prompt that a classifier reads, and their classes


@dataclass
class Batch:
    """Rows that go through the model together."""

    input_ids: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) int64, 0 on padding
    labels: Tensor  # (B, T) int64: tokens of the answers, or classes where a classifier reads; elsewhere IGNORE
    examples: list[Example]
    # Labels of the whole optimizer step: of "all" rows, per source ("task", "memory" ...), per view ("answer",
    # "lm") and per both ("task lm"), divided by its number of micro-batches. A sum over tokens divided by this,
    # averaged over the micro-batches, is the mean over the step. "rows task lm" counts rows in the same way.
    tokens: dict[str, float]

    @cached_property
    def answer_length(self) -> int:
        """Longest answer; all labels lie in that many last columns. Computed on the CPU, see `to`."""
        labelled = (self.labels != IGNORE).any(dim=0).nonzero()
        return self.labels.shape[1] - int(labelled[0]) if len(labelled) else 1

    @cached_property
    def label_count(self) -> int:
        """Number of labels; computed on the CPU, see `to`."""
        return int((self.labels != IGNORE).sum())

    @cached_property
    def prompt_length(self) -> int:
        """Tokens of the longest prompt; computed on the CPU, see `to`."""
        return int(((self.attention_mask == 1) & (self.labels == IGNORE)).sum(dim=1).max())

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each row; computed on the CPU, see `to`."""
        return tuple(self.attention_mask.sum(dim=1).tolist())

    def rows(self, source: str | None = None, view: str | None = None) -> list[int]:
        """Places of the rows with this source and this view; None: any."""
        wanted = [source in (None, e.source) and view in (None, e.view) for e in self.examples]
        return [i for i, fits in enumerate(wanted) if fits]

    def only(self, rows: list[int]) -> Batch:
        """The batch of these rows, without the padding that they share; `tokens` are still those of the whole step."""
        used = (self.attention_mask[rows] == 1).any(dim=0).nonzero()
        first = int(used[0]) if rows else 0
        ids, mask, labels = (t[rows][:, first:] for t in (self.input_ids, self.attention_mask, self.labels))
        return Batch(ids, mask, labels, [self.examples[i] for i in rows], self.tokens)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; its tokens are counted before, as a GPU would have to be waited for."""
        counted = {name: getattr(self, name) for name in ("answer_length", "label_count", "prompt_length", "lengths")}
        tensors = (self.input_ids, self.attention_mask, self.labels)
        ids, mask, labels = (t.to(device, non_blocking=True) for t in tensors)
        moved = Batch(ids, mask, labels, self.examples, self.tokens)
        vars(moved).update(counted)  # the cached properties
        return moved


class Formatting(Protocol):
    """The hooks of a method that an encoder calls."""

    loss_on_prompts: ClassVar[bool]

    def render(self, example: Example, template: Callable[[Example], tuple[str, str]]) -> tuple[str, str]:
        """Prompt and answer of an example as text."""


class Encoder:
    """Tokenises examples; each text once.

    A method with a format different from the template of `prompt_type` has hooks for it (`method`).

    Args:
        tokenizer: The backbone's.
        prompt_type: See utils/prompt.py.
        ends: A prompt is a separate text, which ends as the tokenizer ends a text: T5's with EOS, BERT's with SEP.
        parse_special: What is spelled like a special token in data is that token; otherwise it is text.
        day: What a chat template takes for today.
        strip: Remove white space around questions and answers, see utils/prompt.py.
        cut_side: Where an over-long prompt loses tokens: left, right or middle.
        thinking: See `ChatTemplate`.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt_type: str,
        ends: bool = False,
        parse_special: bool = False,
        day: str = DEFAULT_DAY,
        strip: bool = True,
        cut_side: str = CUT_SIDES[0],
        thinking: bool | None = None,
    ):
        self.tokenizer, self.ends, self.parse_special = tokenizer, ends, parse_special
        self.day, self.thinking = day, thinking
        self.prompt_type, self.strip, self.cut_side = prompt_type, strip, cut_side
        self.method: Formatting | None = None  # whose hooks are called; None: only the template is used
        plain = tokenizer("x", add_special_tokens=False)["input_ids"]
        special = tokenizer("x")["input_ids"]
        at = next(i for i in range(len(special)) if list(special[i : i + len(plain)]) == list(plain))
        self.bos: list[int] = list(special[:at])  # what the tokenizer puts in front of a text, often nothing
        self.end: list[int] = list(special[at + len(plain) :]) if ends else []  # and behind a prompt
        self._size = 0  # bytes of the cache
        self._ids: dict[str, array[int]] = {}
        self._chats: dict[tuple[tuple[str, str], ...], Encoded] = {}
        self._special, self._template = SpecialTexts(tokenizer), ChatTemplate(tokenizer, day, thinking)

    def __call__(self, examples: Sequence[Example], max_length: int | None) -> list[Encoded]:
        """Encode examples.

        Args:
            examples: What to encode.
            max_length: Most tokens of prompt and answer together; None: no limit.
        """
        rows = [self._cut(row, max_length, len(row.answer)) for row in self._rows(examples)]
        if self.method is not None and self.method.loss_on_prompts:  # on all but the first token: nothing predicts it
            return [row._replace(labelled=range(1, len(row.prompt))) for row in rows]
        return rows

    def for_prediction(self, examples: Sequence[Example], max_length: int | None) -> list[Encoded]:
        """The same with the limit on the prompt alone: how much of it is kept can't depend on the target."""
        return [self._cut(row, max_length, 0) for row in self._rows(examples)]

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of prompt and answer of each example, before anything is cut."""
        extra = len(self.bos) + len(self.end)
        blocks = (self._rows(examples[start : start + BLOCK]) for start in range(0, len(examples), BLOCK))
        return [extra + len(row.prompt) + len(row.answer) for rows in blocks for row in rows]

    def render(self, example: Example) -> tuple[str, str]:
        """Prompt and answer of an example as text: by the method's hook, or by the template."""
        template = partial(render, prompt_type=self.prompt_type, strip=self.strip)
        return template(example) if self.method is None else self.method.render(example, template)

    def forget(self, most: int = 0) -> None:
        """Drop the cached token ids if they take more than `most` bytes; a task's test questions come back after it."""
        if self._size > most:
            self._ids.clear()
            self._chats.clear()
            self._size = 0

    @property
    def special(self) -> SpecialTexts:
        """Texts like special tokens; methods may add tokens."""
        if self._special.tokenizer is not self.tokenizer or self._special.size != len(self.tokenizer):
            self._special = SpecialTexts(self.tokenizer)
        return self._special

    @property
    def template(self) -> ChatTemplate:
        """The chat template."""
        if self._template.tokenizer is not self.tokenizer:
            self._template = ChatTemplate(self.tokenizer, self.day, self.thinking)
        return self._template

    @property
    def turn_end(self) -> int:
        """The token that ends an answer in a chat; EOS where the template writes no other."""
        return self.special.encode([self.template.end])[0][-1] if self.template.end else self.tokenizer.eos_token_id

    def _rows(self, examples: Sequence[Example]) -> list[Encoded]:
        """Whole prompts without BOS and end, answers with EOS."""
        self.forget(KEPT)
        texts = [None if e.messages else self.render(self._as_text(e)) for e in examples]
        new = sorted({text for pair in texts if pair for text in pair} - self._ids.keys())
        if new:
            encoded = self.special.encode(new)
            self._ids.update((text, array("i", ids)) for text, ids in zip(new, encoded, strict=True))
            self._size += sum(OVERHEAD + len(text) + 4 * len(ids) for text, ids in zip(new, encoded, strict=True))
        eos = self.tokenizer.eos_token_id
        return [
            self._without_bos(Encoded(self._ids[pair[0]], [*self._ids[pair[1]], eos])) if pair else self._chat(example)
            for pair, example in zip(texts, examples, strict=True)
        ]

    def _as_text(self, example: Example) -> Example:
        """The example without special tokens."""
        if self.parse_special:
            return example
        hidden = self.special.hide(example.input), self.special.hide(example.target)
        if hidden == (example.input, example.target):
            return example
        return replace(example, input=hidden[0], target=hidden[1])

    def _chat(self, example: Example) -> Encoded:
        """A chat: its last answer, and earlier ones as labels in the prompt; each ends with the token of its turn."""
        messages = example.messages or ()
        if messages not in self._chats:
            hide = str if self.parse_special else self.special.hide
            text, spans = self.template.split([(role, hide(content)) for role, content in messages])
            # As in `render` a space before an answer belongs to it.
            turns = [(len(text[:start].rstrip(" ")), end) for start, end in spans]
            ids, places = self._ids_at(text[: turns[-1][1]], [at for turn in turns for at in turn])
            *earlier, (start, end) = zip(places[::2], places[1::2], strict=True)
            answer = ids[start:end] if self.template.end else [*ids[start:end], self.tokenizer.eos_token_id]
            labelled = [place for turn in earlier for place in range(*turn)]
            self._chats[messages] = Encoded(ids[:start], answer, [] if self.ends else labelled)
            self._size += OVERHEAD + 64 * (start + len(answer))
        return self._without_bos(self._chats[messages], always=True)

    def _ids_at(self, text: str, cuts: Sequence[int]) -> tuple[list[int], list[int]]:
        """Ids of a text and the places among them that belong to these places in the text; no token crosses a cut."""
        ids: list[int] = []
        places, before = [], 0
        for cut in cuts:
            whole, piece = self.special.encode([text[:cut], text[before:cut]])
            ids = whole if whole[: len(ids)] == ids else ids + piece
            places.append(len(ids))
            before = cut
        return ids, places

    def _without_bos(self, row: Encoded, always: bool = False) -> Encoded:
        """The row without the BOS that a chat template or a text in data begins with: `_cut` puts it in front."""
        skip = len(self.bos)
        if not skip or not (always or self.parse_special) or list(row.prompt[:skip]) != self.bos:
            return row
        return row._replace(prompt=row.prompt[skip:], labelled=[place - skip for place in row.labelled])

    def _cut(self, row: Encoded, max_length: int | None, answer_length: int) -> Encoded:
        """BOS and the prompt tokens that fit; at least one token, so that the answer has a beginning."""
        first = drop = 0
        if max_length is not None:
            room = max(max_length - answer_length - len(self.bos) - len(self.end), 0 if self.bos else 1)
            drop = max(0, len(row.prompt) - room)
            first = {"left": 0, "right": room, "middle": (room + 1) // 2}[self.cut_side]
        last = first + drop  # what lies between them is dropped
        # A model can't predict its first token; an empty text begins with EOS where there is no BOS.
        prompt = [*self.bos, *row.prompt[:first], *row.prompt[last:], *self.end] or [self.tokenizer.eos_token_id]
        kept = [place if place < first else place - drop for place in row.labelled if not first <= place < last]
        return Encoded(prompt, row.answer, [at for place in kept if (at := place + len(self.bos)) > 0])


def collate(
    rows: Sequence[Encoded], examples: Sequence[Example], pad_id: int, tokens: dict[str, float] | None = None
) -> Batch:
    """Join encoded rows to a batch, padded on the left.

    Args:
        rows: Encoded examples.
        examples: The same examples as text.
        pad_id: Token id for padding.
        tokens: See `Batch.tokens`; None: those of this batch alone.
    """
    longest = max(len(row.prompt) + len(row.answer) for row in rows)
    ids, mask, labels = [], [], []
    for prompt, answer, labelled, classes in rows:
        gap = longest - len(prompt) - len(answer)
        ids.append([pad_id] * gap + [*prompt, *answer])
        mask.append([0] * gap + [1] * (longest - gap))
        labels.append([IGNORE] * (longest - len(answer)) + list(answer))
        for place in labelled:
            labels[-1][gap + place] = prompt[place]
        for place, label in classes:
            labels[-1][gap + place] = label
    a, b, c = (torch.tensor(x, dtype=torch.int64) for x in (ids, mask, labels))
    return Batch(a, b, c, list(examples), tokens or count_tokens(rows, examples, 1))


def count_tokens(rows: Sequence[Encoded], examples: Sequence[Example], micro_batches: int) -> dict[str, float]:
    """`Batch.tokens` of a step that is cut into this many micro-batches over all processes."""
    counts: Counter[str] = Counter()
    for row, example in zip(rows, examples, strict=True):
        for kind in ("all", example.source, example.view, f"{example.source} {example.view}"):
            counts[kind] += len(row.answer) + len(row.labelled) + len(row.classes)
        counts[f"rows {example.source} {example.view}"] += 1
    # A step without any label has a loss of 0, not 0 / 0.
    return {source: max(1, count) / micro_batches for source, count in counts.items()}


def parts_of(rows: int, world: int, most: int) -> int:
    """Micro-batches into which each of `world` processes cuts its share of a step: at most `most`, none without a row.

    >>> parts_of(16, 2, 4), parts_of(5, 2, 4), parts_of(1, 2, 4)
    (4, 2, 1)
    """
    return max(1, min(most, rows // world))


def rows_at_once(rows: int, world: int, most: int) -> int:
    """Most rows of a micro-batch, see `parts_of`.

    >>> rows_at_once(16, 2, 4), rows_at_once(5, 2, 4), rows_at_once(1, 2, 4)
    (2, 2, 1)
    """
    return math.ceil(rows / (world * parts_of(rows, world, most)))


def micro_batches(
    rows: Sequence[Encoded], examples: Sequence[Example], pad_id: int, rank: int, world: int, parts: int
) -> list[Batch]:
    """Cut one optimizer step into the micro-batches of one process.

    With more than one part, rows of similar length share a micro-batch, which saves padding; the step is the same.
    Every process gets the same number of micro-batches, so that all take part in every collective. Where there are
    fewer rows than processes, one without a row gets a row without labels, whose loss is 0.

    Args:
        rows: Encoded examples of the step, of all processes.
        examples: The same examples as text.
        pad_id: Token id for padding.
        rank: Number of this process.
        world: Number of processes.
        parts: Most micro-batches of a process, see `parts_of`.
    """
    parts = parts_of(len(rows), world, parts)
    tokens = count_tokens(rows, examples, world * parts)
    order = list(range(len(rows)))
    if parts > 1:
        order.sort(key=lambda i: len(rows[i].prompt) + len(rows[i].answer))
    mine, batches = order[rank::world], []
    bounds = [math.ceil(part * len(mine) / parts) for part in range(parts + 1)]
    for first, last in pairwise(bounds):
        chosen = mine[first:last]
        batch = collate(*_pick(rows, examples, chosen or range(1)), pad_id, tokens)
        if not chosen:
            batch.labels.fill_(IGNORE)
        batches.append(batch)
    return batches


def epoch_order(
    lengths: Sequence[int], size: int, rng: random.Random, by_length: bool = False, group: int = 50
) -> list[Sequence[int]]:
    """Indices of one epoch, cut into batches: each index once, only one batch may be short.

    The order is one uniform shuffle of the epoch.

    Args:
        lengths: Tokens of each example.
        size: Examples per batch.
        rng: For the shuffle.
        by_length: Sort the shuffled examples by length within each `group` batches, cut these into batches and shuffle
            the batches again. This saves padding, but tasks of different lengths hardly share a batch. A group is at
            most a quarter of the epoch, or else every epoch of a small task would have the same batches.
        group: See by_length.
    """
    order = array("q", range(len(lengths)))
    rng.shuffle(order)
    if not by_length:
        return [order[i : i + size] for i in range(0, len(order), size)]
    group = max(1, min(group, len(lengths) // (4 * size)))
    batches: list[Sequence[int]] = []
    for start in range(0, len(order), group * size):
        piece = sorted(order[start : start + group * size], key=lengths.__getitem__)
        batches += [piece[i : i + size] for i in range(0, len(piece), size)]
    rng.shuffle(batches)
    return batches


def _pick(
    rows: Sequence[Encoded], examples: Sequence[Example], chosen: Sequence[int]
) -> tuple[list[Encoded], list[Example]]:
    return [rows[i] for i in chosen], [examples[i] for i in chosen]
