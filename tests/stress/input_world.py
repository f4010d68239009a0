"""What the inputs of `python -m tests.stress.inputs` are spoilt copies of."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import main_CL
from tests import tiny
from tests.chat_templates import FAMILIES, words_of
from utils.dataset import Example, Stream, TaskData, save_stream
from utils.run import checkpoint
from utils.run.checkpoint import save


class Case(NamedTuple):
    """One input: what was done to it, what runs the program on it, and whether it must be refused."""

    what: str
    call: Callable[[], Any]
    wrong: bool = False  # the input is known to be wrong: exit code 0 is a failure


class World(NamedTuple):
    """What the inputs are spoilt copies of; each case has the folder `case` for itself."""

    root: Path

    @property
    def case(self) -> Path:
        return self.root / "case"

    def argv(self, *words: str, dataset: str = "micro", backbone: str | None = None) -> list[str]:
        """A command line of a small run."""
        return [
            *("--cfg", "None", "--backbone", backbone or tiny.backbone_folder(), "--training_epochs", "1"),
            *(() if "--dataset_files" in words else ("--dataset", dataset)),
            *(*self.places(), *words),
        ]

    def places(self) -> list[str]:
        """The folders that a run reads and writes."""
        return ["--dataset_path", str(self.root), "--dump_path", str(self.case / "out"), "--is_wandb", "false"]

    def fresh(self) -> Path:
        """The folder of a case, empty."""
        shutil.rmtree(self.case, ignore_errors=True)
        self.case.mkdir()
        return self.case


class Interrupted(BaseException):
    """A simulated power failure."""


def save_and_stop(*args: Any) -> None:
    """Write the first checkpoint, which is the last thing the run does."""
    save(*args)
    raise Interrupted


def make_world(root: Path) -> World:
    """Streams, a finished run with all its checkpoints, and an interrupted run."""
    world = World(root)
    for stream in (tiny.micro_stream(2), tiny.class_stream(), tiny.word_stream(), chat_stream()):
        save_stream(stream, root)
    world.fresh()
    heads = ["--classifier", "Linear", "--il_mode", "CIL"]  # the first run of each kind imports what the others use
    assert main_CL.main(world.argv(*heads, dataset="words", backbone=tiny.backbone_folder("bert_encoder"))) == 0
    keep = ["--save_llm_ckpt", "true", "--wandb_name", "done", "--seed", "1"]
    assert main_CL.main(world.argv(*keep)) == 0
    shutil.copytree(next((world.case / "out/done").iterdir()), root / "done")
    with mock.patch.object(checkpoint, "save", save_and_stop), contextlib.suppress(Interrupted):
        main_CL.main(world.argv("--wandb_name", "half"))
    shutil.copytree(next((world.case / "out/half").iterdir()), root / "half")
    return world


def chat_stream() -> Stream:
    """The micro stream as chats of one question."""
    stream = tiny.micro_stream(2)

    def chat(rows: tuple[Example, ...]) -> tuple[Example, ...]:
        return tuple(Example(e.input, e.target, messages=(("user", e.input), ("assistant", e.target))) for e in rows)

    tasks = tuple(TaskData(t.name, chat(t.train), chat(t.dev), chat(t.test)) for t in stream.tasks)
    return Stream("chats", tasks, {"PROMPT_TYPE": "none", "MAX_NEW_TOKENS": [8] * 2})


def chatty_backbone(world: World, template: str | None = None, family: str = "SmolLM2") -> str:
    """A saved model whose tokenizer has a chat template."""
    folder = world.case / "chatty"
    if not folder.exists():
        words = words_of(FAMILIES[family])
        tiny.make_model("neox", initializer_range=0.05, layers=1).save_pretrained(folder)
        words.chat_template = words.chat_template if template is None else template
        words.save_pretrained(folder)
        _fit_rows(folder, len(words))
    return str(folder)


def _fit_rows(folder: Path, rows: int) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    if rows > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows)
        model.save_pretrained(folder)
