"""LFPT5: trainable parameters, inputs, generated samples; and the separate rows of new tokens of a frozen model."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from models import LAMOL as lamol_module
from models.common.losses import answer_loss
from models.common.virtual_tokens import NewRows
from tests import tiny
from utils.dataloader import Encoded, collate
from utils.dataset import Example
from utils.model.forward import answer_logits
from utils.model.weights import snapshot
from utils.run.fit import fit

N = 4  # virtual tokens
FAMILIES = ["neox", "gpt2", "t5"]  # an untied head, a tied head, and two embeddings with one matrix


def make(family="neox", **options):
    config = tiny.make_config("LFPT5", backbone=tiny.backbone_folder(family), lr=0.05)
    return tiny.make_method(tiny.make_session(config), LFPT5_num_virtual_tokens=N, **options)


def learn(method, index):
    task = tiny.make_task(index)
    method.before_task(task)
    fit(method, task, method.session)
    method.after_task(task)


def batch_of(method, task, examples):
    rows = method.batch(examples, task, None)
    return collate(method.encoder(rows, task.max_length), rows, method.backbone.pad_id)


def with_pseudo(method, index):
    """A task that begins with two pseudo-samples, and a batch with one of them."""
    task = tiny.make_task(index)
    with mock.patch.object(method, "write_pseudo", lambda _: [("cat a", "meow", 0), ("dog a", "wuff wuff", 0)]):
        method.before_task(task)
    return task, batch_of(method, task, [*task.train[:2], method.train_examples(task)[-1]])


@pytest.mark.parametrize("family", tiny.quick(FAMILIES))
def test_only_prompt_and_rows_of_new_tokens_learn(family):
    method = make(family)
    before = tiny.snapshot(method)
    learn(method, 0)
    after = tiny.snapshot(method)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    rows = {"extra.rows.read"} if family != "neox" else {"extra.rows.read", "extra.rows.written"}
    assert moved == {"extra.prompt.0", *rows} == method.learning(tiny.make_task(1)).keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_separate_rows_equal_rows_in_the_matrices(family):
    """Adding to the matrices themselves gives the same logits, and the rows' gradients are those of the matrices."""
    own, plain, first = tiny.make_model(family), tiny.make_model(family), 300
    rows = NewRows(own, first, 3)
    change = torch.randn(3, 32, generator=torch.manual_seed(0)) / 5
    with torch.no_grad():
        rows.read += change
        plain.get_input_embeddings().weight[first : first + 3] += change
        if family == "neox":
            rows.written -= change
            plain.get_output_embeddings().weight[first : first + 3] -= change
    token_rows = [Encoded([5, 301, 7], [302, 8, 0]), Encoded([300, 299], [303, 301, 0])]
    batch = collate(token_rows, [Example("", "")] * 2, tiny.PAD)
    (found, labels), (expected, _) = (answer_logits(model, batch) for model in (own, plain))
    assert torch.allclose(found, expected, atol=1e-5)
    for logits in (found, expected):
        answer_loss(logits, labels, 6.0).backward()
    whole = plain.get_input_embeddings().weight.grad[first : first + 3]
    assert torch.allclose(rows.read.grad, whole, atol=1e-5)
    if family == "neox":
        whole = plain.get_output_embeddings().weight.grad[first : first + 3]
        assert torch.allclose(rows.written.grad, whole, atol=1e-5)


@pytest.mark.parametrize("family", tiny.quick(FAMILIES))
def test_distillation_is_0_while_the_prompt_is_the_teacher_s_and_grows(family):
    method = make(family)
    learn(method, 0)
    task, batch = with_pseudo(method, 1)
    method.model.eval()
    terms = method.loss(method.model, batch, task)
    assert abs(terms["pseudo answer"].item()) < 1e-6
    assert "pseudo lm" not in terms
    with torch.no_grad():
        method.soft_prompt(None).normal_(generator=torch.manual_seed(0))
    assert method.loss(method.model, batch, task)["pseudo answer"].item() > 1e-6


