"""Where the numbers come from: options, commands, versions, identity, warnings of the runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.progress import without_time
from utils.report.differences import title_of
from utils.report.page.panels import Runs
from utils.report.results import order_of_run, read_facts
from utils.report.tables import MISSING
from utils.storage.files import read_json

MOST_WARNINGS = 40  # different lines
MARKS = ("warning: ", "data of ")  # how lines of a run's log begin that a reader of its numbers must know


class Provenance(NamedTuple):
    """What the page says about the runs of a section; a table is a list of rows of texts."""

    shared: list[list[str]]  # options of all runs
    differing: list[list[str]]  # options that differ: a column for each row of the comparison
    versions: list[list[str]]
    runs: list[list[str]]
    warnings: list[str]


def provenance(section: dict[str, Any], runs: Runs) -> Provenance:
    """Read config, environment and log of all runs of a section."""
    rows = [row for row in section["rows"] if not row["version"]]
    paths = [path for row in rows for path in row["runs"]]
    environments = {path: environment(Path(path)) for path in paths}
    options = {path: _options(Path(path)) for path in paths}
    names = list(dict.fromkeys(name for each in options.values() for name in each))
    values = {name: [_value(options[path], name) for path in paths] for name in names}
    differ = [name for name in names if len(set(values[name])) > 1]
    of_row = {title_of(row): [options[path] for path in row["runs"]] for row in rows}
    return Provenance(
        [[name, values[name][0]] for name in names if name not in differ],
        [["option", *of_row], *([name, *(_together(each, name) for each in of_row.values())] for name in differ)],
        _versions(list(environments.values()), [runs[path]["identity"] for path in paths]),
        [
            ["row", "seed", "order", "last task evaluated", "command", "folder"],
            *(_run(title_of(row), Path(path), runs[path], environments[path]) for row in rows for path in row["runs"]),
        ],
        _warnings(paths, environments, runs),
    )


def environment(run: Path) -> dict[str, Any]:
    """env.json of a run; empty if it has none."""
    file = run / "env.json"
    content = read_json(file) if file.is_file() else {}
    return content if isinstance(content, dict) else {}


def _run(title: str, run: Path, results: dict[str, Any], env: dict[str, Any]) -> list[str]:
    finished = "yes" if None not in results["R"][-1] else "no"
    return [title, str(results["seed"]), order_of_run(run), finished, env.get("command", MISSING), str(run)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _options(run: Path) -> dict[str, Any]:
    """The options of a run; seed and order are listed with its command."""
    options = read_facts(run).get("options") or {}
    return {name: value for name, value in options.items() if name not in ("seed", "task_order")}


def _value(options: dict[str, Any], name: str) -> str:
    return _text(options[name]) if name in options else MISSING


def _together(options: Sequence[dict[str, Any]], name: str) -> str:
    """The values of an option in the runs of one row."""
    return ", ".join(dict.fromkeys(_value(each, name) for each in options))


def _versions(environments: Sequence[dict[str, Any]], identities: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Versions, device and digests, each with the number of runs if it differs."""
    facts: dict[str, Counter[str]] = {}
    for env, identity in zip(environments, identities, strict=True):
        own = {name: env.get(name) for name in ("commit", "python", "platform", "device", "processes", "mode")}
        own |= {f"{name} (digest)": value for name, value in identity.items()}
        for name, value in {**own, **env.get("versions", {})}.items():
            facts.setdefault(name, Counter())[_text(value) if value is not None else MISSING] += 1
    return [
        [name, ", ".join(value if len(counts) == 1 else f"{value} ({n} runs)" for value, n in counts.items())]
        for name, counts in facts.items()
    ]


def _warnings(paths: Sequence[str], environments: dict[str, dict[str, Any]], runs: Runs) -> list[str]:
    """What may make numbers wrong or not comparable."""
    found = []
    dirty = sum(bool(env.get("dirty")) for env in environments.values())
    if dirty:
        found.append(f"{dirty} of {len(paths)} runs: the code had changes that are in no commit.")
    for name, what in (("device", "devices: times do not compare"), ("versions", "versions of the libraries")):
        if len({_text(env.get(name)) for env in environments.values() if env}) > 1:
            found.append(f"The runs had different {what}.")
    if len({_text(runs[path]["identity"].get("code")) for path in paths}) > 1:
        found.append("The runs were made with different versions of the code.")
    without = sum(not env for env in environments.values())
    if without:
        found.append(f"{without} of {len(paths)} runs have no env.json: command and versions are not known.")
    logged = Counter(line for path in paths for line in dict.fromkeys(_logged(Path(path))))
    found += [f"{line} ({count} of {len(paths)} runs)" for line, count in logged.most_common(MOST_WARNINGS)]
    if len(logged) > MOST_WARNINGS:
        found.append(f"{len(logged) - MOST_WARNINGS} more warnings are in the logs of the runs (train.log).")
    return found


def _logged(run: Path) -> list[str]:
    log = run / "train.log"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    said = (without_time(line) for line in lines if line.startswith("["))
    return [line for line in said if line.startswith(MARKS)]
