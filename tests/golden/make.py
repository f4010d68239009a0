"""First losses of every method, tests/golden/losses.json. `python -m tests.make METHOD` writes those of one method.

`python -m tests.golden.make` writes all of them again; the commit says why the numbers moved.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from models import METHODS
from tests import tiny
from utils.factory import load_method
from utils.storage.files import read_json, write_json

FILE = Path(__file__).with_name("losses.json")
STEPS = 20
# Every shape of model and every frame setting that touches the loss, once.
SETTINGS = {
    "plain": {},
    "llama with BOS, batches in parts": {"family": "llama", "bos": True, "gradient_accumulation_steps": 3},
    "schedule, clipping, carried optimizer": {
        "lr_scheduler": "cosine", "warmup_ratio": 0.25, "max_grad_norm": 1.0, "keep_optimizer_state": True,
    },
    "frozen from task 1": {"freeze_parts": ("embeddings", "layers 0")},
    "replay in the batch": {"is_replay": True, "Replay_buffer_ratio": 0.5},
}  # fmt: skip


def names(methods: Collection[str] = METHODS) -> list[str]:
    """`METHOD: setting` of every curve of these methods; settings that a method excludes are left out."""
    return [
        f"{method}: {setting}"
        for method in METHODS
        if method in methods and load_method(method).trains
        for setting, options in SETTINGS.items()
        if not {setting.option for setting in load_method(method).excludes} & options.keys()
    ]


def losses(name: str) -> list[float]:
    """Mean loss of each of the first 20 optimizer steps."""
    method, setting = name.split(": ")
    options = dict(SETTINGS[setting])
    folder = tiny.backbone_folder(options.pop("family", "neox"), options.pop("bos", False))
    config = tiny.make_config(method, **{"info_per_steps": 1, "training_epochs": 3} | options)
    return tiny.learn(config.model_copy(update={"backbone": folder})).losses[:STEPS]


def write(methods: Collection[str] = METHODS) -> None:
    """Compute the curves of some methods again; those of other methods stay, those of no method go."""
    kept = read_json(FILE)
    made = {
        name: [round(value, 6) for value in losses(name)]
        for name in names()
        if name.split(": ")[0] in methods or name not in kept
    }
    write_json(FILE, {name: made.get(name, kept.get(name)) for name in names()})


if __name__ == "__main__":
    write()
