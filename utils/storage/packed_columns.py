"""Sequences that keep their items packed and make an item when it is read."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class _Sequence(Sequence[T]):
    """A sequence whose slices are tuples and which equals any sequence with equal items."""

    def _item(self, place: int) -> T:
        raise NotImplementedError

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[T, ...]: ...
    def __getitem__(self, place: int | slice) -> T | tuple[T, ...]:
        places = range(len(self))[place]
        return self._item(places) if isinstance(places, int) else tuple(map(self._item, places))

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, Sequence):
            return self is other
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class Texts(_Sequence[str]):
    """Texts as one piece of UTF-8; each Python string would take 49 bytes more than its characters.

    >>> texts = Texts()
    >>> texts.append("né")
    >>> texts.append("")
    >>> list(texts), texts[-2:]
    (['né', ''], ('né', ''))
    """

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array("Q", [0])

    def append(self, text: str) -> None:
        """Add a text: any that JSON can hold, lone surrogates included."""
        self._bytes += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _item(self, place: int) -> str:
        return self._bytes[self._ends[place] : self._ends[place + 1]].decode("utf-8", "surrogatepass")


class Rows(_Sequence[T], Generic[T]):
    """Rows of columns.

    Args:
        make: Makes a row; gets one keyword argument per column.
        columns: Name -> cells, all of the same length.
        digest: Of the rows, where it is known without reading them.

    >>> Rows(dict, {"a": [1, 2], "b": "xy"})[1]
    {'a': 2, 'b': 'y'}
    """

    def __init__(self, make: Callable[..., T], columns: dict[str, Sequence[Any]], digest: str | None = None):
        self._make, self._columns, self.digest = make, columns, digest

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def _item(self, place: int) -> T:
        return self._make(**{name: cells[place] for name, cells in self._columns.items()})


class Mapped(_Sequence[T]):
    """Rows that are changed when they are read.

    >>> list(Mapped(str.upper, ["a", "b"]))
    ['A', 'B']
    """

    def __init__(self, change: Callable[[Any], T], rows: Sequence[Any]):
        self._change, self._rows = change, rows

    def __len__(self) -> int:
        return len(self._rows)

    def _item(self, place: int) -> T:
        return self._change(self._rows[place])


class Picked(_Sequence[T], Generic[T]):
    """The cells of a column at some places.

    >>> list(Picked("abc", [2, 0]))
    ['c', 'a']
    """

    def __init__(self, cells: Sequence[T], places: Sequence[int]):
        self._cells, self._places = cells, places

    def __len__(self) -> int:
        return len(self._places)

    def _item(self, place: int) -> T:
        return self._cells[self._places[place]]


class Joined(_Sequence[T], Generic[T]):
    """One sequence after another.

    >>> list(Joined("ab", "c"))
    ['a', 'b', 'c']
    """

    def __init__(self, first: Sequence[T], second: Sequence[T]):
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def _item(self, place: int) -> T:
        rest = place - len(self._first)
        return self._first[place] if rest < 0 else self._second[rest]


class Column(_Sequence[Any]):
    """A column of an Arrow table.

    Args:
        cells: A `pyarrow.ChunkedArray`.
    """

    def __init__(self, cells: Any):
        self._cells = cells

    def __len__(self) -> int:
        return len(self._cells)

    def _item(self, place: int) -> Any:
        return self._cells[place].as_py()
