"""PCLL: the latent's mathematics, its place in the model, and generated samples."""

from contextlib import nullcontext
from dataclasses import replace
from unittest import mock

import pytest
import torch

from models import PCLL as pcll_module
from models.common.vae import Gaussian, cyclic, gaussian_kl, shifted
from models.PCLL import PCLL
from tests import tiny
from utils.dataloader import collate, micro_batches
from utils.dataset import Example
from utils.model.forward import answer_logits
from utils.run.fit import fit

SMALL = {"PCLL_latent_size": 8}


def make(folder, config=None, **options):
    session = tiny.make_session(config or tiny.make_config("PCLL"))
    return tiny.make_method(session, **SMALL | options)


def batch_of(method, examples, task):
    method.draw = 0.5
    rows = method.batch(examples, task, mock.Mock(random=lambda: 0.5))
    return collate(method.encoder(rows, task.max_length), rows, method.backbone.pad_id)


def test_divergence_of_normal_distributions():
    zero, one = torch.zeros(2, 3), torch.ones(2, 3)
    assert torch.equal(gaussian_kl((one, one), (one, one)), torch.zeros(2))
    assert gaussian_kl((one, zero), (zero, zero)).tolist() == [1.5, 1.5]  # 0.5 per dimension
    log4 = torch.full((2, 3), 4.0).log()
    wider = 0.5 * (4 - 1 - torch.tensor(4.0).log())
    assert torch.allclose(gaussian_kl((zero, log4), (zero, zero)), 3 * wider.expand(2))
    q = [torch.distributions.Normal(mean, std) for mean, std in ((0.3, 2.0), (-1.0, 0.5))]
    numbers = [(torch.tensor([[d.mean]]), 2 * torch.tensor([[d.stddev]]).log()) for d in q]
    assert gaussian_kl(*numbers).item() == pytest.approx(torch.distributions.kl_divergence(*q).item(), rel=1e-5)


def test_beta_rises_in_cycles():
    ramp = [cyclic(step, 100, 1) for step in range(100)]
    assert ramp[0] == 0 and ramp[45] == pytest.approx(0.5) and ramp[90:] == [1.0] * 10
    assert [cyclic(step, 100, 4) for step in (0, 25, 50, 75)] == [0.0] * 4
    assert cyclic(24, 100, 4) == 1.0


