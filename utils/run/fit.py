"""The one training loop; utils/distributed has the backward pass and the step of each mode."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from models.Base import Method, Task
from utils.dataloader import Batch, Encoded, epoch_order, micro_batches
from utils.dataset import Example
from utils.distributed import modes
from utils.distributed.placement import place
from utils.distributed.replicated import OptimizerState, Replicated
from utils.errors import UserError
from utils.logger import Window
from utils.model.freeze import NOTHING_LEFT, describe
from utils.model.shortcuts.compiled import CompiledBlocks
from utils.model.shortcuts.kept_states import KeptStates, frozen_blocks
from utils.model.shortcuts.padding_free import PaddingFree, limit_of
from utils.model.weights import snapshot
from utils.optimizer import Group, as_laid_out, set_learning_rate
from utils.run.cost import peak_memory
from utils.seed import random_for, seed_torch
from utils.session import Progress, Session

TOKENISED_FIRST = 100_000  # examples of a task up to which all are tokenised at its beginning


class DivergedError(UserError):
    """The loss is no longer a number."""


OnStep = Callable[[Progress, Replicated], bool | None]


def fit(
    method: Method,
    task: Task,
    session: Session,
    start: Progress | None = None,
    moments: OptimizerState | None = None,
    on_step: OnStep | None = None,
    limit: int | None = None,
) -> OptimizerState:
    """Learn one task. Every method, parallelism and precision goes through these lines.

    Args:
        method: Says what is trained, on what, and with which loss.
        task: What is learned.
        session: Options, processes, tokeniser, log.
        start: Where an interrupted task is resumed; None: at its beginning.
        moments: AdamW's tensors to begin with, by parameter name; None: fresh ones.
        on_step: Called after each optimizer step with the progress and where the weights are; returns True to end
            the task.
        limit: Stop after this many optimizer steps; None: when all epochs are done.

    Returns:
        AdamW's tensors at the end, if they are kept from task to task.

    Raises:
        DivergedError: the loss is not finite. It is checked a step later, so as not to wait for the device, but before
            anything reads the weights: an evaluation, a checkpoint, the end of the task.
        UserError: nothing is left to train.
    """
    method.answers.newest = min(task.index, len(method.stream.tasks) - 1)
    if not method.takes_steps(task):
        return {}
    start = start or Progress(task.index)
    examples = method.train_examples(task)
    groups, plan = _set_trainable(method, method.trainable(task)), _Plan(session, method, task, examples)
    _announce(session, method, task, plan)
    shortcuts = _shortcuts(method, task, examples)
    placed = place(method, task, groups, session, moments or {})
    placed.step.train()
    title = f"task {task.index}, " if task.index < len(method.stream.tasks) else ""
    meter = _Meter(session, task, title, plan.steps * task.epochs, start.epoch * plan.steps + start.step)
    finite = _Finite(task)
    placed.before_reading = finite.check
    for progress, batches in plan.walk(start):
        rate = set_learning_rate(placed.stepper, session.config, progress.done - 1, plan.steps * task.epochs)
        with _used(shortcuts):
            terms = _step(placed, batches, method, task, session, progress)
        finite.note(terms, progress)
        meter.add(terms, sum(int(batch.attention_mask.sum()) for batch in batches), progress, rate)
        stop = False
        if on_step is not None:
            stop = bool(on_step(progress, placed))
            placed.step.train()  # after an evaluation
        if stop or progress.done == limit:
            break
    finite.check()
    meter.close()
    moments = placed.moments() if session.config.keep_optimizer_state else {}
    placed.release()
    return moments


def _step(
    placed: Replicated,
    batches: list[Batch],
    method: Method,
    task: Task,
    session: Session,
    at: Progress,
) -> dict[str, Tensor]:
    """One optimizer step over the micro-batches of this process; returns the mean of each loss term."""
    accelerator, config = session.accelerator, session.config
    seed_torch(config.seed, "step", at, accelerator.process_index)
    wrapped, optimizer = placed.step, placed.stepper
    edits = type(method).on_update is not Method.on_update  # copies of the weights are made only where they are used
    before = snapshot(_trained(method)) if edits else {}
    edits_gradients = type(method).on_gradients is not Method.on_gradients
    total: dict[str, Tensor] = {}
    factor = placed.begin_step(len(batches))
    for k, batch in enumerate(batches, start=1):
        with accelerator.accumulate(wrapped):
            terms = wrapped(batch.to(accelerator.device), len(batches) if k == len(batches) else 0)
            if edits_gradients and not _are_finite(terms):  # the method computes with them at once
                raise _diverged(terms, task, at)
            terms |= placed.backward(factor * sum(terms.values()))
            if accelerator.sync_gradients:
                if edits_gradients:
                    method.on_gradients(task)
                    as_laid_out(wrapped.parameters())
                if config.max_grad_norm is not None:
                    accelerator.clip_grad_norm_(wrapped.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()  # last: earlier it would drop what was accumulated
        for name, value in terms.items():
            total[name] = total.get(name, 0) + value.detach() / len(batches)
    if edits:
        with torch.no_grad():
            method.on_update(before, task)
        placed.edited()
    method.after_step(task)
    return total


Shortcut = KeptStates | CompiledBlocks | PaddingFree


def _shortcuts(method: Method, task: Task, examples: Sequence[Example]) -> list[Shortcut]:
    """What makes steps faster, by option; frozen blocks whose states are kept are not compiled."""
    states = _kept_states(method, task, examples)
    found: list[Shortcut] = [states] if states else []
    if method.config.torch_compile:
        found.append(CompiledBlocks(method.model, len(states.skipped) if states else 0))
    if method.config.padding_free:
        found.append(PaddingFree(method.model, limit_of(method.model)))
    return found


@contextmanager
def _used(shortcuts: Sequence[Shortcut]) -> Iterator[None]:
    with ExitStack() as used:
        for shortcut in shortcuts:
            used.enter_context(shortcut.used())
        yield


def _kept_states(method: Method, task: Task, examples: Sequence[Example]) -> KeptStates | None:
    """The states of all texts that are known when the task begins, if they are to be kept and layers are frozen."""
    config, session = method.config, method.session
    if config.keep_frozen_states is None or not (count := frozen_blocks(method.model, method.learning(task))):
        return None
    rows = texts_of(method, task, examples)
    states = KeptStates(method.model, count, config.keep_frozen_states, Path(config.dump_path))
    with modes.autocast(config, session.accelerator.device):
        states.fill(rows, method.backbone.pad_id, config.batch_size)
    session.log.info(f"task {task.index}: states that enter layer {count} are kept for {len(states.states)} texts")
    return states


def texts_of(method: Method, task: Task, examples: Sequence[Example]) -> list[Encoded]:
    """The texts of a task that are known when it begins: its examples and the memory."""
    known = examples if method.memory is None else method.memory.behind(examples)
    return method.session.encoder(known, task.max_length)


def _trained(method: Method) -> dict[str, nn.Parameter]:
    return {name: w for name, w in method.named().items() if w.requires_grad}


class _Plan:
    """Which examples each step of each epoch sees: a function of the seed, so it can start anywhere."""

    def __init__(self, session: Session, method: Method, task: Task, examples: Sequence[Example]):
        self.session, self.method, self.task, self.examples = session, method, task, examples
        self.new_rows = session.config.batch_size - method.memory_rows()
        self.steps = math.ceil(len(examples) / self.new_rows)
        # The order needs lengths for group_by_length alone; otherwise it only counts them.
        are_read = session.config.group_by_length or len(examples) <= TOKENISED_FIRST
        self.lengths = session.encoder.lengths(examples) if are_read else range(len(examples))

    def walk(self, start: Progress) -> Iterator[tuple[Progress, list[Batch]]]:
        """Micro-batches of this process for each step after `start`, with the progress that the step makes."""
        for epoch in range(start.epoch, self.task.epochs):
            begin = start.step if epoch == start.epoch else 0
            rng = random_for(self.session.config.seed, self.task.index, epoch, "order")
            order = epoch_order(self.lengths, self.new_rows, rng, self.session.config.group_by_length)
            for number in range(begin, self.steps):
                progress = Progress(self.task.index, epoch, number + 1, self.steps)
                yield progress, self._batches([self.examples[i] for i in order[number]], epoch, number)

    def _batches(self, new: list[Example], epoch: int, number: int) -> list[Batch]:
        config, accelerator = self.session.config, self.session.accelerator
        rng = random_for(config.seed, self.task.index, epoch, number, "batch")
        rows = self.method.batch(new, self.task, rng)
        return micro_batches(
            self.method.encode(rows, self.task),
            rows,
            self.method.backbone.pad_id,
            accelerator.process_index,
            accelerator.num_processes,
            config.gradient_accumulation_steps,
        )


class _Finite:
    """Stops training if a loss is not finite; a step's losses are checked after the next one has been queued."""

    def __init__(self, task: Task):
        self.task, self.terms, self.at = task, dict[str, Tensor](), Progress(task.index)
        self.is_fine, self.known = torch.tensor(True), torch.Event("cuda") if torch.cuda.is_available() else None

    def note(self, terms: dict[str, Tensor], at: Progress) -> None:
        """Check the losses of the step before, and have the CPU know of those of this one when they are computed."""
        self.check()
        self.terms, self.at = terms, at
        self.is_fine = _are_finite(terms).to("cpu", non_blocking=True)
        if self.known is not None:
            self.known.record()

    def check(self) -> None:
        """Check the losses that were noted last.

        Raises:
            DivergedError: one is not finite.
        """
        if self.known is not None and self.terms:
            self.known.synchronize()
        if not self.is_fine:
            raise _diverged(self.terms, self.task, self.at)


