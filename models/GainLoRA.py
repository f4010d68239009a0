"""GainLoRA: a LoRA per task, each weighed by a gate that is closed on inputs of earlier tasks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from models.Base import GENERATING, Setting, Task
from models.common.gates import Gate, mean, prompts, weigh
from models.common.subspace import design
from models.InfLoRA import InfLoRA, InfLoRAOptions
from utils.config import Config, Count, Float, search
from utils.dataloader import Batch, Encoded, collate
from utils.dataset import Example, Stream
from utils.distributed.collectives import share, sum_over_processes
from utils.model import adapters
from utils.model.architecture import Model
from utils.model.head import Scores
from utils.model.weights import Weights
from utils.optimizer import Group
from utils.seed import seed_torch

NO_PROMPT = "gates read the prompt, which it does not separate from the answer"


class GainLoRAOptions(InfLoRAOptions):
    """GainLoRA."""

    GainLoRA_branch: Literal["InfLoRA", "OLoRA"] = Field(
        "InfLoRA", description="What keeps the branches apart: InfLoRA's designed projections, or O-LoRA's penalty."
    )
    GainLoRA_lambda: Float = Field(
        0.5, ge=0, description="Weight of the overlap of branches, with GainLoRA_branch OLoRA."
    )
    GainLoRA_hidden: Count = Field(100, description="Hidden units of a gate.")
    GainLoRA_threshold: Float = Field(
        0.995,
        gt=0,
        le=1,
        description="Share of the gates' old inputs protected from later tasks; rises to 1 over the stream.",
        json_schema_extra=search(0.95, 0.995),
    )


class GainLoRA(InfLoRA):
    """Learns a LoRA and a gate per task; a gate weighs its LoRA on each example, and starts closed on earlier tasks'.

    Liang, Chen and Li, "Gated Integration of Low-Rank Adaptation for Continual Learning of Large Language Models",
    NeurIPS 2025 (arXiv 2505.15424). With p the mean of the prompt's input embeddings,

        y = W x + sum_{i <= t} a_i(p) B_i A_i x
        a_i(p) = |2 sigmoid(4 cos(f_i(p), k_i)) - 1|,   f_i(p) = SiLU(U_i SiLU(V_i p))

    Earlier branches and gates are frozen, and all of them are read on every example. The new U_t, V_t start as those
    of the task before; k_t starts as the main direction of the task's f(p) off a basis M of the f(p) of earlier tasks.
    After each step the changes of V_t, U_t and k_t are projected off the earlier tasks' inputs of each, p, the hidden
    units and f(p). So on inputs that the three bases hold f_t is what f_(t-1) was, and a_t is 0. After the task the
    bases are extended until they hold a share eps_t, as InfLoRA's are (`InfLoRA_share_of` is for both). The log has the
    mean gain of each gate on the task's prompts, before and after it is learned.

    The branches are those of InfLoRA, whose A_t is designed and frozen, or of O-LoRA, whose overlap is penalised:
    L = L_task + lambda sum_{i < t} |A_i A_t^T|. Published for T5-large: r 4, alpha 32, lr 3e-4, 100 hidden units, eps
    .995 of the sum of fourth powers. A task whose prompts are mixtures of words of earlier tasks cannot open its gate.

    Deviations from the released code: p is divided by the length of the prompt, not of the padded batch; vectors are
    not decomposed in chunks; there is no dropout when bases are made; rows are not rescaled to their length after the
    projection, which would undo it.
    """

    Options = GainLoRAOptions
    options: GainLoRAOptions
    heads = GENERATING
    state: ClassVar[tuple[str, ...]] = ("basis", "held")
    excludes: ClassVar = {
        **InfLoRA.excludes,
        Setting("recovery"): NO_PROMPT,
        Setting("padding_free"): "gates weigh whole rows",
        Setting("keep_frozen_states"): "gates, which are trained, weigh what every layer adds",
    }

    @classmethod
    def problems(cls, config: Config, options: Any, stream: Stream) -> list[str]:
        branch = options.GainLoRA_branch
        unused = {"InfLoRA": ["GainLoRA_lambda"], "OLoRA": ["InfLoRA_threshold"]}[branch]
        found = [f"{name}: has no effect with GainLoRA_branch {branch}" for name in unused if options.is_changed(name)]
        return [*super().problems(config, options, stream), *found, *cls.outside_the_stream(config, "route")]

    @property
    def designs(self) -> bool:  # type: ignore[override]
        return self.options.GainLoRA_branch == "InfLoRA"

    @property
    def is_plain(self) -> bool:
        return False  # verification reads an answer with its prompt

    def setup(self) -> None:
        self.hooks: list[RemovableHandle] = []
        self.held: dict[str, Tensor] = {}  # part of a gate -> basis of what earlier tasks put into it
        self.gains: list[Tensor] = []  # a_i (B,) of the examples being read
        self.is_given = False
        super().setup()
        net = adapters.innermost(self.model)
        self.words = net.get_input_embeddings()
        width, hidden = self.words.get_parameter("weight").shape[1], self.options.GainLoRA_hidden
        seed_torch(self.config.seed, "gates")
        self.gates = nn.ModuleList([Gate(width, hidden) for _ in self.stream.tasks]).to(self.model.device)
        self.extra["gates"] = self.gates
        reader: Any = net.get_encoder() if self.backbone.kind == "encoder-decoder" else net.base_model
        reader.register_forward_pre_hook(self._look, with_kwargs=True)
        self._activate()

    def _activate(self) -> None:
        names = adapters.names(self.model)
        adapters.use(self.model, names)
        for hook in self.hooks:
            hook.remove()
        self.hooks = weigh(self.model, names, lambda i: self.gains[i])
        *old, self.new = (adapters.factors(self.model, "A", name) for name in names)
        self.spanned = {layer: torch.cat([a[layer].detach() for a in old]) for layer in self.new if old}

    @property
    def gate(self) -> Gate:
        """The gate of the newest branch."""
        return cast("Gate", self.gates[len(adapters.names(self.model)) - 1])

    def _open(self, p: Tensor) -> None:
        """Set the gains of all branches for examples whose prompts have these means (B, D)."""
        self.gains = [gate(p) for gate in self.gates[: len(adapters.names(self.model))]]

    def _look(self, _module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        """Set the gains when the model reads prompts; tokens that it writes after them do not change the gains."""
        cache = given.get("past_key_values")
        if self.is_given or (cache is not None and cache.get_seq_length()):
            return
        vectors, mask = given.get("inputs_embeds"), given.get("attention_mask")
        vectors = self.words(given.get("input_ids", *args[:1])) if vectors is None else vectors
        self._open(mean(vectors, vectors.new_ones(vectors.shape[:2]) if mask is None else mask))

    @torch.no_grad()
    def pooled(self, batch: Batch) -> Tensor:
        """p (B, D)."""
        return mean(self.words(batch.input_ids), prompts(batch))

    @contextmanager
    def reading(self, batch: Batch) -> Iterator[None]:
        """Inside the `with` the model reads prompts with their answers, and the gates the prompts alone."""
        self._open(self.pooled(batch))
        self.is_given = True
        try:
            yield
        finally:
            self.is_given = False

    def scores(self, model: Model, batch: Batch, index: int | None) -> tuple[Scores, Tensor]:
        with self.reading(batch):
            return super().scores(model, batch, index)

    def likelihoods(self, rows: Sequence[Encoded], task_id: int | None) -> list[float]:
        batch = collate(rows, [Example("", "")] * len(rows), self.backbone.pad_id).to(self.model.device)
        with torch.no_grad(), self.reading(batch):
            return super().likelihoods(rows, task_id)

    @torch.no_grad()
    def before_task(self, task: Task) -> None:
        super().before_task(task)
        if task.index > 0:
            self.gate.load_state_dict(self.gates[task.index - 1].state_dict())
        features = self._gate_covariances(task)["key"]
        (direction,) = design(features, self.held.get("key", features[:, :0]), 1)  # of length 1 / sqrt(3)
        self.gate.key.copy_(math.sqrt(len(direction)) * direction)
        if not direction.any():
            self.session.log.warning(
                f"task {task.index}: the gate cannot open, as the gate's features of earlier tasks span those of this "
                "one, so nothing is learned (lower GainLoRA_threshold)"
            )

    def trainable(self, task: Task) -> list[Group]:
        own, gates = {id(w) for w in self.gate.parameters()}, {id(w) for w in self.gates.parameters()}
        body, *heads = super().trainable(task)
        return [replace(body, parameters=[w for w in body.parameters if id(w) not in gates - own]), *heads]

    def loss(self, model: Model, batch: Batch, task: Task) -> dict[str, Tensor]:
        terms = super().loss(model, batch, task)
        if self.spanned and not self.designs:
            overlaps = [(old @ self.new[layer].T).abs().sum() for layer, old in self.spanned.items()]
            terms["orthogonal"] = self.options.GainLoRA_lambda * torch.stack(overlaps).sum()
        return terms

    def on_update(self, before: Weights, task: Task) -> None:
        names = {id(w): name for name, w in self.named().items()}
        for part, w in self.gate.parts() if self.held else ():
            old, basis = before[names[id(w)]], self.held[part]
            change = (w - old).double()
            w.copy_(old + change - change @ basis @ basis.T)

    def after_task(self, task: Task) -> None:
        super().after_task(task)
        self.protect(self.held, self._gate_covariances(task), self.options.GainLoRA_threshold, task)

    @torch.no_grad()
    def _gate_covariances(self, task: Task) -> dict[str, Tensor]:
        """Sum of v v^T, float64, of what the task's prompts put into each part of the newest gate; logs the gains."""
        rows, size = self.encoder(task.train, task.max_length), self.config.evaluate_batch_size
        sums = {part: w.new_zeros(w.shape[-1], w.shape[-1], dtype=torch.float64) for part, w in self.gate.parts()}
        sums["gains"] = self.gate.key.new_zeros(len(adapters.names(self.model)))
        starts = range(0, len(rows), size)
        for i in share(len(starts)):
            place = slice(starts[i], starts[i] + size)
            batch = collate(rows[place], task.train[place], self.backbone.pad_id).to(self.model.device)
            p = self.pooled(batch)
            self._open(p)
            sums["gains"] += torch.stack([gain.sum() for gain in self.gains])
            for part, v in self.gate.inputs(p).items():
                sums[part] += v.double().T @ v.double()
        sums = sum_over_processes(sums)
        gains = (sums.pop("gains") / len(rows)).tolist()
        self.session.log.info(f"task {task.index}: mean gains {', '.join(f'{gain:.3f}' for gain in gains)}")
        self.session.log.event("gains", task=task.index, gains=gains)
        return sums
