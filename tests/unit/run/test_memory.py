"""The memory of a device in the plan of a run, against what a real step has."""

import pytest
import torch

from models.Base import Method
from tests import tiny
from utils.dataloader import parts_of
from utils.distributed.modes import autocast
from utils.run.plan.memory import PASS, Live, longest, memory_of


def made(method="SEQ", family="neox", **options):
    config = tiny.make_config(method, backbone=tiny.backbone_folder(family), **options)
    return tiny.make_method(tiny.make_session(config))


def counted(method, task):
    """The most bytes in real passes forward and backward, as one process does them."""
    config = method.config
    parts = parts_of(config.batch_size, 1, config.gradient_accumulation_steps)
    batch = method.collated(longest(method, task, config.batch_size // parts), task)
    learning = method.learning(task)
    for name, w in method.named().items():
        w.requires_grad_(name in learning)
    method.model.train()
    with Live(method.model, method.extra) as live:
        for _ in range(min(parts, 2)):
            live.most = live.now
            with autocast(config, torch.device("cpu")):
                loss = sum(Method.loss(method, method.model, batch, task).values())
            loss.backward()
            del loss
    return live.most


CASES = (
    {},
    {"PEFT_type": "LoRA"},
    {"gradient_accumulation_steps": 2},
    {"mixed_precision": "bfloat16"},
    {"gradient_checkpointing": True},
    {"freeze_parts": ["embeddings", "layers 0"]},
    {"family": "llama"},
    {"family": "gpt2"},
    {"family": "t5"},
)


@pytest.mark.parametrize("options", [CASES[0], *(pytest.param(case, marks=pytest.mark.slow) for case in CASES[1:])])
def test_the_plan_has_the_bytes_of_a_real_step(options):
    task = tiny.make_task(0)
    expected = counted(made(**options), task)
    assert memory_of(made(**options), task, 1, None)[PASS] == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
def test_a_mode_divides_what_its_processes_share():
    task = tiny.make_task()
    one = memory_of(made(), task, 1, None)
    assert one["AdamW"] == 2 * one["weights"]
    for mode, divided in {
        "DDP": (),
        "ZeRO-1": ("AdamW",),
        "ZeRO-2": ("AdamW",),
        "ZeRO-3": ("AdamW", "weights"),
        "FSDP2": ("AdamW", "weights"),
    }.items():
        found = memory_of(made(), task, 2, mode)
        for name in ("weights", "AdamW"):
            assert found[name] == one[name] / (2 if name in divided else 1), (mode, name)
        assert found.get("share of the gradients", 0) == (one["weights"] / 2 if mode[-1] in "23" else 0)
        assert found[PASS] < one[PASS] or mode in ("DDP", "ZeRO-1")
