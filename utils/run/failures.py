"""What stops a run before its end - an interrupt, no memory, no disk - told in one sentence with the way to go on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from utils.errors import Terminated, UserError
from utils.run.checkpoint import checkpoints

NO_MEMORY = ("out of memory", "can't allocate memory")  # torch raises a plain RuntimeError on a CPU
NO_PARTNER = (  # gloo's words, and NCCL's
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "a remote process exiting prematurely",
)


@contextmanager
def explained(folder: Path | None) -> Iterator[None]:
    """Turn what a user can put right into a UserError; anything else passes as it is.

    Args:
        folder: The run folder; None: there is none yet.
    """
    try:
        yield
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        raise UserError(sentence + ("" if folder is None else f"; {go_on(folder)}")) from error


def explain(error: Exception) -> str | None:
    """What stopped the run and what to do about it; None if that is not known."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _says(error, NO_MEMORY):
        return (
            "out of memory: raise gradient_accumulation_steps or lower evaluate_batch_size (neither changes what is "
            "computed, so both may be edited in the config.yaml of the run), or start a new run with a lower "
            "batch_size or max_seq_length"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or 'a file'} could not be read or written: {error.strerror}; put that right"
    if isinstance(error, SafetensorError):
        return f"a checkpoint could not be read or written: {text}; put that right"
    if _says(error, NO_PARTNER):
        return "another process of this run ended"
    return None


def go_on(folder: Path) -> str:
    """How a run is resumed, and from where."""
    places = checkpoints(folder / "checkpoints")
    start = f"after {places[-1].name}" if places else "at the beginning"
    return f"go on {start} with: python main_CL.py --resume {folder}"


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Let SIGTERM, which a cluster sends before it kills, end the run as Ctrl-C does."""

    def interrupt(*_) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _says(error: Exception, texts: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
