"""From command line and YAML to a frozen `Config`: default < YAML < command line.

All problems are collected and told at once, each with its source, what was expected and what was got.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from utils.config import GROUPS, Config, OptionGroup
from utils.errors import UserError
from utils.options.consistency import check

WORDS = {  # pydantic's words -> ours
    "Input should be": "expected",
    "String should": "expected to",
    "a valid tuple": "a list, such as [a, b]",
    ", unable to interpret input": "",
}


class ConfigError(UserError):
    """One or more problems with the options."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__("invalid options:\n" + "\n".join(f"  - {problem}" for problem in problems))


class Given(NamedTuple):
    """A value and where it came from."""

    value: Any
    source: str


class Resolved(NamedTuple):
    """What `resolve` returns."""

    config: Config
    method_options: OptionGroup
    sources: dict[str, str]  # name of each option that was given -> where


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 5e-6 as a number and None as none, and refuses a key written twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key!r} stands there twice, line {node.start_mark.line + 1} and on")
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that puts quotes around a text which `_Loader` would read as a number or as none."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )
    _side.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^None$"), ["N"])


def read_yaml(path: Path) -> dict[str, Any]:
    """The options in a YAML file.

    Raises:
        ConfigError: missing or unreadable file, not YAML, or not a mapping of names to values.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ConfigError([f"cfg: {path} does not exist{_nearest_file(path)}"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"cfg: {path} cannot be read: {error}"]) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError([f"cfg: {path} is not YAML: {' '.join(str(error).split())}"]) from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError([f"cfg: {path} must be a list of lines `option: value`"])
    return content


def resolve(argv: list[str], load_options: Callable[[str], type[OptionGroup]]) -> Resolved:
    """Read the command line and the YAML file it names.

    Args:
        argv: Command line without the program's name.
        load_options: Gives a method's own options class by the method's name; UserError if there is no such
            method.

    Raises:
        ConfigError: with all problems.
    """
    line = _read_command_line(argv, [Config])
    default_cfg = None if "resume" in line else Config.model_fields["cfg"].default
    cfg = line["cfg"].value if "cfg" in line else default_cfg
    file = {} if cfg is None else {name: Given(v, str(cfg)) for name, v in read_yaml(Path(cfg)).items()}
    given = file | line
    try:
        schema = load_options(str(given["method"].value if "method" in given else "SEQ"))
    except UserError as error:
        raise ConfigError([f"method: {error}  ({given['method'].source})"]) from None
    given = file | _read_command_line(argv, [Config, schema], final=True)
    problems = _unknown(given, schema)
    config = _validate(Config, given, problems)
    options = _validate(schema, given, problems)
    if config is not None and options is not None:
        problems += check(config)
    if problems:
        raise ConfigError(problems)
    if config.wandb_name is None:
        stem = Path(config.cfg).stem if config.cfg else config.method
        config = config.model_copy(update={"wandb_name": f"{config.exp_prefix}-{stem}"})
    return Resolved(config, options, {name: item.source for name, item in given.items()})


def flatten(resolved: Resolved) -> dict[str, Any]:
    """All options with their values, general ones first, as plain YAML types."""
    values = resolved.config.model_dump(mode="json") | resolved.method_options.model_dump(mode="json")
    return {name: value for name, value in values.items() if name not in ("cfg", "resume")}


def to_yaml(resolved: Resolved) -> str:
    """The resolved options as a YAML file that repeats the run, each line with its source."""
    lines = []
    for name, value in flatten(resolved).items():
        text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**6, allow_unicode=True)
        text = json.dumps(value, ensure_ascii=False) if "\n" in str(value) else text.split("\n")[0]
        lines.append(f"{name}: {text}  # {resolved.sources.get(name, 'default')}")
    return "\n".join(lines) + "\n"


def option_table(*schemas: type[OptionGroup]) -> str:
    """Markdown table of options, for README."""
    rows = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for schema in schemas:
        for name, field in schema.model_fields.items():
            cells = (f"`{name}`", _type_text(field), f"`{field.default}`", field.description)
            rows.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _validate(schema: type[OptionGroup], given: dict[str, Given], problems: list[str]) -> OptionGroup | None:
    """An instance, or None with the problems appended."""
    try:
        return schema(**{name: given[name].value for name in schema.model_fields if name in given})
    except ValidationError as error:
        for item in error.errors():
            name = str(item["loc"][0])
            place = "".join(f"[{part}]" for part in item["loc"][1:] if isinstance(part, int))
            expected = item["msg"]
            for word, ours in WORDS.items():
                expected = expected.replace(word, ours)
            problems.append(f"{name}{place}: {expected}, got {item['input']!r}  ({given[name].source})")
        return None


def _unknown(given: dict[str, Given], schema: type[OptionGroup]) -> list[str]:
    known = [*Config.model_fields, *schema.model_fields]
    problems = []
    for name, item in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; see python main_CL.py --help"
            problems.append(f"{name}: unknown option{hint}  ({item.source})")
    return problems


def _read_command_line(argv: list[str], schemas: list[type[OptionGroup]], final: bool = False) -> dict[str, Given]:
    """The options on the command line, by name; `--help` is answered in the final reading."""
    parser = _parser(schemas, add_help=final)
    try:
        known, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError([f"{(error.argument_name or '').removeprefix('--')}: {error.message}"]) from None
    line = {}
    for name, text in vars(known).items():
        field = next(s.model_fields[name] for s in schemas if name in s.model_fields)
        line[name] = Given(_value(text, field), f"--{name}")
    if final and rest:
        stray = [word for word in rest if word.startswith("--")] or rest
        for word in stray:
            name = word.removeprefix("--").split("=")[0] if word.startswith("--") else repr(word)
            line[name] = Given(None, word)
    return line


def _parser(schemas: list[type[OptionGroup]], add_help: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "main_CL.py",
        usage="python main_CL.py [--cfg FILE] [--option value ...]",
        description="Learn a stream of tasks with one continual-learning method.",
        epilog="Order: default < YAML file (--cfg) < command line. Methods: see models/__init__.py.",
        allow_abbrev=False,
        add_help=add_help,
        exit_on_error=False,
        argument_default=argparse.SUPPRESS,
    )
    groups = [*GROUPS, *(schema for schema in schemas if schema is not Config)]
    for schema in groups:
        if schema.model_fields:
            section = parser.add_argument_group((schema.__doc__ or "").strip().rstrip("."))
            for name, field in schema.model_fields.items():
                is_flag = field.annotation is bool  # `--recovery` alone means true
                section.add_argument(
                    f"--{name}",
                    nargs="?" if is_flag else None,
                    const="true" if is_flag else None,
                    metavar=_type_text(field),
                    help=f"{field.description} Default: {field.default}".replace("%", "%%"),
                )
    return parser


def _value(text: str, field: FieldInfo) -> Any:
    """What a word on the command line means: text for text options, otherwise as in YAML."""
    if text == "None":
        return None
    if "str" in _type_text(field) or "Literal" in str(field.annotation):
        return text
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return text


def _type_text(field: FieldInfo) -> str:
    """int, float, true/false, a list, or the choices."""
    kind = str(field.annotation)
    if "tuple" in kind:
        return "[...]"
    if "Literal" in kind:
        return "|".join(re.findall(r"'([^']*)'", kind))
    for word, text in (("bool", "true|false"), ("int", "int"), ("float", "float"), ("str", "str")):
        if word in kind:
            return text
    return "None"


def _nearest_file(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("config")
    near = difflib.get_close_matches(str(path), [str(p) for p in sorted(folder.rglob("*.yaml"))], n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def fail(error: UserError) -> int:
    """Tell a user's mistake; returns the exit code."""
    print(f"error: {error}", file=sys.stderr)
    return 2
