"""GradientProjection: the direction, the projection, and that estimating a direction changes no state."""

import pytest
import torch

from models.GradientProjection import GradientProjection, unit_rows, without
from tests import tiny
from utils.run.fit import fit
from utils.session import Progress


def prepared(**options):
    """The method at the end of task 0."""
    session = tiny.make_session(tiny.make_config("GradientProjection", **options))
    method = tiny.make_method(session)
    fit(method, tiny.make_task(), session)
    return method


def test_projection_by_hand():
    g, d = torch.tensor([[3.0, 1.0], [2.0, 2.0], [5.0, 7.0]]), torch.tensor([[0.0, 9.0], [1.0, -1.0], [0.0, 0.0]])
    assert without(g, unit_rows(d)).flatten().tolist() == pytest.approx([3, 0, 2, 2, 5, 7])
    vector, along = torch.tensor([4.0, 2.0]), torch.tensor([0.5, 0.5])
    assert without(vector, unit_rows(along)).tolist() == pytest.approx([1, -1])
    assert without(torch.tensor(3.0), unit_rows(torch.tensor(-2.0))).item() == 0


@pytest.mark.parametrize("shape", [(5, 7), (6,), (), (4, 3, 2)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_nothing_is_left_along_the_direction(shape, size):
    torch.manual_seed(0)
    g, d = torch.randn(shape), size * torch.randn(shape)
    rest = without(g, unit_rows(d))
    rows = [x.flatten(1) if x.dim() > 1 else x.reshape(1, -1) for x in (rest, d / size)]
    assert (rows[0] * rows[1]).sum(dim=1).abs().max() < 1e-5
    assert torch.allclose(without(rest, unit_rows(d)), rest, atol=1e-6)
    assert torch.equal(without(g, unit_rows(torch.zeros(shape))), g)


def test_the_direction_is_the_mean_way_of_the_runs(monkeypatch):
    """With hand-made trainings: run r moves every weight by r + 1 up to begin_step, and by 10 r after it."""
    method, runs = prepared(), []

    def fake(plain, task, session, on_step, limit):
        runs.append((session.config.seed, plain.memory, limit))
        for done, way in ((1, len(runs)), (2, 0), (3, 10.0 * (len(runs) - 1))):
            with torch.no_grad():
                for w in plain.named().values():
                    w += way
            on_step(Progress(task.index, 0, done, 9), dict)

    method.session.loop = fake
    way = method._average_way(tiny.make_task(1))
    assert set(way) == set(method.named())
    for d in way.values():
        assert torch.allclose(d, torch.full_like(d, 5), atol=1e-4)  # the mean of 0 and 10
    assert len({seed for seed, _, _ in runs}) == 2
    assert method.config.seed not in [seed for seed, _, _ in runs]
    assert [limit for _, _, limit in runs] == [3, 3]


def test_estimating_a_direction_changes_no_state():
    method = prepared(is_replay=True, Replay_buffer_ratio=0.5)
    task, log = tiny.make_task(1), method.session.log
    before, step, told = tiny.snapshot(method), log.step, len(log.events)
    method.before_task(task)
    assert tiny.same(before, tiny.snapshot(method))
    assert log.step == step
    assert {event["event"] for event in log.events[told:-1]} == {
        "direction_train"
    }  # distinguishable from the run's own
    assert log.events[-1]["event"] == "direction"
    assert log.events[-1]["length"] > 0
    first = method.direction
    method.before_task(task)
    assert tiny.same(first, method.direction)  # a run interrupted here estimates it again, with the same result


def test_in_training_no_gradient_points_there():
    method, parts = prepared(freeze_parts=("layers 0",)), []
    method.before_task(tiny.make_task(1))
    original = method.on_gradients

    def watched(task):
        original(task)
        for name, w in method.learning(task).items():
            rows = w.grad.reshape(method.direction[name].shape)
            along = (rows * method.direction[name]).sum(dim=1).abs()
            parts.append((along / rows.norm(dim=1).clamp(min=1e-6)).max().item())

    method.on_gradients = watched
    fit(method, tiny.make_task(1), method.session)
    assert set(method.direction) == set(method.learning(tiny.make_task(1)))
    assert len(parts) > 10
    assert max(parts) < 1e-3


def test_the_first_task_is_plain_fine_tuning(tmp_path):
    made = []
    for name in ("SEQ", "GradientProjection"):
        (tmp_path / name).mkdir()
        made.append(tiny.learn(tiny.make_config(name), tiny.micro_stream(1)))
    assert tiny.same(made[0].weights, made[1].weights)


def test_tasks_that_are_too_short_are_refused():
    config, stream = tiny.make_config("GradientProjection"), tiny.micro_stream()  # tasks 1, 2: 2 and 3 steps x 2 epochs
    names = ("GradientProjection_begin_step", "GradientProjection_end_step")

    def problems(begin, end, config=config):
        options = GradientProjection.Options(**dict(zip(names, (begin, end), strict=True)))
        return GradientProjection.problems(config, options, stream)

    assert problems(1, 4) == []
    assert problems(1, 5) == ["GradientProjection_end_step: expected at most the 4 steps of task 1, got 5"]
    assert problems(3, 3) == ["GradientProjection_begin_step: expected less than the end_step 3, got 3"]
    config = config.model_copy(update={"training_epochs_list": (1, 9, 1)})
    assert problems(1, 4, config) == ["GradientProjection_end_step: expected at most the 3 steps of task 2, got 4"]
