"""Spoilt inputs for property tests: texts, bytes, JSON values and lines of options as no careful person writes them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from utils.config import Config

SCALARS = [
    None, True, False, 0, -1, 1, 2.5, 1e308, 10**400, "", " ", "0", "x", "é", "\u2028", "\ud800", "\x00", "../../x",
    "/etc/passwd", "a" * 300, "B-x", "exact_match", "{input}", "%s", "<e1>",
]  # fmt: skip
VALUES = [*SCALARS, [], {}, [[]], [None], [1, "a"], {"a": 1}, {"input": "a", "target": "b"}, [["user", "a"]]]
SNIPPETS = [b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b'"', b"'", b"[", b"}", b",", b"\t", b"null", b"NaN"]
YAML_VALUES = [
    "1", "-1", "0", "1e-3", "1e999", "-.inf", ".nan", "1_0", "0x1F", "9" * 5000, "true", "yes", "None", "~", "", "''",
    "'../x'", "/etc", "..", ".", "a/b", "a" * 300, '"\\0"', '"\\ud800"', '"a\\nb"', "[1, 2]", "[]", "[[1]]", "{a: 1}",
    "[", "{", '"', "'", "&a [*a]", "*b", "!!python/object/apply:os.abort []", "!!python/name:os.abort", "!!binary aGk=",
    "!!set {a}", "!!timestamp 2020-01-01", "2020-01-01", "2020-99-99", "<<: 1", "[" * 3000, "|\n a\n b", "é", "\x07",
    "SEQ", "EWC", "LoRA", "linear", "[embeddings]", "[layers 1-0]", "[head, layers 0-999999999]", "exact_match",
]  # fmt: skip
names = st.sampled_from([*Config.model_fields, "EWC_lambda", "EWC_merge", "no_such", "lr ", "1", "é", ""])
option_lines = st.lists(st.tuples(names, st.sampled_from(YAML_VALUES)), max_size=5)
yaml_texts = st.one_of(option_lines.map(lambda pairs: "\n".join(f"{n}: {v}" for n, v in pairs)), st.text(max_size=80))


def holds(check: Callable[..., None], examples: int, **strategies: st.SearchStrategy) -> None:
    """Try `check` on examples that are always the same."""
    quiet = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    settings(max_examples=examples, derandomize=True, **quiet)(given(**strategies)(check))()


@st.composite
def spoilt_json(draw: Any, content: Any) -> Any:
    """The content with up to two of its values, at any depth, replaced, removed or repeated."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 2))):
        parents = [place for place in _containers(content) if place]
        if not parents:
            return content
        # A large list has many rows that are alike: each depth is as likely as the others.
        parent = draw(st.sampled_from(parents))
        key = draw(st.sampled_from(list(parent) if isinstance(parent, dict) else range(len(parent))))
        action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "repeat", "empty"]))
        if action == "replace":
            parent[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        elif action == "remove":
            del parent[key]
        elif action == "repeat" and isinstance(parent, list):
            parent.append(parent[key])
        elif action == "empty":
            parent.clear()
    return content


def _containers(content: Any) -> list[Any]:
    """All dicts and lists in a JSON value; of a long list only the first three entries are looked at."""
    if not isinstance(content, dict | list):
        return []
    inner = list(content.values()) if isinstance(content, dict) else content[:3]
    return [content, *(found for value in inner for found in _containers(value))]


@st.composite
def spoilt_bytes(draw: Any, content: bytes) -> bytes:
    """The content truncated, with a piece removed, repeated or replaced, or a bit flipped."""
    a, b = sorted(draw(st.tuples(st.integers(0, len(content)), st.integers(0, len(content)))))
    how = draw(st.sampled_from(["cut", "remove", "repeat", "insert", "flip", "replace"]))
    if how == "flip" and a < len(content):
        return content[:a] + bytes([content[a] ^ (1 << draw(st.integers(0, 7)))]) + content[a + 1 :]
    piece = draw(st.sampled_from(SNIPPETS)) if how in ("insert", "replace") else content[a:b] * 2
    return {
        "cut": content[:a],
        "remove": content[:a] + content[b:],
        "repeat": content[:a] + piece + content[b:],
        "replace": content[:a] + piece + content[b:],
    }.get(how, content[:a] + piece + content[a:])


def spoilt_file(content: bytes, suffix: str) -> st.SearchStrategy[bytes]:
    """A file that is spoilt as bytes, or where it is JSON also as JSON."""
    try:
        rows = json.loads(content) if suffix == ".json" else [json.loads(x) for x in content.splitlines()]
    except ValueError:
        return spoilt_bytes(content)
    one = suffix == ".json"
    as_json = spoilt_json(rows).map(lambda v: json.dumps(v) if one else "\n".join(json.dumps(row) for row in v))
    return st.one_of(spoilt_bytes(content), as_json.map(str.encode), as_json.map(str.encode))
