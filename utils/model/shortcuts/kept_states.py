"""Hidden states that enter the lowest trainable block, computed once per task instead of once per epoch.

Frozen blocks without dropout compute the same for a text in every epoch. Their output is computed for all texts when a
task begins, in batches that do not depend on the order of training, so that a resumed run has the same bits; in
training these blocks are skipped for batches of such texts. Shapes: B rows, T tokens, D hidden size.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.dataloader import Encoded, collate
from utils.dataset import Example
from utils.errors import UserError
from utils.model import adapters
from utils.model.architecture import Model, kind_of
from utils.model.forward import drops_out, model_inputs
from utils.model.freeze import blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # seconds to import: not for --help

Where = Literal["memory", "disk"]


def frozen_blocks(model: Model, learning: Mapping[str, nn.Parameter]) -> int:
    """Number of lowest blocks that are frozen, together with all below them.

    Args:
        model: A decoder without adapters.
        learning: All trainable parameters of a task, also those outside the model, by name as in `Method.named`.

    Raises:
        UserError: the frozen blocks do not compute the same for a text in every epoch.
    """
    net = adapters.innermost(model)
    if kind_of(net.config) != "decoder" or adapters.has_adapters(model):
        raise UserError("keep_frozen_states: expected a decoder without adapters; leave it out")
    if drops_out(net):
        raise UserError("keep_frozen_states: the model has dropout, so its frozen layers differ in every epoch")
    if any(name.startswith("extra.") and not name.startswith("extra.heads.") for name in learning):
        raise UserError("keep_frozen_states: the method trains extra modules, which may change what layers read")
    return frozen_below(model, learning)


def frozen_below(model: Model, learning: Mapping[str, nn.Parameter]) -> int:
    """Number of lowest blocks, of any model, that are frozen together with the input embeddings."""
    net, chosen = adapters.innermost(model), {id(w) for w in learning.values()}
    if any(id(w) in chosen for w in net.get_input_embeddings().parameters()):
        return 0
    trained = [i for i, block in enumerate(blocks(net)) if any(id(w) in chosen for w in block.parameters())]
    return trained[0] if trained else len(blocks(net))


def needs_frozen_blocks(model: Model, learning: Mapping[str, nn.Parameter]) -> None:
    """Check that states can be kept; arguments as in `frozen_blocks`.

    Raises:
        UserError: they cannot, or no block is frozen together with all below it.
    """
    if not frozen_blocks(model, learning):
        raise UserError(
            "keep_frozen_states: has no effect, as the embeddings or the lowest layer are trainable; "
            "set freeze_parts: [embeddings, layers 0-N]"
        )


class KeptStates:
    """The states of texts, by their token ids.

    Args:
        model: Whose lowest blocks are frozen.
        count: How many of them, at least one.
        where: Keep states in memory, or in a file without a name, which vanishes with the process.
        folder: Of that file.
    """

    def __init__(self, model: Model, count: int, where: Where, folder: Path):
        self.model, self.layers = model, cast("PreTrainedModel", adapters.innermost(model).base_model)
        self.skipped: list[nn.Module] = list(blocks(model))[:count]
        self.states: dict[tuple[int, ...], Any] = {}
        self.file = tempfile.TemporaryFile(dir=folder) if where == "disk" else None  # noqa: SIM115 (lives as long as this object)
        self.replayed: Tensor | None = None  # (B, T, D), while a batch of known texts is read
        self.is_tuple = False  # what a block returns

    @torch.no_grad()
    def fill(self, rows: Sequence[Encoded], pad_id: int, size: int) -> None:
        """Compute the states of encoded texts, `size` at a time; texts of similar length together."""
        texts = sorted({(*row.prompt, *row.answer) for row in rows}, key=lambda ids: (len(ids), ids))
        for start in range(0, len(texts), size):
            chosen = texts[start : start + size]
            batch = collate([Encoded(ids, ()) for ids in chosen], [Example("", "")] * len(chosen), pad_id)
            states = self._output(model_inputs(self.model, self.layers, batch.to(self.model.device)))
            for ids, row in zip(chosen, states, strict=True):
                self.states[ids] = self._write(row[len(row) - len(ids) :])

    def _output(self, given: dict[str, Any]) -> Tensor:
        """(B, T, D) of the last frozen block; the blocks above it do not run."""
        found: list[Any] = []

        def stop(_block: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            found.append(output)
            raise _EnoughError

        hook = self.skipped[-1].register_forward_hook(stop)
        try:
            self.layers(**given)
        except _EnoughError:
            pass
        finally:
            hook.remove()
        self.is_tuple = isinstance(found[0], tuple)
        states: Tensor = found[0][0] if self.is_tuple else found[0]
        return states

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside the `with` the frozen blocks are skipped for batches of which all texts are known."""
        reads = self.layers.register_forward_pre_hook(self._look_up, with_kwargs=True)
        for block in self.skipped:
            block.forward = self._skipping(block.forward)
        try:
            yield
        finally:
            reads.remove()
            for block in self.skipped:
                del block.forward

    def _look_up(self, _layers: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        """Assemble the states of a batch, if all its texts are known."""
        ids, rows = args[0] if args else given.get("input_ids"), []
        self.replayed = None
        if ids is None:  # embeddings that are no text
            return
        for row, mask in zip(ids.tolist(), given["attention_mask"].tolist(), strict=True):
            rows.append(tuple(token for token, is_read in zip(row, mask, strict=True) if is_read))
        if all(row in self.states for row in rows):
            found = [self._read(row).to(ids.device, non_blocking=True) for row in rows]
            self.replayed = torch.stack([F.pad(row, (0, 0, ids.shape[1] - len(row), 0)) for row in found])

    def _skipping(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The forward of a frozen block: the output of the last one where it is known, else its own."""

        def call(*args: Any, **options: Any) -> Any:
            if self.replayed is None:
                return forward(*args, **options)
            return (self.replayed,) if self.is_tuple else self.replayed

        return call

    def _write(self, row: Tensor) -> Any:
        """Store (T, D); returns what `_read` needs."""
        if self.file is None:
            return row.cpu().clone()
        at = self.file.seek(0, 2)
        self.file.write(row.contiguous().cpu().view(torch.uint8).numpy().tobytes())
        return at, row.shape, row.dtype

    def _read(self, ids: tuple[int, ...]) -> Tensor:
        """(T, D)."""
        kept: Any = self.states[ids]
        if self.file is None:
            whole: Tensor = kept
            return whole
        at, shape, dtype = kept
        self.file.seek(at)
        return torch.frombuffer(bytearray(self.file.read(shape.numel() * dtype.itemsize)), dtype=dtype).view(shape)


def size_of(rows: Sequence[Encoded], width: int, item: int) -> int:
    """Bytes of the states of these texts.

    >>> size_of([Encoded([5, 6], [7]), Encoded([5, 6], [7]), Encoded([5], [7])], 8, 4)
    160
    """
    return sum(map(len, {(*row.prompt, *row.answer) for row in rows})) * width * item


class _EnoughError(Exception):
    """The states are there; the rest of the forward pass is not needed."""
