"""What reports say of values that were chosen by utils.tune, and what the command line may not replace."""

from __future__ import annotations

from utils.config import WATCHING
from utils.groups.evaluation import EvaluateOptions
from utils.groups.run import RunOptions, TrackerOptions
from utils.options.parse import ConfigError, Resolved, flatten, resolve

# Options that do not change what is trained.
NOT_TRAINED = {
    *RunOptions.model_fields,
    *TrackerOptions.model_fields,
    *EvaluateOptions.model_fields,
    *("task_order", "score_split", "dataset_path", "backbone_cache_path", "backbone_self_test"),
} - set(WATCHING)


def problems(options: Resolved) -> list[str]:
    """The command line replaces a chosen value, or the method: reports would call the values tuned."""
    config, sources = options.config, options.sources
    if config.tuning is None:
        return []
    tuned = ["method", *config.tuning.partition(":")[0].split(", ")]
    if "lr" in tuned and config.lr_list is not None:  # which replaces lr
        tuned.append("lr_list")
    return [
        f"{name}: {config.cfg} has values that were chosen by tuning; leave {name} out, or set tuning to None too"
        for name in tuned
        if sources.get(name, "").startswith("--")
    ]


def described(options: Resolved) -> str | None:
    """`tuning`, with the options that the command line has set to other values than the chosen file."""
    config = options.config
    given = {name for name, source in options.sources.items() if source.startswith("--")} - NOT_TRAINED
    if config.tuning is None or not given:
        return config.tuning
    try:
        chosen = flatten(resolve(["--cfg", str(config.cfg)]))
    except ConfigError:  # a file that the command line completes
        chosen = {}
    now = flatten(options)
    others = sorted(name for name in given if name not in chosen or chosen[name] != now[name])
    return f"{config.tuning}; set differently since: {', '.join(others)}" if others else config.tuning
