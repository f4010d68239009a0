"""A second model for training where the weights are divided among processes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from utils.distributed import deepspeed_internals
from utils.model.adapters import innermost
from utils.model.forward import has_plain_head
from utils.optimizer import Group
from utils.wrapmodel import Objective


class Twin:
    """A second model with the same weights, which is partitioned; the method's model has no weights meanwhile.

    The loss of a method that is trained in this way must use only the model that it is given, see `Method.parallel`.
    """

    def __init__(self, method: Objective):
        assert not list(method.extra.parameters()), "the method's own modules are not divided among processes"
        method.model.train()
        has_plain_head(innermost(method.model))  # remembered by the twin
        self.pairs = [(w, nn.Parameter(w.detach(), w.requires_grad)) for w in method.model.parameters()]
        known: dict[int, Any] = {id(w): twin for w, twin in self.pairs}
        for module in method.model.modules():  # the hooks of the twin are the same functions, not copies
            known |= {id(hooks): copy.copy(hooks) for hooks in deepspeed_internals.hook_tables(module)}
        self.model = copy.deepcopy(method.model, known)

    def replace(self, new: Callable[[nn.Parameter], nn.Parameter]) -> None:
        """Replace the twin's parameters in `pairs`."""
        self.pairs = [(w, new(twin)) for w, twin in self.pairs]

    def own(self, groups: list[Group]) -> list[Group]:
        """The groups, with the twin's parameters."""
        twins = {id(w): twin for w, twin in self.pairs}
        return [replace(group, parameters=[twins[id(w)] for w in group.parameters]) for group in groups]

    def empty(self) -> None:
        """Drop the weights of the method's model."""
        for w, _ in self.pairs:
            w.data = w.data.new_empty(0)
