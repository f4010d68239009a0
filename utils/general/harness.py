"""Tasks of lm-eval (EleutherAI's evaluation harness), asked of the model in memory; the package is optional.

What lm-eval 0.4.13 changes is restored: it seeds random, numpy and torch, leaves the model in eval mode, and sets the
tokenizer's padding. With a model in memory each process would do all the work; here they share it.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import io
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from models.Base import Method
from utils.config import Config
from utils.distributed.collectives import from_main
from utils.errors import UserError, reason_of
from utils.evaluation import evaluation_type
from utils.general.questions import kind_of
from utils.model import adapters
from utils.model.weights import eval_mode
from utils.storage.files import is_file, write_json
from utils.storage.moment import Moment

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

PACKAGE = "lm_eval==0.4.13"
FILES = (".yaml", ".yml")
BOOTSTRAP = 100  # draws, for the standard error of metrics that have no formula for it


class HarnessTask(NamedTuple):
    """A result of lm-eval: of a task or of a group."""

    name: str
    kind: str  # see utils/general/questions.py
    word: str  # a name, or the path of a YAML file


def file_of(folder: Path, moment: Moment) -> Path:
    """Where the results of one moment of a run are."""
    return folder / "harness" / f"{moment.folder}.json"


def read(config: Config) -> tuple[HarnessTask, ...]:
    """What the options ask of lm-eval; its data sets are loaded, or fetched, once.

    Raises:
        UserError: the package is missing, or a task is unknown or cannot be loaded.
    """
    if not config.general_harness:
        return ()
    if find_spec("lm_eval") is None:
        raise UserError(f"general_harness: needs the package lm_eval, which is missing; pip install {PACKAGE}")
    words = [kind_of(word) for word in config.general_harness]
    found = [HarnessTask(name, kind, word) for kind, word in words for name in _names(word, _has_names(config))]
    names = [one.name for one in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"general_harness: expected different tasks, got {twice[0]!r} twice")
    return tuple(found)


def digest(config: Config) -> str:
    """Of the version of lm-eval and the tasks' own files, for the identity of a run."""
    words = [kind_of(word)[1] for word in config.general_harness or ()]
    texts = [Path(word).read_bytes() for word in words if _is_path(word)]
    found = hashlib.sha256(importlib.metadata.version("lm_eval").encode())
    for text in texts:
        found.update(text)
    return found.hexdigest()[:16]


def _is_path(word: str) -> bool:
    return Path(word).suffix.lower() in FILES


def _has_names(config: Config) -> bool:
    return not all(_is_path(kind_of(word)[1]) for word in config.general_harness or ())


