"""From command line and YAML to a frozen `Config`: default < YAML < command line.

All problems are reported together, each with its source, the expected and the given value.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import re
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from models import METHODS
from utils.config import GROUPS, NAME_LENGTH, NAME_PATTERN, Config, OptionGroup
from utils.errors import UserError
from utils.factory import load_method, short_name
from utils.options import consistency, yaml_dialect
from utils.options.hints import hint

WORDS = {  # pydantic's words -> ours
    "Input should be": "expected",
    f"String should match pattern '{NAME_PATTERN}'": "expected letters, digits and _ . + -, not beginning with . + -",
    "String should": "expected to",
    "a valid tuple": "a list, such as [a, b]",
    "Tuple should have at least 1 item after validation, not 0": "expected at least one entry",
    ", unable to interpret input": "",
}
# With one of these on the command line and no --cfg, the demo's YAML is not read.
NOT_THE_DEMO = ("backbone", "load_llm_ckpt", "dataset", "dataset_path", "dataset_files")
# The defaults that are then printed.
SHOWN = ("dataset", "il_mode", "method", "training_epochs", "lr", "batch_size")
LONGEST_VALUE = 200  # characters of a value in an error
NO_VALUE = ("None", "null", "~")  # words of the command line; of a text option only the first is no text
Group = TypeVar("Group", bound=OptionGroup)


class ConfigError(UserError):
    """One or more problems with the options."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__("invalid options:", *(f"  - {problem}" for problem in problems))


class Given(NamedTuple):
    """A value and its source."""

    value: Any
    source: str


class Resolved(NamedTuple):
    """The result of `resolve`."""

    config: Config
    method_options: OptionGroup
    sources: dict[str, str]  # name of each given option -> its source


