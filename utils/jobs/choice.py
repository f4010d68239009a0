"""What is compared: YAML files, or methods with the options of a YAML file; and the words of a command for it."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from models import METHODS
from utils.config import Config
from utils.errors import UserError, reason_of
from utils.factory import load_method
from utils.jobs.work import How
from utils.options import yaml_dialect
from utils.options.parse import ConfigError
from utils.storage.files import is_file

OF_COMMAND = ("cfg", "seed", "dump_path", "wandb_name", "exp_prefix", "resume")  # what names and places each run
SETTINGS = {"Replay": ("--method", "SEQ", "--is_replay", "true")}  # names that are settings of SEQ


class Entry(NamedTuple):
    """A row of the comparison: a YAML file and the options that replace its values."""

    cfg: Path
    label: str  # distinguishes entries with the same file
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the method, as the user gave it."""
        return self.label or self.cfg.stem


def entries(files: Sequence[Path], methods: Sequence[str], settings: Sequence[tuple[str, str]]) -> list[Entry]:
    """The rows that these words mean; one that is named twice is there once.

    Args:
        files: YAML files. With `methods`, each method runs with the options of each file; without files, those are
            config/<stream>/<method>.yaml.
        methods: Names of methods, and Replay.
        settings: Options for all rows, as name and value.

    Raises:
        ConfigError: nothing is named, a method is unknown, or an option is set twice or is the command's own.
    """
    names = [name for name, _ in settings]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError([f"{name}: set twice, so one value would have no effect; set it once" for name in twice])
    if own := [name for name in names if name in OF_COMMAND]:
        raise ConfigError([f"{name}: the command gives it to each run; leave it out" for name in own])
    words = tuple(word for name, value in settings for word in (f"--{name}", value))
    if not methods:
        found = [Entry(cfg, "", words) for cfg in files]
    elif files:
        found = [Entry(cfg, name, (*_words(name), *words)) for cfg in files for name in methods]
    else:
        stream = dict(settings).get("dataset", Config.model_fields["dataset"].default)
        found = [Entry(Path("config") / stream / f"{name}.yaml", "", words) for name in methods]
        for entry in found:
            if not entry.cfg.exists():
                _words(entry.cfg.stem)  # an unknown method is reported as such
    if not found:
        raise ConfigError(["nothing to run: give YAML files, or --methods"])
    return list(dict.fromkeys(found))


def _words(method: str) -> tuple[str, ...]:
    if method in SETTINGS:
        return SETTINGS[method]
    try:
        load_method(method)
    except UserError as error:
        raise ConfigError([f"methods: {error}"]) from None
    return "--method", method


def setting(text: str) -> tuple[str, str]:
    """`name=value` as a pair.

    >>> setting("lr=1e-3")
    ('lr', '1e-3')
    """
    name, equals, value = text.removeprefix("--").partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"expected option=value, got {text!r}")
    return name, value


def count(text: str) -> int:
    """An integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def add_words(parser: argparse.ArgumentParser, prefix: str) -> None:
    """The words that a sweep and a search share."""
    parser.add_argument("cfg", nargs="*", type=Path, help="YAML files")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[],
        metavar="METHOD",
        help=f"run these ({', '.join(METHODS)}, Replay) with the options of each YAML file; without a YAML file: "
        "config/<stream>/<METHOD>.yaml",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        type=setting,
        metavar="OPTION=VALUE",
        help="options of all runs",
    )
    parser.add_argument("--jobs", type=count, help="runs at a time (default: 1; in Slurm: all)")
    parser.add_argument(
        "--slurm",
        nargs="*",
        action="extend",
        type=setting,
        metavar="OPTION=VALUE",
        help="submit the runs to Slurm as a job array, with these options of sbatch: --slurm partition=gpu time=240 "
        "gpus_per_node=1",
    )
    parser.add_argument("--prefix", default=prefix, help="first part of the names of the runs")
    parser.add_argument("--dump_path", type=Path, default=Path("experiments"))
    parser.add_argument(
        "--dry_run", action="store_true", help="check everything, print how long it will take, and stop"
    )
    parser.add_argument(
        "--launch",
        metavar="WORDS",
        help="start each run with `accelerate launch WORDS`: --launch='--config_file config/accelerate/gpu_8.yaml'",
    )


def how(given: Any) -> How:
    """Where the runs are done."""
    if given.slurm is None:
        return How(given.jobs)
    try:
        return How(given.jobs, {name: yaml_dialect.read(value) for name, value in given.slurm})
    except yaml.YAMLError as error:
        raise ConfigError([f"slurm: {reason_of(error)}"]) from None


def launcher(given: Any) -> tuple[str, ...] | None:
    """The words for accelerate; None: plain Python."""
    return None if given.launch is None else launch_words(given.launch)


def launch_words(text: str) -> tuple[str, ...]:
    """Options of accelerate launch.

    Raises:
        ConfigError: there are none, or the file of --config_file does not exist.
    """
    try:
        words = tuple(shlex.split(text.replace("--config_file=", "--config_file ")))
    except ValueError as error:
        raise ConfigError([f"launch: {reason_of(error)}: {text}"]) from None
    if not words:
        raise ConfigError(["launch: expected options such as --config_file config/accelerate/gpu_8.yaml, got nothing"])
    for name, value in pairwise((*words, "")):
        if name == "--config_file" and not is_file(Path(value)):
            raise ConfigError([f"launch: --config_file {value}: the file does not exist"])
    return words
