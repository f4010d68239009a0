"""What a run is: its options, stream, backbone and code. Nothing is resumed, reused or pooled unless all are equal.

facts.json holds them from the start of a run. Digests are of contents, not of times or names of files: of every example
of the stream (about two seconds per million), and of every file of the backbone's folder (a second or two per GB).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from utils.backbone import find_source
from utils.config import Config
from utils.dataset import Example, Stream
from utils.errors import UserError
from utils.general import harness, questions
from utils.options.parse import ConfigError, Resolved, flatten
from utils.report.results import NOT_COMPARED, read_facts
from utils.storage.files import is_file
from utils.storage.packed_columns import Rows

ROOT = Path(__file__).resolve().parents[2]
# Options that a resumed run may change in its config.yaml: they log or save memory, and leave the numbers alone.
EDITABLE = ("gradient_accumulation_steps", "evaluate_batch_size", "info_per_steps")
# Not stored: options that name or log a run, and those that say where a thing is whose digest is stored.
IGNORED = NOT_COMPARED - {"seed"} | {"dataset_path", "backbone_cache_path"}
LENGTH = 16  # hex digits of a digest


def of(options: Resolved, stream: str) -> dict[str, Any]:
    """What facts.json holds of a run's identity: its options, and digests of all else that decides its numbers.

    Args:
        options: As they were resolved.
        stream: Its digest, see `of_stream`.

    Raises:
        UserError: questions outside the stream cannot be read.
    """
    digests = {"stream": stream, "backbone": of_backbone(options.config), "code": of_code()}
    if questions.is_asked(options.config):
        digests["general"] = questions.digest(options.config)
    if options.config.general_harness:
        digests["general_harness"] = harness.digest(options.config)
    stored = {name: value for name, value in flatten(options).items() if name not in IGNORED}
    return {"options": stored, "identity": digests}


def differences(known: dict[str, Any], wanted: dict[str, Any], ignored: Iterable[str] = EDITABLE) -> list[str]:
    """What two results of `of` do not share, each with both values; empty if they are one run.

    Args:
        known: Of a run, from its facts.json.
        wanted: Of the run that would be resumed or reused.
        ignored: Options that may differ.
    """
    if "identity" not in known:
        return ["it was started by a version that did not store what it runs on"]
    left, right = known["options"], wanted["options"]
    pairs = [(name, left.get(name), right.get(name)) for name in {**left, **right} if name not in ignored]
    pairs += [(f"{name} (digest)", known["identity"].get(name), value) for name, value in wanted["identity"].items()]
    return [f"{name}: it has {old}, now {new}" for name, old, new in pairs if _plain(old) != _plain(new)]


def check(folder: Path, options: Resolved, stream: Stream) -> None:
    """Refuse to resume a run as another one.

    Raises:
        UserError: its options, stream, backbone or code have changed since it started.
    """
    found = differences(read_facts(folder), of(options, of_stream(stream)))
    if found:
        raise UserError(
            f"resume: {folder} has changed since it started; undo that or start a new run:",
            *(f"  - {difference}" for difference in found),
        )


def named_after_checkpoint(options: Resolved) -> Resolved:
    """With `evaluate_checkpoint`: seed and name are those of the checkpoint's run.

    Raises:
        ConfigError: another seed was asked for.
    """
    config = options.config
    run = Path(config.evaluate_checkpoint or ".").absolute().parent.parent
    if config.evaluate_checkpoint is None or not is_file(run / "facts.json"):
        return options
    facts = read_facts(run)
    if "seed" in options.sources and config.seed != facts["seed"]:
        raise ConfigError([f"seed: {config.evaluate_checkpoint} is of seed {facts['seed']}, got {config.seed}"])
    named = "wandb_name" in options.sources or "exp_prefix" in options.sources
    name = config.wandb_name if named else facts["name"]
    return options._replace(config=config.updated(seed=facts["seed"], wandb_name=name))


def of_stream(stream: Stream) -> str:
    """Digest of everything in a stream: examples of all splits in their order, and its facts.

    The digest of a split that stays on the disk is known; its examples are not read.
    """
    digest = hashlib.sha256(json.dumps(stream.config, sort_keys=True, default=str).encode())
    for task in stream.tasks:
        for split in (task.train, task.dev, task.test):
            digest.update(f"{task.name} {len(split)}".encode())
            known = split.digest if isinstance(split, Rows) else None
            for content in map(_content, split) if known is None else (known,):
                digest.update(repr(content).encode())
    return digest.hexdigest()[:LENGTH]


def of_backbone(config: Config) -> str:
    """Digest of the files of the backbone's folder, weights and tokenizer; of the hub's copy on this machine."""
    return of_folder(_folder(find_source(config), config))


@cache
def of_folder(folder: Path | None) -> str:
    """Digest of the files in a folder, without those in its folders; "not here" for a hub's model that is not here."""
    if folder is None:
        return "not here"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith(".") and path.suffix.lower() != ".md":
            with open(path, "rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:LENGTH]


@cache
def of_code() -> str:
    """Digest of the program's Python files."""
    digest = hashlib.sha256()
    files = [ROOT / "main_CL.py", *(path for top in ("models", "utils") for path in (ROOT / top).rglob("*.py"))]
    for path in sorted(files):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:LENGTH]


def _folder(source: str, config: Config) -> Path | None:
    if (Path(source) / "config.json").is_file():
        return Path(source)
    from transformers.utils import cached_file  # seconds to import: not for --help

    try:
        found = cached_file(
            source,
            "config.json",
            cache_dir=config.backbone_cache_path,
            revision=config.backbone_revision or "main",
            local_files_only=True,
        )
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found).parent


def _content(example: Example) -> tuple[object, ...]:
    cells = (example.input, example.target, example.label, example.label_in_task, example.ids, example.messages)
    return (*cells, *(more for more in (example.references, example.choices) if more is not None))


def _plain(value: Any) -> Any:
    """As it is read back from JSON."""
    return json.loads(json.dumps(value))
