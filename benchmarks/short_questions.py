"""Questions that config/smollm2_short_task3 never trains: causes and effects (COPA), school science, a text.

python -m benchmarks.short_questions CL_BENCHMARK TRACE

CL_BENCHMARK and TRACE are the folders of raw data named in dataset/README.md. It writes dataset/short_outside.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

OUT = Path("dataset/short_outside")
COPA = re.compile(r'Which sentence is the (cause|effect) of "(.*)\."\? .*\nA: (.*)\nB: (.*)')
SCIENCE = re.compile(r"Choose an answer.*?\n\nQuestion:\n(.*)\n\nChoices:\n(.*)\n\nAnswer:", re.DOTALL)
LETTER = re.compile(r"^[A-Z]\. ", re.MULTILINE)


def copa(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The premise and "because" or "so", to be continued by one of two sentences."""
    for row in rows:
        found = COPA.match(row["input"])
        assert found is not None, row
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


def main(raw: Path, trace: Path) -> None:
    """Write 100 questions of COPA, 60 of ScienceQA, and four film reviews."""
    OUT.mkdir(parents=True, exist_ok=True)
    tasks = raw / "Long_Sequence"
    _write("copa", copa(_read(tasks / "copa/test.json")["Instances"]))
    _write("scienceqa", islice(science(_read(trace / "ScienceQA/test.json")), 60))
    reviews = [row["input"] for row in _read(tasks / "imdb/train.json")["Instances"][:4]]
    (OUT / "reviews.txt").write_text("\n\n".join(reviews), encoding="utf-8")


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _write(name: str, rows: Iterator[dict[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (OUT / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{OUT / name}.jsonl: {len(lines)} questions")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
