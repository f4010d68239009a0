"""Compiled blocks: the same training, and nothing left behind."""

from functools import partial

import pytest
import torch

from tests import tiny
from utils.model.freeze import blocks
from utils.model.shortcuts import compiled
from utils.options import checks
from utils.run.fit import fit


def losses(method="SEQ", family="neox", **options):
    """The loss of each step of a task of 12 examples."""
    config = tiny.make_config(method, backbone=tiny.backbone_folder(family), training_epochs=2, **options)
    made = tiny.make_method(session := tiny.make_session(config))
    made.before_task(task := tiny.make_task(epochs=2))
    fit(made, task, session)
    assert not any("forward" in vars(block) for block in blocks(made.model))
    return [event["loss"] for event in session.log.events if event["event"] == "train"]


@pytest.mark.parametrize(
    "options",
    [pytest.param({}, marks=pytest.mark.slow), pytest.param({"gradient_checkpointing": True}, marks=pytest.mark.long)],
    ids=str,
)
def test_training_is_the_same(options):
    plain = losses(**options)
    assert losses(torch_compile=True, **options) == pytest.approx(plain, rel=1e-5)


def test_blocks_are_compiled_in_steps_alone(monkeypatch):
    made = []
    monkeypatch.setattr(torch, "compile", lambda call, dynamic: made.append(dynamic) or call)
    plain = losses()
    assert made == [] and losses(torch_compile=True) == plain and made == [True, True]
    frozen = {"freeze_parts": ("embeddings", "layers 0-0"), "freeze_from_task": 0, "keep_frozen_states": "memory"}
    made.clear()
    assert losses(torch_compile=True, **frozen) == losses(**frozen) and made == [True]


@pytest.mark.long
@pytest.mark.parametrize("name", tiny.TESTED)
def test_every_method_trains_the_same(name, monkeypatch):
    """Traced, but not translated to C++, which would take minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, traced = (learned(name, torch_compile=wish) for wish in (False, True))
    assert traced == pytest.approx(plain, rel=1e-4, abs=1e-5)


def learned(name, **options):
    events = tiny.learn(tiny.make_config(name, training_epochs=2, info_per_steps=1, **options)).log.events
    return [event["loss"] for event in events if event["event"] == "train"]


def test_what_cannot_be_compiled_is_refused(monkeypatch):
    config = tiny.make_config(torch_compile=True)
    monkeypatch.setattr(compiled.shutil, "which", lambda _: None)
    if not torch.cuda.is_available():
        (problem,) = checks.problems(tiny.plan(config))
        assert problem.startswith("torch_compile: needs a C++ compiler")
