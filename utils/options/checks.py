"""The checks that run before any weights are loaded: one list, run in one loop.

A run, a dry run, a diagnosis and a sweep all pass through `check`. Each check gets the whole plan and returns its
problems; a check that raises UserError has found one. All problems are reported together.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import torch

from models.Base import Method
from utils import buffer, probing, quantization
from utils.backbone import find_source, kind, shape
from utils.classifier import Classes
from utils.config import OWN_FILES, WATCHING, Config, OptionGroup
from utils.dataset import LEVELS, Example, Stream, load_stream
from utils.distributed.modes import check_parallel, mode
from utils.errors import UserError
from utils.factory import check_capability, load_method
from utils.general import harness, questions
from utils.metric import PERPLEXITY
from utils.model.shortcuts import padding_free
from utils.model.shortcuts.compiled import lacking
from utils.options import consistency, stream_view, tuning
from utils.options.parse import ConfigError, Resolved
from utils.preprocess import jsonl
from utils.scoring import Metric, find
from utils.storage.files import read_json

VIRTUAL = ("PromptTuning", "PrefixTuning")  # kinds of adapters that put tokens before a text
WRONG = "?"  # an answer that no question has


def read_stream(config: Config) -> Stream:
    """The stored stream that the options name, or one made from their files; its splits do not depend on the seed."""
    if config.dataset_files is None:
        return load_stream(config.dataset, Path(config.dataset_path))
    own = jsonl.Options(**{name: getattr(config, name) for name in OWN_FILES})
    return jsonl.read_tasks(config.dataset_files, own, seed=1)


@dataclass(frozen=True)
class Plan:
    """What is about to run."""

    resolved: Resolved
    method: type[Method]
    launched: str | None = None  # how several processes share the work; None: there is one
    read: Callable[[Config], Stream] = read_stream

    @cached_property
    def config(self) -> Config:
        """The general options; those with one value per task are in the order in which the tasks are learned."""
        return stream_view.of_config(self.resolved.config)

    @property
    def options(self) -> OptionGroup:
        """The method's own options."""
        return self.resolved.method_options

    @property
    def stream(self) -> Stream:
        """The stream of tasks as the run uses it, read when it is first needed.

        Raises:
            UserError: it is missing or invalid.
        """
        return self._streams[1]

    @property
    def stored(self) -> Stream:
        """The whole stream in the stored order; raises UserError as `stream` does."""
        return self._streams[0]

    @property
    def _streams(self) -> tuple[Stream, Stream]:
        if isinstance(self._read, UserError):
            raise self._read
        return self._read

    @cached_property
    def _read(self) -> tuple[Stream, Stream] | UserError:
        try:
            stored = self.read(self.resolved.config)
            return stored, stream_view.view(stored, self.resolved.config)
        except UserError as error:
            return error  # every check that needs the stream gets this error, but the files are read once


def check(resolved: Resolved, read: Callable[[Config], Stream] = read_stream) -> Plan:
    """The checked plan of a run.

    Args:
        resolved: Its options.
        read: Reads its stream as it is stored.

    Raises:
        ConfigError: with all problems.
    """
    quantization.hide()
    plan = Plan(resolved, load_method(resolved.config.method), mode(), read)
    if found := problems(plan):
        raise ConfigError(found)
    return plan


