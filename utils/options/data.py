"""Anomalies in the data of a run: one line per task and finding, printed at the start.

Time and memory are bounded: of a long split evenly spaced examples are checked, and the line says how many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from models.Base import Method
from utils.classifier import ClassEncoder
from utils.dataloader import Encoder
from utils.dataset import SPLITS, Example, Stream, TaskData, spaced
from utils.errors import UserError
from utils.model.architecture import Backbone, has_fixed_positions
from utils.model.generation import decode

CHECKED = 20_000  # examples of a split in a stream of one task; several tasks share them
LEAST = 500  # but at least this many of each


def lines(stream: Stream, encoder: Encoder | ClassEncoder, backbone: Backbone) -> list[str]:
    """Counts per task, only those that are not 0.

    Args:
        stream: The stream of the run.
        encoder: Of the run; its cache is emptied. With a classifier targets are classes, and are not checked.
        backbone: Its tokenizer decodes.
    """
    limit = max(LEAST, CHECKED // len(stream.tasks))
    found = []
    for task in stream.tasks:
        splits = {split: spaced(getattr(task, split), limit) for split in SPLITS}
        part = ""
        if any(len(splits[split]) < len(getattr(task, split)) for split in SPLITS):
            part = f" (of at most {limit} examples of each split that were checked)"
        counts = list(_questions(splits["train"], splits["test"]))
        if isinstance(encoder, Encoder):
            counts += _targets([e for split in splits.values() for e in split], encoder, backbone)
            encoder.forget()
        found += [f"data of {task.name}: {count} {what}{part}" for count, what in counts if count]
    return found


def check_lengths(method: Method) -> None:
    """Refuse texts and limits that are longer than what the backbone can read.

    Raises:
        UserError: a limit, an answer to be learned or, where all words have tags to be scored, a test sentence has more
            tokens than the model has positions.
    """
    backbone, encoder, stream = method.backbone, method.encoder, method.stream
    count = backbone.positions
    if count is None:
        return
    if stream.is_word_level and not isinstance(encoder, Encoder):
        _check_sentences(stream, encoder, count)
    if has_fixed_positions(backbone.model.config):
        for index, task in enumerate(stream.tasks):
            _check_limits(method, index, count)
            if isinstance(encoder, Encoder):
                _check_answers(task, encoder, count - method.virtual_tokens)


def _check_sentences(stream: Stream, encoder: ClassEncoder, count: int) -> None:
    for task in stream.tasks:
        long = sum(length > count for length in encoder.lengths(task.test))
        if long:
            raise UserError(
                f"{stream.name}, {task.name}: {long} of {len(task.test)} test sentences have more than the {count} "
                "tokens that the backbone can read, so not all words could be scored; split these sentences"
            )


def _check_limits(method: Method, index: int, count: int) -> None:
    room, asked, written = method.room(index), method.max_length(index), method.max_new_tokens(index)
    least = 1 if method.backbone.kind != "encoder-decoder" or written <= count else count + 1
    if room is not None and room < least:
        raise UserError(
            f"backbone_max_new_token: answers of {written} tokens and {method.virtual_tokens} virtual tokens leave no "
            f"room for a prompt in the {count} positions of the backbone; lower it"
        )
    if room is not None and asked is not None and asked > room:
        raise UserError(
            f"max_seq_length: expected at most {room} for task {index}, as the backbone has {count} positions, which "
            f"answers and virtual tokens share; got {asked}"
        )


def _check_answers(task: TaskData, encoder: Encoder, count: int) -> None:
    # A text has at most one token per byte; a space, the end of the answer and a prompt are added.
    candidates = [e for e in task.train if len(_target(e).encode()) + 3 > count]
    long = sum(len(row.answer) + 1 > count for row in encoder(candidates, None))
    if long:
        raise UserError(
            f"{task.name}: {long} of {len(task.train)} answers to be learned have more tokens than the {count} that "
            "the backbone can read or write; shorten or leave out these examples"
        )


def _questions(train: Sequence[Example], test: Sequence[Example]) -> Iterator[tuple[int, str]]:
    learned = {_question(example) for example in train}
    yield len(train) - len(learned), "repeated questions in train"
    yield sum(_question(example) in learned for example in test), "test questions that are in train too"


def _question(example: Example) -> tuple[object, ...]:
    return example.input.strip(), example.messages and example.messages[:-1]


def _targets(examples: Sequence[Example], encoder: Encoder, backbone: Backbone) -> Iterator[tuple[int, str]]:
    wanted = [_target(example) for example in examples]
    yield sum(not target for target in wanted), "empty targets"
    treated = "which are read as tokens" if encoder.parse_special else "which are read as text"
    special = encoder.special
    yield sum(special.hide(t) != t for t in wanted), f"targets that hold special tokens, {treated}"
    written = [decode(backbone, row.answer) for row in encoder(examples, None)]
    changed = sum(a != b for a, b in zip(written, wanted, strict=True))
    yield changed, "targets that another text comes back for after encoding and decoding: no answer can match them"


def _target(example: Example) -> str:
    return (example.messages[-1][1] if example.messages else example.target).strip()
