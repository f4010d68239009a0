r"""From a stored pair (input, target) to the text a model sees.

A template states the prompt; the answer is always one space and the stripped target. Prompts end without a
space, so that the space belongs to the first answer token, as in the tokenizers of GPT-like models. The
end-of-sequence token is added where text becomes tokens, not here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from utils.dataset import Example, Stream
from utils.errors import UserError

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


def render(example: Example, prompt_type: str) -> tuple[str, str]:
    r"""Fill a template.

    Args:
        example: Its input and target are stripped first.
        prompt_type: A name in PROMPT_TYPES.

    Returns:
        The prompt (no trailing space) and the answer (a leading space, no end-of-sequence token).

    Raises:
        UserError: unknown prompt type, or an entity template for a text without the markers [E11] .. [E22].

    >>> render(Example("Who wrote Emma? ", " Jane Austen"), "qa")
    ('Question: Who wrote Emma?\n Short Answer:', ' Jane Austen')
    """
    template, text = _template(prompt_type), example.input.strip()
    # One pass over the template, so that braces inside a text are never taken for places to fill.
    values = {"x": text} if "{s}" not in template else _relation_values(text, prompt_type)
    prompt = re.sub(r"\{(\w+)\}", lambda match: values[match[1]], template)
    return prompt.rstrip(" "), " " + example.target.strip()


def choose(prompt_type: str, stream: Stream) -> str:
    """The prompt type of a run: the option, or with "auto" what the stream states, or its name tells.

    Raises:
        UserError: unknown prompt type.
    """
    if prompt_type == "auto":
        guesses = [kind for start, kind in AUTO_BY_NAME.items() if stream.name.startswith(start)]
        prompt_type = stream.prompt_type or (guesses or ["none"])[0]
    _template(prompt_type)
    return prompt_type


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


def encode_chat(tokenizer: Any, messages: Messages) -> tuple[list[int], list[int], list[int]]:
    """Encode one chat.

    The template writes all special tokens, so nothing is added and none is doubled.

    Returns:
        The ids before the last assistant turn, the places among them that belong to earlier assistant turns, and the
        ids of the last turn, which end with EOS.

    Raises:
        UserError: the tokenizer has no chat template, or one that rewrites earlier turns as a chat goes on.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("dataset: it holds chats, but the backbone's tokenizer has no chat template; use a chat model")
    labelled: list[int] = []
    prompt: list[int] = []
    answer: list[int] = []
    whole: list[int] = []
    for i, (role, _) in enumerate(messages):
        if role == "assistant":
            told = whole[: labelled[-1] + 1] if labelled else []
            prompt = _ids(tokenizer, messages[:i], add_generation_prompt=True)
            whole = _ids(tokenizer, messages[: i + 1], add_generation_prompt=False)
            if prompt[: len(told)] != told or whole[: len(prompt)] != prompt:
                raise UserError("dataset: the backbone's chat template rewrites earlier turns; use one turn per chat")
            answer = _to_eos(whole[len(prompt) :], tokenizer.eos_token_id)
            labelled += range(len(prompt), min(len(prompt) + len(answer), len(whole)))  # an added EOS is not in it
    return prompt, [place for place in labelled if place < len(prompt)], answer


def _ids(tokenizer: Any, messages: Messages, add_generation_prompt: bool) -> list[int]:
    chat = [{"role": role, "content": content} for role, content in messages]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=add_generation_prompt)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _to_eos(ids: list[int], eos: int) -> list[int]:
    """The turn up to its first EOS; one is added where the template writes none."""
    return [*ids[: ids.index(eos)], eos] if eos in ids else [*ids, eos]
