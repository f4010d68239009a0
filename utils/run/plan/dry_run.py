"""The plan of a run, without running it (`--dry_run`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.Base import Method, Task
from utils import drift, estimate
from utils.buffer import Memory
from utils.config import Config
from utils.dataloader import parts_of, rows_at_once
from utils.dataset import Example
from utils.distributed.modes import mode
from utils.errors import UserError
from utils.estimate import Estimate, Work
from utils.model import adapters
from utils.model.freeze import NOTHING_LEFT
from utils.model.shortcuts.kept_states import frozen_blocks, size_of
from utils.report.tables import markdown
from utils.run.fit import texts_of
from utils.run.plan.memory import memory_of, state_bytes
from utils.run.tasks import is_scheduled, questions_of, task_of
from utils.run.trainer import TRAIN_SCORED
from utils.seed import random_for

REMARK = "What the method makes itself (pseudo-samples, teachers, averages) and the program itself come on top."


class TaskPlan(NamedTuple):
    """What a task takes."""

    task: Task
    examples: int  # of an epoch, with memory
    steps: int  # of the optimizer, all epochs
    learning: list[int]  # sizes of the trainable tensors
    kept: int  # bytes of the states of frozen layers
    work: list[Work]


def text(method: Method, processes: int) -> str:
    """The plan of a run; the method's model may be one without weights (on the meta device)."""
    config, plans = method.config, planned(method)
    rows = [["task", "train", "dev", "test", "examples", "epochs", "steps", "trainable"]]
    for plan, data in zip(plans, method.stream.tasks, strict=True):
        sizes = [str(len(getattr(data, split))) for split in ("train", "dev", "test")]
        sizes += [str(plan.examples), str(plan.task.epochs), str(plan.steps)]
        rows.append([f"{plan.task.index} ({data.name})", *sizes, f"{len(plan.learning):,} / {sum(plan.learning):,}"])
    kept = max(plan.kept for plan in plans)
    lines = [
        f"{config.method} on {method.stream.name}, seed {config.seed}: the plan, nothing is trained or written",
        markdown(rows),
        "examples: of an epoch, with memory; steps: of the optimizer, all epochs; trainable: tensors / parameters",
        _batches(config, processes),
        _trainable(method, plans),
        *([_hours(method, plans)] if estimate.is_large(method) else []),
        *([_drift(method)] if config.drift else []),
        *([f"states of frozen layers, {config.keep_frozen_states}: {_readable(kept)}"] if kept else []),
        *_memory(method, plans, processes),  # last: it empties the model
        REMARK,
        f"files: {Path(config.dump_path) / config.run_name}/<time>-seed{config.seed}/ with {_files(config)}",
    ]
    return "\n\n".join(lines)


def planned(method: Method) -> list[TaskPlan]:
    """What each task takes; afterwards the method's memory is as after the last one."""
    _plan_memory(method)
    plans = []
    for index in range(len(method.stream.tasks)):
        task = task_of(method, index)
        plans.append(_plan(method, task))
        _remember(method, task)
    return plans


def _plan(method: Method, task: Task) -> TaskPlan:
    if not method.takes_steps(task):
        return TaskPlan(task, 0, 0, [], 0, [])
    examples = len(method.train_examples(task))
    steps = math.ceil(examples / (method.config.batch_size - method.memory_rows())) * task.epochs
    learning = [w.numel() for w in method.learning(task).values()]
    if not learning:
        raise UserError(NOTHING_LEFT)  # as training would say
    work = [estimate.training(method, task, examples, steps)] if estimate.is_large(method) else []
    return TaskPlan(task, examples, steps, learning, _kept_states(method, task), work)


def estimated(method: Method, plans: Sequence[TaskPlan]) -> Estimate:
    """Hours and memory on GPUs."""
    work = [*(one for plan in plans for one in plan.work), *_evaluations(method)]
    return estimate.estimate(method, work, tuple(state_bytes(method, largest(plans).learning).values()))


