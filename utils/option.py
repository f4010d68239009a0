"""Types of options: what utils/config.py and the methods declare theirs with."""

from __future__ import annotations

from typing import Annotated

from pydantic import AllowInfNan, BaseModel, ConfigDict, Field, Strict

# Strict: `true` is not the number 1 and 2.5 is not a number of epochs.
Int = Annotated[int, Strict()]
Count = Annotated[int, Strict(), Field(ge=1)]
Float = Annotated[float, Strict(), AllowInfNan(False)]
Name = Annotated[str, Field(pattern=r"^\w[\w.+-]*$", max_length=100)]  # one folder: it cannot leave its parent


class Options(BaseModel):
    """Base of all groups of options: frozen, unknown names refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, validate_default=True)

    def is_changed(self, name: str) -> bool:
        """True if an option has another value than its default."""
        return getattr(self, name) != type(self).model_fields[name].default
