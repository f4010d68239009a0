"""fewrel (scenario CIL): the relationship between two marked entities, ten of 80 relations per task.

Data: "FewRel: A Large-Scale Supervised Few-Shot Relation Classification Dataset" (Han et al., 2018).
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

from utils.dataset import SPLITS, Stream
from utils.errors import UserError
from utils.preprocess.shared.classes import ClassOptions, Labelled, RawClasses, to_stream
from utils.preprocess.shared.raw import Origin, file_sha256, raw_file, read_raw_json, shown
from utils.preprocess.shared.records import Row
from utils.preprocess.shared.relations import Relations, find, read_relations
from utils.prompt import MARKERS

RAW_FILE = "fewrel/FewRel-2021"  # .json or .pkl
PUBLISHED = ("fewrel/train_wiki.json", "fewrel/val_wiki.json")  # read if RAW_FILE is absent
NAMES = "fewrel/pid2name.json"
NUM_RELATIONS = 80  # in both
IDENTIFIER = re.compile(r"P\d+")
SHARES = {"dev": 0.2, "test": 0.2}  # of the sentences of a relation, as in RAW_FILE
ORIGIN = Origin(
    "github.com/shaoyijia/VAG (FewRel-2021.pkl); without it train_wiki.json, val_wiki.json and pid2name.json of "
    "github.com/thunlp/FewRel, data, are read",
    "MIT, sentences CC BY-SA from Wikipedia",
    "about 13 MB",
)


class Options(ClassOptions):
    """Assignment of relations to tasks."""


def build(raw_dir: Path | None, options: Options, seed: int) -> Stream:
    """Split the relations into tasks, in the order of the file.

    Args:
        raw_dir: Folder with fewrel/FewRel-2021.json or fewrel/FewRel-2021.pkl, or with the files of FewRel; None:
            dataset/.
        options: See Options.
        seed: Used for sampling, for a shuffled order and, with the files of FewRel, to divide the sentences of a
            relation into train, dev and test.

    Raises:
        UserError: the file is missing or wrong, or has fewer relations than the tasks need.
    """
    paths = {name: raw_file(raw_dir, name) for name in (f"{RAW_FILE}.json", f"{RAW_FILE}.pkl", *PUBLISHED, NAMES)}
    there = [name for name, path in paths.items() if path.is_file()]
    names = [name for name in there if name.startswith(RAW_FILE)][:1] or [name for name in there if name in PUBLISHED]
    if names and names[0] in PUBLISHED:
        relations = read_published([paths[name] for name in names], paths[NAMES], seed)
        notes = _notes(names, paths, relations)
        names += [NAMES] if NAMES in there else []
    else:
        path = find(raw_dir, RAW_FILE, ORIGIN)
        relations, notes = read_relations(path, ORIGIN), []
    facts = {"PROMPT_TYPE": "relation_classification_state", "MAX_SEQ_LENGTH": 100}
    files = {name: file_sha256(paths[name]) for name in names}
    train, dev, test = (relations.splits[split] for split in SPLITS)
    raw = RawClasses("fewrel", str(paths[names[0]]), relations.labels, train, dev, test, files, facts, notes=notes)
    return to_stream(raw, options, seed)


def read_published(paths: list[Path], names: Path, seed: int) -> Relations:
    """The relations of FewRel's files, 20 % of the sentences of each for dev and for test.

    Args:
        paths: Files {relation: [{tokens, h, t}, ..]}.
        names: File {relation: [name, description]}; without it relations are called P931 and the like.
        seed: Determines which sentences are for which split.

    Raises:
        UserError: a file is wrong, or a relation has too few sentences.
    """
    known = read_raw_json(names, ORIGIN) if names.is_file() else {}
    labels: list[str] = []
    splits: dict[str, list[Labelled]] = {split: [] for split in SPLITS}
    for path in paths:
        content = read_raw_json(path, ORIGIN)
        if not isinstance(content, dict) or not all(isinstance(rows, list) for rows in content.values()):
            raise UserError(f"{path}: expected {{relation: [{{tokens, h, t}}, ..]}}, got {shown(content)}")
        for relation, rows in content.items():
            texts = [_marked(row, f"{path}, {relation}, record {i}") for i, row in enumerate(rows, start=1)]
            if len(texts) < len(SPLITS):
                raise UserError(f"{path}, {relation}: expected at least {len(SPLITS)} sentences, got {len(texts)}")
            for text, split in zip(texts, _divided(len(texts), f"{seed}:{relation}"), strict=True):
                splits[split].append(Labelled(text, len(labels)))
            labels.append(_name(known, relation, names))
    return Relations(labels, splits)


def _notes(names: list[str], paths: dict[str, Path], relations: Relations) -> list[str]:
    """What is not there."""
    absent = [name for name in PUBLISHED if name not in names]
    lines = [f"{name} is absent: {len(relations.labels)} of the {NUM_RELATIONS} relations of FewRel" for name in absent]
    unnamed = [label for label in relations.labels if IDENTIFIER.fullmatch(label)]
    if unnamed:
        what = "has no names for them" if paths[NAMES].is_file() else "is absent"
        more = f" and {len(unnamed) - 1} more" if unnamed[1:] else ""
        lines.append(f"relations that are called by their identifier, as {NAMES} {what}: {unnamed[0]}{more}")
    return lines


def _divided(count: int, seed: str) -> list[str]:
    """The split of each sentence of a relation."""
    sizes = {split: max(1, round(share * count)) for split, share in SHARES.items()}
    drawn = ["train"] * (count - sum(sizes.values())) + [split for split, size in sizes.items() for _ in range(size)]
    random.Random(seed).shuffle(drawn)
    return drawn


def _name(known: Any, relation: str, path: Path) -> str:
    found = known.get(relation, [relation]) if isinstance(known, dict) else None
    if not isinstance(found, list) or not found or not isinstance(found[0], str):
        raise UserError(f"{path}: expected {{relation: [name, description]}}, got {shown(found)} for {relation}")
    return found[0]


def _marked(record: Any, where: str) -> str:
    """The sentence with marks around the first mention of each entity."""
    row = Row(where, record if isinstance(record, dict) else {})
    tokens = row.fields.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise row.error("tokens", "a list of texts", tokens)
    before: list[list[str]] = [[] for _ in range(len(tokens) + 1)]
    for field, (begin, end) in (("h", MARKERS[:2]), ("t", MARKERS[2:])):
        first, last = _mention(row, field, tokens)
        before[first].append(begin)
        before[last + 1].insert(0, end)
    words = [word for marks, token in zip(before, [*tokens, ""], strict=True) for word in (*marks, token)]
    return " ".join(words).rstrip()


def _mention(row: Row, field: str, tokens: list[str]) -> tuple[int, int]:
    """First and last token of an entity [name, id, [positions of a mention, ..]]."""
    entity = row.fields.get(field)
    mentions = entity[2] if isinstance(entity, list) and len(entity) > 2 else None
    if not isinstance(mentions, list) or not mentions or not all(_is_run(places, tokens) for places in mentions):
        raise UserError(
            f"{row.where}: expected [name, id, [positions, ..]] in the field {field!r}, positions of words that follow "
            f"each other, from 0 to {len(tokens) - 1}, got {shown(mentions)}"
        )
    return mentions[0][0], mentions[0][-1]


def _is_run(places: Any, tokens: list[str]) -> bool:
    if not isinstance(places, list) or not places or not all(type(i) is int and 0 <= i < len(tokens) for i in places):
        return False
    return places == list(range(places[0], places[-1] + 1)) and any(tokens[i].strip() for i in places)