def problems(plan: Plan) -> list[str]:
    """Why this plan can't run, from all checks; empty if it can."""
    found: list[str] = []
    for one in CHECKS:
        try:
            found += one(plan)
        except UserError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def stream_fits(plan: Plan) -> list[str]:
    """Options that do not fit the stream."""
    config, stream, stored = plan.config, plan.stream, plan.stored
    count = len(stream.tasks)
    found = [
        f"{name}: expected {len(stored.tasks)} entries, one per task of {stored.name}, got {len(values)}"
        for name in filter(stream_view.is_per_task, type(config).model_fields)
        if (values := getattr(plan.resolved.config, name)) is not None and len(values) != len(stored.tasks)
    ]
    if not stream.tasks[0].train[0].messages:
        found += [
            f"{name}: has no effect, as {stream.name} holds no chats"
            for name in ("chat_date", "chat_thinking")
            if config.is_changed(name)
        ]
    if config.freeze_parts and config.freeze_from_task >= count:
        found.append(f"freeze_from_task: expected less than the {count} tasks of {stream.name}")
    level = LEVELS[stream.is_word_level]
    if config.classification_type not in ("auto", level):
        found.append(f"classification_type: {stream.name} is {level}, got {config.classification_type}; use auto")
    if config.classifier is not None and stream.is_word_level and config.cut_side != "auto":
        found.append(f"cut_side: has no effect on words of {stream.name} with tags, which are cut from the right")
    if config.classifier is not None and config.il_mode == "TIL" and stream.is_word_level:
        found.append("il_mode: word-level classes need CIL, as the tag O belongs to no task; got TIL")
    return found


def metrics_of(plan: Plan) -> list[str]:
    """The metric of each task: from the options, otherwise from the stream."""
    return list(plan.config.metric_for_each_task or (plan.stream.metric(k) for k in range(len(plan.stream.tasks))))


def metrics_fit(plan: Plan) -> list[str]:
    """Metrics without an implementation, or that score right answers like a wrong one, as span_f1 of names."""
    metrics = [find(name, "metric_for_each_task") for name in metrics_of(plan)]
    pairs = list(enumerate(zip(metrics, plan.stream.tasks, strict=False)))
    found = [
        f"metric_for_each_task: {metric.name} gives the right answers of task {k} ({task.name}) the same score as "
        f"{WRONG!r}; use another metric"
        for k, (metric, task) in pairs
        if metric.higher_is_better and not plan.stream.is_word_level and not _distinguishes(metric, task.test[:64])
    ]
    found += [
        f"metric_for_each_task: {metric.name} needs the possible answers to each question (choices), and task {k} "
        f"({task.name}) lists none; use another metric"
        for k, (metric, task) in pairs
        if metric.length is not None and not all(e.choices for e in [*task.dev, *task.test])
    ]
    if plan.config.classifier is not None and any(metric.length is not None for metric in metrics):
        found.append("classifier: heads choose among classes; choice_likelihood needs written answers")
    return found


def _distinguishes(metric: Metric, examples: Sequence[Example]) -> bool:
    return not examples or any(
        metric(e.target, e.accepted, e.input) != metric(WRONG, e.accepted, e.input) for e in examples
    )


def lists_replace(plan: Plan) -> list[str]:
    """Options of the command line that a list per task from elsewhere replaces, such as a file's lr_list."""
    config, sources = plan.config, plan.resolved.sources
    return [
        f"{name}: has no effect, as {name}_list ({sources[f'{name}_list']}) replaces it; set that, or "
        f"--{name}_list None"
        for name in type(config).model_fields
        if sources.get(name, "").startswith("--")
        and getattr(config, f"{name}_list", None) is not None
        and not sources[f"{name}_list"].startswith("--")
    ]


def files_are_alone(plan: Plan) -> list[str]:
    """A stream that is named on the command line, and that files replace."""
    config, sources = plan.config, plan.resolved.sources
    if config.dataset_files is None or not sources.get("dataset", "").startswith("--"):
        return []
    return [f"dataset: has no effect, as dataset_files ({sources['dataset_files']}) replaces it; leave one of them out"]


def classes_are_complete(plan: Plan) -> list[str]:
    """Streams without the classes that a scenario or a classifier needs."""
    if plan.config.dataset_files and plan.config.il_mode == "CIL" and "CUR_NUM_CLASS" not in plan.stream.config:
        return [
            "il_mode: CIL needs the class of each record, and none has a label; name its field, "
            "--fields input=FIELD,target=FIELD,label=FIELD, or use il_mode CIT"
        ]
    if plan.config.classifier is not None and plan.config.il_mode in ("CIL", "TIL"):
        Classes(plan.stream)
    return []


