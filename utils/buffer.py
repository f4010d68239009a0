"""The memory of past examples, as text."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from utils.config import Config
from utils.dataset import Example, Stream
from utils.storage.packed_columns import Joined

Key = TypeVar("Key", bound=Hashable)

Features = Callable[[Sequence[Example]], NDArray[np.float32]]  # N examples -> (N, D)


class Memory:
    """Examples of earlier tasks, within a budget.

    The budget is a share of each task (`Replay_buffer_ratio`: at least one example, grows with the tasks) or a fixed
    number of examples (`Replay_buffer_size`), shared equally among the groups seen so far: tasks, or classes if
    class-balanced. Within a group examples are ordered by random draw, by herding or by how much they surprised the
    model, and a shrinking quota drops them from the end. No example is held twice.

    `reservoir` knows no groups (Vitter, 1985): every offer so far has the same chance to be in memory. A finished task
    offers each of its examples once. With `Replay_update: step` each presentation in training is an offer, as in the
    code of DER (Buzzega et al., 2020): a task of three epochs offers its examples three times, and an example may be
    held more than once, each time with what a method noted at that presentation.
    """

    def __init__(self, config: Config, num_class: int | None = None):
        self.config, self.num_class = config, num_class
        self.groups: dict[Hashable, list[Example]] = {}
        self.seen = 0  # examples offered so far, for the reservoir
        self.surprise: list[float] = []  # of each example of the task that comes next, see utils/surprise.py
        self.notes: dict[int, Any] = {}  # what a method keeps of a row of the reservoir, by the row's `presentation`

    def __len__(self) -> int:
        return sum(map(len, self.groups.values()))

    def rows(self) -> list[Example]:
        """All remembered examples, oldest group first."""
        return [example for group in self.groups.values() for example in group]

    def behind(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The examples, followed by all remembered ones."""
        return Joined(examples, self.rows())

    def sample(self, size: int, rng: random.Random) -> list[Example]:
        """Draw `min(size, len)` examples without replacement."""
        rows = self.rows()
        return rng.sample(rows, min(size, len(rows)))

    def update(self, examples: Sequence[Example], rng: random.Random, features: Features) -> None:
        """Add examples of a finished task.

        Args:
            examples: The task's training examples.
            rng: For the draws.
            features: Feature vectors of examples; only called for herding.
        """
        self._take_in(examples, rng, features)
        if self.notes:
            kept = {example.presentation for example in self.rows()}
            self.notes = {presentation: note for presentation, note in self.notes.items() if presentation in kept}

    def _take_in(self, examples: Sequence[Example], rng: random.Random, features: Features) -> None:
        offered = examples if self.config.Replay_update == "step" else dict.fromkeys(examples)
        new = [replace(example, source="memory") for example in offered]
        if self.config.Replay_sampling_algorithm == "reservoir":
            return self._reservoir(new, rng)
        if self.config.Replay_sampling_algorithm == "surprise":
            surprise, self.surprise = dict(zip(new, self.surprise, strict=True)), []
            new.sort(key=lambda example: surprise[example], reverse=True)
        arrived: dict[Hashable, list[Example]] = {}
        for example in new:
            arrived.setdefault(self._key(example), []).append(example)
        quotas = self._quotas(len(examples), list(arrived))
        for key, group in arrived.items():
            known = self.groups.get(key, [])  # a class may come back: then half of a fixed quota stays with the old
            kept = known if self.config.Replay_buffer_size is None else known[: quotas[key] // 2]
            self.groups[key] = kept + self._choose(group, quotas[key] - len(kept), rng, features)
        self.groups = {key: group[: quotas.get(key, len(group))] for key, group in self.groups.items()}
        return None

    def _key(self, example: Example) -> Hashable:
        balanced = self.config.Replay_class_balanced and example.label is not None
        return ("class", example.label) if balanced else ("task", example.task)

    def _quotas(self, offered: int, arrived: list[Hashable]) -> dict[Hashable, int]:
        """Quota of each group whose size changes; with a ratio old groups keep theirs."""
        if self.config.Replay_buffer_size is None:
            total = share_of(offered, self.config.Replay_buffer_ratio)
            return {key: n + len(self.groups.get(key, [])) for key, n in split_evenly(total, arrived).items()}
        groups = list(dict.fromkeys([*self.groups, *arrived]))
        if self.config.Replay_fix_budge_each_class and self.num_class:
            return dict.fromkeys(groups, self.config.Replay_buffer_size // self.num_class)
        return split_evenly(self.config.Replay_buffer_size, groups)

    def _choose(self, group: list[Example], quota: int, rng: random.Random, features: Features) -> list[Example]:
        quota = min(quota, len(group))
        if self.config.Replay_sampling_algorithm == "herding":
            return [group[i] for i in herding(features(group), quota)] if quota else []
        return group[:quota] if self.config.Replay_sampling_algorithm == "surprise" else rng.sample(group, quota)

    def _reservoir(self, new: list[Example], rng: random.Random) -> None:
        size = self.config.Replay_buffer_size or 0  # a reservoir has a size: the options are checked
        kept = self.groups.setdefault("reservoir", [])
        for example in new:
            self.seen += 1
            row = replace(example, presentation=self.seen)
            if len(kept) < size:
                kept.append(row)
            elif (slot := rng.randrange(self.seen)) < size:
                kept[slot] = row

    def state_dict(self) -> dict[str, Any]:
        """The memory as plain values."""
        groups = {key: [asdict(example) for example in group] for key, group in self.groups.items()}
        return {"groups": groups, "seen": self.seen, "surprise": self.surprise, "notes": self.notes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.seen = state["seen"]
        self.groups = {key: [Example(**row) for row in rows] for key, rows in state["groups"].items()}
        self.surprise = list(state.get("surprise", []))  # absent from earlier versions
        self.notes = dict(state["notes"])


def share_of(count: int, ratio: float) -> int:
    """Examples of a task that a ratio keeps: rounded down, but at least one.

    >>> share_of(100, 0.29), share_of(60, 0.01)
    (29, 1)
    """
    return max(1, math.floor(ratio * count + 1e-9))  # 0.29 * 100 is 28.999999999999996


def problems(config: Config, stream: Stream) -> list[str]:
    """Why memory cannot hold an example of every task or class of this stream; empty if it can."""
    size, tasks, classes = config.Replay_buffer_size, len(stream.tasks), stream.config.get("NUM_CLASS")
    if size is None or config.Replay_sampling_algorithm == "reservoir":
        return []
    if config.Replay_fix_budge_each_class:
        if not classes:
            return [f"Replay_fix_budge_each_class: {stream.name} has no classes (NUM_CLASS); leave it out"]
        if size < classes:
            why = (
                f"expected at least the {classes} classes of {stream.name} with Replay_fix_budge_each_class, got {size}"
            )
            return [f"Replay_buffer_size: {why}"]
    if size < tasks:
        return [f"Replay_buffer_size: expected at least one example for each of {tasks} tasks, got {size}"]
    return []


def remarks(config: Config, stream: Stream) -> list[str]:
    """Remarks on the memory of a run, for the log."""
    ratio = config.Replay_buffer_ratio
    if not config.is_replay or config.Replay_buffer_size is not None:
        return []
    return [
        f"task {k}: Replay_buffer_ratio {ratio:g} of {len(task.train)} examples is less than one; memory keeps one"
        for k, task in enumerate(stream.tasks)
        if ratio * len(task.train) + 1e-9 < 1
    ]


def split_evenly(total: int, keys: list[Key]) -> dict[Key, int]:
    """Shares that differ by at most 1 and add up to `total`; the first keys get the larger ones.

    >>> split_evenly(7, ["a", "b", "c"])
    {'a': 3, 'b': 2, 'c': 2}
    """
    share, rest = divmod(total, len(keys))
    return {key: share + (i < rest) for i, key in enumerate(keys)}


def herding(features: NDArray[np.float32], count: int) -> list[int]:
    """Indices of the examples whose running mean stays closest to the mean (iCaRL, Rebuffi et al., 2017, alg. 4).

    Args:
        features: (N, D); rows are normalised to length 1 first.
        count: How many to pick, at most N; the first ones matter most.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    mean, total = unit.mean(axis=0), np.zeros(unit.shape[1])
    chosen: list[int] = []
    for k in range(count):
        distance = np.linalg.norm(mean - (total + unit) / (k + 1), axis=1)
        distance[chosen] = np.inf
        chosen.append(int(distance.argmin()))
        total = total + unit[chosen[-1]]
    return chosen
