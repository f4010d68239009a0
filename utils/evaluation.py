"""Evaluate the model on one task: one cell of R.

Predictions are gathered over the processes together with their targets; every example is scored once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from models.Base import Method
from utils.classifier import Classes
from utils.config import Config
from utils.dataloader import Encoded
from utils.dataset import Example
from utils.distributed import modes
from utils.distributed.collectives import gather, share
from utils.errors import UserError
from utils.model import staged
from utils.model.generation import Answer, verify
from utils.model.weights import eval_mode
from utils.scoring import aggregate, find, score
from utils.seed import random_for
from utils.session import Session
from utils.storage.files import read_jsonl, write_jsonl

POOL = 4  # batches of questions that are answered before their predictions are written
COLUMNS = {"score", "prediction", "target"}


class Cell(NamedTuple):
    """One task at one moment."""

    file: Path  # where the predictions go; if it is there, they are taken from it
    task: int | None  # None: the questions belong to no task of the stream
    examples: Sequence[Example]
    metric: str
    max_length: int | None
    max_new_tokens: int
    in_full: bool = False  # answers are generated even where it is clear beforehand that they are wrong
    places: Sequence[int] | None = None  # of the examples in their split, where they are a sample of it


def check_finite(method: Method) -> None:
    """Refuse weights that are not finite: every answer would be wrong, and no score would say why.

    Raises:
        UserError: a parameter holds NaN or an infinite value.
    """
    for name, weight in method.named().items():
        if not torch.isfinite(weight).all():
            raise UserError(
                f"backbone: {name} holds NaN or infinite values, so the model cannot answer; load other weights"
            )


def evaluate(method: Method, session: Session, cell: Cell) -> float:
    """Score in [0, 1] of one cell; its predictions are in `cell.file` afterwards."""
    if not cell.file.exists():
        rows = predict(method, session, cell)
        if session.accelerator.is_main_process:
            write_jsonl(cell.file, rows)
        session.accelerator.wait_for_everyone()
    rows = _read(cell)
    scores, predictions = ([row[key] for row in rows] for key in ("score", "prediction"))
    return aggregate(cell.metric, scores, predictions, [example.accepted for example in cell.examples])


def sampled(
    examples: Sequence[Example], limit: int | None, *purpose: object
) -> tuple[Sequence[Example], list[int] | None]:
    """The questions of a set that are scored, in their order, and their places; all, with None, if they are not more.

    The sample depends on nothing but the set, so that methods, seeds and evaluation points answer the same questions.

    Args:
        examples: The set.
        limit: Most questions, see the option `evaluate_limit`; None: no limit.
        purpose: Identifies this set.
    """
    if limit is None or len(examples) <= limit:
        return examples, None
    places = sorted(random_for("evaluate_limit", *purpose, len(examples)).sample(range(len(examples)), limit))
    return [examples[place] for place in places], places


def predict_ahead(method: Method, session: Session, cells: Sequence[Cell]) -> None:
    """Write the predictions of cells whose questions can share batches: small test sets would fill none.

    Only where an answer does not depend on the task of its question; other cells are left to `evaluate`.
    """
    if session.config.il_mode == "TIL" or method.is_task_given or not method.is_plain:
        return
    missing = [cell for cell in cells if not cell.file.exists()]
    for together in _pools(missing, POOL * session.config.evaluate_batch_size):
        rows = iter(predict(method, session, _joined(together)))
        for cell in together:
            own = list(islice(rows, len(cell.examples)))
            if session.accelerator.is_main_process:
                write_jsonl(cell.file, own)
    session.accelerator.wait_for_everyone()


def _pools(cells: Sequence[Cell], most: int) -> Iterator[list[Cell]]:
    """Groups of at least two neighbours that are answered and scored alike, of at most so many questions."""
    for _, alike in groupby(cells, lambda cell: (cell.metric, cell.max_length, cell.max_new_tokens, cell.in_full)):
        pool: list[Cell] = []
        for cell in [*alike, None]:
            if cell is None or sum(len(one.examples) for one in [*pool, cell]) > most:
                if len(pool) > 1:
                    yield pool
                pool = []
            pool += [] if cell is None else [cell]


def _joined(cells: Sequence[Cell]) -> Cell:
    """All their questions, under the name of the first and the last."""
    first, last = cells[0], cells[-1]
    places = [place for cell in cells for place in (cell.places or range(len(cell.examples)))]
    examples = [example for cell in cells for example in cell.examples]
    file = first.file.with_name(f"{first.file.stem} to {last.file.stem}.jsonl")
    return first._replace(file=file, examples=examples, places=places)


def _read(cell: Cell) -> list[dict[str, Any]]:
    """The saved rows of a cell, which an interrupted run may have left here."""
    rows = read_jsonl(cell.file)
    known = [_wanted(row) if isinstance(row, dict) and row.keys() >= COLUMNS else None for row in rows]
    if known != [_wanted(_expected(example)) for example in cell.examples]:
        raise UserError(
            f"{cell.file} is damaged: expected an answer to each of {len(cell.examples)} questions; delete it and "
            "resume again"
        )
    return rows


def _expected(example: Example) -> dict[str, Any]:
    """What a row of predictions.jsonl says of the right answer."""
    several = {"references": list(example.references)} if example.references else {}
    return {"target": example.target} | several


def _wanted(row: dict[str, Any]) -> tuple[Any, Any]:
    return row.get("target"), row.get("references")


def predict(method: Method, session: Session, cell: Cell) -> list[dict[str, Any]]:
    """The rows of predictions.jsonl, in the order of the examples, on every process."""
    with eval_mode(method.model, method.extra), autocast(session):
        answers = _answer(method, session, cell, [cell.examples[i] for i in share(len(cell.examples))])
    method.after_evaluation(cell.task)
    found = [Answer(*answer) for answer in gather([tuple(answer) for answer in answers], len(cell.examples))]
    if method.classifier is not None and method.stream.is_word_level:
        classes = method.classifier.classes
        task = 0 if cell.task is None else cell.task
        found = [answer._replace(text=annotated(answer.text, classes, task)) for answer in found]
    predictions = [answer.text for answer in found]
    accepted, sources = ([getattr(example, key) for example in cell.examples] for key in ("accepted", "input"))
    scores = score(cell.metric, predictions, accepted, sources)
    places = range(len(cell.examples)) if cell.places is None else cell.places
    return [
        {
            "index": places[i],
            "input": example.input,
            **_expected(example),
            "prediction": found[i].text,
            "score": scores[i],
            "decided": found[i].decided,
            **({"choices": example.choices, "log_likelihoods": found[i].likelihoods} if found[i].likelihoods else {}),
        }
        for i, example in enumerate(cell.examples)
    ]


def evaluation_type(config: Config) -> torch.dtype | None:
    """The type of autocast in evaluation; None: that of the weights."""
    return modes.autocast_type(config) if config.evaluate_autocast else None


def autocast(session: Session) -> AbstractContextManager[Any]:
    """The autocast of training, unless the options ask for the type of the weights."""
    asked = session.config.evaluate_autocast
    return modes.autocast(session.config, session.accelerator.device) if asked else nullcontext()


def annotated(tags: str, classes: Classes, task: int) -> str:
    """Predicted tags in which those of later tasks are O.

    The test split of a task is not annotated with types that come later, so whether a model that knows them already is
    right there cannot be known.
    """
    return " ".join(tag if classes.index[tag] < classes.ends[task] else "O" for tag in tags.split())


@torch.no_grad()
def _answer(method: Method, session: Session, cell: Cell, examples: list[Example]) -> list[Answer]:
    """Answers to this process's share: first by verification where that is allowed, the rest by generation."""
    config, encoder = session.config, session.encoder
    if (length := find(cell.metric).length) is not None:
        return _choose(method, session, cell, examples, length)
    rows = encoder.for_prediction(examples, cell.max_length)
    answers: list[Answer | None] = [None] * len(rows)
    _warn_of_cuts(session, cell, examples)
    processes = session.accelerator.num_processes  # the others are about as far
    bar = session.log.progress(_title(cell), processes * len(rows), unit="questions")
    task_id = _task_id(method, cell)
    compared = None if cell.in_full or not method.is_plain else find(cell.metric).compared
    if config.evaluation_mode == "verify" and compared is not None:
        way = staged.answer if staged.can_answer(method.model) else verify
        for chosen in _chunks(_by_length(rows, range(len(rows))), config.evaluate_batch_size):
            batch, accepted = [rows[i] for i in chosen], [examples[i].accepted for i in chosen]
            prompt = method.soft_prompt(task_id)
            found = way(method.backbone, batch, accepted, cell.max_new_tokens, prompt, compared)
            for i, answer in zip(chosen, found, strict=True):
                answers[i] = answer
            bar.update(processes * sum(answer is not None for answer in found))
    left = [i for i, answer in enumerate(answers) if answer is None]
    for chosen in _chunks(_by_length(rows, left), config.evaluate_batch_size):
        texts = method.predict([rows[i] for i in chosen], task_id, cell.max_new_tokens)
        for i, text in zip(chosen, texts, strict=True):
            answers[i] = Answer(text, "generated")
        bar.update(processes * len(chosen))
    bar.close()
    return [answer for answer in answers if answer is not None]  # all of them


