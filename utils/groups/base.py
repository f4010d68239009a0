"""The types of options, the base class of their groups, and the values that are searched."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, AllowInfNan, BaseModel, ConfigDict, Field, Strict

ADAPTER_LR = 10  # adapters are tuned at learning rates higher by this factor
# Strict: `true` is not the number 1 and 2.5 is not a number of epochs.
Int = Annotated[int, Strict()]
Count = Annotated[int, Strict(), Field(ge=1)]
Float = Annotated[float, Strict(), AllowInfNan(False)]
NAME_PATTERN, NAME_LENGTH = r"^\w[\w.+-]*$", 100
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=NAME_LENGTH)]  # of a single folder: no path separators
Joint = Annotated[str, AfterValidator(lambda text: text.replace("\\n", "\n").replace("\\t", "\t"))]


def search(*values: Any) -> dict[str, Any]:
    """The values of an option that utils.tune tries, for its field."""
    return {"search": list(values)}


LR_SEARCH = search(1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)  # times ADAPTER_LR with an adapter


class OptionGroup(BaseModel):
    """Base class of all groups of options: frozen, and unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, validate_default=True)

    def is_changed(self, name: str) -> bool:
        """True if the value of an option differs from its default."""
        return getattr(self, name) != type(self).model_fields[name].default

    def updated(self, **values: Any) -> Self:
        """A copy with some values replaced, validated again.

        Raises:
            pydantic.ValidationError: a value that the option does not allow, or an unknown option.
        """
        return type(self).model_validate({name: getattr(self, name) for name in type(self).model_fields} | values)
