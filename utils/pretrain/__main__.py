"""Pretrain a small language model on biographies, which makes the backbone of the biography streams, or on the texts
of a stream.

    python -m utils.pretrain --preset demo --seed 1 --out dataset/biography_demo_backbone
    python -m utils.pretrain --stream topic3datasets_agnews_dbpedia_task4 --steps 2000 --out dataset/topics_backbone
    accelerate launch -m utils.pretrain --preset paper --raw-dir RAW --out pythia-160m-bio-pretrained-100k

The data of a step depends only on the seed and the number of the step, so an interrupted run that is resumed
(`--resume`) gives the same model.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from utils.config import Config
from utils.dataloader import IGNORE
from utils.distributed.modes import make_accelerator, mode
from utils.errors import UserError, exit_code, exit_with, reason_of, termination_interrupts
from utils.logger import environment
from utils.optimizer import schedule_factor
from utils.options.parse import fail
from utils.pretrain.corpus import Chunks, make_tokenizer, read_stream, read_texts
from utils.pretrain.recipes import RECIPES, Recipe
from utils.progress import Bar, say_with_time
from utils.run import checkpoint
from utils.run.checkpoint import Place
from utils.run.cost import peak_memory
from utils.run.launch import quieten
from utils.seed import seed_torch
from utils.storage.files import write_json

LOG_STEPS = 25  # maximum number of optimizer steps between two lines


@dataclass(frozen=True)
class Job:
    """One call of the command."""

    preset: str
    seed: int
    out: Path
    recipe: Recipe
    raw_dir: Path | None = None
    stream: str | None = None
    resume: bool = False
    force: bool = False
    save_steps: int = 500


def make_shape(recipe: Recipe, texts: list[str]) -> tuple[Any, Any]:
    """Tokenizer and model configuration: those of `backbone`, or new ones for a tiny GPT-NeoX.

    Raises:
        UserError: `backbone` cannot be found or fetched.
    """
    from transformers import AutoConfig, AutoTokenizer, GPTNeoXConfig

    if recipe.backbone:
        try:
            return AutoTokenizer.from_pretrained(recipe.backbone), AutoConfig.from_pretrained(recipe.backbone)
        except Exception as error:  # a folder from elsewhere can make the library raise nearly anything
            if Path(recipe.backbone).exists():
                raise UserError(f"--backbone: {recipe.backbone} could not be loaded: {reason_of(error)}") from None
            where = f"--backbone: {recipe.backbone} is not a folder with a model"
            raise UserError(f"{where} and could not be fetched ({reason_of(error)})") from None
    tokenizer = make_tokenizer(texts, recipe.vocab)
    return tokenizer, GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=4 * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=512,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


class Pretraining:
    """A pretraining run: model, optimizer and data."""

    def __init__(self, job: Job):
        """Read the data and make the model, or load the newest checkpoint.

        Raises:
            UserError: the options contradict each other, or the folder holds other files.
        """
        self.job, self.recipe = job, job.recipe
        from transformers import AutoModelForCausalLM

        places = _check_out(job)
        quieten()
        if mode() not in (None, "DDP"):
            raise UserError(f"accelerate launch: pretraining runs in one process or with DDP, not with {mode()}")
        self.accelerator = make_accelerator(Config(mixed_precision=self.recipe.precision))
        parts = self.accelerator.num_processes * self.recipe.accumulation
        if self.recipe.batch % parts:
            raise UserError(f"--batch {self.recipe.batch}: expected a multiple of processes x --accumulation = {parts}")
        texts, others = (
            read_stream(job.stream)
            if job.stream
            else read_texts(job.preset, job.seed, self.recipe.persons, job.raw_dir)
        )
        self.tokenizer, shape = make_shape(self.recipe, [*texts, *others])
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        self.chunks = Chunks(rows, self.tokenizer.eos_token_id, job.seed, self.recipe.context, self.recipe.batch)
        seed_torch(job.seed, "pretrain")
        self.model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
        self.optimizer = _make_optimizer(self.model, self.recipe)
        self.losses: list[float] = []  # of each step done
        self.seconds = 0.0
        if places:
            self._restore(job.out / "checkpoints" / places[-1].name)
        self.wrapped, self.stepper = self.accelerator.prepare(self.model, self.optimizer)

    def run(self) -> dict[str, Any]:
        """Train to the end and save model, tokenizer and pretrain.json; returns what that file holds."""
        is_main, steps = self.accelerator.is_main_process, self.recipe.steps
        began, every = time.monotonic() - self.seconds, max(1, min(steps // 20, LOG_STEPS))
        bar = Bar("pretraining", steps, "steps", None, len(self.losses), quiet=not is_main)
        since, said = time.monotonic(), len(self.losses)
        for number in range(len(self.losses), steps):
            self.losses.append(self._step(number))
            self.seconds = time.monotonic() - began
            bar.update()
            if is_main and (number + 1) % every == 0:
                self._say(bar, number + 1 - said, time.monotonic() - since)
                since, said = time.monotonic(), number + 1
            if is_main and (number + 1) % self.job.save_steps == 0:
                self._save()
        bar.close()
        if is_main:
            self._finish()
        self.accelerator.wait_for_everyone()
        return self._facts()

    def _say(self, bar: Bar, steps: int, seconds: float) -> None:
        """One line about the last steps."""
        speed = steps * self.recipe.batch * self.recipe.context / max(seconds, 1e-9)
        say_with_time(
            f"step {bar.done} of {bar.total}: loss {fmean(self.losses[-steps:]):.4f}, "
            f"lr {self.optimizer.param_groups[0]['lr']:.3g}, {speed:,.0f} tokens/s, "
            f"peak memory {peak_memory(self.accelerator.device) / 1e9:.2f} GB, {bar.left()}"
        )

    def _step(self, number: int) -> float:
        """One optimizer step; returns its loss, the mean over all labelled tokens of all processes."""
        recipe, accelerator = self.recipe, self.accelerator
        lowest = recipe.min_lr / recipe.lr
        factor = schedule_factor("cosine", number, recipe.steps, recipe.warmup / recipe.steps, lowest)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr * factor
        ids, labels = self.chunks.step(number)
        share, count = slice(accelerator.process_index, None, accelerator.num_processes), (labels != IGNORE).sum()
        parts = list(zip(ids[share].chunk(recipe.accumulation), labels[share].chunk(recipe.accumulation), strict=True))
        total = torch.zeros((), device=accelerator.device)
        self.wrapped.train()
        for i, (part, targets) in enumerate(parts):
            with accelerator.no_sync(self.wrapped) if i + 1 < len(parts) else contextlib.nullcontext():
                logits = self.wrapped(input_ids=part.to(accelerator.device)).logits.flatten(0, 1).float()
                loss = cross_entropy(logits, targets.to(accelerator.device).flatten(), reduction="sum") / count
                accelerator.backward(loss * accelerator.num_processes)  # processes are averaged, parts summed
                total += loss.detach()
        if not math.isfinite(loss := accelerator.reduce(total, "sum").item()):
            raise UserError(f"--lr {recipe.lr}: the loss is {loss} at step {number + 1}; lower it")
        accelerator.clip_grad_norm_(self.wrapped.parameters(), 1.0)
        self.stepper.step()
        self.stepper.zero_grad()
        return loss

    def _save(self) -> None:
        place = Place(0, *divmod(len(self.losses), self.chunks.steps))
        moments = {name: self.optimizer.state[w] for name, w in self.model.named_parameters()}
        state = {"moments": moments, "losses": self.losses, "seconds": self.seconds, "settings": _settings(self.job)}
        checkpoint.save(
            self.job.out / "checkpoints", place, self.model, self.tokenizer, checkpoint.pack(state), limit=1
        )

    def _restore(self, folder: Path) -> None:
        state = checkpoint.load_state(folder)
        if state["settings"] != (now := _settings(self.job)):
            different = [f"{k} ({state['settings'].get(k)})" for k in now if now[k] != state["settings"].get(k)]
            raise UserError(f"--resume: {folder} was made with another {', '.join(different)}; give the same options")
        checkpoint.load_weights(self.model, folder)
        for name, w in self.model.named_parameters():
            self.optimizer.state[w] = {key: value.clone() for key, value in state["moments"][name].items()}
        self.losses, self.seconds = state["losses"], state["seconds"]

    def _finish(self) -> None:
        facts, out = self._facts(), self.job.out
        self.model.save_pretrained(out)
        self.tokenizer.save_pretrained(out)
        write_json(out / "pretrain.json", facts)
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        print(f"{out}: loss {facts['loss']:.4f} after {facts['minutes']} minutes")

    def _facts(self) -> dict[str, Any]:
        device, processes = str(self.accelerator.device), self.accelerator.num_processes
        return _settings(self.job) | {
            "texts": len(self.chunks.rows),
            "tokens_per_epoch": self.chunks.tokens,
            "epochs": round(self.recipe.steps / self.chunks.steps, 2),
            "parameters": self.model.num_parameters(),
            "loss": fmean(self.losses[-50:]),
            "minutes": round(self.seconds / 60, 2),
            "cores": os.cpu_count(),
            "environment": environment(Config(seed=self.job.seed), device, processes),
        }


def _make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    decay = [w for w in model.parameters() if w.ndim > 1]
    plain = [w for w in model.parameters() if w.ndim <= 1]
    groups = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, recipe.beta2), eps=recipe.epsilon)


def _check_out(job: Job) -> list[Place]:
    """The checkpoints to resume from, none for a new run.

    Raises:
        UserError: the folder holds a model or checkpoints, and neither --resume nor --force was given.
    """
    root = job.out / "checkpoints"
    places = checkpoint.checkpoints(root)
    if job.force:
        shutil.rmtree(root, ignore_errors=True)
        return []
    if (job.out / "config.json").exists():
        raise UserError(f"--out: {job.out} holds a finished model; give another folder, or --force to replace it")
    if places and not job.resume:
        raise UserError(f"--out: {job.out} holds an interrupted run; give --resume, or --force to start again")
    return places


def _settings(job: Job) -> dict[str, Any]:
    raw = None if job.raw_dir is None else str(job.raw_dir)
    return {"preset": job.preset, "seed": job.seed, "raw_dir": raw, "stream": job.stream} | asdict(job.recipe)


def parse(argv: list[str]) -> Job:
    """The command line; options that are not given have the values of the preset."""
    parser = _Parser("python -m utils.pretrain", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--preset", choices=RECIPES, default="demo", help="recipe that the options below change")
    parser.add_argument("--seed", type=int, default=1, help="seed of persons, weights and order")
    parser.add_argument("--out", type=Path, required=True, help="folder for model, tokenizer and pretrain.json")
    parser.add_argument("--raw-dir", type=Path, help="folder with biography_qa/biography/; none: persons are made up")
    parser.add_argument("--stream", help="folder in dataset/ whose training texts are read in place of biographies")
    parser.add_argument("--resume", action="store_true", help="resume from the newest checkpoint in --out, if any")
    parser.add_argument("--force", action="store_true", help="replace what is in --out")
    parser.add_argument("--save-steps", type=int, default=500, help="steps between checkpoints")
    for option in fields(Recipe):
        kind = type(getattr(RECIPES["paper"], option.name))
        parser.add_argument(f"--{option.name.replace('_', '-')}", type=kind, help=option.metadata["help"])
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    names = {option.name for option in fields(Recipe)}
    if "stream" in given and (unused := {"raw_dir", "persons"} & given.keys()):
        raise UserError(f"--{min(unused).replace('_', '-')}: has no effect with --stream; it is for biographies")
    recipe = replace(RECIPES[given["preset"]], **{k: v for k, v in given.items() if k in names})
    return Job(recipe=recipe, **{k: v for k, v in given.items() if k not in names})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code: 0 done, 2 an error of the user, 130 or 143 interrupted."""
    try:
        with termination_interrupts():
            Pretraining(parse(argv)).run()
    except UserError as error:
        return fail(error)
    except KeyboardInterrupt as error:
        print("interrupted; resume it with the same command and --resume", file=sys.stderr)
        return exit_code(error)
    return 0


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
