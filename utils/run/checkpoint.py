"""Checkpoints that are either whole or absent, in the format of transformers.

A checkpoint is a folder that `AutoModelForCausalLM.from_pretrained` loads, tokenizer included; if only adapters are
trained, it holds these alone, for `PeftModel.from_pretrained`. What a resumed run needs in addition: state.safetensors
(tensors), state.json (the rest) and manifest.json (sha256 of every file). It is written under a temporary name, synced,
then renamed. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._pytree import tree_map_only

from utils.distributed.collectives import from_main, is_main
from utils.errors import UserError
from utils.model import adapters
from utils.model.architecture import Model
from utils.storage.files import read_json, sync_folder, write_json

Packed = tuple[Any, dict[str, Tensor]]
_NAME = re.compile(r"task_(\d+)(?:_epoch_(\d+)_step_(\d+))?")


@dataclass(frozen=True)
class Place:
    """Where in the stream a checkpoint was taken."""

    task: int
    epoch: int | None = None  # None: the task is finished, hooks included
    step: int | None = None

    @property
    def finished(self) -> bool:
        """True if the task is finished."""
        return self.epoch is None

    @property
    def name(self) -> str:
        """Name of the checkpoint's folder."""
        inside = "" if self.epoch is None else f"_epoch_{self.epoch}_step_{self.step}"
        return f"task_{self.task}{inside}"


def save(root: Path, place: Place, model: Model, tokenizer: Any, state: Packed, limit: int | None) -> None:
    """Write a checkpoint; then remove the oldest ones that are too many.

    Args:
        root: The run's folder of checkpoints.
        place: How far the run is.
        model: A transformers model, unwrapped.
        tokenizer: Saved with the model.
        state: What `pack` makes of nested dicts and lists of tensors and plain values.
        limit: The most checkpoints to keep; None: all.
    """
    draft, final, old = root / f".{place.name}.tmp", root / place.name, root / f".{place.name}.old"
    for rest_of_a_crash in (draft, old):
        _remove(rest_of_a_crash)
    draft.mkdir(parents=True)
    adapters.save(model, draft)
    tokenizer.save_pretrained(draft)
    plain, tensors = state
    save_file(tensors, draft / "state.safetensors")
    write_json(draft / "state.json", {"place": asdict(place), "state": plain}, indent=None)
    files = sorted(path for path in draft.rglob("*") if path.is_file())
    write_json(draft / "manifest.json", {str(path.relative_to(draft)): _sha256(path) for path in files})
    for path in files:
        _sync(path)
    sync_folder(draft)
    if final.exists():  # never delete the only checkpoint before the new one is in place
        os.replace(final, old)
    os.replace(draft, final)
    sync_folder(root)
    _remove(old)
    prune(root, limit)


