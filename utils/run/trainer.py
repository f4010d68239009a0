"""Walk the stream: learn a task, keep a checkpoint, evaluate, go on; or resume where a run was cut off."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.Base import Method, Task
from utils.dataset import Example
from utils.distributed.collectives import agree
from utils.distributed.placement import OptimizerState, Replicated
from utils.errors import UserError
from utils.evaluation import Cell, evaluate, metric_of
from utils.model import adapters
from utils.model.weights import assign, borrowed
from utils.probing import probe
from utils.report import summary
from utils.run import checkpoint
from utils.run.checkpoint import Place
from utils.run.cost import Cost
from utils.run.early_stopping import Watch
from utils.run.recovery import relearn, task_of
from utils.seed import seed_torch
from utils.session import Progress
from utils.storage.files import read_jsonl, write_json

TRAIN_SCORED = ("IIL", "CKE")  # scenarios that also score the questions that were trained on


class Trainer:
    """One run over one stream."""

    def __init__(self, method: Method, folder: Path):
        self.session, self.method, self.folder = method.session, method, folder
        self.config, self.stream = method.config, method.stream
        self.moments: OptimizerState = {}
        self.cost = Cost(method, len(self.stream.tasks))
        self.watch = Watch(method, self.session, folder)
        self.saved_at = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Do what is not done yet; returns the results."""
        config, tasks = self.config, range(len(self.stream.tasks))
        if config.evaluate_checkpoint is not None:
            return self._evaluate_checkpoint(Path(config.evaluate_checkpoint))
        done = self._restore()
        if done is None and (config.is_evaluate_init or config.is_evaluate_only):
            self._evaluate_row("base", tasks)
            self._probe("base", 0)
        if done is None:
            self._evaluate_locality("base", tasks)
        if not config.is_evaluate_only:
            for index in tasks:
                self._one_task(task_of(self.method, index), done)
            if config.recovery and not (self.folder / "predictions" / "recovery" / "task_0.jsonl").exists():
                self._recover()
        return self._report(plots=True)

    def _evaluate_checkpoint(self, folder: Path) -> dict[str, Any]:
        """Score all tasks as after the task in which this checkpoint was taken, with all that answers there."""
        tasks = range(len(self.stream.tasks))
        self._evaluate_locality("base", tasks)
        try:
            state = load(self.method, folder)
        except (KeyError, ValueError, RuntimeError, OSError):  # names or shapes of weights
            raise UserError(f"evaluate_checkpoint: {folder} is not of a run with these options") from None
        assign(self.method.named(), state["working"])
        place = checkpoint.read_place(folder)
        self.session.log.info(f"checkpoint {folder}: {place.name}")
        self._evaluate_row(f"after_{place.task}", tasks, learned=place.task)
        self._evaluate_locality(f"after_{place.task}", tasks)
        self._probe(f"after_{place.task}", place.task + 1)
        return self._report(plots=True)

    def _one_task(self, task: Task, done: Place | None) -> None:
        """Learn and evaluate one task, as far as the run that is resumed had not done so."""
        if done is not None and done.task > task.index:
            return
        if done is None or done.task < task.index or not done.finished:
            inside = done if done is not None and done.task == task.index else None
            self._learn(task, inside)
            self._save(Place(task.index))
            self.cost.skip()
        last = len(self.stream.tasks) if self.config.evaluate_unseen else task.index + 1
        self._evaluate_row(f"after_{task.index}", range(last), learned=task.index)
        self._evaluate_locality(f"after_{task.index}", range(last))
        self._probe(f"after_{task.index}", task.index + 1)
        self.session.encoder.forget()  # the next task has other texts; memory must not grow with the stream
        self._report(plots=False)
        self.cost.skip()

    def _learn(self, task: Task, inside: Place | None) -> None:
        seed_torch(self.config.seed, "before_task", task.index)
        if inside is None:
            self.method.before_task(task)
            if not self.config.keep_optimizer_state:
                self.moments = {}
            self.watch.begin()
        start = None if inside is None else Progress(task.index, inside.epoch, inside.step)
        self.moments = self.session.fit(self.method, task, start=start, moments=self.moments, on_step=self._on_step)
        learning = [w.numel() for w in self.method.named().values() if w.requires_grad]
        examples = len(self.method.train_examples(task))
        epochs = self.watch.finish(task)
        self.method.after_task(task)
        self.cost.train(task.index)
        self.cost.sizes(replace(task, epochs=epochs), examples, sum(learning))

    def _on_step(self, at: Progress, placed: Replicated) -> bool:
        """Evaluations and checkpoints inside a task; in this order, as a run resumed from here does not come back.

        Returns:
            True if the task shall end here; the checkpoint of the whole task follows at once.
        """
        config, ends_epoch = self.config, at.step == at.steps
        if ends_epoch and _divides(config.evaluate_interval, at.epoch + 1):
            self.cost.train(at.task)
            with placed.whole():
                self._evaluate_row(f"task_{at.task}_epoch_{at.epoch + 1}", range(at.task + 1))
        stop = False
        if ends_epoch and self.watch.splits(at, task := task_of(self.method, at.task)):
            self.cost.train(at.task)
            with placed.whole():
                stop = self.watch.look(at, task)
            self.cost.evaluate(None, 0)
        old = config.checkpoint_minutes > 0 and agree(config.checkpoint_minutes * 60 < time.monotonic() - self.saved_at)
        by_step = _divides(config.save_llm_ckpt_step_interval, at.done)
        by_epoch = ends_epoch and _divides(config.save_llm_ckpt_epoch_interval, at.epoch + 1)
        if (old or by_step or by_epoch) and not stop:
            self.cost.train(at.task)
            self.moments = placed.moments()
            with placed.whole():
                self._save(Place(at.task, at.epoch, at.step))
            self.cost.skip()
        return stop

    def _evaluate_row(self, moment: str, tasks: Iterable[int], learned: int | None = None) -> None:
        """Score tasks at one moment, under every version of the weights.

        Args:
            moment: Name of the moment.
            tasks: Tasks to score: their test split and, where the scenario asks for it, their training split.
            learned: The task just learned, if it is at its end.
        """
        examples = 0
        for version, weights in self.method.versions().items():
            name = f"{moment}_{version}" if version else moment
            with borrowed(self.method.named(), weights or {}):
                examples += sum(self._evaluate_task(name, index) for index in tasks)
        self.cost.evaluate(learned, examples)

    def _evaluate_task(self, moment: str, index: int) -> int:
        """Score one task; returns the number of examples."""
        count = 0
        for prefix, split in (("", "test"), ("train_", "train")):
            if split == "test" or self.config.il_mode in TRAIN_SCORED:
                examples = getattr(self.stream.tasks[index], split)
                metric = metric_of(self.config, self.stream, index)
                self._evaluate_cell(moment, index, f"{prefix}task_{index}", examples, metric)
                count += len(examples)
        return count

    def _evaluate_locality(self, moment: str, tasks: Iterable[int]) -> None:
        """Ask what no edit is about; right is what the model itself answered before any training, at moment "base"."""
        split = self.stream.config.get("LOCALITY_SPLIT")
        if self.config.il_mode != "CKE" or split is None:
            return
        with borrowed(self.method.named(), self.method.versions()[""] or {}):
            for index in tasks:
                if getattr(self.stream.tasks[index], split):
                    self._evaluate_locality_of(moment, index, split)
        self.cost.evaluate(None, 0)

    def _evaluate_locality_of(self, moment: str, index: int, split: str) -> None:
        name, examples = f"locality_task_{index}", getattr(self.stream.tasks[index], split)
        if moment == "base":
            evaluate(self.method, self.session, self._cell(moment, index, name, examples, "exact_match", True))
            return
        own = read_jsonl(self.folder / "predictions" / "base" / f"{name}.jsonl")
        pairs = zip(examples, own, strict=True)
        examples = [replace(example, target=row["prediction"]) for example, row in pairs]
        self._evaluate_cell(moment, index, name, examples, "exact_match")

    def _probe(self, moment: str, seen: int) -> None:
        """What could new heads answer, under the weights that answer? See utils/probing.py."""
        if self.config.is_probing:
            with borrowed(self.method.named(), self.method.versions()[""] or {}):
                probe(self.method, self.session, self.folder, moment, seen)
            self.cost.evaluate(None, 0)

    def _cell(
        self, moment: str, index: int, name: str, examples: Sequence[Example], metric: str, in_full: bool = False
    ) -> Cell:
        task, file = task_of(self.method, index), self.folder / "predictions" / moment / f"{name}.jsonl"
        return Cell(file, index, examples, metric, task.max_length, task.max_new_tokens, in_full)

    def _evaluate_cell(self, moment: str, index: int, name: str, examples: Sequence[Example], metric: str) -> float:
        task, cell = task_of(self.method, index), self._cell(moment, index, name, examples, metric)
        result = evaluate(self.method, self.session, cell)
        chance = self.stream.chance(index)
        against = "" if chance is None else f" (chance {100 * chance:.1f})"
        self.session.log.info(f"{moment}: {name} ({task.name}) {metric} {100 * result:.1f}{against}")
        self.session.log.event("evaluate", moment=moment, cell=name, metric=metric, **{f"score/{name}": result})
        return result

    def _recover(self) -> None:
        """Is the knowledge of task 0 still there? (Zheng et al., ICLR 2025, section 3)

        The final model learns again on a part of task 0's training examples, plainly; then task 0 is evaluated. The
        final model itself is in its checkpoint.
        """
        assign(self.method.named(), self.method.versions()[""] or {})
        relearn(self.method, self.config.recovery_epochs)
        # Not under the method's versions: these are other weights than the ones just trained.
        self.cost.evaluate(None, self._evaluate_task("recovery", 0))

    def _save(self, place: Place) -> None:
        """Write a checkpoint; only the main process does, all replicas being equal.

        Its model is the one that answers; where training goes on from other weights, those are in the state.
        """
        self.saved_at = time.monotonic()
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
        self.moments, self.cost.values = state["moments"], state["cost"]
        self.watch.state |= state.get("watch", {})  # checkpoints of earlier versions have none
        self.session.log.step = state["steps"]
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


def _divides(interval: int, count: int) -> bool:
    return interval > 0 and count % interval == 0