def test_pooling_leaves_padding_out_exactly():
    torch.manual_seed(0)
    pool, hidden = Gaussian(6, 4), torch.randn(1, 10, 6)
    padded = torch.cat([torch.full((1, 40, 6), 9.0), hidden], dim=1)
    mask = torch.cat([torch.zeros(1, 40), torch.ones(1, 10)], dim=1)
    for a, b in zip(pool(hidden, torch.ones(1, 10)), pool(padded, mask), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    weights = pool.score(hidden).squeeze(-1).softmax(-1)
    expected = pool.out((weights.unsqueeze(-1) * hidden).sum(1))
    assert torch.allclose(torch.cat(pool(hidden, torch.ones(1, 10)), dim=-1), expected, atol=1e-6)


def test_a_shift_is_added_to_every_embedding_of_its_row_and_goes_away():
    net, ids = tiny.make_model(), torch.tensor([[5, 6, 7], [5, 6, 7]])
    plain, shift = net(input_ids=ids).logits, torch.zeros(2, 32)
    shift[1] = 0.1
    with shifted(net, shift):
        moved = net(input_ids=ids).logits
    embedded = net.get_input_embeddings()(ids[:1]) + 0.1
    assert torch.equal(moved[0], plain[0])
    assert torch.allclose(moved[1], net(inputs_embeds=embedded).logits[0], atol=1e-5)
    assert torch.equal(net(input_ids=ids).logits, plain)


@pytest.mark.parametrize("il_mode", ["CIL", "TIL"])
def test_the_views(tmp_path, il_mode):
    method = make(tmp_path, tiny.make_config("PCLL", il_mode=il_mode))
    example = Example("cat", "meow", task=2)
    which = "2-th" if il_mode == "TIL" else "current"  # a test question names its task only in TIL
    assert method.encoder.render(example) == (f"In the {which} task: cat Answer:", " meow")
    assert method.encoder.render(replace(example, view="vae")) == ("In the 2-th task:", " cat")
    assert method.encoder.render(replace(example, view="lm")) == ("In the 2-th task:", " cat Answer: meow")


def test_the_prior_does_not_see_the_question(tmp_path):
    """It is read off the same pass as the posterior; the encoder is causal."""
    method, task = make(tmp_path), tiny.make_task()
    seen = []
    with mock.patch.object(
        method.extra["prior"], "forward", lambda *a: seen.append(Gaussian.forward(prior, *a)) or seen[-1]
    ):
        prior = method.extra["prior"]
        method.conditioned(method.model, batch_of(method, task.train[:4], task))
        rows = method.encoder([Example("", "", view="vae")], None)
        alone = collate([rows[0]._replace(answer=())], [Example("", "")], method.backbone.pad_id)
        with method.from_prior(alone, 3):
            pass
    assert torch.allclose(seen[0][0], seen[1][0].expand(4, -1), atol=1e-5)
    assert torch.allclose(seen[0][1], seen[1][1].expand(4, -1), atol=1e-5)


def test_only_rows_of_the_latent_view_are_conditioned(tmp_path):
    method, task = make(tmp_path), tiny.make_task()
    batch = batch_of(method, task.train[:3], task)
    method.model.eval()
    scores, labels, kl = method.conditioned(method.model, batch)
    logits = scores.whole()
    plain, same = answer_logits(method.model, batch)
    views = [row.view for row in batch.examples]
    assert views == ["answer"] * 3 + ["lm"] * 3 + ["vae"] * 3
    assert torch.equal(labels, same)
    assert torch.allclose(logits[:6], plain[:6], atol=1e-6)
    assert (logits[6:] - plain[6:]).abs().amax(dim=(1, 2)).min() > 1e-3
    assert kl > 0


def test_reconstruction_and_divergence_are_learned(tmp_path):
    config = tiny.make_config("PCLL", lr=3e-3, info_per_steps=1)
    method = make(tmp_path, config, PCLL_cycles=1)
    task = replace(tiny.make_task(epochs=30), train=tiny.make_task().train[:4])
    method.before_task(task)
    whole = batch_of(method, task.train, task)

    def elbo():
        with mock.patch.object(pcll_module, "cyclic", lambda *_: 1.0), torch.no_grad():
            terms = method.loss(method.model.eval(), whole, task)
        return (terms["task vae"] + terms["kl"]).item()

    before = elbo()
    fit(method, task, method.session)
    assert elbo() < 0.5 * before
    assert method.step == method.steps == 30


def test_the_divergence_does_not_depend_on_the_length_of_texts(tmp_path):
    """A mean over texts, of new and of pseudo rows each; published: 0.01 of it, added to means over tokens."""
    method, task = make(tmp_path), tiny.make_task()
    method.step, method.steps = 99, 100
    short = batch_of(method, task.train[:2], task)
    long = batch_of(method, [replace(row, input=row.input * 3) for row in task.train[:2]], task)
    for batch in (short, long):
        with mock.patch.object(pcll_module, "gaussian_kl", lambda *_: torch.tensor([3.0, 5.0])):
            assert method.loss(method.model, batch, task)["kl"].item() == pytest.approx(0.01 * 4.0)
    assert method.weights == {"answer": 0.5, "lm": 0.25, "vae": 1.0}


def test_without_the_latent_there_is_nothing_of_it(tmp_path):
    method, task = make(tmp_path, PCLL_weight_vae_loss=0.0), tiny.make_task()
    assert len(method.extra) == 0
    batch = batch_of(method, task.train[:3], task)
    with mock.patch.object(pcll_module, "token_states", lambda *_: pytest.fail("an extra pass")):
        terms = method.loss(method.model, batch, task)
    assert terms.keys() == {"task answer", "task lm"}


def scripted(texts, answers):
    turn = iter(texts)

    def sample(backbone, prompt, count, *rest, condition=nullcontext, **_):
        with condition(count):
            return [next(turn) for _ in range(count)]

    predict = mock.patch.object(PCLL, "predict", lambda self, rows, *_: [next(answers) for _ in rows])
    return mock.patch.object(pcll_module, "sample_texts", sample), predict


def test_the_count_is_reached_without_repetitions(tmp_path):
    method = make(tmp_path, LAMOL_gamma=0.7)  # 7 of 10: 4 of task 0, 3 of task 1
    method.longest = 9
    words = ["cat", "cat", "dog", "", "hen", "pig", "cow"]
    texts = [f" {word} Answer: x<eos>" for word in words] * 4
    script, predict = scripted(texts, iter(["moo"] * 99))
    with script, predict:
        method.before_task(tiny.make_task(2))
    pairs = [(question, task) for question, _, task in method.pseudo]
    assert pairs == [("cat", 0), ("dog", 0), ("hen", 0), ("pig", 0), ("cow", 1), ("cat", 1), ("dog", 1)]
    assert {answer for _, answer, _ in method.pseudo} == {"moo"}


def test_pseudo_rows_mix_hard_and_soft_loss(tmp_path):
    task = tiny.make_task(1)
    made = {}
    for k in (0.0, 0.25, 1.0):
        method = make(tmp_path, LAMOL_gamma=0.5, PCLL_KD_weight=k)
        method.longest = 9
        script, predict = scripted([f" {word}<eos>" for word in tiny.ANIMALS], iter(tiny.SOUNDS))
        with script, predict:
            method.before_task(task)
        batch = batch_of(method, method.train_examples(task), task)
        method.model.eval(), method.extra.eval()
        made[k] = method.loss(method.model, batch, task)
        method.teacher = {name: 0.9 * w for name, w in method.teacher.items()}
        made[k, "other"] = method.loss(method.model, batch, task)
    for view in ("answer", "lm", "vae"):
        name = f"pseudo {view}"
        assert made[1.0][name].item() == pytest.approx(0, abs=1e-6)  # the teacher is the student, its latent included
        mixed = 0.75 * made[0.0][name] + 0.25 * made[1.0, "other"][name]
        assert made[0.25, "other"][name].item() == pytest.approx(mixed.item(), rel=1e-4)
        assert made[0.0, "other"][name].item() == pytest.approx(made[0.0][name].item(), rel=1e-5)


def test_parts_of_a_step_are_one_step(tmp_path):
    method, task = make(tmp_path), tiny.make_task(1)
    method.step, method.steps = 20, 100
    rows = method.batch(task.train[:5], task, mock.Mock(random=lambda: 0.5))
    encoded = method.encoder(rows, task.max_length)

    def mean_terms(world, parts):
        batches = [b for rank in range(world) for b in micro_batches(encoded, rows, 2, rank, world, parts)]
        terms = [method.loss(method.model, batch, task) for batch in batches]
        for one in terms:  # DDP waits for every gradient in every part
            grads = torch.autograd.grad(sum(one.values()), list(method.extra.parameters()), allow_unused=True)
            assert all(grad is not None for grad in grads)
        return {key: sum(one[key].item() for one in terms) / len(terms) for key in terms[0]}

    whole = mean_terms(1, 1)
    assert whole["kl"] > 0
    for world, parts in ((1, 3), (2, 8)):
        assert mean_terms(world, parts) == pytest.approx(whole, rel=1e-4)


def test_contradictory_options_are_refused():
    options = PCLL.Options(PCLL_weight_vae_loss=0.0, PCLL_weight_gen_loss=0.0)
    (problem,) = PCLL.problems(tiny.make_config("PCLL"), options, tiny.micro_stream())
    assert problem.startswith("LAMOL_gamma: needs")
    options = PCLL.Options(PCLL_weight_vae_loss=0.0, PCLL_cycles=2)
    assert PCLL.problems(tiny.make_config("PCLL"), options, tiny.micro_stream()) == [
        "PCLL_cycles: has no effect with PCLL_weight_vae_loss 0"
    ]
    with pytest.raises(ValueError, match="PCLL_prompt"):
        PCLL.Options(PCLL_prompt="no place for the task")
