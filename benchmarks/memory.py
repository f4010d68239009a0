"""Memory of training against other trainers: the rows and ways of benchmarks.training, one process each.

    python -m benchmarks.memory [--rows ROW ...] [--ways WAY ...]          about ten minutes on one core

Printed for each way: the most resident memory during training, less that before training, in MB. The model and its
weights are there before; gradients, AdamW's moments, activations, logits and the batches come with training. On Linux
only. `planned` is what `--dry_run` counts for the own way.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from benchmarks import common
from benchmarks.training import ROWS, START, WAYS, has_trl, prepare
from utils.run.plan.memory import memory_of


def main(argv: list[str]) -> int:
    """Measure the rows; returns the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.memory", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, help="default: all that are installed")
    parser.add_argument("--raw", type=Path, default=common.RAW, help="folder of concept_1k/ and TRACE/")
    parser.add_argument("--smollm2", type=Path, default=common.ROOT / "backbones/smollm2", help="folder of the model")
    parser.add_argument("--alone", action="store_true", help="measure one row and one way in this process")
    options = parser.parse_args(argv)
    folders = ["--raw", str(options.raw), "--smollm2", str(options.smollm2)]
    if options.alone:
        print(peak(options.rows[0], options.ways[0], options.raw, options.smollm2))
        return 0
    ways = [way for way in options.ways if way != "trl" or has_trl()]
    print(f"{'MB during training':22}" + "".join(f"{way:>10}" for way in (*ways, "planned")))
    for row in options.rows:
        found = []
        for way in ways:
            words = ["--alone", "--rows", row, "--ways", way, *folders]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.memory", *words], stdout=subprocess.PIPE, text=True, check=True
            )
            found.append(done.stdout.split()[-1])
        found.append(planned(row, options.raw, options.smollm2))
        print(f"{row:22}" + "".join(f"{mb:>10}" for mb in found), flush=True)
    return 0


def peak(row: str, way: str, raw: Path, smollm2: Path) -> str:
    """MB that training adds to the memory of this process; "-": there is no data or no model."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(row, raw, smollm2, Path(folder))
        if bench is None:
            return "-"
        train = START[way](bench, Path(folder))
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the most so far is what there is now
        before = resident("VmRSS")
        train()
        return f"{(resident('VmHWM') - before) / 1e3:.0f}"


def planned(row: str, raw: Path, smollm2: Path) -> str:
    """MB that the plan counts for training besides the weights; "-": there is no data or no model."""
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(row, raw, smollm2, Path(folder))
        if bench is None:
            return "-"
        parts = memory_of(bench.method, bench.task, 1, None)
        return f"{(sum(parts.values()) - parts['weights']) / 1e6:.0f}"


def resident(name: str) -> int:
    """A line of /proc/self/status: resident memory now (VmRSS) or at most (VmHWM), in kB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
