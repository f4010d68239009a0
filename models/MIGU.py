"""Updates by the magnitude of outputs."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.Base import Method, Setting, Task
from utils.config import Float, OptionGroup, search
from utils.dataloader import IGNORE, Batch
from utils.distributed.collectives import sum_over_processes
from utils.model import adapters, targets
from utils.model.architecture import Model
from utils.model.weights import Weights
from utils.seed import seed_for


class MIGUOptions(OptionGroup):
    """MIGU."""

    MIGU_threshold: Float = Field(
        0.7,
        ge=0,
        le=1,
        description="q, share of the units of a layer that are not updated.",
        json_schema_extra=search(0.5, 0.7, 0.9),
    )
    MIGU_normalise: Literal["token", "none"] = Field(
        "token",
        description="Divide each token's outputs by their L1 norm, as in the paper, or add them up as they are.",
    )
    MIGU_strict: bool = Field(
        False, description="Also hold these units where momentum or weight decay would move them."
    )
    MIGU_choose: Literal["magnitude", "random"] = Field(
        "magnitude", description="Which units are updated: those with the largest outputs, or as many random ones."
    )


class MIGU(Method):
    """Updates only the units of each linear layer whose outputs are large on the batch.

    Du et al., "Unlocking Continual Learning Abilities in Language Models", Findings of EMNLP 2024. For a linear layer
    h = W x, over all tokens of an optimizer step that are not padding,

        n_j = sum_tokens |h_j| / |h|_1

    From the second task on, the gradients of the rows (with their biases) of units whose n_j is below the q-quantile of
    n are set to 0 before clipping. The head of the vocabulary and the embeddings are updated in full, as the paper
    states. With LoRA the layers are A and B. q is 0.7 in all published scripts.

    The released code adds up |h| (`MIGU_normalise: none`), padding included. AdamW still moves masked rows by momentum
    and weight decay, which the authors accept; `MIGU_strict` restores them bit for bit. n is of the training forward
    pass, with dropout, summed over micro-batches and processes.
    """

    Options = MIGUOptions
    options: MIGUOptions
    excludes: ClassVar = {Setting("padding_free"): "outputs are measured where rows are not padded"}
    state: ClassVar = ("steps",)

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.steps = 0  # of the whole stream, for random units
        self.masks: dict[str, Tensor] | None = None  # "" and "decoder": which tokens are real; None: not in training
        self.magnitude: dict[str, Tensor] = {}  # layer -> n (units), of the step in progress
        self.resting: dict[str, Any] = {}  # parameter -> index of its entries that are not updated in this step

    def setup(self) -> None:
        super().setup()
        self.layers = {name: self.model.get_submodule(name) for name in targets.linear(self.model)}
        for name, module in self.layers.items():
            module.register_forward_hook(lambda _module, _args, h, name=name: self._measure(name, h))
        net = adapters.innermost(self.model).base_model
        net.register_forward_pre_hook(lambda _module, _args, given: self._note(given), with_kwargs=True)

    def loss(self, model: Model, batch: Batch, task: Task) -> dict[str, Tensor]:
        is_filler = bool((batch.labels == IGNORE).all())  # the row of a process or part that has none in this step
        self.masks = None if is_filler else {}
        terms = super().loss(model, batch, task)
        self.masks = None  # recomputed activations do not count twice
        return terms

    def _note(self, given: dict[str, Any]) -> None:
        """Remember which tokens are real, from the inputs of the model."""
        if self.masks is not None:
            self.masks[""] = given["attention_mask"].bool()
            if (written := given.get("decoder_input_ids")) is not None:
                self.masks["decoder"] = written != self.backbone.pad_id
                self.masks["decoder"][:, 0] = True  # T5 starts with its padding token

    @torch.no_grad()
    def _measure(self, name: str, h: Tensor) -> None:
        """Add |h| (B, T, units) of the real tokens to n."""
        if self.masks is None:
            return
        size = h.detach().abs().float()
        if self.options.MIGU_normalise == "token":
            size = size / size.sum(dim=-1, keepdim=True).clamp(min=1e-12)
        # Keys and values of cross attention have the encoder's length; at equal lengths they count as the decoder's.
        order = ("decoder", "") if ".decoder." in f".{name}" else ("",)
        masks = [self.masks[part] for part in order if part in self.masks]
        real = next((mask for mask in masks if mask.shape == h.shape[:-1]), None)
        total = (size if real is None else size[real]).reshape(-1, h.shape[-1]).sum(dim=0)
        self.magnitude[name] = self.magnitude.get(name, 0) + total

    def on_gradients(self, task: Task) -> None:
        found, self.magnitude, self.resting = self.magnitude, {}, {}
        self.steps += 1
        if task.index == 0:
            return
        for number, (name, n) in enumerate(sum_over_processes(found).items()):
            if self.options.MIGU_choose == "random":
                rng = torch.Generator().manual_seed(seed_for(self.config.seed, "migu", self.steps, number))
                n = torch.rand(len(n), generator=rng).to(n.device)
            units = n < n.quantile(self.options.MIGU_threshold)
            is_transposed = not isinstance(self.layers[name], nn.Linear)  # GPT-2 has units in columns
            self.resting[f"{name}.weight"] = (slice(None), units) if is_transposed else units
            self.resting[f"{name}.bias"] = units
        named = self.named()
        self.resting = {name: rows for name, rows in self.resting.items() if name in named}
        for name, rows in self.resting.items():
            if (g := named[name].grad) is not None:
                g[rows] = 0

    def on_update(self, before: Weights, task: Task) -> None:
        if self.options.MIGU_strict:
            named = self.named()
            for name in self.resting.keys() & before.keys():
                named[name].data[self.resting[name]] = before[name][self.resting[name]]
