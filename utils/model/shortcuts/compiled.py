"""torch.compile of the transformer blocks, in training steps alone (`torch_compile`).

Evaluation, rollouts and what a method measures outside of steps run the blocks as they are: their caches and hooks
would be compiled again and again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch

from utils.model.adapters import innermost
from utils.model.architecture import Model
from utils.model.freeze import blocks

SETTINGS = {
    "recompile_limit": 64,  # forms of a block: with and without gradients, in training and evaluation mode, per adapter
    "skip_nnmodule_hook_guards": False,  # by default hooks that a method adds after the first step are ignored
}
COMPILERS = ("g++", "c++", "clang++")


class CompiledBlocks:
    """Compiled forms of a model's blocks; each is compiled when it is first called, for all lengths at once.

    Args:
        model: Has the adapters of the task. Its weights may be replaced later: they are inputs of what is compiled.
        first: The lowest block that is compiled.
    """

    def __init__(self, model: Model, first: int = 0):
        self.forms = [
            (block, torch.compile(block.forward, dynamic=True)) for block in list(blocks(innermost(model)))[first:]
        ]

    @contextmanager
    def used(self) -> Iterator[None]:
        """The model runs its compiled blocks inside the `with`."""
        for block, form in self.forms:
            block.forward = form
        try:
            with torch._dynamo.config.patch(SETTINGS):
                yield
        finally:
            for block, _ in self.forms:
                del block.forward


def lacking() -> str | None:
    """What torch.compile needs and this machine lacks; None: nothing."""
    if torch.cuda.is_available():
        return None if find_spec("triton") else "the package triton"
    return None if any(map(shutil.which, COMPILERS)) else f"a C++ compiler ({', '.join(COMPILERS)})"
