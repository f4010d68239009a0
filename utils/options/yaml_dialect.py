"""YAML for options: numbers as they are written everywhere else, no code, no aliases.

PyYAML reads YAML 1.1, where `lr: 1:30` is 90, `seed: 010` is 8, `exp_prefix: no` is False and `2024-01-01` is a date.
Here these are text, as in YAML 1.2; `5e-6` is a number and `None` is none.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml


class _Loader(yaml.SafeLoader):
    """SafeLoader with the rules below in place of YAML 1.1's; refuses aliases and a key that is given twice."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # a few lines with aliases can expand to more values than fit in memory
            line = self.peek_event().start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: an alias (*name) is not supported; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {key.value!r} is given twice")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which `_Loader` or a YAML 1.1 parser would not read as text."""


_RULES = [  # tag, pattern, first characters
    ("bool", r"^(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?(0|[1-9][\d_]*)$", "-+0123456789"),
    ("float", r"^[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d+([eE][-+]?\d+)?)$", "-+0123456789."),
    ("float", r"^([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$", "-+."),
    ("null", r"^(~|null|Null|NULL|None|)$", ["~", "n", "N", ""]),
]
for _tag, _pattern, _first in _RULES:
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def read(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError, RecursionError, ValueError: it is not YAML, nested too deeply, or a number of too many digits.
    """
    return yaml.load(text, _Loader)


def write(value: Any) -> str:
    """A plain value as YAML on one line, which `read` gives back.

    >>> write(5e-6), write("1:30"), write([1, None])
    ('5.0e-06', "'1:30'", '[1, null]')
    """
    return yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**6, allow_unicode=True).split("\n")[0]
