"""Watch a task while it is learned: end it early, or go back to the weights that were best on its dev split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.Base import Method, Task
from utils.dataset import metric_of
from utils.distributed.collectives import agree
from utils.model.weights import assign, borrowed
from utils.run.checkpoint import pack, unpack
from utils.run.tasks import Questions, score_cell
from utils.scoring import find
from utils.session import Progress, Session
from utils.storage.moment import Moment


class Watch:
    """Scores of the task in progress; `state` is a part of the run's checkpoints."""

    def __init__(self, method: Method, session: Session, folder: Path):
        self.method, self.session, self.folder, self.config = method, session, folder, session.config
        self.state: dict[str, Any] = {}
        self.begin()

    def begin(self) -> None:
        """A new task."""
        self.state = {"best": None, "epoch": None, "since": 0, "stopped": None, "weights": {}, "method": {}}

    def splits(self, at: Progress, task: Task) -> list[str]:
        """Splits of the task to be scored now; the last epoch is scored as one that could be the best."""
        config, last = self.config, at.epoch + 1 == task.epochs
        if at.step < at.steps or not (last or (at.epoch + 1) % config.evaluate_interval == 0):
            return []
        dev = config.keep_best or (config.early_stop_patience and not last)
        train = config.early_stop_accuracy is not None and not last
        return [split for split, scored in (("dev", dev), ("train", train)) if scored]

    def look(self, at: Progress, task: Task) -> bool:
        """Score these splits; True if the task ends here, which all processes decide alike."""
        with borrowed(self.method.named(), self.method.versions()[""] or {}):
            scores = {split: self._score(split, at, task) for split in self.splits(at, task)}
        if "dev" in scores:
            self._compare(scores["dev"], at, task)
        reason = self._reason(scores, at, task)
        if not agree(reason is not None):
            return False
        self.state["stopped"] = at.epoch + 1
        self.session.log.info(f"task {task.index}: ended after {at.epoch + 1} of {task.epochs} epochs: {reason}")
        self.session.log.event("early_stop", task=task.index, epoch=at.epoch, reason=reason)
        return True

    def finish(self, task: Task) -> int:
        """Go back to the best weights of the task, if those are not its last; returns the epochs it was trained."""
        state, epochs = self.state, self.state["stopped"] or task.epochs
        if self.config.keep_best and state["since"]:
            assign(self.method.named(), state["weights"])
            self.method.load_state_dict(state["method"])
            best = f"{100 * state['best']:.1f} on dev after epoch {state['epoch']}"
            self.session.log.info(f"task {task.index}: restored the best weights, {best}")
            self.session.log.event("keep_best", task=task.index, epoch=state["epoch"] - 1, score=state["best"])
        self.begin()
        return epochs

    def _score(self, split: str, at: Progress, task: Task) -> float:
        questions = Questions(getattr(self.method.stream.tasks[task.index], split))
        moment, name = Moment(task.index, at.epoch + 1), f"{split}_task_{task.index}"
        return score_cell(self.method, self.folder, moment, name, task.index, questions)

    def _compare(self, score: float, at: Progress, task: Task) -> None:
        """Keep a copy of what is better than all before; of equals the first."""
        state, higher = self.state, find(metric_of(self.config, self.method.stream, task.index)).higher_is_better
        best = state["best"]
        if not agree(best is None or (score > best if higher else score < best)):
            state["since"] += 1
            return
        state |= {"best": score, "epoch": at.epoch + 1, "since": 0}
        if self.config.keep_best:
            learning = {name: w for name, w in self.method.named().items() if w.requires_grad}
            copied = unpack(*pack([learning, self.method.state_dict()]))
            state["weights"], state["method"] = copied

    def _reason(self, scores: dict[str, float], at: Progress, task: Task) -> str | None:
        """Why the task ends before its last epoch; None: it does not."""
        goal, patience = self.config.early_stop_accuracy, self.config.early_stop_patience
        if at.epoch + 1 == task.epochs:
            return None
        if goal is not None and scores["train"] >= goal:
            return f"{100 * scores['train']:.1f} on its training questions reaches early_stop_accuracy {100 * goal:.1f}"
        if patience is not None and self.state["since"] >= patience:
            return f"dev has not been better than {100 * self.state['best']:.1f} for {patience} evaluations"
        return None
