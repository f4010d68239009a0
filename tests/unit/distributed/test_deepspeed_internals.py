"""Each private name of a library exists and behaves as utils/distributed/deepspeed_internals.py says."""

import copy
import gc
import os
import socket
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn

from tests import tiny
from utils.distributed import deepspeed_internals
from utils.model.freeze import blocks

SCRIPT = """
import torch, deepspeed
from deepspeed.utils import safe_get_full_optimizer_state, safe_set_full_optimizer_state
from utils.distributed import deepspeed_internals

assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__
deepspeed_internals.skip_shared_memory()
assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False
deepspeed.init_distributed(dist_backend="gloo")
for stage in (2, 3):
    model = torch.nn.Linear(3, 2)
    adamw = torch.optim.AdamW(model.parameters())
    config = {"train_batch_size": 1, "zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True}
    config["zero_force_ds_cpu_optimizer"] = False
    engine = deepspeed.initialize(model=model, optimizer=adamw, config=config)[0]
    (piece,) = deepspeed_internals.pieces(engine.optimizer)
    assert piece.dtype == torch.float32 and piece.numel() >= 8, piece
    if stage < 3:
        moments = {name: torch.zeros_like(piece) for name in ("exp_avg", "exp_avg_sq")}
        adamw.state[piece] = {"step": torch.tensor(1.0)} | moments
        deepspeed_internals.link_moments(engine.optimizer)
        whole = torch.arange(6.0).view(2, 3)
        safe_set_full_optimizer_state(model.weight, whole, "exp_avg")
        assert torch.equal(safe_get_full_optimizer_state(model.weight, "exp_avg"), whole)
        assert whole.sum() == adamw.state[piece]["exp_avg"].sum()
    engine.backward(engine(torch.ones(1, 3)).sum())
    engine.step()
    assert piece in adamw.state, "not what AdamW steps"
print("as described")
"""


@pytest.mark.slow
def test_pieces_and_moments_of_deepspeed():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=os.environ | ranks, capture_output=True, text=True, timeout=100
    )
    assert "as described" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize("family", ["neox", "t5"])
def test_block_classes_are_those_of_the_blocks(family):
    model = tiny.make_model(family)
    assert {type(block).__name__ for block in blocks(model)} <= deepspeed_internals.block_classes(model)


def test_hook_tables_hold_the_hooks():
    module, called = nn.Linear(1, 1), []
    module.register_forward_hook(lambda *_: called.append("after"))
    module.register_forward_pre_hook(lambda *_: called.append("before"))
    assert sum(len(table) for table in deepspeed_internals.hook_tables(module)) == 2
    known = {id(table): copy.copy(table) for table in deepspeed_internals.hook_tables(module)}
    twin = copy.deepcopy(module, known)
    twin(torch.zeros(1))
    assert called == ["before", "after"]


def test_what_was_prepared_is_forgotten_and_freed():
    session = tiny.make_session(tiny.make_config(mixed_precision="bfloat16"))
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model, stepper = session.accelerator.prepare(model, optimizer)
    model(torch.ones(1, 2)).sum().backward()
    stepper.step()
    moments = weakref.ref(optimizer.state[model.weight]["exp_avg"])
    gc.disable()
    try:
        del optimizer, stepper
        deepspeed_internals.forget_prepared(session.accelerator)
        assert moments() is None
    finally:
        gc.enable()
