"""Build what a run needs: options, stream, backbone, method. Its folder is made when no mistake can be left."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from models.Base import Method
from utils import buffer, probing
from utils.backbone import find_source, kind, load_backbone, stop_also_at
from utils.classifier import ClassEncoder, Classes
from utils.config import Config
from utils.dataloader import Encoder
from utils.dataset import LEVELS, Stream, load_stream
from utils.distributed import modes
from utils.distributed.modes import check_parallel, make_accelerator, mode
from utils.errors import UserError
from utils.factory import check_capability, describe, load_method
from utils.logger import RunLog, make_run_folder, write_environment
from utils.model import freeze
from utils.model.architecture import Backbone
from utils.options.parse import ConfigError, Resolved, flatten, to_yaml
from utils.preprocess import jsonl
from utils.prompt import choose
from utils.report import summary
from utils.run import checkpoint, dry_run, early_stopping
from utils.run.failures import explained, how_to_resume
from utils.run.fit import fit
from utils.run.trackers import start_tracker
from utils.run.trainer import Trainer
from utils.scoring import find
from utils.session import Session
from utils.storage.files import remove_drafts, write_json, write_text

# A model of fewer parameters spends its time handing work between threads: on a busy machine two of them took 20 times
# as long as one.
SMALL = 10_000_000


def launch(options: Resolved, folder: Path | None) -> dict[str, Any]:
    """Run, or go on with the run in `folder`; returns the results (on the main process)."""
    config = options.config
    method_class = load_method(config.method)
    stream = read_stream(config)
    launched = mode()
    problems = [*check_capability(config, method_class), *check_stream(config, stream)]
    problems += probing.refuse(config, stream) + early_stopping.refuse(config, method_class, stream)
    problems += check_parallel(config, method_class, launched)
    problems += method_class.problems(config, options.method_options, stream) + checkpoint.refuse(config)
    problems += buffer.problems(config, stream)
    if problems:
        raise ConfigError(problems)
    find_source(config)
    quieten()
    check_backbone(config, method_class, stream.is_word_level)
    accelerator = make_accelerator(config)
    log = RunLog(config, accelerator.is_main_process)
    if config.dry_run:
        method = sketch(options, method_class, stream, accelerator, log)
        if accelerator.is_main_process:
            print(dry_run.text(method, accelerator.num_processes))
        return {}
    with explained(folder):
        method = build_method(options, method_class, stream, accelerator, log)
        folder = _open_folder(options, stream, accelerator, folder)
        log.write_to(folder)
    with explained(folder):
        return _run(options, method, accelerator, log, folder)


def _run(options: Resolved, method: Method, accelerator: Accelerator, log: RunLog, folder: Path) -> dict[str, Any]:
    """Train and evaluate, with a log in the run folder."""
    config, launched = options.config, mode()
    try:
        log.info(f"run folder: {folder}")
        for remark in buffer.remarks(config, method.stream):
            log.warning(remark)
        if launched is not None:
            log.info(modes.describe(config, accelerator.num_processes))
        if accelerator.is_main_process:
            remove_drafts(folder)
            kind = accelerator.distributed_type.value
            write_environment(folder, config, str(accelerator.device), accelerator.num_processes, kind, launched)
        log.tracker = start_tracker(accelerator, config, flatten(options), folder, log.warning)
        results = Trainer(method, folder).run()
        if results:
            log.info("\n" + summary.table(results) + f"\nresults: {folder}/results.md")
        return results
    except KeyboardInterrupt as error:
        error.args = (f"interrupted; {how_to_resume(folder)}",)
        log.info(error.args[0])
        raise
    finally:
        log.close()
        accelerator.end_training()


def read_stream(config: Config) -> Stream:
    """The stream that the options name, or the one that their files make: always the same split, whatever the seed."""
    if config.dataset_files is None:
        return load_stream(config.dataset, Path(config.dataset_path))
    return jsonl.read_tasks([Path(name) for name in config.dataset_files], jsonl.Options(), seed=1)


def build_method(
    options: Resolved, method_class: type[Method], stream: Stream, accelerator: Accelerator, log: RunLog
) -> Method:
    """The method around its backbone, ready to train."""
    config = options.config
    backbone = load_backbone(config)
    backbone.model.to(accelerator.device)
    if accelerator.device.type == "cpu" and backbone.model.num_parameters() < SMALL:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return assemble(options, method_class, stream, backbone, accelerator, log)


def sketch(
    options: Resolved, method_class: type[Method], stream: Stream, accelerator: Accelerator, log: RunLog
) -> Method:
    """The method around a model that has shapes, but no weights; with them where it looks at them in its setup."""
    shapes = options.config.updated(backbone_random_init=True)
    try:
        with torch.device("meta"):
            return assemble(options, method_class, stream, load_backbone(shapes), accelerator, log)
    except (NotImplementedError, RuntimeError):  # a meta tensor has no values
        return build_method(options, method_class, stream, accelerator, log)


def assemble(
    options: Resolved,
    method_class: type[Method],
    stream: Stream,
    backbone: Backbone,
    accelerator: Accelerator,
    log: RunLog,
) -> Method:
    """The method around this backbone, in the session of the run."""
    config = options.config
    encoder = Encoder(
        backbone.tokenizer,
        choose(config.prompt_type, stream),
        ends=backbone.kind != "decoder",
        parse_special=config.parse_special_tokens,
        day=config.chat_date,
    )
    if stream.tasks[0].train[0].messages and backbone.stop_ids:
        stop_also_at(backbone, encoder.turn_end)
    if config.classifier is not None:
        encoder = ClassEncoder(encoder, Classes(stream), config.backbone_extract_token)
    session = Session(config, accelerator, encoder, log, fit)
    method = method_class(session, options.method_options, backbone, stream)
    method.setup()
    freeze.select(method.model, config.freeze_parts, config.freeze_match)  # not first in the task that needs it
    return method


def quieten() -> None:
    """Keep the libraries' own bars and notices out of the output."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    # Of DeepSpeed's calls, at every step; torch's context managers make Python forget that it has said so.
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft asks
    if not (mode() or "").startswith("ZeRO"):
        # Saving a model would import it, to ask whether the model is wrapped in it: a notice for nothing.
        sys.modules.setdefault("deepspeed", None)


