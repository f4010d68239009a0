"""The documents that come from the code, and README's tables, which come from runs: `python -m tests.make`."""

from __future__ import annotations

import re
from pathlib import Path

from models import METHODS
from models.Base import Method, Setting
from utils.classifier import AnswerKind
from utils.config import GROUPS
from utils.factory import load_method
from utils.options.parse import option_table

ROOT = Path(__file__).parents[1]
DOCS, README = ROOT / "docs", ROOT / "README.md"
MADE_BY = "<!-- Made by `python -m tests.make`; edit the code instead. -->"
SCENARIOS = ("CIT", "CKE", "IIL", "CIL", "TIL")
SETTINGS = ("is_replay", "freeze_parts", "PEFT_type")  # of the frame, with a separate column


def options() -> str:
    """One table per group of options, methods' own included."""
    groups = [*GROUPS, *(load_method(name).Options for name in METHODS)]
    titled = [(schema.__doc__.strip().split("\n")[0].rstrip("."), schema) for schema in groups if schema.model_fields]
    tables = [f"## {title}\n\n{option_table(schema)}" for title, schema in titled]
    return "\n\n".join(["# Options", MADE_BY, OPTIONS_TEXT, *tables])


def methods() -> str:
    """Name and first sentence of every method."""
    firsts = {name: load_method(name).__doc__.strip().split("\n")[0].rstrip(":.") for name in METHODS}
    rows = [f"| [`{name}`](../models/{name}.py) | {sentence}. |" for name, sentence in firsts.items()]
    return "\n\n".join(
        ["# Methods", MADE_BY, METHODS_TEXT, "\n".join(["| method | what it does |", "|---|---|", *rows])]
    )


def capabilities() -> str:
    """What `check_capability` allows: one row per method."""
    titles = ["method", *SCENARIOS, "answers by", "backbone", "processes", *SETTINGS, "why"]
    rows = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    rows += [_capabilities(name, load_method(name)) for name in METHODS]
    return "\n\n".join(["# What runs with what", MADE_BY, CAPABILITIES_TEXT, "\n".join(rows)])


def _capabilities(name: str, method: type[Method]) -> str:
    needed, excluded = ({setting.option for setting in settings} for settings in (method.needs, method.excludes))
    heads = ["generating" if head == AnswerKind.WRITTEN else head for head in sorted(method.heads)]
    cells = [
        f"`{name}`",
        *("yes" if mode in method.scenarios else "-" for mode in SCENARIOS),
        ", ".join(heads),
        ", ".join(sorted(method.backbones)),
        ", ".join(["one", *sorted(method.parallel)]),
        *("needed" if s in needed else "-" if s in excluded else "yes" for s in SETTINGS),
        _reasons({**method.needs, **method.excludes}),
    ]
    return "| " + " | ".join(cells) + " |"


def _reasons(why: dict[Setting, str]) -> str:
    """Settings with the same reason together: `is_replay, recovery: nothing is trained`."""
    settings: dict[str, list[str]] = {}
    for setting, reason in why.items():
        settings.setdefault(reason, []).append(str(setting))
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in settings.items())


OPTIONS_TEXT = """\
Every option can be set in a YAML file (`--cfg`) or on the command line; the command line wins over the YAML file, which
wins over the default. `python main_CL.py --method NAME --help` prints the general options and those of one method."""
METHODS_TEXT = """\
Each method is one file. Its docstring states the objective, and where and why it deviates from the paper or from the
published code. [capabilities.md](capabilities.md) lists what each method runs with, [options.md](options.md) its
options, [CONTRIBUTING.md](../CONTRIBUTING.md) how to add one."""
CAPABILITIES_TEXT = """\
The declarations that the program checks before it loads any weights; it refuses what the table excludes. The columns
CIT to TIL are the scenarios (`il_mode`). "answers by" lists the heads (`classifier`), or "generating" where the model
writes the answer as text. "processes" lists the modes of [distributed training](distributed.md). The last columns are
settings that combine with methods."""
DOCUMENTS = {"options.md": options, "methods.md": methods, "capabilities.md": capabilities}


def write() -> None:
    """Write all of them."""
    DOCS.mkdir(exist_ok=True)
    for name, make in DOCUMENTS.items():
        (DOCS / name).write_text(make() + "\n", encoding="utf-8")


def with_demo_tables(text: str, compared: str) -> str:
    """README with the scores and differences of a comparison (compare.md), without its costs."""
    scores, *rest = [part for part in compared.split("\n\n") if part.startswith("|")]
    tables = "\n\n".join([scores, *(table for table in rest if " difference " in table.split("\n")[0])])
    pattern = r"(<!-- demo tables -->\n).*?(<!-- end of demo tables -->)"
    return re.sub(pattern, lambda match: f"{match[1]}\n{tables}\n\n{match[2]}", text, count=1, flags=re.S)
