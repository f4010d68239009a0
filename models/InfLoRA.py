"""InfLoRA: low-rank adaptation in a subspace orthogonal to the inputs of earlier tasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.Base import WRITING, Setting, Task
from models.common.measuring import measuring
from models.common.subspace import design, extend
from models.PEFT import PEFT
from utils.config import Config, Float, OptionGroup, search
from utils.dataloader import Batch, Encoded, collate
from utils.dataset import Stream
from utils.distributed.collectives import share, sum_over_processes
from utils.errors import UserError
from utils.model import adapters
from utils.model.forward import has_plain_head


class InfLoRAOptions(OptionGroup):
    """InfLoRA."""

    InfLoRA_threshold: Float = Field(
        0.95,
        json_schema_extra=search(0.9, 0.95, 0.99),
        gt=0,
        le=1,
        description="eps, share of the old inputs protected from later tasks; rises to 1 over the stream.",
    )
    InfLoRA_share_of: Literal["squares", "fourths"] = Field(
        "squares", description="Powers of the singular values that eps is a share of: as in the paper, or in its code."
    )


class InfLoRA(PEFT):
    """Learns each task with a LoRA whose down-projection is designed to be orthogonal to the inputs of earlier tasks.

    Liang and Li, "InfLoRA: Interference-Free Low-Rank Adaptation for Continual Learning", CVPR 2024. With the inputs
    of a layer in task t as the columns of H_t and an orthonormal basis M of the inputs of earlier tasks,

        y = W x + sum_{i <= t} B_i A_i x        (the paper's A and B are ours the other way round)
        A_t = U_r^T / sqrt(3),   (I - M M^T) H_t = U S V^T

    and only B_t is trained. As A_t M = 0, B_t has no effect on the span of M. After the task M is extended by
    directions of H_t until it holds a share eps_t = eps + (1 - eps) t / T of ||H_t||^2, the sum of squared singular
    values (GPM; Saha et al., ICLR 2021). The published code decomposes H_t H_t^T and takes the share of the sum of
    fourth powers (`InfLoRA_share_of: fourths`), so that M is smaller and new tasks have more room: 8 to 28 directions
    of 128 instead of 58 to 81, and 97.4 instead of 87.6 when just learned, on biographies at eps .95.

    Singular vectors come from the (D, D) sum of H H^T; one for all layers with the same inputs (such as those of
    queries, keys and values), which also share M, is in memory at the start and end of a task. The 1 / sqrt(3), as in
    the published code, is the length of the rows that LoRA usually starts with. Deviations: M is kept as it is where
    DualGPM keeps its complement if that is smaller: same subspace, at most D^2 numbers; the factors of earlier tasks
    are summed with the base, not merged into it, so that the base stays frozen.
    """

    Options = InfLoRAOptions
    options: InfLoRAOptions  # type: ignore[assignment]  # per_task and inference, which read the options of PEFT, are set below
    backbones = WRITING
    per_task = True
    inference = "sum"
    designs = True  # the down-projections; they are not trained
    state: ClassVar[tuple[str, ...]] = ("basis",)
    excludes: ClassVar = {Setting("keep_optimizer_state"): "each task has separate parameters"}

    @classmethod
    def problems(cls, config: Config, options: Any, stream: Stream) -> list[str]:
        return adapters.need_lora(config)

    def setup(self) -> None:
        super().setup()
        adapters.refuse_experts(self.model, type(self).__name__)
        net = adapters.innermost(self.model)
        if any(hasattr(part, "base_layer") for part in (net.get_input_embeddings(), net.get_output_embeddings())):
            raise UserError("PEFT_lora_target_modules: InfLoRA needs inner layers; leave out embeddings and head")
        has_plain_head(net)  # tries the model, which remembers the result, before anything is watched
        self.basis: dict[str, Tensor] = {}  # first layer with these inputs -> M
        self.readers: dict[str, str] = {}  # layer -> first layer with the same inputs

    def before_task(self, task: Task) -> None:
        super().before_task(task)
        if self.designs:
            self._design(task)

    def _design(self, task: Task) -> None:
        newest = adapters.factors(self.model, "A", adapters.names(self.model)[-1])
        rank = self.config.PEFT_lora_r
        designed = {
            first: design(covariance, self.basis.get(first, covariance[:, :0]), rank)
            for first, covariance in self.covariances(task).items()
        }
        for layer, a in newest.items():
            a.data.copy_(designed[self.readers[layer]])
        rows = [float(row.norm()) for a in newest.values() for row in a.detach()]
        if empty := rows.count(0.0):
            self.session.log.warning(
                f"task {task.index}: {empty} of {len(rows)} rows of the down-projections are 0 and learn nothing: the "
                "inputs have no other direction that earlier tasks left free (lower InfLoRA_threshold or PEFT_lora_r)"
            )
        self.session.log.event("subspace", task=task.index, rows=len(rows), empty=empty)

    def frozen(self, task: Task) -> set[str]:
        down = {name for name, _ in self.model.named_parameters() if ".lora_A." in name} if self.designs else set()
        return super().frozen(task) | down

    def after_task(self, task: Task) -> None:
        super().after_task(task)
        if self.designs and task.index + 1 < len(self.stream.tasks):
            self.protect(self.basis, self.covariances(task), self.options.InfLoRA_threshold, task)

    def protect(self, basis: dict[str, Tensor], covariances: dict[str, Tensor], eps: float, task: Task) -> None:
        """Extend the bases by directions of this task's inputs until they hold the share eps_t."""
        wanted = eps + (1 - eps) * task.index / len(self.stream.tasks)
        power = {"squares": 2, "fourths": 4}[self.options.InfLoRA_share_of]
        for name, covariance in covariances.items():
            basis[name] = extend(basis.get(name, covariance[:, :0]), covariance, wanted, power)

    @torch.no_grad()
    def covariances(self, task: Task) -> dict[str, Tensor]:
        """H H^T (D, D) float64 of the inputs of layers with LoRA, over all tokens of the task's training texts.

        Layers with the same inputs have one, under the name of the first of them; see `readers`.
        """
        rows = self.encoder(task.train, task.max_length)
        groups, sums = self._groups(rows), dict[str, Tensor]()
        mine = share(len(groups))  # the same batches whatever the number of processes
        for i in mine or [0]:  # one without a batch also finds out which layers have the same inputs
            examples = [task.train[k] for k in groups[i]]
            batch = collate([rows[k] for k in groups[i]], examples, self.backbone.pad_id).to(self.model.device)
            with measuring(self), self._watched(batch, sums):
                self.scores(self.model, batch, task.index)
        for layer, a in adapters.factors(self.model, "A", adapters.names(self.model)[-1]).items():
            if self.readers.setdefault(layer, layer) == layer and (layer not in sums or not mine):
                sums[layer] = a.new_zeros(a.shape[1], a.shape[1], dtype=torch.float64)
        return sum_over_processes(dict(sorted(sums.items())))

    def _groups(self, rows: Sequence[Encoded]) -> list[list[int]]:
        """Places of the rows of each batch; rows of an encoder-decoder share one only without any padding."""
        shapes = {k: (len(row.prompt), len(row.answer)) for k, row in enumerate(rows)}
        alike = defaultdict[Any, list[int]](list)
        for k, shape in shapes.items():
            alike[shape if self.backbone.kind == "encoder-decoder" else None].append(k)
        size = self.config.evaluate_batch_size
        return [group[i : i + size] for group in alike.values() for i in range(0, len(group), size)]

    @contextmanager
    def _watched(self, batch: Batch, sums: dict[str, Tensor]) -> Iterator[None]:
        """Add up what goes into the layers inside the `with`; layers that are given one tensor are called in a row."""
        real = batch.attention_mask.bool()
        last: tuple[str, Tensor | None] = "", None  # a layer, and what it was given

        def watch(layer: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def look(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
                nonlocal last
                first = last[0] if args[0] is last[1] else layer
                if self.readers.setdefault(layer, first) != first:
                    raise RuntimeError(f"{layer} used to have the inputs of {self.readers[layer]}, and now of {first}")
                if first != layer:
                    return
                last = layer, args[0]
                x = args[0].flatten(end_dim=-2).double()
                if self.backbone.kind == "decoder":
                    x = x[real.flatten()]
                sums[layer] = sums.get(layer, 0) + x.T @ x

            return look

        layers = adapters.factors(self.model, "A", adapters.names(self.model)[-1])
        hooks = [self.model.get_submodule(layer).register_forward_pre_hook(watch(layer)) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
