"""The memory of past examples, as text."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.config import Config
from utils.dataset import Example

Features = Callable[[Sequence[Example]], NDArray[np.float32]]  # N examples -> (N, D)


class Memory:
    """Examples of finished tasks, within a budget; no example twice.

    The budget is a share of each task (`Replay_buffer_ratio`: grows with the tasks) or a fixed number of examples
    (`Replay_buffer_size`), shared equally among the groups seen so far: tasks, or classes if class-balanced. Within a
    group examples are ordered by random draw or by herding, and a shrinking quota drops them from the end. `reservoir`
    knows no groups: every example seen so far has the same chance to be kept (Vitter, 1985).
    """

    def __init__(self, config: Config, num_class: int | None = None):
        self.config, self.num_class = config, num_class
        self.groups: dict[Hashable, list[Example]] = {}
        self.seen = 0  # examples offered so far, for the reservoir
        self.notes: dict[Example, Any] = {}  # what a method keeps of an example as long as the example is kept

    def __len__(self) -> int:
        return sum(map(len, self.groups.values()))

    def rows(self) -> list[Example]:
        """All remembered examples, oldest group first."""
        return [example for group in self.groups.values() for example in group]

    def sample(self, size: int, rng: random.Random) -> list[Example]:
        """Draw `min(size, len)` examples without replacement."""
        rows = self.rows()
        return rng.sample(rows, min(size, len(rows)))

    def update(self, examples: Sequence[Example], rng: random.Random, features: Features) -> None:
        """Take in a finished task.

        Args:
            examples: The task's training examples.
            rng: For the draws.
            features: Feature vectors of examples; only called for herding.
        """
        self._take_in(examples, rng, features)
        if self.notes:
            kept = set(self.rows())
            self.notes = {example: note for example, note in self.notes.items() if example in kept}

    def _take_in(self, examples: Sequence[Example], rng: random.Random, features: Features) -> None:
        new = [replace(example, source="memory") for example in dict.fromkeys(examples)]
        if self.config.Replay_sampling_algorithm == "reservoir":
            return self._reservoir(new, rng)
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
            total = math.floor(self.config.Replay_buffer_ratio * offered + 1e-9)  # 0.29 * 100 is 28.999999999999996
            return {key: n + len(self.groups.get(key, [])) for key, n in split_evenly(total, arrived).items()}
        groups = list(dict.fromkeys([*self.groups, *arrived]))
        if self.config.Replay_fix_budge_each_class and self.num_class:
            return dict.fromkeys(groups, self.config.Replay_buffer_size // self.num_class)
        return split_evenly(self.config.Replay_buffer_size, groups)

    def _choose(self, group: list[Example], quota: int, rng: random.Random, features: Features) -> list[Example]:
        quota = min(quota, len(group))
        if self.config.Replay_sampling_algorithm == "herding":
            return [group[i] for i in herding(features(group), quota)] if quota else []
        return rng.sample(group, quota)

    def _reservoir(self, new: list[Example], rng: random.Random) -> None:
        size, kept = self.config.Replay_buffer_size, self.groups.setdefault("reservoir", [])
        held = set(kept)  # with an update after each step an example comes by once an epoch
        for example in new:
            if example in held:
                continue
            self.seen += 1
            if len(kept) < size:
                kept.append(example)
            elif (slot := rng.randrange(self.seen)) < size:
                kept[slot] = example

    def state_dict(self) -> dict:
        """The memory as plain values."""
        groups = {key: [asdict(example) for example in group] for key, group in self.groups.items()}
        notes = [self.notes.get(example) for example in self.rows()] if self.notes else []
        return {"groups": groups, "seen": self.seen, "notes": notes}

    def load_state_dict(self, state: dict) -> None:
        """Inverse of `state_dict`."""
        self.seen = state["seen"]
        self.groups = {key: [Example(**row) for row in rows] for key, rows in state["groups"].items()}
        self.notes = dict(zip(self.rows(), state["notes"], strict=False))  # none at all without notes


def split_evenly(total: int, keys: list[Hashable]) -> dict[Hashable, int]:
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
    mean, total, chosen = unit.mean(axis=0), np.zeros(unit.shape[1]), []
    for k in range(count):
        distance = np.linalg.norm(mean - (total + unit) / (k + 1), axis=1)
        distance[chosen] = np.inf
        chosen.append(int(distance.argmin()))
        total = total + unit[chosen[-1]]
    return chosen
