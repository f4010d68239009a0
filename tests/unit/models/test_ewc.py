"""EWC: the Fisher information by hand, the penalty by hand, and what it does to training."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from models.common.fisher import diagonal_fisher
from models.EWC import EWC, add_quadratics, merge
from tests import tiny
from utils.dataloader import IGNORE, Batch
from utils.model.forward import answer_logits
from utils.penalty import Quadratic
from utils.run.fit import fit
from utils.wrapmodel import Step

X = torch.tensor([0.0, 2.0, -1.0, 3.0])  # the value of x for each token id


class Logistic(nn.Module):
    """p(y = 1 | x) = sigmoid(theta x), as a language model: token x, then token y."""

    config = SimpleNamespace(is_encoder_decoder=False)

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(()))

    def forward(self, input_ids, attention_mask):
        z = self.theta * X[input_ids]
        return SimpleNamespace(logits=torch.stack([torch.zeros_like(z), z], dim=-1))


def toy_batch(xs, ys):
    ids = torch.tensor([[x, y] for x, y in zip(xs, ys, strict=True)])
    labels = torch.stack([torch.full_like(ids[:, 1], IGNORE), ids[:, 1]], dim=1)
    return Batch(ids, torch.ones_like(ids), labels, list(xs), {"all": len(xs)})


def method_of(task=0, options=None, **own):
    """EWC that has learned a task, before its end."""
    session = tiny.make_session(tiny.make_config("EWC", **(options or {})))
    method = tiny.make_method(session, **own)
    fit(method, tiny.make_task(task), session)
    return method


def test_fisher_of_logistic_regression():
    tiny.make_session(tiny.make_config())
    model, ys = Logistic(), [1, 0, 0]
    named = dict(model.named_parameters())

    def outputs(batch):
        return answer_logits(model, batch)

    one_by_one = diagonal_fisher(outputs, named, lambda i: toy_batch([i + 1], [ys[i]]), 3, unit=2)
    assert one_by_one["theta"].item() == pytest.approx((4 + 1 + 9) / 4 / 3 / 2**2)  # x^2 / 4 whatever the labels
    together = diagonal_fisher(outputs, named, lambda i: toy_batch([1, 2, 3], ys), 1)
    mean = (0.5 * 2 - 0.5 * -1 - 0.5 * 3) / 3
    assert together["theta"].item() == pytest.approx(3 * mean**2 / 3)  # B (gradient of the mean)^2 / N


def test_fisher_is_the_mean_of_squared_gradients_of_single_examples():
    method, task = method_of(), tiny.make_task()
    found = method._fisher(task, method.learning(task))
    wanted, answers = {name: torch.zeros_like(w) for name, w in method.named().items()}, []
    method.model.eval()
    for example in task.train:
        batch = method.collated([example], task)
        method.model.zero_grad()
        answers.append(int((batch.labels != IGNORE).sum()))
        mean = method.model(input_ids=batch.input_ids, labels=batch.labels).loss  # transformers' own, per token
        (mean * answers[-1]).backward()
        for name, w in method.named().items():
            wanted[name] += w.grad**2 / len(task.train)
    unit = method.config.batch_size * (sum(answers) / len(answers)) ** 2
    wanted = {name: value / unit for name, value in wanted.items()}
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert torch.allclose(value, wanted[name], rtol=1e-4, atol=1e-9), name
        assert (value >= 0).all()
    assert sum(value.sum() for value in found.values()) > 0


def test_both_estimates_have_the_same_unit():
    task, method = tiny.make_task(), method_of()
    found = {}
    for kind in ("sample", "batch"):
        for size in (2, 6):
            method.session.config = method.config.model_copy(update={"batch_size": size})
            method.options = EWC.Options(EWC_fisher=kind)
            found[kind, size] = sum(f.sum().item() for f in method._fisher(task, method.learning(task)).values())
    assert 2 * found["sample", 2] == pytest.approx(6 * found["sample", 6], rel=1e-5)
    for size in (2, 6):
        assert found["batch", size] / 4 < found["sample", size] < 4 * found["batch", size], found


def test_fisher_is_measured_without_dropout_and_leaves_no_gradient():
    method = method_of(options={"backbone": tiny.backbone_folder(dropout=0.5)})
    task, weights = tiny.make_task(), tiny.snapshot(method)
    a, b = (method._fisher(task, method.learning(task)) for _ in range(2))
    assert tiny.same(a, b)
    assert tiny.same(weights, tiny.snapshot(method))
    assert method.model.training
    assert all(w.grad is None for w in method.named().values())


def test_a_few_examples_are_drawn_with_the_seed(monkeypatch):
    method, task = method_of(EWC_samples=5), tiny.make_task()
    drawn = []
    collated = method.collated
    monkeypatch.setattr(method, "collated", lambda rows, task: drawn.append(rows) or collated(rows, task))
    a, b = (method._fisher(task, method.learning(task)) for _ in range(2))
    assert tiny.same(a, b)
    assert len(drawn) == 10
    assert drawn[:5] == drawn[5:]
    assert len({row for rows in drawn for row in rows}) == 5
    method.session.config = method.config.model_copy(update={"seed": 2})
    assert not tiny.same(a, method._fisher(task, method.learning(task)))


def test_penalty_by_hand():
    theta = torch.tensor([3.0, 1.0], requires_grad=True)
    a, m = torch.tensor([2.0, 5.0]), torch.tensor([1.0, 1.0])
    value = Quadratic.apply(theta, a, m)
    assert value.item() == 2 * 2**2
    assert torch.autograd.grad(3 * value, theta)[0].tolist() == [3 * 2 * 2 * 2, 0]
    assert torch.autograd.grad(Quadratic.apply(theta, a, theta.detach()), theta)[0].tolist() == [0, 0]
    wide = theta.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: Quadratic.apply(t, a, m), wide, eps=1e-2, atol=1e-2)


def test_the_sum_of_penalties_is_one_quadratic():
    torch.manual_seed(0)
    fishers, anchors = torch.rand(3, 5), torch.randn(3, 5)
    fishers[:, 0] = 0  # a weight that no task pulls at
    fishers[:2, 1] = 0  # one that only the last task does
    options, past = EWC.Options(EWC_merge="sum"), None
    for k in range(3):
        past = merge(past, fishers[k], anchors[k], k, options)
    a, m, c = past
    assert all(x.isfinite().all() for x in past)
    for _ in range(4):
        theta = torch.randn(5)
        wanted = (fishers * (theta - anchors) ** 2).sum()
        assert (a * (theta - m) ** 2).sum() + c == pytest.approx(wanted.item(), rel=1e-5)


def test_two_penalties_by_hand():
    past = torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor(0.0)
    a, m, c = add_quadratics(past, torch.tensor([3.0]), torch.tensor([4.0]))
    assert (a.item(), m.item(), c.item()) == (4, 3, 12)  # x^2 + 3 (x - 4)^2 = 4 (x - 3)^2 + 12


@pytest.mark.parametrize(
    ("how", "gamma", "wanted"), [("average", 1, (8 + 2 + 5) / 3), ("online", 1, 15), ("online", 0.5, 2 + 1 + 5)]
)
def test_merges_with_the_latest_anchor(how, gamma, wanted):
    options, past = EWC.Options(EWC_merge=how, EWC_gamma=gamma), None
    for k, fisher in enumerate((8.0, 2.0, 5.0)):
        past = merge(past, torch.tensor([fisher]), torch.tensor([float(k)]), k, options)
    a, m, c = past
    assert a.item() == pytest.approx(wanted)
    assert (m.item(), c.item()) == (2, 0)


def test_penalty_in_training_by_hand():
    method = method_of(EWC_lambda=7.0)
    method.after_task(tiny.make_task())
    penalty = method.penalty(tiny.make_task(1))
    assert penalty.on(method.named()).item() == 0  # at the anchor
    anchors = tiny.snapshot(method)
    with torch.no_grad():
        for w in method.named().values():
            w += 0.01 * torch.randn_like(w)
    named = method.named()
    distances = {name: (method.past[name][0] * (w - anchors[name]) ** 2).sum() for name, w in named.items()}
    term = penalty.on(named)
    assert term.item() == pytest.approx(7 / 2 * sum(distances.values()).item(), rel=1e-4)
    name = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"
    (gradient,) = torch.autograd.grad(term, named[name])
    assert torch.allclose(gradient, 7 * method.past[name][0] * (named[name] - anchors[name]), rtol=1e-4)


def test_lambda_0_is_plain_fine_tuning(tmp_path):
    made = []
    for name, own in (("SEQ", {}), ("EWC", {"EWC_lambda": 0})):
        (tmp_path / name).mkdir()
        config = tiny.make_config(name, backbone=tiny.backbone_folder(dropout=0.1), max_grad_norm=1.0)
        made.append(tiny.run(tmp_path / name, config, **own))
    assert tiny.same(made[0].weights, made[1].weights)
    assert made[0].losses == made[1].losses
    assert made[0].results["R"] == made[1].results["R"]


@pytest.mark.slow
def test_a_huge_lambda_holds_the_important_weights():
    """As far as the optimizer lets it: AdamW's first step is lr per weight; then the penalty pulls back."""
    moved = {}
    for strength in (0.0, 1e8):
        method = method_of(options={"lr": 1e-3}, EWC_lambda=strength)
        method.after_task(tiny.make_task())
        start = tiny.snapshot(method)
        fit(method, tiny.make_task(1, epochs=20), method.session)
        far = [
            method.past[name][0] * (w - start[name]).abs() / method.past[name][0].sum()
            for name, w in method.named().items()
        ]
        moved[strength] = sum(f.sum().item() for f in far) / len(far)
    assert moved[1e8] < moved[0.0] / 10


