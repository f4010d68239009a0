"""The answer loss is the model's own, on the answer's tokens."""

import math

import pytest
import torch

from models.common.losses import answer_loss, distillation, squared_error
from tests import tiny
from utils.classifier import MASKED
from utils.dataloader import IGNORE, Encoder, collate
from utils.model.forward import answer_logits


@pytest.mark.parametrize("family", ["neox", "llama", "gpt2"])
@pytest.mark.parametrize("bos", [False, True])
def test_equals_the_loss_that_the_model_computes_from_labels(family, bos):
    backbone = tiny.make_backbone(family, bos)
    examples = tiny.micro_stream().tasks[0].train
    rows = Encoder(backbone.tokenizer, "none")(examples, None)
    assert len({len(row.answer) for row in rows}) > 2
    batch = collate(rows, examples, backbone.pad_id)
    positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        own = backbone.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions, labels=batch.labels
        ).loss
        ours = answer_loss(*answer_logits(backbone.model, batch), batch.tokens["all"])
    assert ours.item() == pytest.approx(own.item(), rel=1e-6)


def test_one_token_by_hand():
    logits = torch.tensor([[[0.0, math.log(3)], [5.0, 5.0]]])
    labels = torch.tensor([[1, IGNORE]])
    assert answer_loss(logits, labels, 1).item() == pytest.approx(-math.log(3 / 4))
    assert answer_loss(logits, labels, 4).item() == pytest.approx(-math.log(3 / 4) / 4)
    assert answer_loss(logits, torch.tensor([[1, 0]]), 2).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.randn(4, 50, 30, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.zeros(4, 50, dtype=torch.int64)
    loss = answer_loss(logits, labels, 200)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(answer_loss(logits.double().float(), labels, 200).item(), rel=1e-7)


def test_distillation_is_zero_for_equals_and_positive_otherwise():
    torch.manual_seed(0)
    student, labels = torch.randn(2, 3, 5), torch.tensor([[1, 2, IGNORE], [IGNORE, 4, 0]])
    assert distillation(student, student, labels, 4.0, 2.0).item() == pytest.approx(0, abs=1e-6)
    assert distillation(student, torch.randn(2, 3, 5), labels, 4.0, 2.0).item() > 0


def test_distillation_by_hand():
    """Two words, teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 log(3/2) + 1/4 log(1/2)."""
    teacher, student = torch.tensor([[[math.log(3.0), 0.0]]]), torch.zeros(1, 1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert distillation(student, teacher, torch.tensor([[0]]), 1.0).item() == pytest.approx(expected, rel=1e-6)


def test_distillation_has_gradients_of_one_size_at_any_temperature():
    """For small logits tau^2 takes back what softening takes away."""
    torch.manual_seed(0)
    teacher, labels = 0.01 * torch.randn(1, 1, 5), torch.tensor([[0]])
    norms = []
    for temperature in (1.0, 2.0, 4.0):
        student = torch.zeros(1, 1, 5, requires_grad=True)
        (gradient,) = torch.autograd.grad(distillation(student, teacher, labels, 1.0, temperature), student)
        norms.append(gradient.norm().item())
    assert norms == pytest.approx([norms[0]] * 3, rel=0.02)


def test_distillation_ignores_what_has_no_label():
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(1, 2, 5), torch.randn(1, 2, 5), torch.tensor([[IGNORE, 3]])
    both = distillation(student, teacher, labels, 1.0)
    student[0, 0] = 7.0
    assert torch.equal(both, distillation(student, teacher, labels, 1.0))


def test_squared_errors_are_means_over_the_classes_in_question():
    own, target = torch.tensor([[3.0, 9.0], [4.0, 2.0]]), torch.tensor([[1.0, MASKED], [1.0, 1.0]])
    assert squared_error(own[:1], target[:1]).item() == 4  # one class in question
    assert squared_error(own[1:], target[1:]).item() == (9 + 1) / 2
    assert squared_error(own, target).item() == 4 + 5
    assert squared_error(own[:, :1], target[:, :1]).item() == 4 + 9  # one class at all
    assert squared_error(own[:1, 1:], target[:1, 1:]).item() == 0  # none
