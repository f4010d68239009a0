"""Synaptic intelligence."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from models.Base import Method, Task
from utils.config import Config, Float, OptionGroup, search
from utils.dataloader import Batch
from utils.dataset import Stream
from utils.model.architecture import Model
from utils.model.weights import Weights
from utils.penalty import Penalty


class SIOptions(OptionGroup):
    """SI."""

    SI_c: Float = Field(0.1, ge=0, description="c, weight of the penalty.", json_schema_extra=search(0.01, 0.1, 1))
    SI_xi: Float = Field(1e-3, gt=0, description="xi, damping: added to the squared change of a weight.")


class SI(Method):
    """Penalises changes of each weight in proportion to how much its movement lowered the loss of earlier tasks.

    Zenke, Poole and Ganguli, "Continual Learning Through Synaptic Intelligence", ICML 2017. With g the gradient of the
    task's loss alone at the weights before a step, and d the change that the optimizer makes in this step,

        each step       W_k := W_k - g_k d_k
        after a task    Omega_k := max(0, Omega_k + W_k / ((theta_k - theta*_k)^2 + xi)),   theta* := theta,   W := 0
        L(theta) = L_t(theta) + c sum_k Omega_k (theta_k - theta*_k)^2

    g is the mean over the step's batch before clipping; d includes momentum, schedule and weight decay. The gradient of
    the penalty is added to g after g is read, so a step needs one backward pass. theta* is the first weights in the
    first task. The maximum is taken of the sum over tasks, as in the authors' code.

    c and xi are published for images only (0.1 and 1e-3 to 0.1). Fine-tuning moves a weight by far less than sqrt(xi):
    then Omega is about W / xi. The log has the share of such weights. In memory: Omega, theta* and W, float32, of the
    trainable weights. Heads of other tasks have Omega 0.
    """

    Options = SIOptions
    options: SIOptions
    state: ClassVar = ("importance", "anchor", "path")

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.importance: Weights = {}  # Omega
        self.anchor: Weights = {}  # theta*
        self.path: Weights = {}  # W
        self.slope: Weights = {}  # g of the step in progress

    @classmethod
    def problems(cls, config: Config, options: SIOptions, stream: Stream) -> list[str]:
        if config.backbone_dtype == "float32":
            return []
        return [
            f"backbone_dtype: SI adds up the changes of weights, which {config.backbone_dtype} may round to 0; use "
            "float32 (with mixed_precision: bfloat16)"
        ]

    def before_task(self, task: Task) -> None:
        learning = {name: w.detach().float() for name, w in self.learning(task).items()}
        self.anchor = {name: w.clone() for name, w in learning.items()} | self.anchor
        self.path = {name: w.new_zeros(w.shape) for name, w in learning.items()}

    def loss(self, model: Model, batch: Batch, task: Task) -> dict[str, Tensor]:
        terms = super().loss(model, batch, task)
        if penalty := Penalty.around(self.options.SI_c, self.importance, self.anchor):
            learning = {name: w for name, w in self.named().items() if w.requires_grad}
            terms["penalty"] = penalty.on(learning).detach()  # `on_gradients` adds its gradient
        return terms

    def on_gradients(self, task: Task) -> None:
        self.slope = {}
        for name, w in self.named().items():
            if w.grad is None:
                continue
            self.slope[name] = w.grad.float().clone()
            if name in self.importance:
                w.grad += 2 * self.options.SI_c * self.importance[name] * (w.detach() - self.anchor[name])

    def on_update(self, before: Weights, task: Task) -> None:
        named = self.named()
        for name, g in self.slope.items():
            self.path[name] -= g * (named[name].detach() - before[name])

    def after_task(self, task: Task) -> None:
        super().after_task(task)
        still = total = 0
        gain = sum(w.sum().item() for w in self.path.values())
        for name, w in self.learning(task).items():
            moved = (w.detach().float() - self.anchor[name]).square()
            added = self.path[name] / (moved + self.options.SI_xi)
            self.importance[name] = (self.importance.get(name, 0) + added).clamp(min=0)
            self.anchor[name] = w.detach().float().clone()
            still, total = still + int((moved < self.options.SI_xi).sum()), total + w.numel()
        self.path = {}
        self.session.log.info(
            f"path integral of task {task.index}: {gain:.3g} in all, the drop of its loss; {still / total:.1%} of the "
            "weights moved by less than sqrt(SI_xi)"
        )
        self.session.log.event("path", task=task.index, sum=gain, share_below_xi=still / total)