def read_yaml(path: Path, option: str = "cfg") -> dict[str, Any]:
    """The options in a YAML file.

    Args:
        path: The file.
        option: What names it, for errors.

    Raises:
        ConfigError: missing or unreadable file, not YAML, or not a mapping of names to values.
    """
    try:
        content = yaml_dialect.read(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"{option}: {path} does not exist{_nearest_file(path)}"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{option}: {path} cannot be read: {error}"]) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError([f"{option}: {path} is not YAML: {' '.join(str(error).split())}"]) from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError([f"{option}: {path} has to consist of lines `option: value`"])
    return content


def resolve(argv: list[str]) -> Resolved:
    """Read the command line and the YAML file it names.

    Args:
        argv: Command line without the program's name.

    Raises:
        ConfigError: with all problems.
    """
    line = _read_command_line(argv, [Config])
    if "cfg" not in line and ("resume" in line or any(name in line for name in NOT_THE_DEMO)):
        line["cfg"] = Given(None, "default")
    cfg = line["cfg"].value if "cfg" in line else Config.model_fields["cfg"].default
    file = {} if cfg is None else {name: Given(v, str(cfg)) for name, v in read_yaml(Path(cfg)).items()}
    given = file | line
    method = str(given["method"].value if "method" in given else Config.model_fields["method"].default)
    try:
        schema: type[OptionGroup] = load_method(method).Options
    except UserError as error:
        raise ConfigError([f"method: {error}  ({given['method'].source})"]) from None
    given |= _read_command_line(argv, [Config, schema], final=True)
    problems = [
        f"{_shown(name)}: unknown option; {hint(name, method)}  ({item.source})"
        for name, item in given.items()
        if name not in (*Config.model_fields, *schema.model_fields)
    ]
    config, options = validate(Config, given, problems), validate(schema, given, problems)
    if config is None or options is None or problems:  # otherwise the checks of the whole plan report it
        raise ConfigError(problems + (consistency.check(config) if config is not None else []))
    if config.wandb_name is None:
        config = config.updated(wandb_name=_run_name(config, file))
    return Resolved(config, options, {name: item.source for name, item in given.items()})


def _run_name(config: Config, file: dict[str, Given]) -> str:
    """<exp_prefix>-<name of the YAML file>; options of the command line that replace its values are appended."""
    words = [config.exp_prefix]
    in_file = file["dataset"].value if "dataset" in file else config.dataset
    if config.cfg is None or config.dataset_files or config.dataset != in_file:
        words.append(Path(config.dataset_files[0]).stem if config.dataset_files else config.dataset)
    method = short_name(config)
    stem = method if config.cfg is None else Path(config.cfg).stem
    in_file = file["method"].value if "method" in file else Config.model_fields["method"].default
    if config.cfg is not None and config.method != in_file:
        stem = method if stem == in_file else f"{stem}-{method}"
    return clean_name("-".join([*words, stem]))


def clean_name(text: str) -> str:
    """The text as the name of a run: other characters become _, a long name is shortened and gets a digest.

    >>> clean_name("default-SEQ (copy)")
    'default-SEQ_copy_'
    """
    name = re.sub(r"[^\w.+-]+", "_", text).lstrip(".+-") or "_"
    if len(name) > NAME_LENGTH:
        name = f"{name[: NAME_LENGTH - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name


def origin(resolved: Resolved) -> str:
    """Which YAML file the options come from, in one line; without one, the defaults that matter most."""
    config, sources = resolved.config, resolved.sources
    if config.cfg is not None:
        return f"options: {config.cfg}" + ("" if "cfg" in sources else ", the demo's, as no --cfg is given")
    given = [f"--{name}" for name in NOT_THE_DEMO if sources.get(name) == f"--{name}"]
    why = f" ({given[0]} without --cfg)" if given and sources["cfg"] != "--cfg" else ""
    defaults = [f"{name} {getattr(config, name)}" for name in SHOWN if name not in sources]
    if config.dataset_files is not None:
        defaults = [text for text in defaults if not text.startswith("dataset ")]
    return f"options: no YAML file{why}" + (f"; defaults: {', '.join(defaults)}" if defaults else "")


def flatten(resolved: Resolved) -> dict[str, Any]:
    """All options with their values, general ones first, as plain YAML types."""
    values = resolved.config.model_dump(mode="json") | resolved.method_options.model_dump(mode="json")
    return {name: value for name, value in values.items() if name not in ("cfg", "resume")}


def to_yaml(resolved: Resolved) -> str:
    """The resolved options as a YAML file that repeats the run, each line with its source."""
    lines = []
    for name, value in flatten(resolved).items():
        text = json.dumps(value, ensure_ascii=False) if "\n" in str(value) else yaml_dialect.write(value)
        lines.append(f"{name}: {text}  # {resolved.sources.get(name, 'default')}")
    return "\n".join(lines) + "\n"


def option_table(*schemas: type[OptionGroup]) -> str:
    """Markdown table of options, for README."""
    rows = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for schema in schemas:
        for name, field in schema.model_fields.items():
            extra = field.json_schema_extra
            tried = extra.get("search") if isinstance(extra, dict) else None
            meaning = f"{field.description} Tuned over {tried}." if tried else field.description
            cells = (f"`{name}`", _type_text(field), f"`{field.default}`", meaning)
            texts = (str(cell).replace("|", "\\|").replace("\n", "\\n") for cell in cells)
            rows.append("| " + " | ".join(texts) + " |")
    return "\n".join(rows)


def validate(schema: type[Group], given: dict[str, Given], problems: list[str]) -> Group | None:
    """An instance, or None with the problems appended.

    Args:
        schema: Of the options.
        given: Values by name; names that the schema does not have are left alone.
        problems: Gets a sentence for each wrong value.
    """
    try:
        return schema(**{name: given[name].value for name in schema.model_fields if name in given})
    except ValidationError as error:
        for item in error.errors():
            name = str(item["loc"][0])
            place = "".join(f"[{part}]" for part in item["loc"][1:] if isinstance(part, int))
            expected = item["msg"]
            for word, ours in WORDS.items():
                expected = expected.replace(word, ours)
            got = f"{_shortened(item['input'])}{'; files are given by --dataset_files' * (name == 'dataset')}"
            problems.append(f"{name}{place}: {expected}, got {got}  ({given[name].source})")
        return None


def _shown(name: str) -> str:
    """A name from a file, with unprintable characters escaped."""
    return name if name.isprintable() else repr(name)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}... ({len(text)} characters)"


