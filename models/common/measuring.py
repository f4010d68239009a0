"""Passes through the model outside of training steps: for what a method measures, or samples to learn from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from utils.distributed.modes import autocast
from utils.model.weights import eval_mode


@contextmanager
def measuring(method: Any) -> Iterator[None]:
    """The model and `extra` of a method in eval mode, computing in the type of training."""
    with eval_mode(method.model, method.extra), autocast(method.config, method.model.device):
        yield
