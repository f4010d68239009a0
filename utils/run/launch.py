"""Build what a checked plan needs - backbone, method, run folder - and run it."""

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
from utils import buffer, quantization
from utils.backbone import find_source, load_backbone, make_encoder, stop_also_at
from utils.classifier import ClassEncoder, Classes
from utils.config import Config
from utils.dataloader import Encoder
from utils.dataset import Stream
from utils.distributed import modes
from utils.distributed.modes import make_accelerator, mode
from utils.errors import UserError
from utils.factory import describe
from utils.general import asking, questions
from utils.logger import RunLog, check_dump_path, make_run_folder, write_environment
from utils.model import freeze
from utils.model.architecture import Backbone
from utils.model.self_test import self_test
from utils.model.shortcuts.kept_states import needs_frozen_blocks
from utils.optimizer import lost_updates
from utils.options import data, tuning
from utils.options.checks import Plan
from utils.options.parse import flatten, origin, to_yaml
from utils.prompt import choose, strips
from utils.report import summary
from utils.run import identity
from utils.run.failures import explained, how_to_resume, leaving_at_once
from utils.run.fit import fit
from utils.run.plan import dry_run
from utils.run.tasks import task_of
from utils.run.trackers import start_tracker
from utils.run.trainer import Trainer
from utils.session import Session
from utils.storage.files import remove_drafts, write_json, write_text

# A model of fewer parameters spends its time handing work between threads: on a busy machine two of them took 20 times
# as long as one.
SMALL = 10_000_000


def launch(plan: Plan, folder: Path | None) -> dict[str, Any]:
    """Run, or resume the run in `folder`; returns the results (on the main process)."""
    quieten()
    if folder is None:
        check_dump_path(plan.config)
    set_kernels(plan.config)
    accelerator = make_accelerator(plan.config)
    log = RunLog(plan.config, accelerator.is_main_process)
    if plan.config.dry_run:
        method = sketch(plan, accelerator, log) or build_method(plan, accelerator, log)
        if accelerator.is_main_process:
            head = "\n".join([origin(plan.resolved), *notes(plan)])
            print(head, dry_run.text(method, accelerator.num_processes), sep="\n\n")
        return {}
    with leaving_at_once(accelerator.num_processes), explained(folder):
        if folder is not None:
            identity.check(folder, plan.resolved, plan.stored)
        if outline := sketch(plan, accelerator, log):  # it checks freeze_parts and lengths before weights are loaded
            data.check_lengths(outline)
        method = build_method(plan, accelerator, log)
        if outline is None:
            data.check_lengths(method)
        has_virtual = plan.method.soft_prompt is not Method.soft_prompt
        tested = self_test(method.backbone, plan.config, accelerator.num_processes, has_virtual, method.is_plain)
        folder = _open_folder(plan, accelerator, folder)
        log.write_to(folder)
    with leaving_at_once(accelerator.num_processes), explained(folder):
        results = _run(plan, method, accelerator, log, folder, tested)
    accelerator.end_training()  # waits for the others: not after a failure
    return results


def _run(
    plan: Plan, method: Method, accelerator: Accelerator, log: RunLog, folder: Path, tested: dict[str, Any]
) -> dict[str, Any]:
    """Train and evaluate, with a log in the run folder."""
    config, launched = plan.config, plan.launched
    try:
        log.info(f"run folder: {folder}")
        log.info(origin(plan.resolved))
        for note in notes(plan):
            log.info(note)
        lost = lost_updates(config, method.model.dtype) if method.trains else []
        remarks = [*buffer.remarks(config, method.stream), *questions.remarks(config, method.stream), *lost]
        remarks += modes.remarks(config, method.model.dtype, accelerator.device)
        for remark in remarks:
            log.warning(remark)
        for line in data.lines(plan.stream, method.encoder, method.backbone) if accelerator.is_main_process else []:
            log.info(line)
        if launched is not None:
            log.info(modes.describe(config, accelerator.num_processes))
        if accelerator.is_main_process:
            remove_drafts(folder)
            kind = accelerator.distributed_type.value
            write_environment(
                folder, config, str(accelerator.device), accelerator.num_processes, kind, launched, tested
            )
        log.tracker = start_tracker(accelerator, config, flatten(plan.resolved), folder, log.warning)
        results = Trainer(method, folder, asking.outside(config)).run()
        if results:
            log.info("\n" + summary.table(results) + f"\nresults: {folder}/results.md")
        return results
    except KeyboardInterrupt as error:
        error.args = (f"interrupted; {how_to_resume(folder)}",)
        log.info(error.args[0])
        raise
    finally:
        log.close()


