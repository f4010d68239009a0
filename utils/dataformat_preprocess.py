"""Make a stream of tasks from a raw data set.

    python utils/dataformat_preprocess.py --dataset biography_qa --seed 1
    python utils/dataformat_preprocess.py --dataset concept_1k --help       (with the options of this data set)

Output: OUT_DIR/<stream>/continual_data.json and continual_config.json. The same seed gives the same
bytes on every machine.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script: sys.path[0] is then utils/, not the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from utils import config
from utils.dataset import SPLITS, Example, Stream, TaskData, encode
from utils.errors import UserError, exit_code, exit_with, termination_interrupts
from utils.preprocess import GENERATORS, PREPROCESSORS, load
from utils.preprocess.shared.raw import DATASET_DIR
from utils.progress import working
from utils.storage.files import write_text

Group = TypeVar("Group", bound=config.OptionGroup)
support_dataset_list = [*PREPROCESSORS, *GENERATORS]
ADAPTING = ("max_words", "limit", "name")  # options that change a stream after it is made


class Options(config.OptionGroup):
    """Options of all data sets."""

    dataset: str = Field(description=f"Data set: {', '.join(support_dataset_list)}.")
    seed: int = Field(1, ge=0, description="Random seed.")
    raw_dir: Path | None = Field(None, description="Folder with the raw data sets, or with this one; none: dataset.")
    out_dir: Path | None = Field(
        None,
        description="Folder to write into; none: dataset, or for raw files dataset/biography_synth/PRESET.",
    )
    name: config.Name | None = Field(None, description="Name of the stream; none: the data set's default name.")
    max_words: int | None = Field(
        None, ge=1, description="Keep only examples with at most this many words before the answer; none: all."
    )
    limit: int | None = Field(None, ge=1, description="Examples to keep of each split of each task; none: all.")
    force: bool = Field(False, description="Replace files that have other content.")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code: 0 done, 2 an error of the user, 130 or 143 interrupted."""
    try:
        with termination_interrupts():
            print("\n".join(_run(argv)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print("interrupted; no incomplete file was written, run the same command again", file=sys.stderr)
        return exit_code(error)
    return 0


def _run(argv: list[str]) -> list[str]:
    # accept --num_task for --num-task
    argv = [_dashed(word) if word.startswith("--") else word for word in argv]
    name = _parse(argv, [Options], final=False).get("dataset")
    if name not in support_dataset_list:
        if name is None and {"-h", "--help"} & set(argv):
            _parse(argv, [Options], final=True)
        known = {one.lower(): one for one in support_dataset_list}
        near = difflib.get_close_matches((name or "").lower(), known, n=1, cutoff=0.7)
        own = (
            "your own files: --dataset jsonl --raw-dir FOLDER, or main_CL.py --dataset_files FILE; see docs/own-data.md"
        )
        hint = f"; did you mean {known[near[0]]!r}?" if near else f"; {own}"
        raise UserError(f"--dataset: expected one of {', '.join(support_dataset_list)}, got {name!r}{hint}")
    _check_once(argv)
    module = load(name)
    given = _parse(argv, [Options, module.Options], final=True)
    general, special = _validate(Options, given), _validate(module.Options, given)
    if name in GENERATORS:
        with working(f"{name}: writing raw files"):
            return _write_raw(general, special, module)
    with working(f"{name}: reading the raw files and assigning examples to tasks"):
        stream = _adapt(module.build(general.raw_dir, special, general.seed), general)
    with working(f"{stream.name}: writing"):
        return _save(stream, general.out_dir or DATASET_DIR, general.force)


def _check_once(argv: list[str]) -> None:
    names = [word.partition("=")[0] for word in argv if word.startswith("--")]
    if twice := [one for one in names if names.count(one) > 1]:
        raise UserError(f"{twice[0]}: given twice, so one would have no effect; give it once")


def _write_raw(general: Options, special: Any, module: Any) -> list[str]:
    unused = [f"--{name.replace('_', '-')}" for name in ADAPTING if getattr(general, name) is not None]
    if unused:
        raise UserError(f"{unused[0]} has no effect with {general.dataset}, which writes raw files, not a stream")
    out_dir = general.out_dir or DATASET_DIR / general.dataset / special.preset
    return module.write_raw(out_dir, special, general.seed, general.force)


def _adapt(stream: Stream, options: Options) -> Stream:
    """Shorten and rename a stream, so that a shortened stream is not mistaken for the full one."""
    if options.max_words is not None:
        stream = _changed(stream, "max_words", options.max_words, "words", _keep_short)
    if options.limit is not None:
        stream = _changed(stream, "limit", options.limit, "limit", _keep_first)
    return replace(stream, name=options.name or stream.name)


def _changed(
    stream: Stream, option: str, value: int, suffix: str, change: Callable[[TaskData, int], TaskData]
) -> Stream:
    """The stream with every task changed by an option, which its name and its source state."""
    source = stream.config["SOURCE"] | {option: value}
    if "notes" in source:
        before = f"before --{option.replace('_', '-')}"
        source["notes"] = [note if note.startswith("before --") else f"{before}: {note}" for note in source["notes"]]
    tasks = tuple(change(task, value) for task in stream.tasks)
    return Stream(f"{stream.name}_{suffix}{value}", tasks, stream.config | {"SOURCE": source})


def _keep_first(task: TaskData, limit: int) -> TaskData:
    return TaskData(task.name, *(getattr(task, split)[:limit] for split in SPLITS))


def _keep_short(task: TaskData, words: int) -> TaskData:
    """The examples with at most so many words before the answer.

    Raises:
        UserError: a split that had examples would have none, or training none of a class.
    """
    kept = {split: [one for one in getattr(task, split) if _words(one) <= words] for split in SPLITS}
    for split, examples in kept.items():
        if getattr(task, split) and not examples:
            shortest = min(map(_words, getattr(task, split)))
            raise UserError(
                f"--max-words: no example of {task.name}, {split}, has at most {words} words; "
                f"the shortest has {shortest}"
            )
    labels = {one.label for one in kept["train"]}
    if lost := [one.target for one in task.train if one.label not in labels]:
        raise UserError(
            f"--max-words: no training example of {task.name} of the class {lost[0]!r} has at most {words} words"
        )
    return TaskData(task.name, *kept.values())


def _words(example: Example) -> int:
    """Words before the answer; of a chat, in all turns before it."""
    turns = example.messages[:-1] if example.messages else (("", example.input),)
    return sum(len(text.split()) for _, text in turns)


def _save(stream: Stream, out_dir: Path, force: bool) -> list[str]:
    """Write the files whose content has changed, and describe the stream."""
    folder, files = out_dir / stream.name, encode(stream)
    same = {name: _is_same(folder / name, text) for name, text in files.items()}
    different = [name for name, equal in same.items() if equal is False]
    if different and not force:
        raise UserError(f"{folder / different[0]} has other content; replace it with --force, or give another --name")
    for name, text in files.items():
        if not same[name]:
            write_text(folder / name, text)
    return [*_describe(stream), f"{folder}: {'unchanged' if all(same.values()) else 'written'}"]


def _is_same(path: Path, text: str) -> bool | None:
    """None if the file is absent."""
    return path.read_bytes() == text.encode() if path.exists() else None


def _describe(stream: Stream) -> list[str]:
    width, digits = max(len(task.name) for task in stream.tasks), len(str(len(stream.tasks) - 1))
    lines = [f"{stream.name}: {len(stream.tasks)} tasks{', dev is test' if stream.dev_is_test else ''}"]
    for k, task in enumerate(stream.tasks):
        sizes = "  ".join(f"{split} {len(getattr(task, split)):>7}" for split in SPLITS)
        chance = "" if stream.chance(k) is None else f"  chance {stream.chance(k):.1%}"
        lines.append(f"  task {k:<{digits}}  {task.name:<{width}}  {sizes}{chance}")
    source = stream.config["SOURCE"]
    used = ", ".join(f"{name} {_as_option(value)}" for name, value in source["options"].items())
    notes = [f"  note: {note}" for note in source.get("notes", [])]
    files = list(source["files"])
    rest = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return [*lines, *notes, f"  from {', '.join(files[:3])}{rest} with {used}"]


def _as_option(value: object) -> str:
    """Format a value as it is written on the command line."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value).replace("\n", "\\n")


def _dashed(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _parse(argv: list[str], schemas: list[type[BaseModel]], final: bool) -> dict[str, str | None]:
    """Parse the options on the command line as text; with `final`, unknown options are an error."""
    parser = _Parser(
        "dataformat_preprocess.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=final,
        argument_default=argparse.SUPPRESS,
    )
    for schema in schemas:
        group = parser.add_argument_group((schema.__doc__ or "").rstrip("."))
        for name, field in schema.model_fields.items():
            is_flag = field.annotation is bool
            default = "" if field.is_required() else f" Default: {str(field.default).lower()}."
            group.add_argument(
                f"--{name.replace('_', '-')}",
                nargs="?" if is_flag else None,
                const="true" if is_flag else None,
                metavar="true|false" if is_flag else name.upper(),
                help=f"{field.description}{default}".replace("%", "%%"),
            )
    known, rest = parser.parse_known_args(argv)
    if final and rest:
        raise UserError(_unknown(rest[0], [name for schema in schemas for name in schema.model_fields]))
    return {name: None if text.lower() == "none" else text for name, text in vars(known).items()}


def _unknown(word: str, names: list[str]) -> str:
    known = [f"--{name.replace('_', '-')}" for name in names]
    near = difflib.get_close_matches(word.partition("=")[0], known, n=1)
    return f"unknown option {word}{f'; did you mean {near[0]}?' if near else '; see --help'}"


def _validate(schema: type[Group], given: dict[str, str | None]) -> Group:
    try:
        return schema(**{name: given[name] for name in schema.model_fields if name in given})
    except ValidationError as error:
        raise UserError("; ".join(_problem(item) for item in error.errors())) from None


def _problem(item: ErrorDetails) -> str:
    expected = item["msg"].replace("Input should be", "expected").split(", unable to")[0]
    return f"--{str(item['loc'][0]).replace('_', '-')}: {expected}, got {item['input']!r}"


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
