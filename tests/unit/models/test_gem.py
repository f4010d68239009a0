"""GEM and A-GEM: the projections by hand and by their conditions, and the gradients they start from."""

import numpy as np
import pytest
import torch

from models.AGEM import AGEM, half_space_multipliers
from models.common.gradients import cone_multipliers, dot, shared_gradient
from models.GEM import GEM
from tests import tiny
from utils.model.weights import eval_mode
from utils.run.fit import fit

BOTH = pytest.mark.parametrize("name", ["GEM", "AGEM"])


def project(g, old, margin=0.0):
    """The turned gradient and its multipliers."""
    g, old = np.array(g, dtype=float), np.array(old, dtype=float)
    v = cone_multipliers(old @ old.T, old @ g, margin)
    return g + v @ old, v


def prepared(name, options=None, epochs=1, **own):
    """The method with memory of task 0, at the beginning of task 1."""
    session = tiny.make_session(tiny.make_config(name, **(options or {})))
    method = tiny.make_method(session, **own)
    for task in (tiny.make_task(0, epochs=epochs), tiny.make_task(1)):
        method.before_task(task)
        if task.index == 0:
            fit(method, task, session)
            method.after_task(task)
    return method, tiny.make_task(1)


def reference(method, task, rows, size=100):
    def outputs(batch):
        return tiny.outputs(method, method.model, batch, task.index)

    with eval_mode(method.model):
        return shared_gradient(outputs, method.learning(task), rows, size, lambda x: method.collated(x, task))


def test_projections_by_hand():
    assert project([1, -1], [[0, 1]])[0] == pytest.approx([1, 0], abs=1e-6)
    assert project([-1, -1], [[1, 0], [0, 1]])[0] == pytest.approx([0, 0], abs=1e-6)
    assert project([-3, 1], [[1, 0], [1, 1]])[0] == pytest.approx([0, 1], abs=1e-6)  # <g, g_2> = -2, and 1 afterwards
    turned, v = project([1, -1], [[0, 1], [1, 0]], margin=0.5)
    assert v == pytest.approx([1, 0.5], abs=1e-6)
    assert turned == pytest.approx([1.5, 0], abs=1e-6)


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(8))
def test_the_program_is_solved(seed, margin):
    """Optimal means: multipliers at least the margin, and those above it belong to constraints that just hold."""
    rng = np.random.default_rng(seed)
    old, g = rng.normal(size=(4, 30)) * rng.choice([1e-4, 1, 50], size=(4, 1)), rng.normal(size=30)
    g -= old[0]  # opposed for sure
    turned, v = project(g, old, margin)
    products = old @ turned / np.linalg.norm(old, axis=1) / np.linalg.norm(g)
    assert (v >= margin).all()
    assert (products >= -1e-5).all()
    assert np.abs(products[v > margin + 1e-9]).max() < 1e-5


def test_what_is_not_opposed_stays_as_it_is():
    g, old = [1.0, 2.0], [[0.5, 0.1], [0.0, 3.0]]
    turned, v = project(g, old, margin=0.5)
    assert turned.tolist() == g
    assert not v.any()
    assert half_space_multipliers(np.array([[4.0]]), np.array([0.1])).tolist() == [0]


@pytest.mark.parametrize("seed", range(4))
def test_gem_with_one_constraint_is_agem(seed):
    rng = np.random.default_rng(seed)
    g_ref, g = rng.normal(size=(1, 20)), rng.normal(size=20)
    gram, products = g_ref @ g_ref.T, g_ref @ g
    assert cone_multipliers(gram, products, 0.0) == pytest.approx(half_space_multipliers(gram, products), rel=1e-5)


@pytest.mark.parametrize("old", [[[1, 0], [1, 0]], [[1, 0], [2, 1e-9]], [[1, 0], [0, 0]], [[1, 0], [-1, 0]]])
def test_parallel_opposite_and_absent_gradients(old):
    turned, v = project([-1, 1], old)
    assert np.isfinite(v).all()
    assert turned == pytest.approx([0, 1], abs=1e-5)


def test_reference_gradient_is_that_of_the_mean_loss_per_token():
    method, task = prepared("GEM")
    rows = list(tiny.micro_stream().tasks[0].train[:5])
    found, in_parts = reference(method, task, rows), reference(method, task, rows, size=2)
    batch = method.collated(rows, task)
    method.model.zero_grad()
    labels = batch.labels
    positions = (batch.attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "position_ids": positions}
    method.model.eval()(**inputs, labels=labels).loss.backward()
    for name, w in method.named().items():
        assert torch.allclose(found[name], w.grad, rtol=1e-3, atol=1e-7), name
        assert torch.allclose(found[name], in_parts[name], rtol=1e-3, atol=1e-7), name


