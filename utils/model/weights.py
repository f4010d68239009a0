"""Alternative weights of a model: teachers, anchors, averages, merged models.

A copy is a dict of tensors by parameter name, not a second module: only trainable parameters are copied, they are saved
and resumed like any tensor, and `borrowed` puts them into the model while they are needed. With a frozen base and
adapters a teacher is therefore as small as an adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]


@torch.no_grad()
def snapshot(parameters: Mapping[str, Tensor]) -> Weights:
    """Copies of these parameters."""
    return {name: w.detach().clone() for name, w in parameters.items()}


@torch.no_grad()
def assign(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Copy these values into the parameters."""
    for name, value in weights.items():
        parameters[name].copy_(value)


@contextmanager
def borrowed(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Exchange weights of the model inside the `with`; without gradients.

    The weights are restored bit for bit, and gradients of earlier passes through them stay correct, because tensors
    are swapped, not overwritten. Rounded copies of the parameters that autocast caches are dropped.
    """
    own = {name: parameters[name].data for name in weights}
    try:
        for name, value in weights.items():
            parameters[name].data = value.to(own[name].device, own[name].dtype)
        torch.clear_autocast_cache()
        with torch.no_grad():
            yield
    finally:
        for name, value in own.items():
            parameters[name].data = value
        torch.clear_autocast_cache()


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Set eval mode inside the `with` and restore the mode of every module afterwards."""
    modes = [(inner, inner.training) for module in modules for inner in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for inner, training in modes:
            inner.training = training


def moved(value: Any, device: torch.device) -> Any:
    """Nested dicts, lists and tuples with their tensors on a device; other values as they are."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: moved(inner, device) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved(inner, device) for inner in value)
    return value


def interpolate(a: Weights, b: Weights, share: float) -> Weights:
    """a + share (b - a), tensor by tensor; share 0 is exactly a, share 1 exactly b."""
    pairs = {name: (value, b[name].to(value.device)) for name, value in a.items()}
    return {name: torch.lerp(x.float(), y.float(), share).to(x.dtype) for name, (x, y) in pairs.items()}


@torch.no_grad()
def follow(average: Weights, weights: Mapping[str, Tensor], a: float) -> None:
    """Move an average towards the weights: a average + (1 - a) weights, tensor by tensor."""
    for name, value in average.items():
        own = weights[name].detach().float()
        average[name] = torch.lerp(value, own, 1 - a)