def check_stream(config: Config, stream: Stream) -> list[str]:
    """Options that do not fit the stream."""
    count = len(stream.tasks)
    problems = [
        f"{name}: expected {count} entries, one per task of {stream.name}, got {len(values)}"
        for name in type(config).model_fields
        if name.endswith("_list") or name == "metric_for_each_task"
        if (values := getattr(config, name)) is not None and len(values) != count
    ]
    for name in config.metric_for_each_task or [stream.metric(k) for k in range(count)]:
        find(name)
    if config.freeze_parts and config.freeze_from_task >= count:
        problems.append(f"freeze_from_task: expected less than the {count} tasks of {stream.name}")
    level = LEVELS[stream.is_word_level]
    if config.classification_type not in ("auto", level):
        problems.append(f"classification_type: {stream.name} is {level}, got {config.classification_type}; use auto")
    if config.classifier is not None and config.il_mode in ("CIL", "TIL"):
        Classes(stream)  # says what is missing
        if stream.is_word_level and config.il_mode == "TIL":
            problems.append("il_mode: word-level classes need CIL, as the tag O belongs to no task; got TIL")
    return problems


def check_backbone(config: Config, method_class: type[Method], is_word_level: bool) -> None:
    """Refuse a kind of model that the method or a classifier cannot use; its weights are not loaded for that.

    Raises:
        UserError: the model's own configuration says that it is of another kind.
    """
    own, source = kind(config), find_source(config)
    if own not in method_class.backbones:
        allowed = ", ".join(sorted(method_class.backbones))
        raise UserError(f"backbone: method {config.method} works with {allowed} models; {source} is {own}")
    if own == "encoder" and config.classifier is None:
        raise UserError(
            f"classifier: expected Linear or CosineLinear, as {source} is an encoder, which can't write answers"
        )
    if own != "encoder" and config.classifier is not None and is_word_level:
        raise UserError(f"backbone: words are classified by encoders, which see both sides; {source} is {own}")
    if own != "encoder" and config.backbone_extract_token == "cls_token":
        raise UserError(f"backbone_extract_token: cls_token is of encoders; {source} is {own}; use last_token")


def _open_folder(options: Resolved, stream: Stream, accelerator: Accelerator, folder: Path | None) -> Path:
    """The run folder, made by the main process; it holds the options and the facts that predictions do not."""
    fresh = folder is None
    if fresh:
        made = [make_run_folder(options.config) if accelerator.is_main_process else None]
        folder = broadcast_object_list(made)[0]
    if fresh and accelerator.is_main_process:
        write_json(folder / "facts.json", facts(options.config, stream))
        write_text(folder / "config.yaml", to_yaml(options))  # last: with it the run can be resumed
    return folder


def facts(config: Config, stream: Stream) -> dict[str, Any]:
    """What the report needs besides the predictions."""
    tasks = range(len(stream.tasks))
    return {
        "name": config.wandb_name,
        "stream": stream.name,
        "method": describe(config),
        "seed": config.seed,
        "il_mode": config.il_mode,
        "backbone": find_source(config),
        "task_names": [task.name for task in stream.tasks],
        "metrics": list(config.metric_for_each_task or (stream.metric(k) for k in tasks)),
        "chance": [stream.chance(k) for k in tasks],
    }
