"""Write made-up sentences with tagged entities, in the format of CoNLL-2003: word-level data for runs on any machine.

    python -m tests.make_tagged --out dataset/conll2003
    bash preprocess_dataset.sh conll2003_task4_base1_inc1

Persons, places, organisations and subjects (PER, LOC, ORG, MISC) are those of dataset/biography_synth/lists.json; names
of the test sentences are not in the training sentences.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

LISTS = Path(__file__).parents[1] / "dataset/biography_synth/lists.json"
TEMPLATES = (
    "{PER} moved to {LOC} last year .",
    "In {LOC} , {ORG} opened a new office .",
    "{ORG} hired {PER} as its director .",
    "{PER} studied {MISC} and then joined {ORG} .",
    "Students of {MISC} meet in {LOC} every spring .",
    "The prize for {MISC} went to {PER} .",
    "Nobody at {ORG} had expected this news .",
    "A train to {LOC} was late again .",
)
SIZES = {"train": 400, "dev": 80, "test": 160}


def main(argv: list[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser("make_tagged", description="Made-up sentences with tagged entities.")
    parser.add_argument("--out", type=Path, required=True, help="folder for train.txt, dev.txt and test.txt")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    for split, size in SIZES.items():
        rng = random.Random(f"{options.seed}:{split}")
        names = {kind: own[::2] if split == "train" else own[1::2] for kind, own in entities().items()}
        text = "\n".join(sentence(rng, names) for _ in range(size))
        (options.out / f"{split}.txt").write_text(text, encoding="utf-8")
    print(f"{options.out}: {', '.join(f'{size} {split}' for split, size in SIZES.items())} sentences")
    return 0


def entities() -> dict[str, list[str]]:
    """Names by type."""
    lists = json.loads(LISTS.read_text(encoding="utf-8"))
    persons = [f"{a} {b}" for a, b in zip(lists["first"], lists["last"], strict=False)]
    cities = [city.split(",")[0] for city in lists["city"]]
    companies = [company["name"] for company in lists["company"]]
    return {"PER": persons, "LOC": cities, "ORG": companies, "MISC": lists["major"]}


def sentence(rng: random.Random, names: dict[str, list[str]]) -> str:
    """One sentence: a word and its tag on each line, an empty line at the end."""
    lines = []
    for piece in rng.choice(TEMPLATES).split():
        kind = piece.strip("{}")
        if kind == piece:
            lines.append(f"{piece} O")
            continue
        words = rng.choice(names[kind]).split()
        lines += [f"{word} {'I' if i else 'B'}-{kind}" for i, word in enumerate(words)]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
