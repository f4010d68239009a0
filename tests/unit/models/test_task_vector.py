"""Task vectors: scaled, interpolated, merged; the weights that are evaluated and those that are trained further."""

import pytest
import torch

from models.TaskVector import TaskVector, change, larger
from tests import tiny
from utils.model.weights import interpolate
from utils.storage.files import read_jsonl

FAST = {"is_evaluate_init": False, "training_epochs": 1}


@pytest.fixture
def trained(tmp_path):
    """Run TaskVector and note the weights at the start of each task, at its end, and after the hooks."""
    count = iter(range(100))

    def runner(stream=None, config=None, **options):
        class Watched(TaskVector):
            start, end, after, answer = {}, {}, {}, {}

            def trainable(self, task):
                self.start[task.index] = tiny.snapshot(self)
                return super().trainable(task)

            def after_task(self, task):
                self.end[task.index] = tiny.snapshot(self)
                super().after_task(task)
                self.after[task.index] = tiny.snapshot(self)
                self.answer[task.index] = self.versions()

        folder = tmp_path / str(next(count))
        folder.mkdir()
        own = {f"TaskVector_{name}": value for name, value in options.items()}
        Watched.run = tiny.run(folder, tiny.make_config("TaskVector", **FAST | (config or {})), stream, Watched, **own)
        Watched.folder = folder
        return Watched

    return runner


def close(a, b):
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def test_vectors_by_hand():
    old, new = {"w": torch.tensor([1.0, 2.0, 3.0])}, {"w": torch.tensor([2.0, 0.0, 3.5])}
    vector = change(old, new)
    assert vector["w"].tolist() == [1.0, -2.0, 0.5]
    merged = larger(vector, {"w": torch.tensor([-3.0, 1.0, -0.5])})
    assert merged["w"].tolist() == [-3.0, -2.0, 0.5]  # a tie keeps the older
    assert larger({}, vector) == vector
    assert larger(merged, vector)["w"].tolist() == merged["w"].tolist()  # nothing counts twice


def test_scaling_by_hand_and_training_continues_from_there(trained):
    seen = trained(alpha=0.25)
    assert tiny.same(seen.after[0], seen.end[0])  # the first task is kept whole
    for task in (1, 2):
        assert tiny.same(seen.start[task], seen.after[task - 1])
        wanted = {n: w + 0.25 * (seen.end[task][n] - w) for n, w in seen.start[task].items()}
        assert close(seen.after[task], wanted)
        assert not close(seen.after[task], seen.end[task])
    assert seen.answer[2] == {"": None}
    assert seen.run.method.base == {}  # nothing is kept that nothing needs


@pytest.mark.parametrize("merge", ["scale", "wise_ft"])
def test_alpha_1_is_sequential(trained, tmp_path, merge):
    plain = tiny.run(tmp_path, tiny.make_config("SEQ", **FAST))
    seen = trained(alpha=1.0, merge=merge)
    assert tiny.same(seen.run.weights, plain.weights)
    assert seen.run.results["R"] == plain.results["R"]


def test_alpha_0_keeps_the_weights_of_the_first_task(trained):
    seen = trained(alpha=0.0)
    assert tiny.same(seen.run.weights, seen.end[0])


def test_wise_ft_answers_between_the_first_weights_and_these(trained, tmp_path):
    seen = trained(merge="wise_ft", alpha=0.3, grid=(0.0, 1.0))
    plain = tiny.learn(tiny.make_config("SEQ", **FAST))
    assert tiny.same(seen.run.weights, plain.weights)  # training knows nothing of it
    for task in range(3):
        answer = seen.answer[task]
        assert list(answer) == ["", "alpha 0", "alpha 1"]
        assert tiny.same(answer["alpha 0"], seen.start[0])
        assert tiny.same(answer["alpha 1"], seen.end[task])
        assert close(answer[""], interpolate(seen.start[0], seen.end[task], 0.3))


