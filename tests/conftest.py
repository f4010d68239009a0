"""Settings of all tests."""

import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # tiny models spend their time handing work between threads
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks a hub
os.environ["WANDB_MODE"] = "offline"

from utils.report import plots

DRAW, PNG = plots._save, b"\x89PNG\r\n"
plots._save = lambda _figure, path: path.write_bytes(PNG)  # drawing would take a fifth of the time of a tiny run
os.fsync = lambda _file: None  # another tenth; no test cuts the power


@pytest.fixture
def figures(monkeypatch):
    """Figures of runs are drawn."""
    monkeypatch.setattr(plots, "_save", DRAW)