def _evaluations(method: Method) -> Iterator[Work]:
    """All evaluations of a run, by task and split."""
    config, count = method.config, len(method.stream.tasks)
    moments = [k for k in range(count) if is_scheduled(config.evaluate_schedule, k, count)]
    for index in range(count):
        times = sum(config.evaluate_unseen or k >= index for k in moments) + config.is_evaluate_init
        for split in ("test", "train") if config.il_mode in TRAIN_SCORED else ("test",):
            questions = questions_of(method, index, split).examples
            yield estimate.answering(method, index, questions, times * len(questions))


def largest(plans: Sequence[TaskPlan]) -> TaskPlan:
    """The task that trains most."""
    return max(plans, key=lambda plan: (sum(plan.learning), plan.steps))


def _hours(method: Method, plans: Sequence[TaskPlan]) -> str:
    head = f"time of training and evaluation, estimated {estimate.ASSUMED}:"
    return "\n".join([head, *estimate.lines(estimated(method, plans))])


def _drift(method: Method) -> str:
    """Memory and passes that measuring drift takes."""
    weights = drift.trained(method, (task_of(method, k) for k in range(len(method.stream.tasks)))).values()
    size, count = sum(w.numel() * w.element_size() for w in weights), method.config.drift_questions
    return (
        f"drift: {_readable(size)} on the CPU for the weights before the stream; in each task two answers to each of "
        f"at most {count} questions are sampled and read by both models"
    )


def _kept_states(method: Method, task: Task) -> int:
    """Bytes of the states of frozen layers that a task keeps."""
    if method.config.keep_frozen_states is None or not frozen_blocks(method.model, method.learning(task)):
        return 0
    net = adapters.innermost(method.model)
    width = net.config.get_text_config().hidden_size
    return size_of(texts_of(method, task, method.train_examples(task)), width, net.dtype.itemsize)


def _plan_memory(method: Method) -> None:
    """Give the method a memory that is as large as the real one, but needs no model to choose."""
    if method.memory is not None and method.config.Replay_sampling_algorithm in ("herding", "surprise"):
        config = method.config.updated(Replay_sampling_algorithm="random")
        method.memory = Memory(config, method.stream.config.get("NUM_CLASS"))


def _remember(method: Method, task: Task) -> None:
    if method.memory is not None:
        method.memory.update(task.train, random_for(method.config.seed, "plan", task.index), _no_features)


def _no_features(rows: Sequence[Example]) -> NDArray[np.float32]:
    raise RuntimeError("a memory that chooses at random asks for no features")


def _batches(config: Config, processes: int) -> str:
    share = math.ceil(config.batch_size / processes)
    parts = parts_of(config.batch_size, processes, config.gradient_accumulation_steps)
    at_once = rows_at_once(config.batch_size, processes, config.gradient_accumulation_steps)
    return (
        f"batch_size {config.batch_size}: {processes} process{'es' if processes > 1 else ''} of {share} examples each, "
        f"in {parts} part{'s' if parts > 1 else ''} of at most {at_once}"
    )


def _trainable(method: Method, plans: Sequence[TaskPlan]) -> str:
    total = sum(w.numel() for w in method.named().values())
    return f"parameters: {total:,}, at most {sum(largest(plans).learning):,} trainable"


def _memory(method: Method, plans: Sequence[TaskPlan], processes: int) -> list[str]:
    """Of the task that trains most, with its longest texts. Empties the model."""
    plan = largest(plans)
    if not plan.steps:
        return []
    parts = memory_of(method, plan.task, processes, mode())
    listed = ", ".join(f"{name} {_readable(count)}" for name, count in parts.items())
    return [f"memory of each device in training: {listed}; together {_readable(sum(parts.values()))}"]


def _readable(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _files(config: Config) -> str:
    limit = config.save_total_limit
    kept = "the newest checkpoint"
    if config.save_llm_ckpt:
        kept = "the checkpoints of all tasks" if limit is None else f"at most {limit} checkpoints"
    features = ["features"] if config.save_features else []
    return ", ".join(["options, logs, predictions, results", kept, *features])
