"""Speed of reading virtual tokens once for all rows of a batch (utils/model/forward.py).

    python -m benchmarks.prompts [--rounds 9]          about two minutes on one core

A step of ProgPrompt on the embedded backbone: forward and backward of 16 questions of biography_demo_task2 after n
virtual tokens, read in every row (plain) and once (own), alternating. Printed: both speeds, median and range of the
paired ratios.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from benchmarks.common import compare
from models.common.losses import answer_loss
from utils.backbone import load_backbone
from utils.config import Config
from utils.dataloader import Batch, Encoder, collate
from utils.dataset import load_stream
from utils.model import forward
from utils.model.architecture import Backbone

ROOT = Path(__file__).resolve().parents[1]
ROWS, STEPS, COUNTS = 16, 3, (30, 100, 300, 600)


def load() -> tuple[Backbone, Batch]:
    """The embedded backbone, frozen, and a batch of the embedded stream."""
    stream = load_stream("biography_demo_task2", ROOT / "dataset")
    backbone = load_backbone(Config(cfg=None, backbone=str(ROOT / "dataset" / "biography_demo_backbone")))
    backbone.model.requires_grad_(False).train()
    examples = stream.tasks[0].train[:ROWS]
    return backbone, collate(Encoder(backbone.tokenizer, "qa")(examples, None), examples, backbone.pad_id)


def step(model: nn.Module, batch: Batch, prompt: nn.Parameter, can: Callable[[nn.Module], bool]) -> None:
    """Forward and backward, one way."""
    with mock.patch.object(forward, "can_read_ahead", can):
        for _ in range(STEPS):
            prompt.grad = None
            answer_loss(*forward.answer_logits(model, batch, prompt), batch.tokens["all"]).backward()


def main(argv: list[str]) -> int:
    """Print a line for each number of virtual tokens."""
    parser = argparse.ArgumentParser("python -m benchmarks.prompts", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="pairs of measurements")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    (backbone, batch), ahead = load(), forward.can_read_ahead
    assert ahead(backbone.model)
    for count in COUNTS:
        prompt = nn.Parameter(torch.randn(count, backbone.model.config.hidden_size) * 0.02)
        plain, own = (partial(step, backbone.model, batch, prompt, can) for can in (lambda _: False, ahead))
        plain(), own()  # first touch of everything
        compare(f"{count} virtual tokens", STEPS * ROWS, "questions", plain, own, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