def _remove(path: Path) -> None:
    """Remove a checkpoint; of one that the user moved to another disk and linked, only the link."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def read_place(folder: Path) -> Place:
    """Where in the stream a checkpoint was taken, even if its folder was renamed."""
    return Place(**read_json(folder / "state.json")["place"])


def prune(root: Path, limit: int | None) -> None:
    """Remove all checkpoints but the newest ones, the oldest first; None: keep all."""
    for place in checkpoints(root)[:-limit] if limit else ():
        _remove(root / place.name)


def checkpoints(root: Path) -> list[Place]:
    """The whole checkpoints in a folder, oldest first."""
    found = [_NAME.fullmatch(path.name) for path in root.glob("task_*")] if root.is_dir() else []
    return sorted((_place(match) for match in found if match), key=_later)


def _place(match: re.Match[str]) -> Place:
    task, epoch, step = match.groups()
    return Place(int(task)) if epoch is None else Place(int(task), int(epoch), int(step))


MAPPED = "moments"  # read once, to be copied to where the optimizer needs them


def load_state(folder: Path) -> dict[str, Any]:
    """The state in a checkpoint; all processes must call this.

    AdamW's moments, twice the size of what is trained, stay in the file: they are mapped into memory, which the
    processes of a machine share.

    Raises:
        UserError: a file is missing or damaged.
    """
    if (broken := from_main(_first_broken(folder))) is not None:
        raise _broken(Path(broken), folder)
    with safe_open(folder / "state.safetensors", framework="pt") as file:
        mapped = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    state: dict[str, Any] = unpack(read_json(folder / "state.json")["state"], mapped)
    # Copies: torch multiplies tensors of another alignment in another order, which rounds differently.
    copied = {name: tree_map_only(Tensor, Tensor.clone, value) for name, value in state.items() if name != MAPPED}
    return state | copied


def _first_broken(folder: Path) -> str | None:
    """The first file that is missing or damaged; only the main process reads them all."""
    if not is_main():
        return None
    listed = _manifest(folder)
    if listed is None:
        return str(folder / "manifest.json")
    files = {folder / name: expected for name, expected in listed.items()}
    return next((str(path) for path, sha in files.items() if not path.is_file() or _sha256(path) != sha), None)


def _manifest(folder: Path) -> dict[str, str] | None:
    """Checksums of all files that are loaded; None: unreadable, or a file is left out, which is as bad as damage."""
    try:
        listed = read_json(folder / "manifest.json")
    except UserError:
        return None
    needed = {"state.json", "state.safetensors"} | {file.name for file in folder.glob("*.safetensors")}
    return listed if isinstance(listed, dict) and needed <= set(listed) else None


def _broken(path: Path, folder: Path) -> UserError:
    """The error about a file of a checkpoint, with what to do."""
    return UserError(
        f"{path} is {'damaged' if path.is_file() else 'missing'}; delete the folder {folder} and resume again "
        "from the checkpoint before it or from the beginning"
    )


def load_weights(model: Model, folder: Path) -> None:
    """Give a model the weights of a checkpoint, exactly; what is not in there (the base of adapters) it has already."""
    if adapters.has_adapters(model):
        adapters.load(model, folder)
        return
    saved = type(model).from_pretrained(folder, dtype=model.dtype).state_dict()
    model.load_state_dict({name: saved[name] for name in model.state_dict()})  # an encoder comes with a new pooler


def pack(state: Any) -> Packed:
    """Split nested dicts and lists into JSON values and tensors.

    A tensor becomes {"tensor": its key}; a dict becomes {"dict": [[key, value], ...]}, which keeps keys that JSON
    would turn into text.
    """
    tensors: dict[str, Tensor] = {}

    def keep(value: Tensor) -> str:
        tensors[key := str(len(tensors))] = _on_host(value.detach())
        return key

    return split(state, keep), tensors


def _on_host(value: Tensor) -> Tensor:
    """A copy in separate memory, made once: safetensors refuses tensors that share memory."""
    copied = torch.empty(value.shape, dtype=value.dtype)  # contiguous, and without a second copy from a GPU
    return copied.copy_(value)


def split(state: Any, keep: Callable[[Tensor], Any]) -> Any:
    """Nested dicts and lists as JSON values, see `pack`; `keep` gets each tensor and returns its key."""
    if isinstance(state, Tensor):
        return {"tensor": keep(state)}
    if isinstance(state, dict):
        return {"dict": [[split(k, keep), split(v, keep)] for k, v in state.items()]}
    if isinstance(state, list | tuple):
        return {"tuple" if isinstance(state, tuple) else "list": [split(v, keep) for v in state]}
    return state


def unpack(plain: Any, tensors: dict[str, Tensor]) -> Any:
    """Inverse of `pack`.

    >>> unpack(*pack({"a": [1, (2, None)], 3: "x"}))
    {'a': [1, (2, None)], 3: 'x'}
    """
    if not isinstance(plain, dict):
        return plain
    ((kind, value),) = plain.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {unpack(k, tensors): unpack(v, tensors) for k, v in value}
    return (tuple if kind == "tuple" else list)(unpack(v, tensors) for v in value)


def _later(place: Place) -> tuple[int, bool, int, int]:
    return (place.task, place.epoch is None, place.epoch or 0, place.step or 0)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
