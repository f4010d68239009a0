"""What stops a run before its end - no memory, no disk, a lost process - in one sentence that says how to resume."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from utils.errors import UserError, exit_code
from utils.options.parse import fail
from utils.run.checkpoint import checkpoints

NO_MEMORY = (  # torch raises a plain RuntimeError on a CPU, and for the libraries of a GPU
    "out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip
NO_PARTNER = (  # gloo's words, and NCCL's
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "a remote process exiting prematurely",
)


@contextmanager
def explained(folder: Path | None) -> Iterator[None]:
    """Turn an error that a user can fix into a UserError; anything else passes unchanged.

    Args:
        folder: The run folder; None: not created yet.
    """
    try:
        yield
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        raise UserError(sentence + ("" if folder is None else f"; {how_to_resume(folder)}")) from error


@contextmanager
def leaving_at_once(processes: int) -> Iterator[None]:
    """Report an error and end this process without waiting, if it is one of several: the launcher then ends the rest.

    The usual end would wait for processes that wait for this one in a collective: on GPUs until the time-out.
    """
    try:
        yield
    except BaseException as error:
        if processes == 1:
            raise
        code = _report(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _report(error: BaseException) -> int:
    """Print what main_CL or Python would print; returns the exit code."""
    if isinstance(error, UserError):
        return fail(error)
    if isinstance(error, KeyboardInterrupt):
        if error.args:
            print(error, file=sys.stderr)
        return exit_code(error)
    traceback.print_exception(error)
    return 1


def explain(error: Exception) -> str | None:
    """What stopped the run and what to do about it; None if that is not known."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _says(error, NO_MEMORY):
        return (
            "out of memory: raise gradient_accumulation_steps or lower evaluate_batch_size (both change only rounding, "
            "so they may be edited in the config.yaml of the run), or start a new run with a lower batch_size or "
            "max_seq_length"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or 'a file'} could not be read or written: {error.strerror}; fix that"
    if isinstance(error, SafetensorError) or "(os error " in text:  # the second: of tokenizers, in Rust
        return f"a checkpoint could not be read or written: {text}; fix that"
    if _says(error, NO_PARTNER):
        return "another process of this run ended"
    return None


def how_to_resume(folder: Path) -> str:
    """The command that resumes a run, and from where."""
    places = checkpoints(folder / "checkpoints")
    start = f"from checkpoint {places[-1].name}" if places else "from the beginning"
    return f"resume it {start} with: python main_CL.py --resume {shlex.quote(str(folder))}"


def _says(error: Exception, texts: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
