"""Run the tests that concern one method, one data set or one metric, slow ones included.

python -m tests.check METHOD            the contract, every mode of several processes that it allows, its golden losses
python -m tests.check package.module:Class    the same of a method outside models/, which has no golden losses
python -m tests.check DATASET           its preprocessor, its golden stream, the YAML files of its streams
python -m tests.check METRIC            its golden scores and the properties of all metrics

Further words are options of pytest: `python -m tests.check EWC -k resume`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from models import METHODS
from utils.metric import METRICS as OF_MATRICES
from utils.preprocess import PREPROCESSORS
from utils.scoring import METRICS as OF_ANSWERS

ROOT = Path(__file__).parents[1]
EVERY = ["tests/test_architecture.py", "tests/e2e/test_documents.py::test_generated_documents_are_up_to_date"]
METHOD = [
    "tests/contract",
    "tests/e2e/test_two_processes.py::test_two_processes_are_one_with",
    "tests/e2e/test_two_processes.py::test_every_method_runs_in_two_processes_of_every_mode_it_allows",
]
LISTED = ["tests/golden/test_losses.py", "tests/unit/options/test_config_files.py"]  # of methods in models/
DATASET = ["tests/unit/preprocess", "tests/golden/test_streams.py", "tests/unit/options/test_config_files.py"]
METRIC = ["tests/golden/test_scoring.py", "tests/golden/test_metrics.py", "tests/unit/test_scoring.py"]
METRIC += ["tests/unit/test_metric.py", "utils/scoring", "utils/metric.py"]


def tests_of(name: str) -> list[str]:
    """Paths for pytest; empty if there is no such thing."""
    if name in METHODS:
        return [*METHOD, *LISTED, *EVERY]
    if ":" in name:
        return METHOD
    if name in PREPROCESSORS:
        return [*DATASET, *EVERY]
    return [*METRIC, *EVERY] if name in OF_ANSWERS or name in OF_MATRICES else []


def main(argv: list[str]) -> int:
    """Run pytest; returns its exit code."""
    parser = argparse.ArgumentParser("python -m tests.check", description=__doc__.split("\n")[0])
    parser.add_argument("name", help="method, package.module:Class, data set or metric")
    given, options = parser.parse_known_args(argv)
    name = given.name
    paths = tests_of(name)
    if not paths:
        parser.error(f"{name!r} is not a method, a data set or a metric")
    environment = {"TESTED_METHOD": name} if name in METHODS or ":" in name else {}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu and not realdata", *paths, *options]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
