"""Read untrusted pickle files: plain values only.

A pickle can call any Python function that it names. Without names it can only build lists, tuples, dicts, texts and
numbers.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn

from utils.errors import UserError


class _NoGlobals(pickle.Unpickler):
    """An unpickler that refuses every class and function."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}, but only lists, dicts, texts and numbers are read")


def load_plain(path: Path) -> Any:
    """The value in a pickle file.

    Raises:
        UserError: the file is truncated, not a pickle, or holds anything but plain values.
    """
    try:
        with open(path, "rb") as file:
            return _NoGlobals(file).load()
    except Exception as error:  # wrong bytes can raise nearly anything
        raise UserError(
            f"{path} cannot be read: {str(error) or type(error).__name__}; copy it again, or save its content "
            f"as {path.with_suffix('.json').name} in the same folder"
        ) from None
