"""Sequential fine-tuning, the lower bound for every method; and SEQ*, its extension with heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from models.Base import Method, Task
from models.common.losses import answer_loss
from models.common.measuring import measuring
from utils.backbone import kind
from utils.classifier import ClassEncoder
from utils.config import WATCHING, Config, Int, OptionGroup
from utils.dataloader import IGNORE, Batch
from utils.dataset import Stream
from utils.distributed.collectives import share, sum_over_processes
from utils.distributed.modes import ALL
from utils.model import freeze
from utils.model.architecture import Model
from utils.model.forward import answer_scores, labelled_states


class SEQOptions(OptionGroup):
    """SEQ: SEQ* with a classifier."""

    SEQ_fix_encoder: bool = Field(False, description="Freeze the backbone after the warm-up (B).")
    SEQ_fix_old_classifier: bool = Field(False, description="Freeze the heads of earlier tasks (C).")
    SEQ_preallocated_classifier: bool = Field(
        False, description="Compute the loss of every task over the classes of all tasks (P)."
    )
    SEQ_warmup_epoch_before_fix_encoder: Int = Field(
        0, ge=0, description="Warm-up epochs of the whole model on the first task, before its other epochs (W)."
    )
    SEQ_warmup_target: Literal["causal-lm", "ce-loss"] = Field(
        "causal-lm", description="Objective of the warm-up: answers as text, or their classes."
    )
    SEQ_use_prototype_for_prediction: bool = Field(
        False, description="Use class means of features as heads; only the warm-up trains."
    )


class SEQ(Method):
    """Fine-tunes on each task in turn, without measures against forgetting.

    Freeze (Zheng et al., ICLR 2025) and Replay (Chaudhry et al., 2019) are this method with the settings
    `freeze_parts` and `is_replay`, which combine with every other method too.

    With a classifier the options below make SEQ* of "Learn or Recall? Revisiting Incremental Learning with Pre-trained
    Language Models" (Zheng, Qiu and Ma, ACL 2024): the backbone forgets little, the heads lose their alignment with its
    features. So (W) the whole model is trained on the first task for additional epochs; then (B) the backbone is
    frozen; (C) heads of earlier tasks are frozen; (P) all heads are in the softmax from the first task on. The warm-up
    trains the answers as text (causal-lm) or the heads (ce-loss). Prototypes, the mean features of a class's training
    examples in eval mode, can replace trained heads.

    In the published code the frozen parts still changed slightly, and the means were divided by numbers of batches.
    """

    Options = SEQOptions
    options: SEQOptions
    parallel = ALL

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.is_warming = False

    @classmethod
    def problems(cls, config: Config, options: SEQOptions, stream: Stream) -> list[str]:
        if config.classifier is None:
            changed = filter(options.is_changed, cls.Options.model_fields)
            return [f"{name}: has no effect without a classifier" for name in changed]
        warms, prototypes = options.SEQ_warmup_epoch_before_fix_encoder, options.SEQ_use_prototype_for_prediction
        replays, known = config.is_replay, config.il_mode == "TIL"
        why = {
            "SEQ_warmup_target": not warms and "without SEQ_warmup_epoch_before_fix_encoder",
            "SEQ_warmup_epoch_before_fix_encoder": not (options.SEQ_fix_encoder or prototypes)
            and "without SEQ_fix_encoder",
            "SEQ_preallocated_classifier": (known and "in TIL") or (prototypes and "with prototypes"),
            "SEQ_fix_old_classifier": (known and not replays and "in TIL without replay")
            or (prototypes and "with prototypes"),
        }
        problems = [
            f"{name}: has no effect {reason}" for name, reason in why.items() if reason and options.is_changed(name)
        ]
        problems += [
            f"{name}: has no effect with prototypes, which are not trained"
            for name in WATCHING
            if prototypes and getattr(config, name)
        ]
        if warms and options.SEQ_warmup_target == "causal-lm" and kind(config) == "encoder":
            problems.append("SEQ_warmup_target: an encoder writes no answers; set SEQ_warmup_target: ce-loss")
        return problems

    def takes_steps(self, task: Task) -> bool:
        return self.is_warming or not self.options.SEQ_use_prototype_for_prediction

    @property
    def writes(self) -> bool:
        """True in a warm-up that trains on answers as text."""
        return self.is_warming and self.options.SEQ_warmup_target == "causal-lm"

    def before_task(self, task: Task) -> None:
        epochs = self.options.SEQ_warmup_epoch_before_fix_encoder
        if task.index == 0 and epochs:
            self.is_warming = True
            session = self.session.aside("warm-up")
            if self.writes and isinstance(session.encoder, ClassEncoder):
                session = replace(session, encoder=session.encoder.plain)
            session.fit(self, replace(task, epochs=epochs))
            self.is_warming = False

    def frozen(self, task: Task) -> set[str]:
        if self.options.SEQ_fix_encoder and not self.is_warming:
            return {name for name, _ in self.model.named_parameters()}
        return super().frozen(task) - (freeze.writer(self.model) if self.writes else set())

    def learning_heads(self, task: Task) -> set[int]:
        if self.writes:
            return set()
        ends = len(self.answers.needed_heads) if self.options.SEQ_preallocated_classifier else task.index + 1
        known = super().learning_heads(task) | set(range(task.index, ends))
        return {k for k in known if k >= task.index} if self.options.SEQ_fix_old_classifier else known

    def loss(self, model: Model, batch: Batch, task: Task) -> dict[str, Tensor]:
        if self.writes:
            return {"answer": answer_loss(*answer_scores(model, batch), batch.tokens["all"])}
        if self.options.SEQ_preallocated_classifier:
            task = replace(task, index=len(self.answers.needed_heads) - 1)
        return super().loss(model, batch, task)

    def after_task(self, task: Task) -> None:
        super().after_task(task)
        if self.options.SEQ_use_prototype_for_prediction:
            self.answers.needed_heads.set_prototypes(task.index, self.prototypes(task))

    @torch.no_grad()
    def prototypes(self, task: Task) -> Tensor:
        """(C, D): mean hidden state of each class of the task over its training examples; 0 where there are none."""
        heads, size = self.answers.needed_heads, self.config.evaluate_batch_size
        classes, width = heads.classes, heads[0].get_parameter("weight").shape[1]
        mine, device = list(share(len(task.train))), self.model.device
        sums = torch.zeros(classes.ends[-1], width, device=device)
        counts = torch.zeros(classes.ends[-1], device=device)
        with measuring(self):
            for chosen in (mine[i : i + size] for i in range(0, len(mine), size)):
                states, labels = labelled_states(self.model, self.collated([task.train[i] for i in chosen], task))
                counted = labels != IGNORE
                sums.index_add_(0, labels[counted], states[counted].float())
                counts += torch.bincount(labels[counted], minlength=len(counts))
        total = sum_over_processes({"sums": sums, "counts": counts})
        means = total["sums"] / total["counts"].clamp(min=1)[:, None]
        return means[classes.starts[task.index] : classes.ends[task.index]]
