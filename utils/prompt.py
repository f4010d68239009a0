r"""From a stored pair (input, target), or a stored chat, to the text a model sees.

A template states the prompt; the answer is one space and the stripped target. Prompts end without a space, so that the
space belongs to the first answer token, as in the tokenizers of GPT-like models. With `strip` False, for code, both
texts are kept as they are and nothing is put between them. The end-of-sequence token is added where text becomes
tokens, not here.

A chat is written by the chat template of the backbone's tokenizer. What a template writes around an answer is found by
rendering chats with a mark in the place of the answer, so no template is known by name; see docs/chat-templates.md.
"""

from __future__ import annotations

import difflib
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from utils.dataset import Example, Stream
from utils.errors import UserError, reason_of

PROMPT_TYPES = {  # {x}: input; {s}: input without entity markers; {e1}, {e2}: the two marked entities
    "none": "{x}",
    "default": "Input sentence: {x}\n The label:",
    "qa": "Question: {x}\n Short Answer:",
    "relation_classification_state": "Input sentence: {s}\n The relationship between {e1} and {e2} is",
    "relation_classification_qa": "Input sentence: {s}\n "
    "Question: What is the relationship between {e1} and {e2}?\n Answer:",
    "relation_classification_state_no_pos": "Input sentence: {s}\n The relationship:",
}

# What `prompt_type: auto` means for a stream that states no PROMPT_TYPE, by the start of its name. Only
# streams made elsewhere need it: this program states the type. Every name that is not here means "none".
AUTO_BY_NAME = {
    "concept_": "qa",
    "topic3datasets": "default",
    "clinc150": "default",
    "banking77": "default",
    "fewrel": "relation_classification_state",
    "tacred": "relation_classification_state",
}

MARKERS = ("[E11]", "[E12]", "[E21]", "[E22]")


def render(example: Example, prompt_type: str, strip: bool = True) -> tuple[str, str]:
    r"""Fill a template.

    Args:
        example: What is asked and answered.
        prompt_type: A name in PROMPT_TYPES.
        strip: Remove white space around input and target; False: keep them as they are.

    Returns:
        The prompt and the answer (no end-of-sequence token); with `strip` the prompt ends without a space and the
        answer begins with one.

    Raises:
        UserError: unknown prompt type, or an entity template for a text without the markers [E11] .. [E22].

    >>> render(Example("Who wrote Emma? ", " Jane Austen"), "qa")
    ('Question: Who wrote Emma?\n Short Answer:', ' Jane Austen')
    """
    template, text = _template(prompt_type), example.input.strip() if strip else example.input
    # One pass over the template, so that braces inside a text are never taken for places to fill.
    values = {"x": text} if "{s}" not in template else _relation_values(text, prompt_type)
    prompt = re.sub(r"\{(\w+)\}", lambda match: values[match[1]], template)
    return (prompt.rstrip(" "), " " + example.target.strip()) if strip else (prompt, example.target)


def choose(prompt_type: str, stream: Stream) -> str:
    """The prompt type of a run: the option, or with "auto" what the stream states or, failing that, its name implies.

    Raises:
        UserError: unknown prompt type.
    """
    if prompt_type == "auto":
        guesses = [kind for start, kind in AUTO_BY_NAME.items() if stream.name.startswith(start)]
        prompt_type = stream.prompt_type or (guesses or ["none"])[0]
    _template(prompt_type)
    return prompt_type


def strips(option: bool | None, stream: Stream) -> bool:
    """True if white space around questions and answers is removed in a run: by the option, otherwise by the stream."""
    return stream.strip if option is None else option