def test_magmax_takes_the_largest_change_of_each_entry(trained):
    seen = trained(merge="magmax", alpha=0.5, grid=(1.0,))
    first = seen.start[0]
    for last in range(3):
        assert tiny.same(seen.after[last], seen.end[last])
        for name, w in first.items():
            changes = torch.stack([seen.end[task][name] - w for task in range(last + 1)])
            wanted = changes.gather(0, changes.abs().argmax(dim=0, keepdim=True))[0]
            assert torch.allclose(seen.answer[last]["alpha 1"][name], w + wanted, atol=1e-6)
            assert torch.allclose(seen.answer[last][""][name], w + 0.5 * wanted, atol=1e-6)
    assert seen.run.method.state_dict()["vector"].keys() == first.keys()  # one vector, however many tasks


def test_a_share_of_the_grid_is_a_run_with_that_alpha(trained):
    stream = tiny.micro_stream(2)
    config = {"training_epochs": 4, "lr": 1e-2}
    grid = trained(stream, config, alpha=1.0, grid=(0.4,))
    single = trained(stream, config, alpha=0.4)
    for task in range(2):
        beside = read_jsonl(grid.folder / f"predictions/after_1_alpha 0.4/task_{task}.jsonl")
        assert beside == read_jsonl(single.folder / f"predictions/after_1/task_{task}.jsonl")
    whole = read_jsonl(grid.folder / "predictions/after_0/task_0.jsonl")
    assert read_jsonl(grid.folder / "predictions/after_0_alpha 0.4/task_0.jsonl") == whole
    assert not tiny.same(grid.run.weights, single.run.weights)


@pytest.mark.parametrize("merge", tiny.quick(["magmax", "scale", "wise_ft"]))
@pytest.mark.parametrize("place", ["task_1", "task_2_epoch_0_step_2"])
@pytest.mark.slow
def test_resumed_with_every_merge_and_a_grid(tmp_path, merge, place):
    own = {"TaskVector_merge": merge, "TaskVector_grid": (0.2,)}
    config = tiny.make_config("TaskVector", **FAST, save_llm_ckpt_step_interval=1)
    whole = tiny.run(tmp_path / "whole", config, cuts={place: tmp_path / "cut"}, **own)
    again = tiny.run(tmp_path / "cut", config, **own)
    assert tiny.same(whole.weights, again.weights)
    assert tiny.same(whole.method.base, again.method.base)
    for task in range(3):
        for moment in ("after_2", "after_2_alpha 0.2"):
            files = [tmp_path / name / f"predictions/{moment}/task_{task}.jsonl" for name in ("whole", "cut")]
            assert read_jsonl(files[0]) == read_jsonl(files[1])


def test_what_is_frozen_is_in_no_vector(trained):
    seen = trained(config={"freeze_parts": ("embeddings",), "freeze_from_task": 0}, merge="wise_ft")
    assert "gpt_neox.embed_in.weight" not in seen.run.method.base


@pytest.mark.parametrize("merge", ["scale", "wise_ft", "magmax"])
def test_the_model_itself_answers_before_training(merge):
    method = tiny.make_method(
        tiny.make_session(tiny.make_config("TaskVector")), TaskVector_merge=merge, TaskVector_grid=(0.1,)
    )
    assert method.versions() == {"": None}


def test_what_has_no_effect_is_refused():
    def problems(stream, **options):
        own = TaskVector.Options(**{f"TaskVector_{name}": value for name, value in options.items()})
        return TaskVector.problems(tiny.make_config("TaskVector"), own, stream)

    assert problems(tiny.micro_stream(), grid=(0.2, 0.4)) == []
    assert problems(tiny.micro_stream(), alpha=0.2, grid=(0.2, 0.4))[0].startswith("TaskVector_grid: expected shares")
    assert len(problems(tiny.micro_stream(), grid=(0.2, 0.2))) == 1
    assert problems(tiny.micro_stream(1))[0].startswith("TaskVector_merge: scale keeps the first task whole")
    assert problems(tiny.micro_stream(1), merge="wise_ft") == []
