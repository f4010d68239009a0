"""Mutations of the methods and of the core: `python -m tests.stress.mutations [--count 100] [--seed 0]`.

One operator, comparison or constant of a file is changed in a copy of the tree, and the quick tests that concern the
file run on it, cheapest first: those of the file, golden losses, those that import it, contract and relations of the
methods that use it. A mutation survives if all pass; a test that fails without a change, too, is left out. Each outcome
is a line of the file --out, with which an interrupted search is resumed. At the end survivors are named: a test is
missing, or the change has no effect. Those without effect are in `equivalent_mutations.json`, each with its
reason; they are neither run nor counted.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from models import METHODS

ROOT = Path(__file__).resolve().parents[2]
CORE = (
    *("run/fit.py", "run/checkpoint.py", "evaluation.py", "metric.py", "buffer.py", "dataloader.py", "classifier.py"),
    *("optimizer.py", "model/forward.py", "model/generation.py"),
)
# The tests of every method, cheapest first; TESTED_METHOD limits the first two to methods that use the file.
FRAME = ["tests/golden/test_losses.py", "tests/contract/test_methods.py", "tests/unit/models/test_relations.py"]
# Tests of a file or folder, where they do not have its name.
TESTS = {
    "models/Base.py": [
        *("tests/unit/models/test_contract.py", "tests/unit/run/test_frame.py", "tests/unit/test_backbone.py"),
        *("tests/unit/test_evaluation.py", "tests/unit/test_classifier.py", "tests/unit/model/test_encoder_decoder.py"),
    ],
    "utils/dataloader.py": ["tests/unit/test_dataloader.py", "tests/unit/test_chats.py"],
    "models/SEQ.py": ["tests/unit/test_classifier.py", "tests/unit/models/test_contract.py"],
    "utils/run/fit.py": ["tests/unit/run/test_frame.py", "tests/unit/run/test_early_stopping.py"],
    "utils/scoring": ["tests/unit/test_scoring.py", "tests/golden/test_scoring.py"],
    "utils/metric.py": ["tests/unit/test_metric.py", "tests/golden/test_metrics.py"],
}
EQUIVALENT = Path(__file__).with_name("equivalent_mutations.json")
SECONDS = 240  # of the processor, for the tests of one mutation
WALL = 3600  # seconds; a test that waits for ever
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
    code: str  # the line of source, without its indent
    indent: int

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.before} -> {self.after}"

    @property
    def key(self) -> tuple[str, str, str]:
        """File, line with the place marked, and change: an edit elsewhere in the file moves none of them."""
        at = self.column - self.indent
        return self.file, f"{self.code[:at]}>>>{self.code[at:]}", f"{self.before} -> {self.after}"


class Outcome(NamedTuple):
    """What became of a mutation."""

    survives: bool
    seconds: float  # of the processor
    test: str  # the one that failed first; "" if none did, or none was named


def files() -> list[Path]:
    """The files that are changed."""
    return [
        *sorted(path for path in (ROOT / "models").rglob("*.py") if path.name != "__init__.py"),
        *(ROOT / "utils" / name for name in CORE),
        *sorted((ROOT / "utils/scoring").glob("*.py")),
    ]


def mutations(path: Path) -> Iterator[Mutation]:
    """All changes of the code of a file; declarations of options, types and texts are left alone."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    for place, node in enumerate(_places(ast.parse(source))):
        after = copy.deepcopy(node)
        _change(after)
        where, line = (str(path.relative_to(ROOT)), node.lineno, node.col_offset), lines[node.lineno - 1]
        code = line.lstrip()
        yield Mutation(*where, ast.unparse(node), ast.unparse(after), place, code, len(line) - len(code))


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
    """The tests that concern a file, cheapest first: its own, golden losses, those that import it, of all methods."""
    path = Path(file)
    folder = ROOT / "tests/unit" / path.parent.relative_to("utils" if path.parts[0] == "utils" else ".")
    stems = {path.stem.lower(), path.stem.lower().replace("_", "")}
    own = [p for p in sorted(folder.glob("test_*.py")) if p.stem.removeprefix("test_").replace("_", "") in stems]
    module = ".".join(path.with_suffix("").parts)
    mention = re.compile(rf'\b{module}\b|"{path.stem}"' if path.stem in METHODS and not own else rf"\b{module}\b")
    units = [p for p in sorted((ROOT / "tests/unit").rglob("test_*.py")) if mention.search(p.read_text("utf-8"))]
    if path.parts[0] == "utils":  # used in tests of nearly all methods
        units = [p for p in units if p.parent.name != "models"]
    table = TESTS.get(file) or TESTS.get(str(path.parent))
    losses, *frame = FRAME
    more = [] if table else [str(p.relative_to(ROOT)) for p in units]
    first = table or [str(p.relative_to(ROOT)) for p in own] or more
    return [*(test for test in dict.fromkeys([file, *first, losses, *more]) if test not in frame), *frame]


