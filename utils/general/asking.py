"""Ask a model, at one moment of a run, what the stream does not ask: questions and texts that are never trained.

These questions belong to no task: a method that routes chooses for them as for a question of an unknown task. They are
written without the format of the method, the same for all methods. Nothing here changes the model or what is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from models.Base import Method
from utils.backbone import make_encoder, stop_also_at
from utils.config import Config
from utils.dataloader import Encoded, Encoder
from utils.distributed.collectives import gather, share
from utils.errors import UserError
from utils.evaluation import Cell, autocast, evaluate, sampled
from utils.general import harness, questions
from utils.general.harness import HarnessTask
from utils.general.questions import Asked
from utils.metric import perplexity
from utils.model import adapters
from utils.model.weights import eval_mode
from utils.storage.files import read_jsonl, write_jsonl
from utils.storage.moment import Moment

WINDOW = 1024  # most tokens of a text that are read at once
ROWS = 16  # as many times fewer windows than questions are read at once


class Outside(NamedTuple):
    """All questions of a run outside its stream."""

    sets: Sequence[Asked] = ()
    tasks: Sequence[HarnessTask] = ()

    def files(self, folder: Path, moment: Moment) -> list[Path]:
        """Where the answers at one moment of a run are."""
        own = [moment.predictions(folder, f"general_{number}") for number in range(len(self.sets))]
        return own + ([harness.file_of(folder, moment)] if self.tasks else [])


NOTHING = Outside()


def outside(config: Config) -> Outside:
    """What the options ask.

    Raises:
        UserError: see `questions.read` and `harness.read`.
    """
    return Outside(questions.read(config), harness.read(config))


def ask(method: Method, folder: Path, moment: Moment, asked: Outside) -> None:
    """Score everything; what is in the run folder already is not measured again."""
    harness.ask(method, folder, moment, asked.tasks)
    for number, one in enumerate(asked.sets):
        name = f"general_{number}"
        file = moment.predictions(folder, name)
        score = _read_text(method, one, file) if one.text else _ask(method, one, file)
        value = f"{score:.4g}" if one.text else f"{100 * score:.1f}"
        method.session.log.info(f"{moment.folder}: {name} ({one.name}, {one.kind}) {one.metric} {value}")
        fields = {"moment": moment.folder, "cell": name, "metric": one.metric, f"score/{name}": score}
        method.session.log.event("evaluate", **fields)


def facts(config: Config) -> dict[str, list[dict[str, Any]]]:
    """What a report needs in addition to the answers; nothing if there are no such questions."""
    asked = outside(config)
    sets = [
        {"name": one.name, "kind": one.kind, "metric": one.metric}
        | ({"words": len(one.text.split())} if one.text else {})
        for one in asked.sets
    ]
    tasks = [{"name": one.name, "kind": one.kind} for one in asked.tasks]
    return {name: found for name, found in (("general", sets), ("harness", tasks)) if found}


def _ask(method: Method, one: Asked, file: Path) -> float:
    """Score in [0, 1] of a set of questions."""
    backbone = method.backbone
    encoder = _encoder(method, one)
    count = backbone.positions
    if count is not None:
        count -= method.virtual_tokens + (one.max_new_tokens if backbone.kind == "decoder" else 0)
        if count < 1:
            raise UserError(
                f"general_max_new_tokens: answers of {one.max_new_tokens} tokens leave no room for {one.name} in the "
                f"{backbone.positions} positions of the backbone; lower it"
            )
    examples, places = sampled(one.examples, method.config.evaluate_limit, one.name, "general")
    cell = Cell(file, None, examples, one.metric, count, one.max_new_tokens, places=places)
    with _stopping_at(method, encoder if one.examples[0].messages else None):
        return evaluate(method, replace(method.session, encoder=encoder), cell)


def _encoder(method: Method, one: Asked) -> Encoder:
    """Plain texts in the style of the questions."""
    return make_encoder(method.config, method.backbone, *one.style)


@contextmanager
def _stopping_at(method: Method, encoder: Encoder | None) -> Iterator[None]:
    """Inside the `with` answers also end where turns of a chat end; with no encoder, as before."""
    backbone, settings = method.backbone, adapters.innermost(method.model).generation_config
    before = backbone.stop_ids, settings.eos_token_id
    if encoder is not None and backbone.stop_ids:
        stop_also_at(backbone, encoder.turn_end)
    try:
        yield
    finally:
        backbone.stop_ids, settings.eos_token_id = before


def _read_text(method: Method, one: Asked, file: Path) -> float:
    """Perplexity per token of a text."""
    if not file.exists():
        rows = _log_likelihoods(method, _windows(method, one))
        if method.session.accelerator.is_main_process:
            write_jsonl(file, rows)
        method.session.accelerator.wait_for_everyone()
    rows = read_jsonl(file)
    return perplexity(sum(row["log_likelihood"] for row in rows), sum(row["tokens"] for row in rows))


def _windows(method: Method, one: Asked) -> list[Encoded]:
    """A text in pieces of the model's context; each token is predicted once, the first of a piece from one token.

    The first token of the text is predicted from BOS, or EOS where there is no BOS, as in lm-eval.
    """
    encoder = _encoder(method, one)
    hidden = one.text if encoder.parse_special else encoder.special.hide(one.text)
    (ids,) = encoder.special.encode([hidden])
    most = min(WINDOW, (method.backbone.positions or WINDOW) - method.virtual_tokens)
    size = max(1, most - max(1, len(encoder.bos)))
    pieces = [(start, ids[start : start + size]) for start in range(0, len(ids), size)]
    first = encoder.bos or [encoder.tokenizer.eos_token_id]
    return [Encoded([ids[start - 1]] if start else first, piece) for start, piece in pieces]


@torch.no_grad()
def _log_likelihoods(method: Method, windows: Sequence[Encoded]) -> list[dict[str, Any]]:
    """The rows of a text's predictions, on every process."""
    mine, size = [windows[i] for i in share(len(windows))], max(1, method.config.evaluate_batch_size // ROWS)
    found: list[float] = []
    with eval_mode(method.model, method.extra), autocast(method.session):
        for start in range(0, len(mine), size):
            found += method.likelihoods(mine[start : start + size], None)
    values = gather(found, len(windows))
    return [
        {"index": i, "tokens": len(window.answer), "log_likelihood": value}
        for i, (window, value) in enumerate(zip(windows, values, strict=True))
    ]