@BOTH
@pytest.mark.slow
def test_gradients_no_longer_oppose_the_memory(name):
    """In training, with dropout in the batch's own gradient, and with parts that do not learn."""
    options = {"backbone": tiny.backbone_folder(dropout=0.1), "freeze_parts": ("embeddings", "layers 0")}
    method, _ = prepared(name, options, 30, **{"GEM_margin": 0.0} if name == "GEM" else {})
    before, after, original = [], [], method.on_gradients

    def watched(task):
        gradients = [{n: w.grad.clone() for n, w in method.learning(task).items()}]
        original(task)
        gradients.append({n: w.grad.clone() for n, w in method.learning(task).items()})
        old = [reference(method, task, rows) for rows in method.drawn]
        for g, into in zip(gradients, (before, after), strict=True):
            into.append([dot(g, a) / (dot(g, g) * dot(a, a)) ** 0.5 for a in old])
        if min(before[-1]) >= 0:
            assert tiny.same(*gradients)

    method.on_gradients = watched
    fit(method, tiny.make_task(1, epochs=8), method.session)
    assert min(map(min, before)) < -1e-3
    assert min(map(min, after)) > -1e-4
    assert method.turned == sum(min(x) < 0 for x in before)
    assert method.steps == len(before)


@BOTH
def test_memory_is_never_trained_on(name):
    method, task = prepared(name)
    seen, original = [], method.loss
    method.loss = lambda model, batch, task: seen.extend(batch.examples) or original(model, batch, task)
    fit(method, task, method.session)
    assert len(method.memory) == 6
    assert sorted(row.input for row in seen) == sorted(row.input for row in task.train)


@BOTH
def test_without_memories_it_is_plain_fine_tuning(name, tmp_path):
    made = []
    for kind, more in (("SEQ", {}), (name, {"Replay_buffer_ratio": 0.01})):  # floor(0.01 * 12) = 0
        (tmp_path / kind).mkdir()
        made.append(tiny.learn(tiny.make_config(kind, **more)))
    assert tiny.same(made[0].weights, made[1].weights)


def test_groups_are_tasks_and_what_is_drawn_changes(monkeypatch):
    method, task = prepared("GEM", GEM_batch_size=3)
    method.after_task(task)  # memory of tasks 0 and 1
    drawn, original = [], method.draw
    monkeypatch.setattr(method, "draw", lambda rng: drawn.append(original(rng)) or drawn[-1])
    fit(method, tiny.make_task(2), method.session)
    for groups in drawn:
        assert [{row.task for row in rows} for rows in groups] == [{0}, {1}]
        assert [len(rows) for rows in groups] == [3, 3]
    assert drawn[0] != drawn[1]
    method.options = GEM.Options()
    assert [len(rows) for rows in method.draw(None)] == [6, 4]  # everything that is remembered


def test_agem_draws_from_all_of_memory():
    method, task = prepared("AGEM", AGEM_batch_size=8)
    method.after_task(task)
    fit(method, tiny.make_task(2), method.session)
    (rows,) = method.drawn
    assert len(rows) == len(set(rows)) == 8
    assert {row.task for row in rows} == {0, 1}


@pytest.mark.parametrize("kind", [GEM, AGEM])
def test_settings_without_effect_are_refused(kind):
    config, stream = tiny.make_config(kind.__name__), tiny.micro_stream()
    assert kind.problems(config, kind.Options(), stream) == []
    (level,) = kind.problems(config.model_copy(update={"Replay_batch_level": False}), kind.Options(), stream)
    assert level.startswith(f"Replay_batch_level: has no effect with {kind.__name__}")
    (update,) = kind.problems(config.model_copy(update={"Replay_update": "step"}), kind.Options(), stream)
    assert update.startswith("Replay_update: ")


def test_memory_passes_through_the_model_in_parts_no_larger_than_those_of_training():
    """A part of 4 / 2 rows of memory at a time, where a step of 4 is cut into 2 parts."""
    method, task = prepared("GEM", {"gradient_accumulation_steps": 2})
    sizes, collated = [], method.collated
    method.collated = lambda rows, task: sizes.append(len(rows)) or collated(rows, task)
    fit(method, task, method.session)
    assert max(sizes) == 2
