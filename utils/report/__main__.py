"""Tables and pictures of runs: `python -m utils.report RUN... [--out FOLDER]`.

Everything is recomputed from the saved predictions. One run: results.json, results.md, R.png, accuracy.png and, if
it was probed, probing.png are written into its folder and its matrix is printed. Several runs: the same for each, and
one table with a row per method is printed; runs that differ only by seed share a row. FOLDER gets that table as
compare.md, compare.json, table.tex and table.csv, all charts as figures/*.pdf, svg and png, and report.html: one page
that holds everything and needs no network. JSON and CSV files hold scores in [0, 1]; percent appears only in tables and
pictures. With --watch nothing is written: the state of runs or sweeps is printed until all have ended.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from utils.errors import UserError, exit_code, exit_with
from utils.progress import SECONDS
from utils.report import differences, published
from utils.report.compare import check_columns, compare_text
from utils.report.page import render
from utils.report.page.watch import watch
from utils.report.results import group
from utils.report.summary import table, write
from utils.storage.files import write_json, write_text

DAY = 24 * 60 * 60  # seconds


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m utils.report", description=__doc__.split("\n\n")[1])
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run folder")
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        const=SECONDS,
        type=_interval,
        help="show how far these runs are until all have ended; RUN can be the folder of a sweep or search, too",
    )
    parser.add_argument("--baseline", metavar="METHOD", help="row that the others are compared with, with intervals")
    parser.add_argument(
        "--reference",
        metavar="METHOD",
        help="row that learned each task alone, such as Single: adds the transfer to later tasks relative to it",
    )
    parser.add_argument("--out", type=Path, help="folder for report.html, compare.md, tables and figures")
    parser.add_argument(
        "--metrics", metavar="COLUMN", nargs="+", default=[], help="columns of the tables, such as average_accuracy"
    )
    options = parser.parse_args(arguments)
    if options.watch is not None:
        if unused := [name for name in ("baseline", "reference", "out", "metrics") if getattr(options, name)]:
            parser.error(f"--watch shows how far runs are; leave out --{unused[0]}")
        return _watch(options.runs, options.watch)
    try:
        options.metrics = list(dict.fromkeys(options.metrics))
        check_columns(options.metrics)
        runs = [(run, write(run)) for run in options.runs]
        sections = group(runs)
        published.add(sections)
        by_path = {str(run): results for run, results in runs}
        if options.reference is not None:
            differences.add_transfer(sections, by_path, options.reference)
        if options.baseline is not None:
            if len(runs) == 1:
                raise UserError("baseline: expected several runs, got one")
            differences.add(sections, by_path, options.baseline)
        text = table(runs[0][1]) if len(runs) == 1 and not options.metrics else compare_text(sections, options.metrics)
        if len(runs) == 1 and (known := published.text(sections[0])):
            text += f"\n{known}\n"
        if options.out:
            differences.add_intervals(sections, by_path)
            write_json(options.out / "compare.json", sections)
            write_text(options.out / "compare.md", compare_text(sections, options.metrics))
            render.write(options.out, sections, by_path, options.metrics)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text, end="")
    return 0


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        wanted = f"expected seconds, got {text}; write the folders before --watch"
        raise argparse.ArgumentTypeError(wanted) from None
    if not 0 < seconds <= DAY:  # NaN is neither
        raise argparse.ArgumentTypeError(f"expected seconds, above 0 and at most {DAY}, got {text}")
    return seconds


def _watch(folders: list[Path], seconds: float) -> int:
    try:
        watch(folders, seconds)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:  # as it is meant to be ended
        return exit_code(error)
    return 0


if __name__ == "__main__":
    exit_with(main)
