"""ProgPrompt: Razdaibiedina et al., "Progressive Prompts: Continual Learning for Language Models", ICLR 2023."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from models.Base import Method, Setting, Task
from models.common.virtual_tokens import random_words
from utils.config import Config, Int, OptionGroup, per_task, search
from utils.dataset import Stream
from utils.optimizer import Group
from utils.seed import random_for, seed_torch

NO_MODEL = "the model is frozen, only prompts are trained"


class ProgPromptOptions(OptionGroup):
    """ProgPrompt."""

    ProgPrompt_num_tokens_per_task: Int = Field(
        10, ge=1, description="n, virtual tokens of each task's prompt.", json_schema_extra=search(5, 10, 20)
    )
    ProgPrompt_use_mlp: bool = Field(True, description="Learn the prompt through a residual MLP.")
    ProgPrompt_mlp_size: Int = Field(800, ge=1, description="m, width of the MLP's hidden layer.")


class ProgPrompt(Method):
    """Learns a prompt per task in front of those of the earlier tasks; the model is frozen::

        min over P_k and w:  CE(y after [P_k + MLP_w(P_k); P_{k-1}; ...; P_0; x])

    P_k holds the embeddings of n virtual tokens, initialised with n random words. MLP_w (D to m to D, ReLU) makes P_k
    easier to learn: at the end of the task P_k + MLP_w(P_k) becomes P_k, and w is drawn anew for the next one. Earlier
    prompts are frozen, so nothing is forgotten; in return each question needs its task, which selects P_k to P_0.

    Deviations: the prompt of the last step is kept (published: the one with the best validation score). MLP_w has no
    layer norm, which would give every prompt the size of T5's embeddings; its last layer is initialised with 0, so that
    a prompt starts as words. Published for T5: n = 10, lr 0.3, weight decay 1e-5.
    """

    Options = ProgPromptOptions
    options: ProgPromptOptions
    scenarios = frozenset({"TIL"})
    excludes: ClassVar = {
        Setting("is_replay"): "the prompts of earlier tasks are frozen",
        Setting("freeze_parts"): NO_MODEL,
        Setting("PEFT_type"): NO_MODEL,
        Setting("keep_optimizer_state"): "each task learns a separate prompt",
        Setting("recovery"): NO_MODEL,
        Setting("is_probing"): NO_MODEL,
        Setting("drift"): NO_MODEL,
    }
    state = ("count", "is_open")

    count = 0  # prompts of the tasks so far
    is_open = False  # the newest prompt is still computed by the MLP

    @classmethod
    def problems(cls, config: Config, options: ProgPromptOptions, stream: Stream) -> list[str]:
        if options.is_changed("ProgPrompt_mlp_size") and not options.ProgPrompt_use_mlp:
            return ["ProgPrompt_mlp_size: has no effect without ProgPrompt_use_mlp; set ProgPrompt_use_mlp: True"]
        return []

    def setup(self) -> None:
        tasks = range(len(self.stream.tasks))
        self.prompts = nn.ParameterList([nn.Parameter(self.new_prompt(k)) for k in tasks])
        self.extra["prompts"] = self.prompts
        self.virtual_tokens = sum(map(len, self.prompts))
        self.draw_mlp(0)

    def new_prompt(self, k: int) -> Tensor:
        """(n, D): what the prompt of task k begins with."""
        rng, n = random_for(self.config.seed, "prompt", k), self.options.ProgPrompt_num_tokens_per_task
        return random_words(self.model, self.backbone.tokenizer, n, rng)

    def draw_mlp(self, k: int) -> None:
        """Add a fresh MLP for task k, if the option is set; its output is 0."""
        if not self.options.ProgPrompt_use_mlp:
            return
        width, size = self.prompts[0].shape[1], self.options.ProgPrompt_mlp_size
        seed_torch(self.config.seed, "mlp", k)
        first, last = nn.Linear(width, size), nn.Linear(size, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.extra["mlp"] = nn.Sequential(first, nn.ReLU(), last).to(self.prompts[0].device)

    def before_task(self, task: Task) -> None:
        self.count, self.is_open = task.index + 1, self.options.ProgPrompt_use_mlp
        self.draw_mlp(task.index)

    def trainable(self, task: Task) -> list[Group]:
        mlp = self.extra["mlp"].parameters() if self.options.ProgPrompt_use_mlp else ()
        lr = per_task(self.config.lr_list, self.config.lr, task.index)
        return [Group([self.prompts[task.index], *mlp], lr, self.config.weight_decay)]

    def soft_prompt(self, task_id: int | None) -> Tensor | None:
        count = self.count if task_id is None else min(task_id + 1, self.count)
        newest_first = [self.prompt(j) for j in reversed(range(count))]
        return torch.cat(newest_first) if newest_first else None

    def prompt(self, j: int) -> Tensor:
        """(n, D): P_j as it is read."""
        own = self.prompts[j]
        return own + self.extra["mlp"](own) if self.is_open and j == self.count - 1 else own

    @torch.no_grad()
    def after_task(self, task: Task) -> None:
        self.prompts[task.index].copy_(self.prompt(task.index))
        self.is_open = False
