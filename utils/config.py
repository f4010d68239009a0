"""Every general option of a run: name, type, default, limits, one sentence of help.

The groups are in utils/groups: run, data, training, evaluation. The YAML reader, the command line, `--help`,
docs/options.md and all error messages come from these declarations (utils/options/parse.py). Names are flat:
`config.lr`. A method declares its options in models/<METHOD>.py, under names that begin with the name of the method.
"""

from __future__ import annotations

from typing import TypeVar

from utils.groups.base import ADAPTER_LR, NAME_LENGTH, NAME_PATTERN, Count, Float, Int, Joint, Name, OptionGroup, search
from utils.groups.data import EMBEDDED_BACKBONE, OWN_FILES, BackboneOptions, StreamOptions
from utils.groups.evaluation import MEASUREMENTS, WATCHING, EvaluateOptions
from utils.groups.run import RunOptions, TrackerOptions
from utils.groups.training import FreezeOptions, PeftOptions, ReplayOptions, TrainOptions

__all__ = [
    "ADAPTER_LR",
    "EMBEDDED_BACKBONE",
    "GROUPS",
    "MEASUREMENTS",
    "NAME_LENGTH",
    "NAME_PATTERN",
    "OWN_FILES",
    "WATCHING",
    "Config",
    "Count",
    "Float",
    "Int",
    "Joint",
    "Name",
    "NoOptions",
    "OptionGroup",
    "RunOptions",
    "TrackerOptions",
    "per_task",
    "search",
]  # fmt: skip

T = TypeVar("T")


class Config(  # pydantic collects fields from the last base on
    EvaluateOptions,
    ReplayOptions,
    PeftOptions,
    FreezeOptions,
    TrainOptions,
    BackboneOptions,
    StreamOptions,
    TrackerOptions,
    RunOptions,
):
    """All general options of a run, frozen."""


GROUPS = tuple(group for group in reversed(Config.__bases__) if issubclass(group, OptionGroup))


class NoOptions(OptionGroup):
    """Options of a method that has none."""


def per_task(values: tuple[T, ...] | None, value: T, index: int) -> T:
    """The value for one task: from the list if there is one, otherwise the common value."""
    return value if values is None else values[index]