def set_kernels(config: Config) -> None:
    """How kernels compute, before the first one runs."""
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)  # warns where there is no such kernel
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def notes(plan: Plan) -> list[str]:
    """What was found out about the user's own files."""
    return plan.stream.config["SOURCE"]["notes"] if plan.config.dataset_files else []


def build_method(plan: Plan, accelerator: Accelerator, log: RunLog) -> Method:
    """The method around its backbone, ready to train."""
    backbone = load_backbone(plan.config)
    backbone.model.to(accelerator.device)
    if accelerator.device.type == "cpu" and backbone.model.num_parameters() < SMALL:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return assemble(plan, backbone, accelerator, log)


def sketch(plan: Plan, accelerator: Accelerator, log: RunLog) -> Method | None:
    """The method around a model that has shapes, but no weights; None if its setup reads weights."""
    config = plan.config.updated(backbone_random_init=True)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return assemble(plan, load_backbone(config), accelerator, log)
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error).lower():  # torch names the device when a value is missing
            raise
        return None


def assemble(plan: Plan, backbone: Backbone, accelerator: Accelerator, log: RunLog) -> Method:
    """The method around this backbone, in the session of the run."""
    config, stream = plan.config, plan.stream
    cut_side = stream.cut_side if config.cut_side == "auto" else config.cut_side
    plain = make_encoder(config, backbone, choose(config.prompt_type, stream), strips(config.strip, stream), cut_side)
    if stream.tasks[0].train[0].messages and backbone.stop_ids:
        stop_also_at(backbone, plain.turn_end)
    encoder: Encoder | ClassEncoder = plain
    if config.classifier is not None:
        encoder = ClassEncoder(plain, Classes(stream), config.backbone_extract_token)
    session = Session(config, accelerator, encoder, log, fit)
    method = plan.method(session, plan.options, backbone, stream)
    plain.method = method
    method.setup()
    _check_frozen(method)
    return method


def _check_frozen(method: Method) -> None:
    """Refuse parts to freeze that the model lacks, or that leave nothing to train or no layer whose states are kept."""
    config = method.config
    freeze.select(method.model, config.freeze_parts, config.freeze_match)
    if not config.freeze_parts and config.keep_frozen_states is None:
        return
    if method.takes_steps(task := task_of(method, config.freeze_from_task)):
        if not (learning := method.learning(task)):
            raise UserError(freeze.NOTHING_LEFT)
        if config.keep_frozen_states is not None:
            needs_frozen_blocks(method.model, learning)


def quieten() -> None:
    """Keep the libraries' own bars and notices out of the output."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    # Of DeepSpeed's calls, at every step; torch's context managers make Python forget that it has said so.
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    warnings.filterwarnings("ignore", ".*`broadcast_buffers` is deprecated")  # older versions of torch know no other
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft asks
    quantization.hide()
    if not (mode() or "").startswith("ZeRO"):
        # Saving a model would import it, to ask whether the model is wrapped in it: a notice for nothing.
        sys.modules.setdefault("deepspeed", None)  # type: ignore[arg-type]  # None makes the import fail


def _open_folder(plan: Plan, accelerator: Accelerator, folder: Path | None) -> Path:
    """The run folder, made by the main process; it holds the options and the facts that predictions do not."""
    if folder is not None:
        return folder
    made = [make_run_folder(plan.config) if accelerator.is_main_process else None]
    folder = broadcast_object_list(made)[0]
    if accelerator.is_main_process:
        own = identity.of(plan.resolved, identity.of_stream(plan.stored))
        said, options = tuning.described(plan.resolved), plan.resolved
        if said != plan.config.tuning:
            options = options._replace(config=plan.config.updated(tuning=said))
        write_json(folder / "facts.json", facts(options.config, plan.stream) | own)
        write_text(folder / "config.yaml", to_yaml(options))  # last: with it the run can be resumed
    return folder


def facts(config: Config, stream: Stream) -> dict[str, Any]:
    """What the report needs in addition to the predictions."""
    tasks = range(len(stream.tasks))
    return {
        "name": config.wandb_name,
        "stream": stream.name,
        "method": describe(config),
        "seed": config.seed,
        "tuning": config.tuning,
        "il_mode": config.il_mode,
        "backbone": find_source(config),
        "task_names": [task.name for task in stream.tasks],
        "metrics": list(config.metric_for_each_task or (stream.metric(k) for k in tasks)),
        "chance": [stream.chance(k) for k in tasks],
        **asking.facts(config),
    }