def harness_fits(plan: Plan) -> list[str]:
    """Tasks of lm-eval that cannot be loaded, or that the method cannot be asked."""
    config = plan.config
    if not config.general_harness:
        return []
    own = "general_harness: lm-eval calls the model itself, "
    found = [
        own + reason
        for is_so, reason in (
            (config.classifier is not None, "and a classifier gives classes; leave it out"),
            (kind(config) != "decoder", f"which must be a decoder; got {kind(config)}"),
            (
                plan.method.soft_prompt is not Method.soft_prompt or config.PEFT_type in VIRTUAL,
                "without the virtual tokens that answer here; leave it out",
            ),
        )
        if is_so
    ]
    if not found:
        harness.read(config)  # raises UserError
    return found


def general_fits(plan: Plan) -> list[str]:
    """Questions outside the stream that cannot be read, or that the method cannot be asked."""
    if not questions.is_asked(plan.config):
        return []
    sets = questions.read(plan.resolved.config)
    found = [
        f"{one.name}: {one.metric} needs the possible answers to each question (choices); use another of "
        "general_metrics"
        for one in sets
        if one.metric != PERPLEXITY and find(one.metric).length is not None and not all(e.choices for e in one.examples)
    ]
    if plan.config.classifier is not None:
        found.append("general_files, general_tasks: need written answers, and a classifier gives classes; leave it out")
    elif kind(plan.config) != "decoder" and any(one.text for one in sets):
        found.append(f"general_files: the perplexity of a text needs a decoder; got {kind(plan.config)}")
    return found


def watching_fits(plan: Plan) -> list[str]:
    """Options that score a task during training, with a method or a stream that has nothing to score."""
    config = plan.config
    used = [name for name in WATCHING if getattr(config, name)]
    if not used:
        return []
    if not plan.method.trains:
        return [f"{name}: has no effect with method {config.method}, which trains nothing" for name in used]
    stream, found = plan.stream, []
    on_dev = ", ".join(name for name in used if name != "early_stop_accuracy")
    if on_dev and (stream.dev_is_test or any(task.dev == task.test for task in stream.tasks)):
        found.append(
            f"{on_dev}: the dev split of {stream.name} is its test split, which must not be used for selection"
        )
    elif on_dev and (bare := [str(k) for k, task in enumerate(stream.tasks) if not task.dev]):
        found.append(f"{on_dev}: {stream.name} has no dev examples in task {', '.join(bare)}")
    elif on_dev and not stream_view.dev_measures_training(stream):
        found.append(
            f"{on_dev}: the dev split of {stream.name} is for tuning (score_split), where it changes what is trained"
        )
    lower = {name for name in metrics_of(plan) if not find(name, "metric_for_each_task").higher_is_better}
    if config.early_stop_accuracy is not None and lower:
        found.append(f"early_stop_accuracy: needs a metric where higher is better; got {', '.join(sorted(lower))}")
    return found


def checkpoint_is_whole(plan: Plan) -> list[str]:
    """A checkpoint that is missing, or that is loaded as a model although it holds other modules."""
    config = plan.config
    chosen, cached = config.evaluate_checkpoint, config.backbone_cache_path
    if chosen is not None and not (Path(chosen) / "manifest.json").is_file():
        return [f"evaluate_checkpoint: {chosen}/manifest.json does not exist; expected <run>/checkpoints/<name>"]
    alone = config.is_evaluate_only and config.load_llm_ckpt and chosen is None
    if alone and cached is not None and _is_more_than_a_model(Path(cached)):
        return [
            f"load_llm_ckpt: {cached} holds adapters, heads or prompts of a run; to evaluate it with them: "
            f"--cfg <run>/config.yaml --is_evaluate_only --evaluate_checkpoint {shlex.quote(cached)}"
        ]
    return []


def _is_more_than_a_model(folder: Path) -> bool:
    """True of a checkpoint with other modules than the language model (see utils/run/checkpoint.py)."""
    if not (folder / "state.json").is_file():
        return False
    extra = dict(read_json(folder / "state.json")["state"]["dict"])["extra"]
    return bool(extra["dict"]) or any(folder.rglob("adapter_config.json"))


