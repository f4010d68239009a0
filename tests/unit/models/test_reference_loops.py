"""Whole runs against plain PyTorch loops that follow the published code's procedure (Zheng et al., 2024 and 2025).

A loop shares nothing with models/ and utils/run: transformers' own loss, one AdamW for all tasks, learning rate 0 for
what is frozen. Only the rows of each batch are those that the run has drawn. Losses agree to 8e-6 at every step.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.EWC import EWC
from models.SEQ import SEQ
from tests import tiny
from utils.dataset import Example

TOLERANCE = 8e-6
OPTIONS = {
    "keep_optimizer_state": True, "lr": 2e-3, "weight_decay": 0.05, "info_per_steps": 1, "training_epochs": 2,
    "is_evaluate_init": False,
}  # fmt: skip
Rows = list[Example]


class Drawn(NamedTuple):
    """What a run has drawn."""

    steps: list[tuple[int, Rows]]  # task and rows of each step
    measured: list[list[Rows]]  # batches of the Fisher information of each task
    losses: list[float]
    weights: dict[str, Tensor]


def drawn(method, folder, stream, **options) -> Drawn:
    """Run a method; note its batches."""
    steps, measured = [], []

    class Noted(method):
        def batch(self, examples, task, rng):
            rows = list(super().batch(examples, task, rng))
            steps.append((task.index, rows))
            return rows

        def after_task(self, task):
            measured.append([])
            super().after_task(task)

        def collated(self, examples, task):
            measured[-1].append(list(examples))
            return super().collated(examples, task)

    own = {name: options.pop(name) for name in list(options) if name.startswith("EWC_")}
    made = tiny.run(folder, tiny.make_config(method.__name__, **OPTIONS | options), stream, Noted, **own)
    return Drawn(steps, measured, made.losses, made.weights)


def tokens(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and labels (B, T) of question, space, answer and EOS, padded on the right; labels on answers alone."""
    words, lines = tiny.tokenizer(), []
    for row in rows:
        question, answer = (words(text)["input_ids"] for text in (row.input, f" {row.target}"))
        lines.append((question, [*answer, tiny.EOS]))
    longest = max(len(q) + len(a) for q, a in lines)
    gaps = [longest - len(q) - len(a) for q, a in lines]
    pairs = list(zip(lines, gaps, strict=True))
    ids = torch.tensor([[*q, *a, *[tiny.PAD] * gap] for (q, a), gap in pairs])
    mask = torch.tensor([[1] * (longest - gap) + [0] * gap for _, gap in pairs])
    labels = torch.tensor([[*[-100] * len(q), *a, *[-100] * gap] for (q, a), gap in pairs])
    return ids, mask, labels


def written(model: nn.Module, rows: Rows) -> Tensor:
    """Transformers' loss: the mean over the answers' tokens."""
    ids, mask, labels = tokens(rows)
    return model(input_ids=ids, attention_mask=mask, labels=labels).loss


