"""The search for mutations that no test finds; the search itself is `python -m tests.stress.mutations`."""

import ast
from pathlib import Path

import pytest

from tests.stress import mutations

ROOT = Path(__file__).parents[2]


def test_each_mutation_changes_one_place_of_a_file():
    path = ROOT / "utils/metric.py"
    plain = ast.unparse(ast.parse(path.read_text(encoding="utf-8"))).splitlines()
    found = list(mutations.mutations(path))
    assert len(found) > 10
    for mutation in found:
        changed = mutations.changed(mutation).splitlines()
        assert len(changed) == len(plain), mutation.name
        assert sum(a != b for a, b in zip(changed, plain, strict=True)) == 1, mutation.name


@pytest.mark.slow
def test_each_file_has_tests_and_the_choice_repeats():
    for path in mutations.files():
        tests = mutations.tests_of(str(path.relative_to(ROOT)))
        assert tests and all((ROOT / test).exists() for test in tests), path
    chosen = mutations.choose(20, 3)
    assert chosen == mutations.choose(20, 3) != mutations.choose(20, 4)
    assert len({mutation.name for mutation in chosen}) == 20


@pytest.mark.slow
def test_outcomes_are_kept_and_survivors_named(tmp_path, monkeypatch, capsys):
    survives = mutations.Outcome(True, 1.0, "")
    monkeypatch.setattr(mutations, "outcome", lambda change, tree, _: survives if (tree / change.file).is_file() else 0)
    argv = ["--count", "3", "--out", str(tmp_path / "out.jsonl")]
    assert mutations.main(argv) == 1
    assert "3 of 3 survive" in capsys.readouterr().out
    monkeypatch.setattr(mutations, "outcome", lambda *_: 1 / 0)
    assert mutations.main(argv) == 1  # all from the file
    assert capsys.readouterr().out.count("\n  ") == 3


def test_a_test_that_fails_without_a_change_finds_nothing(tmp_path, monkeypatch):
    (mutation, *_) = mutations.mutations(ROOT / "utils/metric.py")
    path = tmp_path / mutation.file
    path.parent.mkdir()
    path.write_text("x = 1", encoding="utf-8")
    asked = []

    def run_tests(tree, tests, methods, left_out=()):
        """`broken` always fails, `good` where the file is changed."""
        is_changed = path.read_text(encoding="utf-8") != "x = 1"
        asked.append(is_changed)
        for test in ("broken", "good") if is_changed else tests:
            if test not in left_out and (is_changed or test == "broken"):
                return mutations.Outcome(False, 1.0, test)
        return mutations.Outcome(True, 1.0, "")

    monkeypatch.setattr(mutations, "run_tests", run_tests)
    sound = {}
    assert mutations.outcome(mutation, tmp_path, sound).test == "good"
    assert sound == {"broken": False, "good": True} and asked == [True, False, True, False]
    assert path.read_text(encoding="utf-8") == "x = 1"
