"""Questions that config/smollm2_short_task3 never trains: causes and effects (COPA), school science, a text.

    python -m benchmarks.short_questions CL_BENCHMARK TRACE

CL_BENCHMARK and TRACE are the folders of raw data named in dataset/README.md. It writes dataset/short_outside.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.storage.files import read_json, write_jsonl, write_text

OUT = Path("dataset/short_outside")
COPA = re.compile(r'Which sentence is the (cause|effect) of "(.*)\."\? .*\nA: (.*)\nB: (.*)')
SCIENCE = re.compile(r"Choose an answer.*?\n\nQuestion:\n(.*)\n\nChoices:\n(.*)\n\nAnswer:", re.DOTALL)
LETTER = re.compile(r"^[A-Z]\. ", re.MULTILINE)


def copa(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The premise and "because" or "so", to be continued by one of two sentences."""
    for row in rows:
        found = COPA.match(row["input"])
        if found is None:
            raise UserError(f"COPA: expected the wording of CL_Benchmark, got {row['input']!r}")
        kind, premise, *texts = found.groups()
        choices = [text[0].lower() + text[1:] for text in texts]
        question = premise + (" because" if kind == "cause" else ", so")
        yield {"question": question, "choices": choices, "answer": choices["AB".index(row["output"])]}


def science(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Questions of ScienceQA without a hint, at most 120 characters long, and options of at most 60."""
    for row in rows:
        found = SCIENCE.fullmatch(row["prompt"])
        choices = LETTER.sub("", found[2]).split("\n") if found else []
        if found is None or "Hint:" in found[1] or len(found[1]) > 120 or max(map(len, choices)) > 60:
            continue
        if len(set(choices)) == len(choices):
            answer = choices["ABCDEF".index(row["answer"][0])]
            yield {"question": f"Question: {found[1]}\nAnswer:", "choices": choices, "answer": answer}


def write(raw: Path, trace: Path) -> None:
    """Write 100 questions of COPA, 60 of ScienceQA, and four film reviews."""
    tasks = raw / "Long_Sequence"
    found = {
        "copa": copa(read_json(tasks / "copa/test.json")["Instances"]),
        "scienceqa": islice(science(read_json(trace / "ScienceQA/test.json")), 60),
    }
    reviews = [row["input"] for row in read_json(tasks / "imdb/train.json")["Instances"][:4]]
    for name, rows in found.items():
        write_jsonl(OUT / f"{name}.jsonl", rows)
    write_text(OUT / "reviews.txt", "\n\n".join(reviews))


def main(argv: list[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.short_questions", description=__doc__.split("\n")[0])
    parser.add_argument("cl_benchmark", type=Path, help="folder with Long_Sequence/")
    parser.add_argument("trace", type=Path, help="folder with ScienceQA/")
    given = parser.parse_args(argv)
    try:
        write(given.cl_benchmark, given.trace)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