def _task_id(method: Method, cell: Cell) -> int | None:
    """The task that a method may know."""
    return cell.task if method.config.il_mode == "TIL" or method.is_task_given else None


def _choose(
    method: Method, session: Session, cell: Cell, examples: list[Example], length: Callable[[str], int]
) -> list[Answer]:
    """The likeliest of the possible answers to each question, per unit of `length`; of equal ones the first.

    As in lm-eval the likelihood is that of the tokens of the answer, without the one that ends it.
    """
    _warn_of_cuts(session, cell, examples)
    asked = [(e, text) for e in examples for text in e.choices or ()]
    rows = _with_answers(method, session, cell, [replace(e, target=text, references=None) for e, text in asked])
    processes = session.accelerator.num_processes
    bar = session.log.progress(_title(cell), processes * len(rows), unit="possible answers")
    found = [0.0] * len(rows)
    for chosen in _chunks(_by_length(rows, range(len(rows))), session.config.evaluate_batch_size):
        values = method.likelihoods([rows[i] for i in chosen], _task_id(method, cell))
        for i, value in zip(chosen, values, strict=True):
            found[i] = value
        bar.update(processes * len(chosen))
    bar.close()
    answers, left = [], iter(found)
    for example in examples:
        texts = example.choices or ()
        own = tuple(islice(left, len(texts)))
        scaled = [value / max(1, length(text)) for value, text in zip(own, texts, strict=True)]
        answers.append(Answer(texts[scaled.index(max(scaled))], "likelihood", own))
    return answers