def test_the_loss_by_hand():
    """(1 - k) [l_A + lambda l_G](all rows) + k KL(A)(pseudo rows)."""
    k, weight = 0.3, 0.5
    method = make(LAMOL_KD_distill_weight=k, LAMOL_lambda=weight)
    learn(method, 0)
    task, batch = with_pseudo(method, 1)
    method.model.eval()
    old = method.soft_prompt(None).detach().clone()
    with torch.no_grad():
        method.soft_prompt(None).normal_(generator=torch.manual_seed(0))
        terms = method.loss(method.model, batch, task)
        logits, labels = answer_logits(method.model, batch, method.soft_prompt(None))
        before, _ = answer_logits(method.model, batch, old)
    for view, size in (("answer", 1.0), ("lm", weight)):
        rows = batch.rows(view=view)
        wanted = size * (1 - k) * F.cross_entropy(logits[rows].flatten(0, 1), labels[rows].flatten())
        assert terms[view].item() == pytest.approx(wanted.item(), rel=1e-5)
    rows = batch.rows("pseudo", "answer")
    here = labels[rows] != -100
    p, q = (F.softmax(x[rows][here], dim=-1) for x in (before, logits))
    kl = (p * (p / q).log()).sum(dim=-1).mean()
    assert terms["pseudo answer"].item() == pytest.approx(k * kl.item(), rel=1e-4)


@pytest.mark.parametrize("family", tiny.quick(FAMILIES))
def test_the_previous_prompt_writes(family):
    """Samples are drawn before anything of the task is learned, with the prompt as the task before has left it."""
    method = make(family, LFPT5_label_filter=False)
    learn(method, 0)
    left, seen = method.soft_prompt(None).detach().clone(), []
    draw = lamol_module.sample_texts

    def spy(*args, soft_prompt):
        seen.append(soft_prompt.detach().clone())
        return draw(*args, soft_prompt=soft_prompt)

    with mock.patch.object(lamol_module, "sample_texts", spy):
        learn(method, 1)
    assert seen
    assert all(torch.equal(prompt, left) for prompt in seen)
    assert not torch.equal(method.soft_prompt(None), left)


def test_samples_with_an_unknown_answer_are_dropped():
    """Per task if each task has its GEN token, otherwise any earlier answer is accepted."""
    method = make()
    learn(method, 0)
    learn(method, 1)
    assert method.targets[1] == sorted({e.target for e in tiny.micro_stream().tasks[1].train})
    assert method.targets[-1] == sorted({*method.targets[0], *method.targets[1]})
    ours, theirs = "meow", "boom"
    method.targets = {0: [ours], 1: [theirs], -1: [theirs, ours]}
    written = [f"cat a__ans__ {answer}<eos>" for answer in (ours, theirs, "nonsense")] + ["cat a"]
    with mock.patch.object(lamol_module, "sample_texts", lambda *_, **__: written):
        found = [[pair and pair[1] for pair in method.write(tiny.make_task(2), old, 0, 4)] for old in (0, 1, -1)]
        method.options = method.options.model_copy(update={"LFPT5_label_filter": False})
        free = method.write(tiny.make_task(2), 0, 0, 4)
    assert found[0] == [ours, None, None, None]
    assert found[1] == [None, theirs, None, None]
    assert found[2] == [ours, theirs, None, None]
    assert [pair and pair[1] for pair in free] == [ours, theirs, "nonsense", None]


def test_a_teacher_stores_only_trainable_parameters():
    method = make()
    learn(method, 0)
    with_pseudo(method, 1)
    assert method.teacher.keys() == snapshot(method.learning(tiny.make_task(1))).keys()
    assert all(name.startswith("extra.") for name in method.teacher)


def test_without_new_tokens_the_prompt_alone_learns():
    text = {"LAMOL_use_ans_token": False, "LAMOL_ans_split_token": "Answer:", "LAMOL_use_eos_as_gen_token": True}
    method = make(LAMOL_use_task_specific_gen_token=False, **text)
    assert method.learning(tiny.make_task(0)).keys() == {"extra.prompt.0"}