def _are_finite(terms: dict[str, Tensor]) -> Tensor:
    """() bool, on the device."""
    return torch.stack([value.isfinite().all() for value in terms.values()]).all()


def _diverged(terms: dict[str, Tensor], task: Task, at: Progress) -> DivergedError:
    values = ", ".join(f"{name} = {value.item():g}" for name, value in terms.items())
    is_infinite = any(torch.isinf(value).any() for value in terms.values())
    masked = ", unless a label is of a class that is masked in this task" if is_infinite else ""
    return DivergedError(
        f"the loss is not finite in task {task.index} ({task.name}), epoch {at.epoch}, step {at.step}: {values}; "
        f"lower lr, or set max_grad_norm{masked}"
    )


class _Meter:
    """Progress bar; and every `info_per_steps` steps and at the end a line and an event with the mean losses.

    The sums are in `session.log.window`, which checkpoints save: a resumed run logs the means of the whole window.
    """

    def __init__(self, session: Session, task: Task, title: str, steps: int, done: int):
        self.session, self.task, self.title, self.every = session, task, title, session.config.info_per_steps
        self.bar = session.log.progress(f"{title}{task.name}", steps, done)
        self.done = done
        if not done:
            session.log.window = Window()
        self._restart()

    def _restart(self) -> None:
        self.timed, self.tokens, self.since = 0, 0, time.monotonic()

    def add(self, terms: dict[str, Tensor], tokens: int, at: Progress, rate: float) -> None:
        self.session.log.window.add(terms)
        self.done, self.timed, self.tokens = self.done + 1, self.timed + 1, self.tokens + tokens
        self.session.log.step += 1
        self.last = (at, rate)
        self.bar.update()
        if self.done % self.every == 0 or self.done == self.bar.total:  # before a checkpoint of the last step
            self.flush()

    def flush(self) -> None:
        """Log the window; one reduction over the processes and one wait for the device."""
        window, log = self.session.log.window, self.session.log
        if not self.timed:  # at the end of a task, straight after a line
            return
        (at, rate), seconds = self.last, time.monotonic() - self.since
        values = torch.stack([value / window.count for value in window.sums.values()])
        values = torch.cat([values, values.new_tensor([self.tokens])])
        *means, tokens = self.session.accelerator.reduce(values, "mean").tolist()
        speed = tokens * self.session.accelerator.num_processes / max(seconds, 1e-9)
        losses = dict(zip(window.sums, means, strict=True))
        memory = peak_memory(self.session.accelerator.device)
        terms = {f"loss/{name}": value for name, value in losses.items()}
        log.event(
            "train",
            task=at.task,
            epoch=at.epoch,
            loss=sum(means),
            **terms,
            lr=rate,
            seconds_per_step=seconds / self.timed,
            tokens_per_second=speed,
            peak_memory_bytes=memory,
        )
        log.progress_line(
            f"{self.title}epoch {at.epoch + 1} of {self.task.epochs}, step {self.done} of {self.bar.total}: "
            f"{_loss_text(losses)}, lr {rate:.3g}, {speed:,.0f} tokens/s, peak memory {memory / 1e9:.2f} GB, "
            f"{self.bar.left()}"
        )
        self.bar.note(loss=f"{sum(means):.4f}")
        log.window = Window()
        self._restart()

    def close(self) -> None:
        self.flush()
        self.bar.close()