def _read_command_line(argv: list[str], schemas: list[type[OptionGroup]], final: bool = False) -> dict[str, Given]:
    """The options on the command line, by name; with `final`, `--help` prints the help."""
    parser = _parser(schemas, add_help=final)
    try:
        known, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError([f"{(error.argument_name or '').removeprefix('--')}: {error.message}"]) from None
    line = {}
    for name, text in vars(known).items():
        if isinstance(text, list) and sum(word.split("=")[0] == f"--{name}" for word in argv) > 1:
            raise ConfigError([f"{name}: given twice; write all its values behind one --{name}, separated by spaces"])
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
        description="Learn a stream of tasks with one continual-learning method. An option's value is its default, "
        "replaced by that in the YAML file (--cfg), replaced by that on the command line. The options of the chosen "
        "method come last; for those of another: python main_CL.py --method NAME --help",
        epilog=f"Methods: {', '.join(METHODS)}.",
        allow_abbrev=False,
        add_help=add_help,
        exit_on_error=False,
        argument_default=argparse.SUPPRESS,
    )
    groups: list[type[OptionGroup]] = [*GROUPS, *(schema for schema in schemas if schema is not Config)]
    for schema in groups:
        if schema.model_fields:
            section = parser.add_argument_group((schema.__doc__ or "").strip().rstrip("."))
            for name, field in schema.model_fields.items():
                is_flag = field.annotation is bool  # `--recovery` alone means true
                kind = _kind(field.annotation)
                is_list = get_origin(kind) is tuple  # `[a, b]`, or the words a b
                section.add_argument(
                    f"--{name}",
                    nargs="?" if is_flag else "+" if is_list else None,
                    const="true" if is_flag else None,
                    metavar=_name(_kind(get_args(kind)[0]) if is_list else kind),
                    help=f"{field.description} Default: {field.default}".replace("%", "%%"),
                )
    return parser


def _value(given: str | list[str], field: FieldInfo) -> Any:
    """Parse a value of the command line: text for text options and choices, otherwise YAML; a list also as words."""
    kind = _kind(field.annotation)
    if isinstance(given, list):
        text = " ".join(given)
        is_words = text not in NO_VALUE and not text.startswith("[")
        return [_of_kind(word, _kind(get_args(kind)[0])) for word in given] if is_words else _of_kind(text, kind)
    return _of_kind(given, kind)


def _of_kind(text: str, kind: Any) -> Any:
    if text == "None" or (text in NO_VALUE and kind is not str):
        return None
    if kind is str or get_origin(kind) is Literal:
        return text
    try:
        return yaml_dialect.read(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return text


def _type_text(field: FieldInfo) -> str:
    """int, float, str, true|false, the choices, or a list of these."""
    kind = _kind(field.annotation)
    return f"[{_name(_kind(get_args(kind)[0]))}, ...]" if get_origin(kind) is tuple else _name(kind)


def _name(kind: Any) -> str:
    """Of a type that is no list."""
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    return "true|false" if kind is bool else getattr(kind, "__name__", str(kind))


def _kind(annotation: Any) -> Any:
    """The type that an annotation allows, without its limits and without None.

    >>> _kind(Annotated[int, "limit"] | None), _kind(Literal["a", "b"] | None)
    (<class 'int'>, typing.Literal['a', 'b'])
    """
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return _kind(next(part for part in get_args(annotation) if part is not NoneType))
    return annotation


def _nearest_file(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("config")
    near = difflib.get_close_matches(str(path), [str(p) for p in sorted(folder.rglob("*.yaml"))], n=1, cutoff=0.8)
    return f"; did you mean {near[0]}?" if near else ""


def fail(error: UserError) -> int:
    """Print a user's error; returns the exit code."""
    print(f"error: {error}", file=sys.stderr)
    return 2