def _template(prompt_type: str) -> str:
    if prompt_type not in PROMPT_TYPES:
        near = difflib.get_close_matches(prompt_type, PROMPT_TYPES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        known = ", ".join(PROMPT_TYPES)
        raise UserError(f"prompt_type: expected one of auto, {known}, got {prompt_type!r}{hint}")
    return PROMPT_TYPES[prompt_type]


def _relation_values(text: str, prompt_type: str) -> dict[str, str]:
    """The marked entities, and the sentence with the markers (and the double spaces they leave) removed."""
    missing = [marker for marker in MARKERS if text.count(marker) != 1]
    if missing:
        raise UserError(f"prompt_type {prompt_type}: expected the marker {missing[0]} once in {text[:60]!r}")
    e1, e2 = _between(text, *MARKERS[:2]), _between(text, *MARKERS[2:])
    return {"s": _without_markers(text), "e1": e1, "e2": e2}


def _between(text: str, start: str, end: str) -> str:
    return _without_markers(text[text.index(start) + len(start) : text.index(end)])


def _without_markers(text: str) -> str:
    for marker in MARKERS:
        text = text.replace(marker, " ")
    return " ".join(text.split())


Messages = Sequence[tuple[str, str]]  # (role, content), the last one by the assistant
MARK = "\U0010cfff"  # in the place of an answer: a private character
DEFAULT_DAY = "2024-07-26"
SECONDS, CHARACTERS, BYTES = 5, 10_000_000, 2**28  # limits of one rendering: processor time, output, additional memory


class Chat(NamedTuple):
    """A chat as its template writes it."""

    text: str
    turns: tuple[tuple[int, int], ...]  # start and end in the text of each answer; the end-of-turn token belongs to it


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: The backbone's.
        day: What the template takes for today, as YYYY-MM-DD.
        thinking: What the template gets as `enable_thinking`; None: nothing.
    """

    def __init__(self, tokenizer: Any, day: str = DEFAULT_DAY, thinking: bool | None = None):
        self.tokenizer, self.day, self.thinking = tokenizer, day, thinking

    def split(self, messages: Messages) -> Chat:
        """Write a chat and find the assistant's answers in it.

        The text before an answer, with all that the template itself writes there (a header, an empty block of
        thoughts), is the prompt. It cannot depend on the answer: it is the text before a mark in the answer's place or,
        for an answer that holds its own thoughts, what the template writes to ask for an answer.

        Raises:
            UserError: there is no chat template, it fails, or it changes an answer.
        """
        text, turns = self._write(messages), []
        for i, (role, content) in enumerate(messages):
            if role == "assistant":
                place = self._find(messages, i, text)
                if place is None:
                    raise UserError(
                        f"dataset: the backbone's chat template changes the answer {content[:60]!r}, so that what is "
                        "learned would not be what is compared" + "; use one turn per chat" * (i < len(messages) - 1)
                    )
                end = len(self.end) if text.startswith(self.end, place[1]) else 0
                turns.append((place[0], place[1] + end))
        return Chat(text, tuple(turns))

    def _find(self, messages: Messages, i: int, text: str) -> tuple[int, int] | None:
        """Start and end of the answer in message i."""
        before, after = self._around([*messages[:i], ("assistant", MARK), *messages[i + 1 :]])
        stop = len(text) - len(after)
        heads = [before, self._write(messages[:i], ask=True)] if i == len(messages) - 1 else [before]
        for head in heads if text.endswith(after) else ():
            starts = text.startswith(head) and len(head) <= stop
            if starts and text[len(head) : stop].strip() == messages[i][1].strip():
                return len(head), stop
        return None

    @cached_property
    def end(self) -> str:
        """What the template writes after an answer, up to the token that ends the turn; "" if there is no such token.

        It ends a turn if it follows the last answer of a chat as well as an earlier one, or if it is EOS: the header of
        the next turn, which some templates always write, is no end.
        """
        last = self._around([("user", "a"), ("assistant", MARK)])[1]
        try:
            more = self._around([("user", "a"), ("assistant", MARK), ("user", "a"), ("assistant", "a")])[1]
        except UserError:
            more = last  # a template for one turn
        tokens = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if str(token).strip()}
        pattern = _any_of(tokens | {*self.tokenizer.all_special_tokens})
        first, other = pattern.search(last), pattern.search(more)
        if first is None or (first[0] != self.tokenizer.eos_token and (other is None or first[0] != other[0])):
            return ""
        return last[: first.end()]

    def _around(self, messages: Messages) -> tuple[str, str]:
        """What is written before and after the mark."""
        written = self._write(messages)
        if written.count(MARK) != 1:
            raise UserError(
                "dataset: the backbone's chat template does not write each answer exactly once, so its end cannot be "
                "found; use another chat template"
            )
        before, _, after = written.partition(MARK)
        return before, after

    def _write(self, messages: Messages, ask: bool = False) -> str:
        """The text of a chat; with `ask` also what the template writes to ask for an answer."""
        words = self.tokenizer
        if not getattr(words, "chat_template", None):
            raise UserError(
                "dataset: it holds chats, but the backbone's tokenizer has no chat template; use a chat model"
            )
        chat = [{"role": role, "content": content} for role, content in messages]
        given = words.special_tokens_map | {"messages": chat, "add_generation_prompt": ask}
        if self.thinking is not None:
            if "enable_thinking" not in words.get_chat_template():
                raise UserError(
                    "chat_thinking: has no effect, as the backbone's chat template does not read enable_thinking"
                )
            given |= {"enable_thinking": self.thinking}
        given |= {"tools": None, "documents": None, "strftime_now": date.fromisoformat(self.day).strftime}
        try:
            with _limited():
                return _joined(_compiled(words.get_chat_template()).generate(given))
        except Exception as error:  # a template is a program from elsewhere, which can raise anything
            too_large = f"it takes more than {BYTES >> 20} MiB of memory"
            reason = too_large if isinstance(error, MemoryError) else reason_of(error, 200)
            roles = ", ".join(role for role, _ in messages)[:60]
            raise UserError(f"dataset: the backbone's chat template fails on a chat of {roles}: {reason}") from None


def _joined(pieces: Iterator[str]) -> str:
    kept, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > CHARACTERS:
            raise OverflowError(f"it writes more than {CHARACTERS:,} characters")
        kept.append(piece)
    return "".join(kept)


def _any_of(names: set[str]) -> re.Pattern[str]:
    """Finds the names in a text, of those that begin alike the longest."""
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=lambda name: (-len(name), name))))


@lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
    """A template in jinja's sandbox, with what transformers offers to templates."""
    import json

    from jinja2 import Environment, TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks answers for other programs; it changes no text."""

        tags = {"generation"}  # noqa: RUF012 (jinja's declaration)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **how)

    sandbox: Environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    sandbox.filters["tojson"] = tojson
    sandbox.globals["raise_exception"] = refuse
    return sandbox.from_string(source)


@contextmanager
def _limited() -> Iterator[None]:
    """End what takes too much time (in the main thread, which alone gets signals) or memory (on Linux)."""

    def interrupt(*_: Any) -> None:
        raise TimeoutError(f"it takes more than {SECONDS} seconds")

    with _memory_limited():
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handler = signal.signal(signal.SIGPROF, interrupt)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, handler)


@contextmanager
def _memory_limited() -> Iterator[None]:
    import resource

    status = Path("/proc/self/statm")
    if not status.exists():
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = int(status.read_text(encoding="utf-8").split()[0]) * resource.getpagesize() + BYTES
    fitting = [limit for limit in (most, *before) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(fitting), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class SpecialTexts:
    """Texts in data that are spelled like special tokens of a tokenizer, such as `</s>`.

    They stay text: `hide` puts private characters in their place before a template adds special tokens, which are
    tokens; `encode` puts the texts back and encodes them as text.
    """

    FIRST = 0x10D000  # in the last private plane

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.size = tokenizer, len(tokenizer)
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.names = sorted(special | {*tokenizer.all_special_tokens})
        self.firsts = {name[0] for name in self.names}
        self.pattern = _any_of({*self.names})

    def hide(self, text: str) -> str:
        """The text without special tokens."""
        if not self.names or self.firsts.isdisjoint(text):
            return text
        return self.pattern.sub(lambda found: chr(self.FIRST + self.names.index(found[0])), text)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of the texts, without what the tokenizer adds in front or behind."""
        hidden = [i for i, text in enumerate(texts) if self._holds_hidden(text)]
        encoded = [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
        for i in hidden:
            encoded[i] = self._pieces(texts[i])
        return encoded

    def _holds_hidden(self, text: str) -> bool:
        return bool(text) and ord(max(text)) >= self.FIRST

    def _pieces(self, text: str) -> list[int]:
        """A text between special tokens is encoded alone, as the tokenizer itself does."""
        ids: list[int] = []
        shown = {self.FIRST + k: name for k, name in enumerate(self.names)}
        for piece in re.split(f"({self.pattern.pattern})", text):
            if piece in self.names:
                ids.append(self.tokenizer.convert_tokens_to_ids(piece))
            elif piece:
                plain = self.tokenizer(piece.translate(shown), add_special_tokens=False, split_special_tokens=True)
                ids += plain["input_ids"]
        return ids
