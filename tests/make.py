"""Write what comes from the code: the tables in docs/, and the golden losses of the methods that are named.

python -m tests.make              docs/options.md, methods.md and capabilities.md
python -m tests.make METHOD ...   also the entries of these methods in tests/golden/losses.json
"""

from __future__ import annotations

import argparse
import sys

from models import METHODS
from tests import documents
from tests.golden import make


def main(argv: list[str]) -> int:
    """Write the files; returns the exit code."""
    parser = argparse.ArgumentParser("python -m tests.make", description=__doc__.split("\n")[0])
    parser.add_argument("methods", nargs="*", choices=[*METHODS, []], metavar="METHOD", help="methods to make again")
    chosen = parser.parse_args(argv).methods
    documents.write()
    if chosen:
        make.write(chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
