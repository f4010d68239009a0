"""The parts of README.md that come from the code: `python -m tests.readme` writes them anew."""

from __future__ import annotations

import re
from pathlib import Path

from models import METHODS
from utils.config import GROUPS
from utils.factory import capability_table, load_method
from utils.options.parse import option_table

README = Path(__file__).parents[1] / "README.md"


def options() -> str:
    """One table per group of options, methods' own included."""
    groups = [*GROUPS, *(load_method(name).Options for name in METHODS)]
    titled = [(schema.__doc__.strip().split("\n")[0], schema) for schema in groups if schema.model_fields]
    return "\n\n".join(f"**{title}**\n\n{option_table(schema)}" for title, schema in titled)


def methods() -> str:
    """Name and first sentence of every method."""
    firsts = {name: load_method(name).__doc__.strip().split("\n")[0].rstrip(":.") for name in METHODS}
    rows = [f"| [`{name}`](models/{name}.py) | {sentence}. |" for name, sentence in firsts.items()]
    return "\n".join(["| method | what it does |", "|---|---|", *rows])


PARTS = {"options": options, "methods": methods, "capabilities": capability_table}


def fill(text: str) -> str:
    """README with its generated parts made anew."""
    for name, make in PARTS.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
        text, count = re.subn(pattern, lambda match, make=make: f"{match[1]}\n{make()}\n\n{match[2]}", text, flags=re.S)
        assert count == 1, f"README.md has {count} places for {name}"
    return text


if __name__ == "__main__":
    README.write_text(fill(README.read_text(encoding="utf-8")), encoding="utf-8")