def _loss_text(losses: dict[str, float]) -> str:
    """The loss and, if there are several, its terms.

    >>> _loss_text({"answer": 0.5}), _loss_text({"answer": 0.5, "penalty": 0.25})
    ('loss 0.5000', 'loss 0.7500 (answer 0.5000, penalty 0.2500)')
    """
    terms = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
    return f"loss {sum(losses.values()):.4f}" + (f" ({terms})" if len(losses) > 1 else "")


def _set_trainable(method: Method, groups: list[Group]) -> list[Group]:
    """Make exactly these parameters trainable, before the optimizer is made; each at most once."""
    chosen = [id(w) for group in groups for w in group.parameters]
    learning, inside = set(chosen), {id(w) for w in method.named().values()}
    assert len(chosen) == len(learning), "trainable() names a parameter twice"
    assert learning <= inside, "trainable() names a parameter outside model and extra"
    for w in method.named().values():
        w.requires_grad_(id(w) in learning)
        w.grad = None
    groups = [replace(group) for group in groups if group.parameters]
    if not groups:
        raise UserError(NOTHING_LEFT)
    return groups


def _announce(session: Session, method: Method, task: Task, plan: _Plan) -> None:
    count = len(plan.examples)
    session.log.info(f"task {task.index} ({task.name}): {count} examples, {task.epochs} epochs of {plan.steps} steps")
    session.log.info(_describe(method))
    cut = sum(length > task.max_length for length in plan.lengths) if task.max_length else 0
    if cut:
        session.log.warning(
            f"task {task.index}: {cut} of {count} examples have more than {task.max_length} tokens; {_loss_of(method)}"
        )


def _loss_of(method: Method) -> str:
    """What over-long examples lose, see the encoders."""
    if method.classifier is not None and method.stream.is_word_level:
        return "their last words and the tags of these are left out of training (max_seq_length)"
    return f"their prompts lose tokens from the {method.encoder.cut_side} (max_seq_length, cut_side)"


def _describe(method: Method) -> str:
    """What is trained; a model whose layers cannot be listed is described by its size."""
    try:
        text = describe(method.model)
    except UserError:
        text = f"trainable: {sum(w.numel() for w in method.model.parameters() if w.requires_grad):,} parameters"
    own = sum(w.numel() for w in method.extra.parameters() if w.requires_grad)
    return text + (f", and {own:,} parameters of {type(method).__name__} itself" if own else "")