def methods_of(file: str) -> list[str]:
    """The method of a file, or those that import a common part; plain training for the rest."""
    path = Path(file)
    if path.stem in METHODS:
        return [path.stem]
    named = re.compile(rf"from models\.common import .*\b{path.stem}\b|\bmodels\.common\.{path.stem}\b")
    sources = {name: (ROOT / f"models/{name}.py").read_text("utf-8") for name in METHODS}
    return [name for name in METHODS if path.parent.name == "common" and named.search(sources[name])] or ["SEQ"]


def outcome(mutation: Mutation, tree: Path, sound: dict[str, bool]) -> Outcome:
    """Run the tests on a copy of the tree with the change.

    Args:
        mutation: The change.
        tree: Where it is made; as before afterwards.
        sound: By test, whether it passes without a change; one that does not says nothing and is left out. Extended.
    """
    path, tests, methods = tree / mutation.file, tests_of(mutation.file), methods_of(mutation.file)
    original = path.read_text(encoding="utf-8")
    while True:
        path.write_text(changed(mutation), encoding="utf-8")
        try:
            made = run_tests(tree, tests, methods, [test for test, passes in sound.items() if not passes])
        finally:
            path.write_text(original, encoding="utf-8")
        if made.test and made.test not in sound:
            sound[made.test] = run_tests(tree, [made.test], methods).survives
        if sound.get(made.test, True):
            return made


def run_tests(tree: Path, tests: list[str], methods: list[str], left_out: Sequence[str] = ()) -> Outcome:
    """Run tests of a tree up to the first that fails; a loop that does not end fails.

    In a fork of this process, which has loaded the libraries but is rid of the project's modules.
    """
    output = tree / "output.txt"
    options = ["-q", "-x", "-n", "0", "--tb=line", *(f"--deselect={test}" for test in left_out)]
    child = multiprocessing.get_context("fork").Process(
        target=_pytest, args=(tree, [*options, *tests], methods, output)
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child.start()
    child.join(WALL)
    child.kill()
    child.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    text = output.read_text(encoding="utf-8", errors="replace")
    if child.exitcode not in (0, 1, 2) and child.exitcode > 0:  # 2: a module that cannot be imported
        raise RuntimeError(text)
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", text, re.MULTILINE)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Outcome(child.exitcode == 0, round(seconds, 1), failed[1] if failed else "")


def _pytest(tree: Path, arguments: list[str], methods: list[str], output: Path) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in ("models", "utils", "tests"):
            del sys.modules[name]
    os.chdir(tree)
    sys.path[0] = str(tree)
    os.environ["TESTED_METHOD"] = ",".join(methods)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    with output.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(int(pytest.main(arguments)))


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


def equivalents() -> dict[tuple[str, str, str], str]:
    """Mutations that change no behaviour, with the reason."""
    rows = json.loads(EQUIVALENT.read_text(encoding="utf-8"))
    return {(row["file"], row["code"], row["change"]): row["reason"] for row in rows}


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if at most a tenth of the mutations survive."""
    parser = argparse.ArgumentParser("python -m tests.stress.mutations", description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "experiments/mutations.jsonl", help="outcomes, a line each")
    given = parser.parse_args(arguments)
    lines = given.out.read_text(encoding="utf-8").splitlines() if given.out.exists() else []
    known = {row.pop("name"): Outcome(**row) for row in map(json.loads, lines)}
    drawn, without_effect = choose(given.count, given.seed), equivalents()
    chosen = [mutation for mutation in drawn if mutation.key not in without_effect]
    importlib.import_module("tests.tiny")  # its libraries, before the first fork
    with tempfile.TemporaryDirectory() as folder:
        tree, sound = copy_tree(Path(folder)), {}
        for k, mutation in enumerate(chosen, start=1):
            if mutation.name not in known:
                made = known[mutation.name] = outcome(mutation, tree, sound)
                with given.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"name": mutation.name} | made._asdict()) + "\n")
                print(f"{k} of {len(chosen)}: {'SURVIVES' if made.survives else 'found'} {mutation.name}", flush=True)
    alive = [mutation.name for mutation in chosen if known[mutation.name].survives]
    print(f"{len(drawn) - len(chosen)} of {len(drawn)} have no effect; {len(alive)} of {len(chosen)} survive")
    print(*(f"  {name}" for name in alive), sep="\n")
    return int(10 * len(alive) > len(chosen))


if __name__ == "__main__":
    sys.exit(main())
