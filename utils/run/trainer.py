"""Walk the stream: learn a task, save a checkpoint, evaluate, next task; or resume an interrupted run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from models.Base import Method, Task
from utils import drift
from utils.distributed.collectives import agree, first_difference
from utils.distributed.replicated import OptimizerState, Replicated
from utils.errors import Terminated, UserError, termination_waits
from utils.evaluation import Cell, check_finite, evaluate, predict_ahead
from utils.general import asking
from utils.general.asking import NOTHING, Outside
from utils.logger import Window
from utils.model import adapters
from utils.model.weights import assign, borrowed
from utils.probing import probe
from utils.report import summary
from utils.run import checkpoint
from utils.run.checkpoint import Place
from utils.run.cost import Cost
from utils.run.early_stopping import Watch
from utils.run.recovery import relearn
from utils.run.tasks import Questions, cell_of, is_scheduled, questions_of, score_cell, task_of
from utils.seed import seed_torch
from utils.session import Progress
from utils.storage.files import read_jsonl, write_json
from utils.storage.moment import BASE, RECOVERY, Moment
from utils.surprise import note_surprise

TOKENS_KEPT = 2**27  # bytes of token ids that may stay from task to task, so that test sets are tokenised once
TRAIN_SCORED = ("IIL", "CKE")  # scenarios that also score the questions that were trained on


class Trainer:
    """One run over one stream."""

    def __init__(self, method: Method, folder: Path, general: Outside = NOTHING):
        self.general = general  # what is asked outside the stream
        self.session, self.method, self.folder = method.session, method, folder
        self.config, self.stream = method.config, method.stream
        self.moments: OptimizerState = {}
        tasks = range(len(self.stream.tasks))
        self.first = drift.first_weights(method, map(partial(task_of, method), tasks)) if self.config.drift else {}
        self.cost = Cost(method, len(self.stream.tasks))
        self.watch = Watch(method, self.session, folder)
        self.saved_at = time.monotonic()
        self.is_terminated: Callable[[], bool] = lambda: False

    def run(self) -> dict[str, Any]:
        """Do what is not done yet; returns the results."""
        config, tasks = self.config, range(len(self.stream.tasks))
        if config.evaluate_checkpoint is not None:
            return self._evaluate_checkpoint(Path(config.evaluate_checkpoint))
        self._replace_lost()
        done = self._restore()
        if done is None:
            self._before_training(tasks)
        if not config.is_evaluate_only:
            for index in tasks:
                self._one_task(task_of(self.method, index), done)
            if config.recovery and not RECOVERY.predictions(self.folder, "task_0").exists():
                self._recover()
        return self._report(plots=True)

    def _replace_lost(self) -> None:
        """Recompute missing predictions from the checkpoint of their task; warn if it is missing."""
        root, tasks = self.folder / "checkpoints", range(len(self.stream.tasks))
        places = checkpoint.checkpoints(root)
        if places and self.config.is_evaluate_init and self._is_lost(BASE, tasks):
            self._evaluate_row(BASE, tasks)
        if places and not self._is_asked(BASE):
            self._ask_generally(BASE)
        for index in range(places[-1].task if places else 0):
            seen = self._evaluated_after(index)
            if not self._is_lost(Moment(index), seen) and (not seen or self._is_asked(Moment(index))):
                continue
            if Place(index) in places:
                assign(self.method.named(), load(self.method, root / Place(index).name)["working"])
                self._evaluate_after(index, seen)
            else:
                self.session.log.warning(
                    f"predictions/{Moment(index).folder} lacks files, and without the checkpoint of task {index} "
                    "(save_llm_ckpt) they cannot be made again; these cells stay empty"
                )

    def _is_lost(self, moment: Moment, tasks: Iterable[int]) -> bool:
        return not all(moment.predictions(self.folder, f"task_{index}").exists() for index in tasks)

    def _is_asked(self, moment: Moment) -> bool:
        """True if everything outside the stream has been asked, or is not to be."""
        return not self._asks(moment) or all(file.exists() for file in self.general.files(self.folder, moment))

    def _asks(self, moment: Moment) -> bool:
        """True if questions outside the stream are asked at this moment."""
        count = len(self.stream.tasks)
        return moment.task is None or is_scheduled(self.config.general_schedule, moment.task, count)

    def _evaluated_after(self, index: int) -> range:
        """The tasks that are evaluated after a task; none if the schedule leaves it out."""
        count = len(self.stream.tasks)
        if not is_scheduled(self.config.evaluate_schedule, index, count):
            return range(0)
        return range(count if self.config.evaluate_unseen else index + 1)

    def _before_training(self, tasks: Iterable[int]) -> None:
        check_finite(self.method)
        if self.config.is_evaluate_init or self.config.is_evaluate_only:
            self._evaluate_row(BASE, tasks)
            self._probe(BASE, 0)
        self._evaluate_locality(BASE, tasks)
        self._ask_generally(BASE)

    def _evaluate_checkpoint(self, folder: Path) -> dict[str, Any]:
        """Score all tasks as after the task in which this checkpoint was taken, with all that answers there."""
        tasks = range(len(self.stream.tasks))
        self._evaluate_locality(BASE, tasks)
        self._ask_generally(BASE)
        try:
            state = load(self.method, folder)
        except (KeyError, ValueError, RuntimeError, OSError):  # names or shapes of weights
            raise UserError(f"evaluate_checkpoint: {folder} is not of a run with these options") from None
        assign(self.method.named(), state["working"])
        check_finite(self.method)
        place = checkpoint.read_place(folder)
        self.session.log.info(f"checkpoint {folder}: {place.name}")
        self._evaluate_after(place.task, tasks)
        return self._report(plots=True)

    def _one_task(self, task: Task, done: Place | None) -> None:
        """Learn and evaluate one task, as far as the resumed run had not done so."""
        if done is not None and done.task > task.index:
            return
        if done is None or done.task < task.index or not done.finished:
            inside = done if done is not None and done.task == task.index else None
            with termination_waits() as self.is_terminated:
                with self.cost.training(task.index):
                    self._learn(task, inside)
                self._save(Place(task.index))
        if seen := self._evaluated_after(task.index):
            self._evaluate_after(task.index, seen)
        else:
            self.session.log.info(
                f"task {task.index}: not evaluated (evaluate_schedule {self.config.evaluate_schedule})"
            )
        self.session.encoder.forget(TOKENS_KEPT)  # memory must not grow with the stream
        self._report(plots=False)

    def _learn(self, task: Task, inside: Place | None) -> None:
        seed_torch(self.config.seed, "before_task", task.index)
        if inside is None:
            note_surprise(self.method, task, "before")
            self.method.before_task(task)
            if not self.config.keep_optimizer_state:
                self.moments = {}
            self.watch.begin()
        start = None if inside is None else Progress(task.index, inside.epoch or 0, inside.step or 0)
        self.moments = self.session.fit(self.method, task, start=start, moments=self.moments, on_step=self._on_step)
        learning = [w.numel() for w in self.method.named().values() if w.requires_grad]
        examples = len(self.method.train_examples(task))
        epochs = self.watch.finish(task)
        note_surprise(self.method, task, "after")
        self.method.after_task(task)
        self._compare_processes(task)
        self.cost.sizes(replace(task, epochs=epochs), examples, sum(learning))

    def _compare_processes(self, task: Task) -> None:
        """Stop if the processes do not have the same weights: what is trained is then no method at all."""
        different = first_difference(self.method.named())
        if different is not None:
            name = type(self.method).__name__
            raise UserError(
                f"method {name}: after task {task.index} the processes have different weights (first: {different}); "
                f"{name} uses something that each process computes from its own rows; sum it with sum_over_processes, "
                "or run in one process"
            )

    def _on_step(self, at: Progress, placed: Replicated) -> bool:
        """Evaluations and checkpoints inside a task; in this order, as a run resumed from here does not repeat them.

        Returns:
            True if the task ends here; its final checkpoint follows immediately.
        """
        config, ends_epoch = self.config, at.step == at.steps
        if ends_epoch and _divides(config.evaluate_interval, at.epoch + 1):
            with placed.whole():
                self._evaluate_row(Moment(at.task, at.epoch + 1), range(at.task + 1))
        stop = False
        if ends_epoch and self.watch.splits(at, task := task_of(self.method, at.task)):
            with self.cost.evaluating(), placed.whole():
                stop = self.watch.look(at, task)
        old = 0 < config.checkpoint_minutes * 60 < time.monotonic() - self.saved_at
        due = agree(old or self.is_terminated())
        ends = due and agree(self.is_terminated())
        by_step = _divides(config.save_llm_ckpt_step_interval, at.done)
        by_epoch = ends_epoch and _divides(config.save_llm_ckpt_epoch_interval, at.epoch + 1)
        if (due or by_step or by_epoch) and not stop:
            with self.cost.neither():
                self.moments = placed.moments(keep=self.session.accelerator.is_main_process)
                with placed.whole():
                    self._save(Place(at.task, at.epoch, at.step))
                self.moments = {}  # in the host's memory with FSDP2 and ZeRO
        if ends and not stop:
            self.session.accelerator.wait_for_everyone()  # one that ends earlier ends the one that still writes
            raise Terminated
        return stop

    def _evaluate_after(self, learned: int, tasks: Iterable[int]) -> None:
        """Run all evaluations of these tasks that follow a task."""
        moment = Moment(learned)
        self._evaluate_row(moment, tasks)
        self._evaluate_locality(moment, tasks)
        self._ask_generally(moment)
        self._probe(moment, learned + 1)
        self._measure_drift(learned)

    def _evaluate_row(self, moment: Moment, tasks: Iterable[int]) -> None:
        """Score tasks at one moment, under every version of the weights."""
        learned = moment.task if moment.epoch is None else None
        with self.cost.evaluating(learned):
            for version, weights in self.method.versions().items():
                with borrowed(self.method.named(), weights or {}), self.method.answering(version):
                    predict_ahead(self.method, self.session, self._cells(moment.of(version), tasks))
                    for index in tasks:
                        self._evaluate_task(moment.of(version), index)

    def _evaluate_task(self, moment: Moment, index: int) -> None:
        """Score one task."""
        for name, questions in self._questions(index):
            self._score(moment, name, index, questions)
            self.cost.scored(len(questions.examples))

    def _questions(self, index: int) -> Iterator[tuple[str, Questions]]:
        """What is scored of a task: its test split and, where the scenario asks for it, its training split."""
        for prefix, split in (("", "test"), ("train_", "train")):
            if split == "test" or self.config.il_mode in TRAIN_SCORED:
                yield f"{prefix}task_{index}", questions_of(self.method, index, split)

    def _cells(self, moment: Moment, tasks: Iterable[int]) -> list[Cell]:
        """What is scored of these tasks at one moment."""
        return [
            cell_of(self.method, index, moment.predictions(self.folder, name), questions)
            for index in tasks
            for name, questions in self._questions(index)
        ]

    def _evaluate_locality(self, moment: Moment, tasks: Iterable[int]) -> None:
        """Ask what no edit is about; right is what the model itself answered before any training, at moment BASE."""
        split = self.stream.config.get("LOCALITY_SPLIT")
        if self.config.il_mode != "CKE" or split is None:
            return
        with self.cost.evaluating(), borrowed(self.method.named(), self.method.versions()[""] or {}):
            for index in tasks:
                if getattr(self.stream.tasks[index], split):
                    self._evaluate_locality_of(moment, index, split)

    def _evaluate_locality_of(self, moment: Moment, index: int, split: str) -> None:
        name, questions = f"locality_task_{index}", questions_of(self.method, index, split)
        file = BASE.predictions(self.folder, name)
        if moment == BASE:
            cell = cell_of(self.method, index, file, questions, "exact_match")
            evaluate(self.method, self.session, cell._replace(in_full=True))
            return
        pairs = zip(questions.examples, read_jsonl(file), strict=True)
        expected = [replace(example, target=row["prediction"], references=None) for example, row in pairs]
        self._score(moment, name, index, questions._replace(examples=expected), "exact_match")

    def _score(self, moment: Moment, name: str, index: int, questions: Questions, metric: str | None = None) -> None:
        score_cell(self.method, self.folder, moment, name, index, questions, metric)

    def _ask_generally(self, moment: Moment) -> None:
        """Ask what is never trained, under the weights that answer; what is known is not asked again."""
        if not self._asks(moment):
            return
        with self.cost.evaluating(), borrowed(self.method.named(), self.method.versions()[""] or {}):
            asking.ask(self.method, self.folder, moment, self.general)

    def _probe(self, moment: Moment, seen: int) -> None:
        """What could new heads answer, under the weights that answer? See utils/probing.py."""
        if self.config.is_probing:
            with self.cost.evaluating(), borrowed(self.method.named(), self.method.versions()[""] or {}):
                probe(self.method, self.session, self.folder, moment, seen)

    def _measure_drift(self, learned: int) -> None:
        """How far are the weights that answer from those before the stream? See utils/drift.py."""
        if self.config.drift:
            method = self.method
            with self.cost.evaluating(), borrowed(method.named(), method.versions()[""] or {}), method.answering(""):
                drift.record(method, self.first, task_of(method, learned), self.folder)

    def _recover(self) -> None:
        """Is the knowledge of task 0 still there? (Zheng et al., ICLR 2025, section 3)

        The final model is trained again on a part of task 0's training examples, plainly; then task 0 is evaluated. The
        final model itself is in its checkpoint.
        """
        assign(self.method.named(), self.method.versions()[""] or {})
        with self.cost.evaluating():
            relearn(self.method, self.config.recovery_epochs)
            # Not under the method's versions: these are other weights than the ones just trained.
            self._evaluate_task(RECOVERY, 0)

    def _save(self, place: Place) -> None:
        """Write a checkpoint; only the main process does, as all replicas are equal.

        Its model is the one that answers; where training continues from other weights, those are in the state.
        """
        self.saved_at = time.monotonic()
        window = self.session.log.window
        window.sums = self.session.accelerator.reduce(window.sums, "mean")  # a resumed run has these on all processes
        if not self.session.accelerator.is_main_process:
            return
        named, answering = self.method.named(), self.method.versions()[""] or {}
        keep_moments = not place.finished or self.config.keep_optimizer_state
        state = {
            "method": self.method.state_dict(),
            "extra": dict(self.method.extra.state_dict()),
            "working": {name: named[name] for name in answering},
            "base": adapters.fingerprint(self.method.model),
            "moments": self.moments if keep_moments else {},
            "watch": self.watch.state,
            "cost": self.cost.values,
            "steps": self.session.log.step,
            "window": asdict(window),
        }
        packed = checkpoint.pack(state)
        backbone = self.method.backbone
        with borrowed(named, answering):
            root = self.folder / "checkpoints"
            checkpoint.save(root, place, backbone.model, backbone.tokenizer, packed, self._limit)

    @property
    def _limit(self) -> int | None:
        """How many checkpoints are kept."""
        return self.config.save_total_limit if self.config.save_llm_ckpt else 1

    def _restore(self) -> Place | None:
        """Load the newest checkpoint of this run, if there is one."""
        places = checkpoint.checkpoints(self.folder / "checkpoints")
        if not places:
            return None
        folder = self.folder / "checkpoints" / places[-1].name
        state = load(self.method, folder)
        assign(self.method.named(), state["working"])
        self.moments = state["moments"]
        self.cost.values |= state["cost"]  # earlier versions counted less
        self.watch.state |= state.get("watch", {})  # checkpoints of earlier versions have none
        self.session.log.step = state["steps"]
        self.session.log.window = _on_device(Window(**state.get("window", {})), self.session.accelerator.device)
        self.session.log.info(f"resuming after {places[-1].name}")
        self.session.log.event("resume", checkpoint=places[-1].name)
        if self.session.accelerator.is_main_process:
            checkpoint.prune(self.folder / "checkpoints", self._limit)  # the run may have been killed before it did
        return places[-1]

    def _report(self, plots: bool) -> dict[str, Any]:
        """Results from the saved predictions, written by the main process."""
        if self.session.accelerator.is_main_process:
            self.cost.peak()
            write_json(self.folder / "cost.json", self.cost.values)
            return summary.write(self.folder, plots=plots)
        return {}


def load(method: Method, folder: Path) -> dict[str, Any]:
    """Give a method the model and the state that are in a checkpoint; returns all of the state.

    Raises:
        UserError: the checkpoint is damaged, or its adapters belong to another model.
    """
    state = checkpoint.load_state(folder)
    if state["base"] != adapters.fingerprint(method.model):
        raise UserError(f"backbone: not the one whose adapters are in {folder}; its weights have changed since")
    checkpoint.load_weights(method.model, folder)
    method.load_state_dict(state["method"])
    method.extra.load_state_dict(state["extra"])
    return state


def _on_device(window: Window, device: torch.device) -> Window:
    return Window({name: value.to(device) for name, value in window.sums.items()}, window.count)


def _divides(interval: int, count: int) -> bool:
    return interval > 0 and count % interval == 0
