"""Recipes for pretraining a backbone on biographies, one per number of invented persons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from utils.errors import UserError


def _option(text: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Recipe:
    """The model, its data and its training."""

    steps: int = _option("optimizer steps")
    context: int = _option("tokens of a chunk")
    batch: int = _option("chunks of an optimizer step, over all processes")
    accumulation: int = _option("parts into which each process cuts its share of a batch, to save memory", 1)
    lr: float = _option("highest learning rate (AdamW, cosine)")
    min_lr: float = _option("learning rate at the end")
    warmup: int = _option("steps with a rising learning rate")
    weight_decay: float = _option("weight decay; not for biases and norms", 0.1)
    beta2: float = _option("AdamW's second beta", 0.999)
    epsilon: float = _option("AdamW's epsilon", 1e-6)
    precision: str = _option("float32, or bfloat16 for autocast", "float32")
    persons: int = _option("biographies of the first persons to read; 0: those of task 0", 0)
    backbone: str = _option("model whose shape and tokenizer are used, with new weights; empty: a tiny GPT-NeoX", "")
    layers: int = _option("layers of the tiny model", 2)
    width: int = _option("hidden size of the tiny model", 128)
    heads: int = _option("attention heads of the tiny model", 4)
    vocab: int = _option("tokens of the tiny model's own vocabulary", 1024)

    def __post_init__(self) -> None:
        """Check the ranges of the options.

        Raises:
            UserError: an option is out of its range.
        """
        for name in ("steps", "context", "batch", "accumulation", "layers", "width", "heads"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}: expected at least 1, got {getattr(self, name)}")
        if self.context < 2 or min(self.persons, self.warmup, self.weight_decay) < 0:
            raise UserError("expected --context of at least 2, and no negative --persons, --warmup or --weight-decay")
        if not 0 <= self.min_lr <= self.lr or self.lr == 0:
            raise UserError(f"--lr {self.lr} --min-lr {self.min_lr}: expected 0 <= min-lr <= lr and lr > 0")
        if self.precision not in ("float32", "bfloat16"):
            raise UserError(f"--precision: expected float32 or bfloat16, got {self.precision}")
        if not self.backbone and self.width % (2 * self.heads):
            raise UserError(f"--width {self.width}: expected a multiple of twice --heads ({self.heads})")


RECIPES = {
    "micro": Recipe(40, 64, 4, lr=3e-3, min_lr=3e-4, warmup=5, width=32, heads=2, vocab=400),
    "demo": Recipe(4000, 128, 16, lr=2e-3, min_lr=2e-4, warmup=50, beta2=0.98),
    # benchmarks.gpu_study: 23 M parameters, 32 epochs of five biographies each; 3.9 minutes on one H200
    "small": Recipe(1500, 512, 256, lr=1e-3, min_lr=1e-4, warmup=100, precision="bfloat16", persons=20_000,
                       layers=12, width=384, heads=6, vocab=4096),
    # Zheng et al. (ICLR 2025), released pre_training.py: 100,000 persons, 17-18 hours
    "paper": Recipe(80_000, 512, 96, lr=1e-3, min_lr=1e-4, warmup=1000, precision="bfloat16",
                    backbone="EleutherAI/pythia-160m"),
}  # fmt: skip