class Reference:
    """The published procedure.

    Args:
        model: With the weights that the run began with.
        loss: Of the model and rows of one step.
        frozen: Substrings of names of parameters whose learning rate is 0 from task 1 on.
        heads: Modules with learning rate 1e-3 and weight decay 0.01.
        lr: Of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor],
        frozen: tuple[str, ...] = (),
        heads: nn.Module | None = None,
        lr: float = 2e-3,
    ):
        self.model, self.loss = model.train(), loss
        named = dict(model.named_parameters())
        still = {name for name in named if any(part in name for part in frozen)}
        groups = [[w for name, w in named.items() if (name in still) is chosen] for chosen in (False, True)]
        rows = [{"params": group, "lr": lr, "weight_decay": 0.05} for group in groups]
        rows += [{"params": list(heads.parameters()), "lr": 1e-3, "weight_decay": 0.01}] if heads is not None else []
        self.optimizer, self.losses = torch.optim.AdamW([row for row in rows if row["params"]]), []
        self.is_frozen = bool(still)
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def run(self, found: Drawn, weight: float | None = None) -> None:
        """All steps; with `weight`, lambda of the penalty, F and anchor are made after each task."""
        for number, (task, rows) in enumerate(found.steps):
            if task > 0 and self.is_frozen:
                self.optimizer.param_groups[1]["lr"] = 0.0
            loss = self.loss(self.model, rows, task)
            if self.anchor:
                named = dict(self.model.named_parameters())
                pulls = [(f * (self.anchor[name] - named[name]) ** 2).sum() for name, f in self.fisher.items()]
                loss = loss + weight / 2 * sum(pulls)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())
            ends = number + 1 == len(found.steps) or found.steps[number + 1][0] > task
            if weight is not None and ends:
                self.consolidate(found.measured[task], task)

    def consolidate(self, batches: list[Rows], task: int) -> None:
        """F_new = 1/N sum over batches of B (gradient of the mean loss)^2; F = (t F + F_new) / (t + 1)."""
        count = sum(map(len, batches))
        new = {name: torch.zeros_like(w) for name, w in self.model.named_parameters()}
        for rows in batches:
            self.model.zero_grad()
            self.loss(self.model, rows, task).backward()
            for name, w in self.model.named_parameters():
                new[name] += len(rows) * w.grad**2 / count
        self.fisher = {name: (task * self.fisher.get(name, 0) + f) / (task + 1) for name, f in new.items()}
        self.anchor = {name: w.detach().clone() for name, w in self.model.named_parameters()}


def check(found: Drawn, reference: Reference) -> None:
    assert len(found.losses) == len(reference.losses)
    assert min(found.losses) < 0.9 * found.losses[0], "nothing was learned"
    apart = [abs(ours - theirs) for ours, theirs in zip(found.losses, reference.losses, strict=True)]
    assert max(apart) < TOLERANCE, f"step {apart.index(max(apart))}"


def model_again(**options) -> nn.Module:
    """The weights that a run begins with."""
    from utils.backbone import load_model

    return load_model(tiny.make_config(**options))


def text_loss(model, rows, task):
    return written(model, rows)


MIXES = {"mix": {"is_replay": True, "Replay_buffer_ratio": 0.5}, "SEQ": {}}


@pytest.mark.parametrize("name", tiny.quick(MIXES))
def test_seq_and_replay_in_the_batch(name, tmp_path):
    found = drawn(SEQ, tmp_path, tiny.micro_stream(2), **MIXES[name])
    assert any(row.source == "memory" for _, rows in found.steps for row in rows) is (name == "mix")
    reference = Reference(model_again(), text_loss)
    reference.run(found)
    check(found, reference)


@pytest.mark.slow
def test_freezing_by_substring(tmp_path):
    """With twelve layers `layers.1` also means the layers 10 and 11, as in the published runs."""
    tiny.make_model(layers=12, width=16, initializer_range=0.05).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    parts, deep = ("embed_in", "layers.1"), {"backbone": str(tmp_path / "model")}
    found = drawn(SEQ, tmp_path, tiny.micro_stream(2), freeze_parts=parts, freeze_match="substring", **deep)
    model = model_again(**deep)
    reference = Reference(model, text_loss, parts)
    reference.run(found)
    check(found, reference)


def test_ewc_with_batches_and_averages(tmp_path):
    own = {"EWC_fisher": "batch", "EWC_merge": "average", "EWC_lambda": 3000}
    found = drawn(EWC, tmp_path, tiny.micro_stream(), **own)
    assert [len(batches) for batches in found.measured] == [3, 2, 0]  # none is needed after the last task
    reference = Reference(model_again(), text_loss)
    reference.run(found, weight=3000)
    assert max(f.max() for f in reference.fisher.values()) > 0
    check(found, reference)


@pytest.mark.parametrize("il_mode", tiny.quick(["CIL", "TIL"]))
def test_heads(il_mode, tmp_path):
    """CIL: one cross-entropy over all heads so far. Each head is linear on the state of a question's last token."""
    stream = tiny.class_stream()
    options = {"classifier": "Linear", "il_mode": il_mode, "lr": 5e-3}
    options |= {"is_replay": True, "Replay_buffer_ratio": 0.5} if il_mode == "CIL" else {}
    found = drawn(SEQ, tmp_path, stream, **options)
    config = tiny.make_config(**OPTIONS | options)
    begun = tiny.make_method(tiny.make_session(config, stream=stream), stream)
    heads = begun.extra["heads"]

    def loss(model, rows, task):
        ids, mask, labels = tokens(rows)
        mask = mask * (labels == -100)  # questions alone
        states = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        last = states[torch.arange(len(rows)), mask.sum(dim=1) - 1]
        if il_mode == "CIL":
            logits = torch.cat([heads[k](last) for k in range(task + 1)], dim=1)
            return F.cross_entropy(logits, torch.tensor([row.label for row in rows]))
        return F.cross_entropy(heads[task](last), torch.tensor([row.label_in_task for row in rows]))

    reference = Reference(begun.model, loss, heads=heads, lr=5e-3)
    reference.run(found)
    check(found, reference)
