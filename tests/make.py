"""Write what comes from the code: the tables in docs/, and the golden values of the methods and data sets named.

python -m tests.make                          docs/options.md, methods.md and capabilities.md
python -m tests.make METHOD|DATASET ...       also their entries in tests/golden/losses.json or streams.json
python -m tests.make --demo COMPARE.md        also the tables of README.md, from the file of this comparison
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from models import METHODS
from tests import documents
from tests.golden import make, streams
from utils.preprocess import PREPROCESSORS


def main(argv: list[str]) -> int:
    """Write the files; returns the exit code."""
    parser = argparse.ArgumentParser("python -m tests.make", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="methods and data sets whose golden values are made")
    parser.add_argument("--demo", type=Path, metavar="FILE", help="compare.md of README's tables")
    given = parser.parse_args(argv)
    names = given.names
    unknown = [name for name in names if name not in METHODS and name not in PREPROCESSORS]
    if unknown:
        parser.error(f"{', '.join(unknown)}: neither a method nor a data set")
    documents.write()
    if given.demo:
        readme, compared = (file.read_text(encoding="utf-8") for file in (documents.README, given.demo))
        documents.README.write_text(documents.with_demo_tables(readme, compared), encoding="utf-8")
    make.write([name for name in names if name in METHODS])
    streams.write([name for name in names if name in PREPROCESSORS])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
