"""From examples to token ids with classes at the places that a classifier reads."""

from __future__ import annotations

from collections.abc import Sequence

from utils.classifier import Classes
from utils.dataloader import Encoded, Encoder
from utils.dataset import Example


class ClassEncoder:
    """Encodes prompts without answers. It stands in for `Encoder` where a classifier answers.

    A text is classified at its last token or, with "cls_token", its first; a word at its first sub-word. Of an
    over-long text the last tokens are kept, of an over-long sentence the first words: the rest get no label.

    Args:
        plain: Encodes prompts.
        classes: Of the stream.
        extract: "last_token" or "cls_token".
    """

    def __init__(self, plain: Encoder, classes: Classes, extract: str):
        self.plain, self.classes, self.extract = plain, classes, extract
        self.is_word_level = classes.stream.is_word_level
        self._words: dict[str, list[int]] = {}

    @property
    def tokenizer(self):
        """The backbone's."""
        return self.plain.tokenizer

    def __call__(self, examples: Sequence[Example], max_length: int | None) -> list[Encoded]:
        """Encode examples with their classes; at most `max_length` tokens each."""
        encoded = self._prompts(examples, max_length)
        return [
            Encoded(ids, (), (), tuple(zip(places, self._labels(example), strict=False)))
            for (ids, places), example in zip(encoded, examples, strict=True)
        ]

    def for_prediction(self, examples: Sequence[Example], max_length: int | None) -> list[Encoded]:
        """The same without the classes: 0 stands at every place."""
        encoded = self._prompts(examples, max_length)
        return [Encoded(ids, (), (), tuple((place, 0) for place in places)) for ids, places in encoded]

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of each example, before anything is cut."""
        return [len(ids) for ids, _ in self._prompts(examples, None)]

    def forget(self) -> None:
        """Drop the cached token ids."""
        self.plain.forget()
        self._words.clear()

    def _prompts(self, examples: Sequence[Example], max_length: int | None) -> list[tuple[list[int], list[int]]]:
        """Token ids of each example, and the places that are classified."""
        if self.is_word_level:
            return [self._sentence(example.input.split(" "), max_length) for example in examples]
        rows = [list(row.prompt) for row in self.plain.for_prediction(examples, max_length)]
        return [(ids, [0 if self.extract == "cls_token" else len(ids) - 1]) for ids in rows]

    def _sentence(self, words: list[str], max_length: int | None) -> tuple[list[int], list[int]]:
        ids, places, end = list(self.plain.bos), [], self.plain.end
        for i, word in enumerate(words):
            pieces = self._pieces(" " + word if i else word)
            if max_length is not None and len(ids) + len(pieces) + len(end) > max_length and places:
                break
            places.append(len(ids))
            ids += pieces
        return [*ids, *end], places

    def _pieces(self, word: str) -> list[int]:
        if word not in self._words:
            ids = self.tokenizer(word, add_special_tokens=False)["input_ids"]
            unknown = self.tokenizer.unk_token_id
            self._words[word] = ids or [self.tokenizer.pad_token_id if unknown is None else unknown]
        return self._words[word]

    def _labels(self, example: Example) -> list[int]:
        """Its class, or those of its words; 0, the tag O, for tags that the stream does not name."""
        if self.is_word_level:
            return [self.classes.index.get(tag, 0) for tag in example.target.split(" ")]
        return [example.label]