def attention_is_installed(plan: Plan) -> list[str]:
    """An attention implementation whose package is missing."""
    if plan.config.attn_implementation == "flash_attention_2" and find_spec("flash_attn") is None:
        return [
            "attn_implementation: flash_attention_2 needs the package flash-attn, which is missing; use auto or sdpa"
        ]
    return []


def kernels_are_there(plan: Plan) -> list[str]:
    """Options about the kernels of a GPU without one."""
    used = [name for name in ("deterministic", "tf32") if plan.config.is_changed(name)]
    return (
        [f"{', '.join(used)}: no effect without a GPU; leave it out"] if used and not torch.cuda.is_available() else []
    )


def can_compile(plan: Plan) -> list[str]:
    """torch.compile without what it needs."""
    if plan.config.torch_compile and (missing := lacking()):
        return [f"torch_compile: needs {missing}, which is missing; leave it out"]
    return []


def quantization_fits(plan: Plan) -> list[str]:
    """8 bits or fewer without the package for them, or of a model that is quantised already."""
    found = []
    used = [name for name in ("backbone_quantization", "adam_states") if plan.config.is_changed(name)]
    if used and not quantization.is_installed():
        found.append(f"{', '.join(used)}: needs a working bitsandbytes; pip install bitsandbytes==0.50.2")
    if quantization.is_quantized(shape(plan.config)):
        found.append(
            f"backbone: {find_source(plan.config)} is quantised already; use the model it was made from, with "
            "backbone_quantization"
        )
    return found


def backbone_fits(plan: Plan) -> list[str]:
    """A backbone that is missing or, by its configuration, of a kind that the method or a classifier does not support.

    No weights are loaded.
    """
    config, source = plan.config, find_source(plan.config)
    own, allowed, found = kind(config), plan.method.backbones, []
    if own not in allowed:
        found.append(
            f"backbone: method {config.method} works with {', '.join(sorted(allowed))} models; {source} is {own}"
        )
    if own == "encoder" and config.classifier is None:
        found.append(
            f"classifier: expected Linear or CosineLinear, as {source} is an encoder, which can't write answers"
        )
    if own != "encoder" and config.backbone_extract_token == "cls_token":
        found.append(f"backbone_extract_token: cls_token needs an encoder; {source} is {own}; use last_token")
    if config.Replay_surprise_on == "sequence" and (own != "decoder" or config.classifier is not None):
        found.append(f"Replay_surprise_on: sequence needs a decoder that writes answers, to predict prompts; got {own}")
    if own != "encoder" and config.classifier is not None and plan.stream.is_word_level:
        found.append(f"backbone: words are classified by encoders, which see both sides; {source} is {own}")
    return found


def method_agrees(plan: Plan) -> list[str]:
    """The method's problems; lists have an entry per task when it is called."""
    return [] if stream_fits(plan) else plan.method.problems(plan.config, plan.options, plan.stream)


CHECKS: tuple[Callable[[Plan], list[str]], ...] = (
    lambda plan: consistency.check(plan.config),
    lambda plan: check_capability(plan.config, plan.method),
    lambda plan: check_parallel(plan.config, plan.method, plan.launched),
    stream_fits,
    metrics_fit,
    lists_replace,
    files_are_alone,
    classes_are_complete,
    lambda plan: buffer.problems(plan.config, plan.stream),
    lambda plan: probing.problems(plan.config, plan.stream),
    general_fits,
    harness_fits,
    watching_fits,
    lambda plan: tuning.problems(plan.resolved),
    checkpoint_is_whole,
    attention_is_installed,
    kernels_are_there,
    can_compile,
    lambda plan: padding_free.problems(
        plan.config, kind(plan.config), plan.method.soft_prompt is not Method.soft_prompt
    ),
    quantization_fits,
    backbone_fits,
    method_agrees,
)
