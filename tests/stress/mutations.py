"""Mutations of the methods and of the core: `python -m tests.stress.mutations [--count 100] [--seed 0]`.

One operator, comparison or constant of a file is changed in a copy of the tree, and the quick tests of that file run
on it; a mutation survives if they pass. Each outcome is a line of the file --out, with which an interrupted search is
resumed. Survivors are named at the end: a test is missing, or the change is without effect.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from models import METHODS

ROOT = Path(__file__).resolve().parents[2]
CORE = (
    *("run/fit.py", "run/checkpoint.py", "evaluation.py", "metric.py", "buffer.py", "dataloader.py", "classifier.py"),
    *("optimizer.py", "model/forward.py", "model/generation.py"),
)
FRAME = ["tests/contract", "tests/golden/test_losses.py"]
# Tests of a file, where they are not those of its own name.
TESTS = {
    "utils/run/fit.py": ["tests/unit/run/test_frame.py", *FRAME],
    "utils/optimizer.py": ["tests/unit/test_optimizer.py", *FRAME],
    "utils/scoring": ["tests/unit/test_scoring.py", "tests/golden/test_scoring.py"],
    "utils/metric.py": ["tests/unit/test_metric.py", "tests/golden/test_metrics.py"],
    "models": ["tests/unit/models/test_relations.py", *FRAME],
}
SECONDS = 240  # for the tests of one mutation
OPERATORS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn,
    ast.NotIn: ast.In, ast.USub: ast.UAdd,
}  # fmt: skip


class Mutation(NamedTuple):
    """A change of one place of a file."""

    file: str
    line: int
    column: int
    before: str
    after: str
    place: int  # among those of the file

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.before} -> {self.after}"


def files() -> list[Path]:
    """The files that are changed."""
    return [
        *sorted(path for path in (ROOT / "models").rglob("*.py") if path.name != "__init__.py"),
        *(ROOT / "utils" / name for name in CORE),
        *sorted((ROOT / "utils/scoring").glob("*.py")),
    ]


def mutations(path: Path) -> Iterator[Mutation]:
    """All changes of the code of a file; declarations of options, types and texts are left alone."""
    for place, node in enumerate(_places(ast.parse(path.read_text(encoding="utf-8")))):
        after = copy.deepcopy(node)
        _change(after)
        where = (str(path.relative_to(ROOT)), node.lineno, node.col_offset)
        yield Mutation(*where, ast.unparse(node), ast.unparse(after), place)


def changed(mutation: Mutation) -> str:
    """The source of the file with this change."""
    tree = ast.parse((ROOT / mutation.file).read_text(encoding="utf-8"))
    _change(list(_places(tree))[mutation.place])
    return ast.unparse(ast.fix_missing_locations(tree))


def _places(tree: ast.AST) -> Iterator[ast.expr]:
    """Expressions in functions that can be changed."""
    seen: set[int] = set()
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for statement in function.body:
                for node in ast.walk(statement):
                    if id(node) not in seen and _changes(node):
                        seen.add(id(node))
                        yield node


def _changes(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, bool | int | float)
    if isinstance(node, ast.Compare):
        return len(node.ops) == 1 and type(node.ops[0]) in OPERATORS
    return isinstance(node, ast.BinOp | ast.BoolOp | ast.UnaryOp) and type(node.op) in OPERATORS


def _change(node: ast.expr) -> None:
    if isinstance(node, ast.Constant):
        node.value = (not node.value) if isinstance(node.value, bool) else node.value + 1
    elif isinstance(node, ast.Compare):
        node.ops = [OPERATORS[type(node.ops[0])]()]
    else:
        node.op = OPERATORS[type(node.op)]()


def tests_of(file: str) -> list[str]:
    """The test files that concern a file, those of its own name first."""
    path = Path(file)
    folder = ROOT / "tests/unit" / path.parent.relative_to("utils" if path.parts[0] == "utils" else ".")
    stems = {path.stem.lower(), path.stem.lower().replace("_", "")}
    own = [p for p in sorted(folder.glob("test_*.py")) if p.stem.removeprefix("test_").replace("_", "") in stems]
    more = TESTS.get(file, TESTS.get(str(path.parent), TESTS.get(path.parts[0], [])))
    found = dict.fromkeys([*(str(p.relative_to(ROOT)) for p in own), *more])
    return list(found) or FRAME


def survives(mutation: Mutation, tree: Path) -> bool:
    """Run the tests on a copy of the tree with the change."""
    path = tree / mutation.file
    original = path.read_text(encoding="utf-8")
    path.write_text(changed(mutation), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", *tests_of(mutation.file)]
    one = Path(mutation.file)  # the contract's tests over this method alone
    environment = os.environ | ({"TESTED_METHOD": one.stem} if one.stem in METHODS else {})
    try:
        done = subprocess.run(command, cwd=tree, capture_output=True, timeout=SECONDS, env=environment)
        return done.returncode == 0
    except subprocess.TimeoutExpired:
        return False  # a loop that does not end is found
    finally:
        path.write_text(original, encoding="utf-8")


def copy_tree(folder: Path) -> Path:
    """The tracked files, in a folder where they may be changed."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def choose(count: int, seed: int) -> list[Mutation]:
    """The same changes for the same seed and code, of all files alike."""
    found = [mutation for path in files() for mutation in mutations(path)]
    return random.Random(seed).sample(found, min(count, len(found)))


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if at most a tenth of the mutations survive."""
    parser = argparse.ArgumentParser("python -m tests.stress.mutations", description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "experiments/mutations.jsonl", help="outcomes, a line each")
    given = parser.parse_args(arguments)
    lines = given.out.read_text(encoding="utf-8").splitlines() if given.out.exists() else []
    known: dict[str, bool] = {row["name"]: row["survives"] for row in map(json.loads, lines)}
    chosen = choose(given.count, given.seed)
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_tree(Path(folder))
        for k, mutation in enumerate(chosen, start=1):
            if mutation.name not in known:
                known[mutation.name] = survives(mutation, tree)
                with given.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"name": mutation.name, "survives": known[mutation.name]}) + "\n")
                word = "SURVIVES" if known[mutation.name] else "found"
                print(f"{k} of {len(chosen)}: {word} {mutation.name}", flush=True)
    alive = [mutation.name for mutation in chosen if known[mutation.name]]
    print(f"{len(alive)} of {len(chosen)} survive", *alive, sep="\n  ")
    return int(10 * len(alive) > len(chosen))


if __name__ == "__main__":
    sys.exit(main())
