"""main_CL.py, watched: several runs one after another in the same processes, as starting these takes longest.

Every process writes what it holds and what it did at the end of each run to $REPLICAS/<name of the run>/<rank>.json.

REPLICAS=folder accelerate launch --config_file config/accelerate/cpu_2.yaml -m tests.stress.replicas; the folder holds
runs.json: {name of a run: its options}.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from unittest import mock

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

import main_CL
from models.Base import Method
from utils import evaluation
from utils.distributed import modes
from utils.report import plots
from utils.run import fit
from utils.run.trainer import Trainer
from utils.storage.files import read_json, write_json

scored: list[int] = []  # examples this process answered in each cell
weights: list[str] = []  # checksum after each task
held: list[dict] = []  # share of weights and of what AdamW steps that this process has, in each training
facts: dict = {}
watched = {"run": Trainer.run, "answer": evaluation._answer, "learn": Trainer._learn, "place": fit.place}


def checksum(method: Method) -> str:
    """Of all weights, bit for bit."""
    digest = hashlib.sha256()
    for _, tensor in sorted([*method.model.state_dict().items(), *method.extra.state_dict().items()]):
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def answer(method, session, cell, examples):
    """Count the examples."""
    scored.append(len(examples))
    return watched["answer"](method, session, cell, examples)


def learn(trainer, task, inside):
    """Note the weights."""
    watched["learn"](trainer, task, inside)
    weights.append(checksum(trainer.method))


def place(*args):
    """Note what this process holds of a model that is being trained."""
    placed = watched["place"](*args)
    weights, mine = list(placed.step.parameters()), list(map(local, placed.step.parameters()))
    stepped = placed.pieces() if hasattr(placed, "pieces") else [local(w) for w in placed.named.values()]
    total, learning = (sum(map(size, chosen)) for chosen in (weights, placed.named.values()))
    held.append({"weights": sum(w.numel() for w in mine) / total, "adamw": sum(w.numel() for w in stepped) / learning})
    return placed


def size(w: torch.Tensor) -> int:
    """Numbers in a parameter over all processes."""
    return w.ds_numel if hasattr(w, "ds_numel") else w.numel()


def local(w: torch.Tensor) -> torch.Tensor:
    """This process's part of it."""
    return w.ds_tensor if hasattr(w, "ds_tensor") else w.to_local() if hasattr(w, "to_local") else w


def run(trainer: Trainer):
    """Run, then note what this process holds."""
    results = watched["run"](trainer)
    accelerator, memory = trainer.session.accelerator, trainer.method.memory
    facts.update(
        world_size=accelerator.num_processes,
        rank=accelerator.process_index,
        distributed_type=accelerator.distributed_type.value,
        mode=modes.mode(),
        weights=weights,
        final=checksum(trainer.method),
        memory=None if memory is None else repr(memory.state_dict()),
        scored=scored,
        held=held,
    )
    return results


def main(folder: Path) -> None:
    """All runs of a folder."""
    with (
        mock.patch.multiple(Trainer, run=run, _learn=learn),
        mock.patch.object(evaluation, "_answer", answer),
        mock.patch.object(fit, "place", place),
        mock.patch.object(plots, "_save", lambda _figure, path: path.touch()),
        mock.patch.object(os, "fsync"),
        mock.patch.object(PartialState, "destroy_process_group"),  # reused by the next run
    ):
        for name, options in read_json(folder / "runs.json").items():
            for noted in (scored, weights, held):
                noted.clear()
            for state in (AcceleratorState, GradientState, PartialState):
                state._reset_state()
            print(name, flush=True)
            if main_CL.main(options) != 0:
                sys.exit(f"{name}: failed")
            write_json(folder / name / f"{facts['rank']}.json", facts)


if __name__ == "__main__":
    main(Path(os.environ["REPLICAS"]))
