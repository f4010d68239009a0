"""Hours and memory of many runs on GPUs, estimated from their plans: nothing is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from utils.jobs.runs import Job
from utils.report.tables import markdown

if TYPE_CHECKING:
    from utils.estimate import Estimate
    from utils.options.checks import Plan  # seconds to import: not for --help

HEAD = ["run", "runs", "1 x 80 GB", "GB", "8 x 80 GB", "GB each", "launched with config/accelerate/"]


def estimates(plans: Mapping[Job, Plan]) -> dict[Job, Estimate]:
    """The estimate of each run of a large model whose setup reads no weights; seeds share it."""
    from utils import estimate
    from utils.distributed.modes import make_accelerator
    from utils.logger import RunLog
    from utils.run.launch import quieten, sketch
    from utils.run.plan import dry_run

    if not plans:
        return {}
    quieten()
    accelerator = make_accelerator(next(iter(plans.values())).config)  # only one precision in a process
    found: dict[str, Estimate | None] = {}
    for job, plan in plans.items():
        if job.title not in found:
            method = sketch(plan, accelerator, RunLog(plan.config, False))
            if method is None or not estimate.is_large(method):
                found[job.title] = None
                continue
            found[job.title] = dry_run.estimated(method, dry_run.planned(method))
    return {job: one for job in plans if (one := found[job.title]) is not None}


def text(plans: Mapping[Job, Plan]) -> str:
    """A table of the estimates with their sum; empty if there are none."""
    from utils.estimate import ASSUMED, in_hours

    found = estimates(plans)
    rows = [HEAD]
    for title in dict.fromkeys(job.title for job in found):
        same = [one for job, one in found.items() if job.title == title]
        first, second = (in_hours(sum(one.hours[k] for one in same)) for k in (0, 1))
        sizes = [f"{size / 1e9:.1f}" for size in same[0].bytes]
        alone = first if same[0].fits else "does not fit"
        rows.append([title, str(len(same)), alone, sizes[0], second, sizes[1], same[0].launch or "does not fit"])
    together = f"together {gpu_hours(list(found.values())):.0f} GPU hours, each run on as few GPUs as it fits on"
    left = dict.fromkeys(job.title for job in plans if job not in found)
    remark = f"\nwithout (small, or set up from weights): {', '.join(left)}" if left else ""
    return f"{markdown(rows)}\n\n{together}; estimated {ASSUMED}{remark}" if found else ""


def gpu_hours(found: Sequence[Estimate]) -> float:
    """Hours times GPUs of all runs, each on one GPU if it fits."""
    from utils.estimate import DEVICES

    return sum(one.hours[0] if one.fits else DEVICES * one.hours[1] for one in found)
