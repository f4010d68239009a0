"""Options that are lists, separated by commas on the command line: `--sub-sample-test 500,-1,100`."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from utils.errors import UserError

ALL = -1


def _split(value: Any) -> Any:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [value] if isinstance(value, int) else value


def _is_size(value: int) -> int:
    if value < 1 and value != ALL:
        raise ValueError(f"expected at least 1, or {ALL} for all")
    return value


T = TypeVar("T")
Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_split)]
Sizes = Annotated[tuple[Annotated[int, AfterValidator(_is_size)], ...], BeforeValidator(_split)]  # -1: all


def per_task(values: tuple[T, ...], count: int, option: str) -> list[T]:
    """One value per task; a single value applies to all tasks.

    Raises:
        UserError: neither 1 nor `count` values.

    >>> per_task((10,), 3, "sub-sample-eval")
    [10, 10, 10]
    """
    if len(values) not in (1, count):
        expected = "1 entry" if count == 1 else f"1 entry or {count}, one for each task"
        raise UserError(f"--{option}: expected {expected}, got {len(values)}")
    return list(values) * (count if len(values) == 1 else 1)
