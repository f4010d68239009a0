"""The search space of a method: which options are tried, and which values of them.

Values are declared next to the options (`search` of utils/config.py): the learning rate for all methods that train, the
method's own options, and those of replay and adapters where they are in use. --space replaces or removes them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic.fields import FieldInfo

from models.Base import Method
from utils.config import (
    ADAPTER_LR,
    Config,
    FreezeOptions,
    OptionGroup,
    PeftOptions,
    ReplayOptions,
    TrainOptions,
)
from utils.errors import UserError
from utils.jobs.choice import Entry
from utils.options.checks import Plan
from utils.options.consistency import PEFT_KINDS
from utils.options.yaml_dialect import write
from utils.seed import random_for

Point = dict[str, Any]  # option -> value
Space = dict[str, list[Any]]  # option -> values
# Options of how a method learns; others decide what is learned, asked or scored, and tries with other values of these
# cannot be compared. Epochs change what a try costs.
SEARCHED = {name for group in (TrainOptions, FreezeOptions, PeftOptions, ReplayOptions) for name in group.model_fields}
EPOCHS = {name for name in SEARCHED if "epochs" in name}


def declared(plan: Plan) -> Space:
    """The declared space of a method as configured."""
    config = plan.config
    general = {name: values for name, values in _searched(Config).items() if _is_used(name, config, plan.method)}
    if "lr" in general and config.PEFT_type is not None:
        general["lr"] = [float(f"{ADAPTER_LR * value:.3g}") for value in general["lr"]]
    return general | _searched(type(plan.options))


def _searched(schema: type[OptionGroup]) -> Space:
    return {name: values for name, field in schema.model_fields.items() if (values := _values(field))}


def _values(field: FieldInfo) -> list[Any]:
    extra = field.json_schema_extra
    return list(extra.get("search", [])) if isinstance(extra, dict) else []  # type: ignore[arg-type]


def _is_used(name: str, config: Config, method: type[Method]) -> bool:
    if name.startswith("Replay_"):
        return config.is_replay and (name != "Replay_buffer_ratio" or config.Replay_buffer_size is None)
    for prefix, kinds in PEFT_KINDS.items():
        if name.startswith(prefix):
            return config.PEFT_type in kinds
    return method.trains


def space_of(entry: Entry, plan: Plan, given: Mapping[str, Any]) -> Space:
    """The space of one row of a comparison.

    Args:
        entry: The row.
        plan: Of its options.
        given: Replaces declared values: option -> values for all rows, or name of a row -> {option: values}; None
            removes an option.

    Raises:
        UserError: it is empty, or something in `given` is no list of values.
    """
    shared = {name: values for name, values in given.items() if not isinstance(values, dict)}
    known = {**Config.model_fields, **type(plan.options).model_fields}
    shared = {name: values for name, values in shared.items() if name in known}  # others are of other methods
    own = given.get(entry.name, {})
    for name in own:
        if name not in known:
            raise UserError(f"space: {entry.name}: {name}: expected an option of a run of {entry.name}")
    space = declared(plan) | shared | own
    space = {name: values for name, values in space.items() if values is not None}
    for name, values in space.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"space: {name}: expected a list of values or null, got {values!r}")
        if any(values.count(value) > 1 for value in values):
            raise UserError(f"space: {name}: a value is there twice: {values}")
    if not space:
        raise UserError(f"space: nothing to try for {entry.name}; give values of an option, such as lr: [1e-5, 1e-4]")
    return space


def check_names(given: Mapping[str, Any], plans: Mapping[Entry, Plan], is_in_passes: bool) -> None:
    """Names in --space that no row has, or that may not be searched.

    Args:
        given: As in `space_of`.
        plans: Of the rows.
        is_in_passes: The budget is counted in passes, not in tries.

    Raises:
        UserError: there is one.
    """
    named = {*given, *(name for values in given.values() if isinstance(values, dict) for name in values)}
    for name in sorted(named & (set(Config.model_fields) - SEARCHED)):
        raise UserError(f"space: {name}: does not change how a method learns, but what is learned or scored; use --set")
    for name in sorted(named & EPOCHS) if not is_in_passes else ():
        raise UserError(f"space: {name}: tries with more epochs cost more; give the budget in passes (--passes)")
    rows = {entry.name for entry in plans}
    options = {name for plan in plans.values() for name in type(plan.options).model_fields} | set(Config.model_fields)
    for name, values in given.items():
        if name not in (rows if isinstance(values, dict) else options):
            wanted = f"one of {', '.join(sorted(rows))}" if isinstance(values, dict) else "an option of a method"
            hint = "; YAML needs a space after the colon" if ":" in name else ""
            raise UserError(f"space: {name}: expected {wanted}{hint}")


def grid(space: Space, limit: int | None, name: str) -> list[Point]:
    """Points of the grid: all in order or, with fewer allowed, a fixed draw of them in order; all shuffled if None.

    Args:
        space: Option -> values.
        limit: Most points.
        name: Of the row; the draw depends on it and on nothing else.
    """
    points = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    places = list(range(len(points)))
    random_for("grid", name).shuffle(places)
    return [points[place] for place in (places if limit is None else sorted(places[:limit]))]


def ends(space: Space) -> list[Point]:
    """Points in which every value of the space occurs."""
    first = {name: values[0] for name, values in space.items()}
    return [first | {name: value} for name, values in space.items() for value in values]


def words_of(point: Mapping[str, Any], config: Config) -> tuple[str, ...]:
    """Options of the command line for a point; one learning rate replaces a list of them."""
    words = [word for name, value in point.items() for word in (f"--{name}", text_of(value))]
    return (*words, "--lr_list", "None") if "lr" in point and config.lr_list is not None else tuple(words)


def text_of(value: Any) -> str:
    """A value as it is written on the command line, where null is a text."""
    return value if isinstance(value, str) else "None" if value is None else write(value)


def label_of(point: Mapping[str, Any]) -> str:
    """A point as part of a name.

    >>> label_of({"lr": 0.0003, "EWC_lambda": 100})
    'lr=0.0003-EWC_lambda=100'
    """
    return "-".join(f"{name}={_short(value)}" for name, value in point.items())


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else text_of(value)


def columns(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """All options of some points, in order."""
    return list(dict.fromkeys(name for point in points for name in point))