@cache
def _manager(with_names: bool) -> TaskManager:
    """The index of lm-eval's tasks, which takes seconds to make; without its own ones it is empty."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=with_names)


@cache
def _names(word: str, with_names: bool) -> tuple[str, ...]:
    """The results that a word gives: of one task or group, or of each task with a tag."""
    manager = _manager(with_names)
    if _is_path(word):
        if not is_file(Path(word)):
            raise UserError(f"general_harness: {word} does not exist; expected a YAML file of a task, or a name")
    elif word not in manager.all_tasks:
        near = ", ".join(get_close_matches(word, manager.all_tasks, n=3))
        raise UserError(f"general_harness: lm_eval has no task {word!r}" + (f"; did you mean {near}?" if near else ""))
    try:
        with redirect_stderr(io.StringIO()), _random_states_kept():
            loaded = manager.load([word])
    except Exception as error:  # of a YAML file, a data set or the network: whatever lm-eval and datasets raise
        raise UserError(f"general_harness: lm_eval cannot load {word}: {reason_of(error)}") from error
    return tuple(loaded["groups"])[:1] or tuple(loaded["tasks"])


def ask(method: Method, folder: Path, moment: Moment, tasks: Sequence[HarnessTask]) -> None:
    """Write the results of all tasks at one moment; those that are there already are not measured again."""
    file = file_of(folder, moment)
    if not tasks or file.exists():
        return
    method.session.log.info(f"{moment.folder}: lm-eval, {', '.join(one.name for one in tasks)}")
    results = from_main(_evaluate(method, list(dict.fromkeys(one.word for one in tasks))))
    found = {one.name: _metrics(results, one.name) for one in tasks}
    if method.session.accelerator.is_main_process:
        write_json(file, {"lm_eval": importlib.metadata.version("lm_eval"), "tasks": found})
    method.session.accelerator.wait_for_everyone()
    for name, one in found.items():
        main = one["main"]
        value, error = (one["metrics"][main][key] for key in ("value", "stderr"))
        more = "" if error is None else f" ± {error:.4f}"
        shown = "not finite" if value is None else f"{value:.4f}"
        method.session.log.info(f"{moment.folder}: {name} {main} {shown}{more}")
        method.session.log.event("evaluate", moment=moment.folder, cell=name, metric=main, score=value)


def _evaluate(method: Method, words: list[str]) -> dict[str, Any] | None:
    """What lm-eval returns, on the main process; None on the others."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    config, accelerator = method.config, method.session.accelerator
    with _restored(method), redirect_stderr(io.StringIO()):
        lm = HFLM(
            pretrained=method.model,
            tokenizer=copy.deepcopy(method.backbone.tokenizer),
            batch_size=config.evaluate_batch_size,
            max_length=method.backbone.positions,
            mixed_precision_dtype=evaluation_type(config),
            truncation=True,
        )
        if accelerator.num_processes > 1:  # otherwise each does everything
            lm.accelerator = accelerator
            lm._rank, lm._world_size = accelerator.process_index, accelerator.num_processes
        try:
            found: dict[str, Any] | None = lm_eval.simple_evaluate(
                model=lm,
                tasks=words,
                task_manager=_manager(_has_names(config)),
                limit=config.evaluate_limit,
                bootstrap_iters=BOOTSTRAP,
                log_samples=False,
            )
        except (AssertionError, ValueError, KeyError, NotImplementedError) as error:  # answers longer than the context
            raise UserError(f"general_harness: lm_eval cannot ask this model: {reason_of(error)}") from error
    return found


@contextmanager
def _restored(method: Method) -> Iterator[None]:
    """What lm-eval changes is as before after the `with`; inside, its limit of tokens counts and not the model's."""
    net = adapters.innermost(method.model)
    settings = net.generation_config
    net.generation_config = copy.deepcopy(settings)
    net.generation_config.max_new_tokens = None
    try:
        with eval_mode(method.model, method.extra), _random_states_kept():
            yield
    finally:
        net.generation_config = settings


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """The random states of Python, numpy and torch are as before after the `with`."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if devices:
            torch.cuda.set_rng_state_all(devices)


def _rounded(value: Any) -> float | None:
    """Without the last digits, which depend on the number of processes; None: no finite number."""
    return round(float(value), 12) if isinstance(value, int | float) and np.isfinite(value) else None


def _metrics(results: dict[str, Any], name: str) -> dict[str, Any]:
    """The metrics of one task, their standard errors, and the main one: the first that the task names."""
    metrics: dict[str, dict[str, Any]] = {}
    higher = results["higher_is_better"].get(name, {})
    for key, value in results["results"][name].items():
        metric, _, way = key.partition(",")
        if not way or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = results["results"][name].get(f"{metric}_stderr,{way}")
        title = metric if way == "none" else f"{metric}, {way}"
        metrics[title] = {"value": _rounded(value), "stderr": _rounded(stderr), "higher_is_better": higher.get(metric)}
    if not metrics:
        raise UserError(f"general_harness: {name} gives no number; leave it out")
    count = results.get("n-samples", {}).get(name, {}).get("effective")
    return {"main": next(iter(metrics)), "metrics": metrics, "examples": count}
