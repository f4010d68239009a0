"""Raw files of named entities: a word and its tag on each line, a blank line after each sentence."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from utils.errors import UserError
from utils.preprocess.shared.raw import Origin, read_raw, shown

OUTSIDE = "O"
DOCUMENT = "-DOCSTART-"  # a line that is no word


class Sentence(NamedTuple):
    """Words and their BIO tags."""

    words: list[str]
    tags: list[str]

    @property
    def types(self) -> set[str]:
        """The entity types in it."""
        return {tag[2:] for tag in self.tags if tag != OUTSIDE}


def read_sentences(path: Path, origin: Origin, runs: bool = False) -> list[Sentence]:
    """The sentences of a raw file.

    Args:
        path: The file.
        origin: Where it is published.
        runs: True if tags are bare types and a run of one type is one entity; B-TYPE and I-TYPE are also accepted.

    Raises:
        UserError: the file is missing or empty, or a line is not a word and a tag.
    """
    sentences, words, tags = [], [], []
    for number, line in enumerate(read_raw(path, origin).split("\n"), start=1):
        if line.startswith(DOCUMENT):
            continue
        if line.strip():
            word, tag = _cells(line, f"{path}, line {number}", runs)
            words.append(word)
            tags.append(tag)
        elif words:
            sentences.append(Sentence(words, _bio(tags)))
            words, tags = [], []
    if words:
        sentences.append(Sentence(words, _bio(tags)))
    if not sentences:
        raise UserError(f"{path} holds no sentences, at least one is needed")
    return sentences


def _cells(line: str, where: str, runs: bool) -> tuple[str, str]:
    """Word and tag: the first and the last cell between spaces, or between tabs if there are any."""
    cells = line.rstrip().split("\t" if "\t" in line.rstrip() else " ")
    word, tag = cells[0].strip(), cells[-1].strip().upper()
    if len(cells) < 2 or not word or " " in word:
        raise UserError(f"{where}: expected a word and a tag, separated by a space or a tab, got another line")
    prefix, dash, kind = tag.partition("-")
    is_bio = prefix in ("B", "I") and bool(dash and kind)
    if runs and tag and not is_bio:  # a file of bare types in another edition has B-TYPE and I-TYPE
        return word, tag if tag == OUTSIDE else f"I-{tag}"
    if tag != OUTSIDE and not is_bio:
        raise UserError(f"{where}: expected the tag O, B-TYPE or I-TYPE, got {shown(tag)}")
    return word, tag


def _bio(tags: list[str]) -> list[str]:
    """Tags where every entity begins with B-: an I- that does not continue an entity of its type becomes B-.

    >>> _bio(["I-PER", "I-PER", "O", "B-LOC", "I-ORG"])
    ['B-PER', 'I-PER', 'O', 'B-LOC', 'B-ORG']
    """
    before = [OUTSIDE, *tags[:-1]]
    return [f"B{t[1:]}" if t[0] == "I" and t[1:] != b[1:] else t for b, t in zip(before, tags, strict=True)]
