"""Questions and texts outside the stream, from files or other streams; none is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from utils.config import Config
from utils.dataset import CUT_SIDES, Example, Stream, load_stream
from utils.errors import UserError, printable
from utils.metric import PERPLEXITY
from utils.options.stream_view import order_of
from utils.preprocess import jsonl
from utils.preprocess.shared.option_types import per_task
from utils.preprocess.shared.records import question
from utils.prompt import choose
from utils.scoring import find

KINDS = ("general", "instruction", "safety")  # what a set of questions shows a change of
TEXT = ".txt"


class Style(NamedTuple):
    """How questions are written, see `utils.dataloader.Encoder`."""

    prompt_type: str = "none"
    strip: bool = True
    cut_side: str = CUT_SIDES[0]


class Asked(NamedTuple):
    """Questions that are scored together, or a text."""

    name: str
    kind: str  # of KINDS
    metric: str
    examples: Sequence[Example] = ()
    max_new_tokens: int = 1
    style: Style = Style()
    text: str = ""  # that is read, in the place of examples; its metric is PERPLEXITY

    @property
    def digest(self) -> str:
        """Of everything that decides its scores."""
        digest = hashlib.sha256(repr((self.kind, self.metric, self.max_new_tokens, self.style, self.text)).encode())
        for example in self.examples:
            digest.update(repr((example.input, example.accepted, example.choices, example.messages)).encode())
        return digest.hexdigest()[:16]


def is_asked(config: Config) -> bool:
    """True if a run has questions outside its stream, those of lm-eval aside."""
    return bool(config.general_files or config.general_tasks)


def kind_of(word: str) -> tuple[str, str]:
    """The kind that a word begins with, and the rest.

    >>> kind_of("safety=harm.jsonl"), kind_of("mc.jsonl")
    (('safety', 'harm.jsonl'), ('general', 'mc.jsonl'))
    """
    kind, _, rest = word.partition("=")
    return (kind, rest) if kind in KINDS and rest else (KINDS[0], word)


@lru_cache(maxsize=4)
def read(config: Config) -> tuple[Asked, ...]:
    """All of them, files first.

    Raises:
        UserError: one cannot be read, two have one name, or a task is trained.
    """
    found = [*_of_files(config), *_of_tasks(config)]
    names = [one.name for one in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"general_files, general_tasks: expected different names, got {twice[0]!r} twice")
    return tuple(found)


def digest(config: Config) -> str:
    """Of all of them, for the identity of a run."""
    return hashlib.sha256("".join(one.digest for one in read(config)).encode()).hexdigest()[:16]


def remarks(config: Config, stream: Stream) -> list[str]:
    """How many of the questions are trained after all, a line for each set that has some."""
    if not is_asked(config):
        return []
    trained = {question(example) for task in stream.tasks for example in task.train}
    counts = {one.name: sum(question(example) in trained for example in one.examples) for one in read(config)}
    return [
        f"{name}: {count} questions that should not be trained are in the stream's training examples"
        for name, count in counts.items()
        if count
    ]


def _of_files(config: Config) -> Iterator[Asked]:
    words = [kind_of(word) for word in config.general_files or ()]
    if not words:
        return
    fields = per_task(tuple((config.general_fields or jsonl.AUTO).split(";")), len(words), "general_fields")
    metrics = per_task(config.general_metrics, len(words), "general_metrics") if config.general_metrics else None
    for i, (kind, word) in enumerate(words):
        if Path(word).suffix.lower() == TEXT:
            if metrics and len(config.general_metrics or ()) == len(words) and metrics[i] != PERPLEXITY:
                raise UserError(f"general_metrics: {word} is a text; expected {PERPLEXITY}, got {metrics[i]}")
            yield _text(Path(word), kind)
            continue
        for one in _records(word, fields[i].strip()):
            metric = metrics[i] if metrics else _usual_metric(kind, one.examples)
            yield Asked(
                one.name, kind, find(metric, "general_metrics").name, one.examples, config.general_max_new_tokens
            )


def _records(word: str, fields: str) -> list[jsonl.Questions]:
    try:
        return jsonl.read_questions(word, fields)
    except UserError as error:
        kinds = f"; a kind is one of {', '.join(KINDS)}" if "=" in word else ""
        raise UserError(f"general_files: {str(error).replace('--fields', '--general_fields')}{kinds}") from None


def _usual_metric(kind: str, examples: Sequence[Example]) -> str:
    if all(example.choices for example in examples):
        return "choice_likelihood"
    return "jailbreak_rate" if kind == "safety" else "exact_match"


def _text(path: Path, kind: str) -> Asked:
    if kind != KINDS[0]:
        raise UserError(f"general_files: {path} is a text, whose perplexity has no kind; leave {kind}= out")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"general_files: {path}: expected a UTF-8 text ({error})") from None
    if not text.strip():
        raise UserError(f"general_files: {path} holds no words, at least one is needed")
    return Asked(printable(path.stem), kind, PERPLEXITY, text=text)


def _of_tasks(config: Config) -> Iterator[Asked]:
    for word in config.general_tasks or ():
        kind, place = kind_of(word)
        name, _, wanted = place.partition(":")
        if not name:
            raise UserError(f"general_tasks: expected STREAM or STREAM:TASK, got {word!r}")
        stream = load_stream(name, Path(config.dataset_path))
        if stream.is_word_level:
            raise UserError(f"general_tasks: {name} has tags of words, which need the heads of that stream")
        trained = _trained(config, name, len(stream.tasks))
        for k in _chosen(stream, wanted, word, trained):
            task, limit = stream.tasks[k], stream.max_new_tokens(k)
            style = Style(choose("auto", stream), stream.strip, stream.cut_side)
            yield Asked(f"{name}: {task.name}", kind, find(stream.metric(k)).name, task.test, limit, style)


def _trained(config: Config, name: str, count: int) -> set[int]:
    """The tasks of a stream that the run trains, by their stored numbers; a folder can have several names."""
    asked, own = (Path(config.dataset_path, folder).resolve() for folder in (name, config.dataset))
    if config.dataset_files is not None or asked != own:
        return set()
    return set(order_of(config.task_order, count)[: config.first_tasks])


def _chosen(stream: Stream, wanted: str, word: str, trained: set[int]) -> list[int]:
    """Numbers of the tasks that a word names: one, or all of a stream that are not trained."""
    names = [task.name for task in stream.tasks]
    if not wanted:
        left = [k for k in range(len(names)) if k not in trained]
        if not left:
            raise UserError(f"general_tasks: {word}: the run trains all of its tasks; leave some out with first_tasks")
        return left
    k = int(wanted) if wanted.isdecimal() and int(wanted) < len(names) else None
    k = names.index(wanted) if wanted in names else k
    if k is None:
        known = ", ".join(f"{k} ({name})" for k, name in enumerate(names))
        raise UserError(f"general_tasks: {word}: expected a task of {stream.name}, number or name: {known}")
    if k in trained:
        raise UserError(f"general_tasks: {word}: the run trains this task; leave it out, here or with first_tasks")
    return [k]