def _with_answers(method: Method, session: Session, cell: Cell, asked: list[Example]) -> list[Encoded]:
    """Prompts and possible answers without the token that ends one; prompts leave room for the longest answer."""
    rows, count = session.encoder.for_prediction(asked, cell.max_length), method.backbone.positions
    longest = max((len(row.answer) for row in rows), default=0) + method.virtual_tokens
    if count is not None and method.backbone.kind == "decoder":
        if longest >= count:
            raise UserError(f"{_title(cell)}: a possible answer has more tokens than the {count} the backbone can read")
        rows = session.encoder.for_prediction(asked, min(cell.max_length or count, count - longest))
    return [row._replace(answer=row.answer[:-1] or row.answer) for row in rows]


def _by_length(rows: list[Encoded], chosen: Iterable[int]) -> list[int]:
    """Indices of rows, the shortest prompt first."""
    return sorted(chosen, key=lambda i: len(rows[i].prompt))


def _title(cell: Cell) -> str:
    """Moment and questions, which name the folder and the file of the predictions."""
    return f"{cell.file.parent.name}: {cell.file.stem}"


def _warn_of_cuts(session: Session, cell: Cell, examples: list[Example]) -> None:
    lengths = [len(row.prompt) for row in session.encoder.for_prediction(examples, None)] if cell.max_length else []
    cut = sum(length > (cell.max_length or length) for length in lengths)
    if cut:
        session.log.warning(
            f"{cell.file.stem}: {cut} of {len(examples)} questions have more than {cell.max_length} tokens; they lose "
            f"tokens from the {session.encoder.cut_side} (max_seq_length, cut_side)"
        )


def _chunks(indices: list[int], size: int) -> list[list[int]]:
    return [indices[i : i + size] for i in range(0, len(indices), size)]