def test_what_does_not_learn_has_no_penalty():
    method = method_of(options={"freeze_parts": ("embeddings", "layers 0"), "freeze_from_task": 0})
    method.after_task(tiny.make_task())
    assert set(method.past) == set(method.learning(tiny.make_task()))
    assert "gpt_neox.embed_in.weight" not in method.past


def test_a_part_frozen_later_is_left_out_of_the_penalty():
    method = method_of(options={"freeze_parts": ("head",), "freeze_from_task": 1}, EWC_lambda=1)
    method.after_task(tiny.make_task())
    task = tiny.make_task(1)
    fit(method, tiny.make_task(1, epochs=0), method.session)
    with torch.no_grad():
        method.model.get_output_embeddings().weight.add_(1)
    assert Step(method, task, method.model).learning().keys() == method.learning(task).keys()
    assert method.penalty(task).on(method.learning(task)).item() == 0


def test_nothing_is_measured_after_the_last_task():
    method = method_of(task=2)
    method.after_task(tiny.make_task(2))
    assert method.past == {}


def test_float32_whatever_the_model_computes_in():
    method = method_of(options={"backbone_dtype": "bfloat16"})
    method.after_task(tiny.make_task())
    assert {x.dtype for past in method.past.values() for x in past} == {torch.float32}
    fit(method, tiny.make_task(1), method.session)


def test_a_copy_in_cpu_memory_changes_no_number(tmp_path):
    made = []
    for offload in (False, True):
        (tmp_path / str(offload)).mkdir()
        made.append(tiny.learn(tiny.make_config("EWC"), EWC_offload=offload))
    assert tiny.same(made[0].weights, made[1].weights)
    assert {x.device.type for past in made[1].method.past.values() for x in past} == {"cpu"}


def test_gamma_without_its_merge_is_refused():
    config, stream = tiny.make_config("EWC"), tiny.micro_stream()
    (problem,) = EWC.problems(config, EWC.Options(EWC_gamma=0.5), stream)
    assert "EWC_gamma: has no effect with EWC_merge sum" in problem
    assert EWC.problems(config, EWC.Options(EWC_gamma=0.5, EWC_merge="online"), stream) == []
