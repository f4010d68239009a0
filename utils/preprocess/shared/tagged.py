"""Raw files of named entities: a word and its tag on each line, a blank line after each sentence.

The scheme of the tags is found out for each file: BIO, IOB1 (B- only where an entity follows another of its type),
IOBES (E- ends an entity, S- is one of a single word), the same with other letters (BILOU: L-, U-; BMEWO: M-, W-; BMES:
M-), IOE (E- ends an entity, all other words have I-; IOE1: E- only before another entity of its type), or bare types,
of which a run is one entity. A first column that counts the words of each sentence is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from utils.errors import UserError
from utils.preprocess.shared.raw import Origin, read_raw, shown

OUTSIDE = "O"
DOCUMENT = "-DOCSTART-"  # a line that is no word
USUAL = {"L": "E", "U": "S", "M": "I", "W": "S"}  # letters of other schemes -> those of IOBES
PREFIXED = re.compile(r"[BIESLUMW]-.+")
MISWRITTEN = re.compile(r"[BIESLUMW][_:./].+")  # B_PER: as bare types, each type would be two
BARE = "bare types"
OTHERS = "IOBES, BILOU, BMES, BMEWO (E-, S-, L-, U-, M-, W-), IOE or bare types"


class Sentence(NamedTuple):
    """Words and their BIO tags."""

    words: list[str]
    tags: list[str]

    @property
    def types(self) -> set[str]:
        """The entity types in it."""
        return {tag[2:] for tag in self.tags if tag != OUTSIDE}


class Tagged(NamedTuple):
    """A file."""

    sentences: list[Sentence]
    scheme: str  # BIO, IOB1, IOBES, BILOU, BMES, BMEWO, IOE or bare types
    loose: int  # entities that begin with I- or E-, where the scheme has B- or S- for it


class _Line(NamedTuple):
    where: str
    cells: list[str]


def read_tagged(path: Path, origin: Origin) -> Tagged:
    """The sentences of a raw file.

    Args:
        path: The file.
        origin: Where it is published.

    Raises:
        UserError: the file is missing or empty, a line is not a word and a tag, or tags are of several schemes.
    """
    blocks = _blocks(path, read_raw(path, origin))
    if not blocks:
        raise UserError(f"{path} holds no sentences, at least one is needed")
    counted = [[line for line in block if not line.cells[0].startswith("#")] for block in blocks]
    is_indexed = all(_counts(block) for block in counted) and any(counted)
    lines = [block for block in counted if block] if is_indexed else blocks
    words = [[_word(line, int(is_indexed)) for line in block] for block in lines]
    tags = [[line.cells[-1].strip().upper() for line in block] for block in lines]
    is_bare = _check_tags(lines, tags)
    scheme, loose = (BARE, 0) if is_bare else _scheme(tags)
    return Tagged([Sentence(*pair) for pair in zip(words, map(to_bio, tags), strict=True)], scheme, loose)


def to_bio(tags: list[str]) -> list[str]:
    """Tags where every entity begins with B- and continues with I-.

    >>> to_bio(["I-PER", "I-PER", "O", "B-LOC", "I-ORG"])
    ['B-PER', 'I-PER', 'O', 'B-LOC', 'B-ORG']
    >>> to_bio(["B-PER", "E-PER", "S-PER", "PER"]), to_bio(["ART", "ART", "FILM"])
    (['B-PER', 'I-PER', 'B-PER', 'B-PER'], ['B-ART', 'I-ART', 'B-FILM'])
    >>> to_bio(["B-PER", "L-PER", "U-PER"]), to_bio(["I-PER", "E-PER", "E-PER"])
    (['B-PER', 'I-PER', 'B-PER'], ['B-PER', 'I-PER', 'B-PER'])
    """
    split = [_parts(tag) for tag in tags]
    return [
        OUTSIDE if not kind else f"{'I' if _continues(before, (letter, kind)) else 'B'}-{kind}"
        for before, (letter, kind) in zip([("", ""), *split[:-1]], split, strict=True)
    ]


def windows(sentence: Sentence, longest: int) -> Iterable[Sentence]:
    """The sentence in pieces of at most so many words; none ends inside an entity that fits into a piece.

    >>> [w.words for w in windows(Sentence(list("abcd"), ["O", "B-X", "I-X", "O"]), 2)]
    [['a'], ['b', 'c'], ['d']]
    """
    words, tags = sentence
    start = 0
    while start < len(words):
        end = min(start + longest, len(words))
        cuts = [i for i in range(end, start, -1) if i == len(words) or tags[i][0] != "I"]
        end = cuts[0] if cuts else end
        yield Sentence(words[start:end], to_bio(tags[start:end]))
        start = end


def _blocks(path: Path, text: str) -> list[list[_Line]]:
    """The lines of each sentence, in cells between tabs if there are any, otherwise between spaces."""
    blocks: list[list[_Line]] = [[]]
    for number, line in enumerate(text.split("\n"), start=1):
        if line.startswith(DOCUMENT):
            continue
        if line.strip():
            cells = line.rstrip().split("\t" if "\t" in line.rstrip() else " ")
            blocks[-1].append(_Line(f"{path}, line {number}", cells))
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]


def _counts(block: list[_Line]) -> bool:
    """True if the first of at least three cells counts the words, from 0 or from 1."""
    return any(
        all(len(cells) > 2 and cells[0] == str(first + i) for i, (_, cells) in enumerate(block)) for first in (0, 1)
    )


def _word(line: _Line, at: int) -> str:
    word = line.cells[at].strip() if len(line.cells) > at + 1 else ""
    if not word or " " in word:
        raise UserError(f"{line.where}: expected a word and a tag, separated by a space or a tab, got another line")
    return word


def _check_tags(lines: list[list[_Line]], tags: list[list[str]]) -> bool:
    """True if tags are bare types."""
    pairs = [
        (line, tag)
        for block, row in zip(lines, tags, strict=True)
        for line, tag in zip(block, row, strict=True)
        if tag != OUTSIDE
    ]
    other = [pair for pair in pairs if not PREFIXED.fullmatch(pair[1])]
    is_mixed = len(other) < len(pairs) or any(not tag or tag.endswith("-") for _, tag in other)
    if other and (is_mixed or all(MISWRITTEN.fullmatch(tag) for _, tag in other)):
        line, tag = other[0]
        raise UserError(
            f"{line.where}: expected the tag O, B-TYPE or I-TYPE (BIO, IOB1), or one of {OTHERS}, got {shown(tag)}"
        )
    return bool(other)


def _scheme(tags: list[list[str]]) -> tuple[str, int]:
    """The scheme of tags with prefixes, and how many entities begin with another letter than it has for that."""
    loose = far = 0
    for row in tags:
        split = [_parts(tag) for tag in row]
        for before, tag in zip([("", ""), *split[:-1]], split, strict=True):
            loose += tag[0] in ("I", "E") and not _continues(before, tag)
            far += tag[0] == "B" and before[1] != tag[1]
    letters = {tag[0] for row in tags for tag in row if tag != OUTSIDE}
    if letters <= {"I", "E"} and "E" in letters:
        return "IOE", 0
    if own := letters & {*USUAL, "E", "S"}:
        return "BILOU" if own & {"L", "U"} else "BMEWO" if "W" in own else "BMES" if "M" in own else "IOBES", loose
    return ("IOB1", 0) if loose and not far else ("BIO", loose)


def _parts(tag: str) -> tuple[str, str]:
    """Letter, as in IOBES, and type; of a bare type the letter I; empty outside of entities."""
    if tag == OUTSIDE:
        return "", ""
    return (USUAL.get(tag[0], tag[0]), tag[2:]) if PREFIXED.fullmatch(tag) else ("I", tag)


def _continues(before: tuple[str, str], tag: tuple[str, str]) -> bool:
    return tag[0] in ("I", "E") and before[1] == tag[1] and before[0] in ("B", "I")
