"""Diagnosis of spurious forgetting: the mathematics by hand, the commands on a small run."""

import csv
import shutil

import numpy as np
import pytest
import torch

from tests import tiny
from tests.e2e.test_cli import run, small, streams  # noqa: F401 (fixtures)
from tests.tiny import class_stream
from utils.dataset import save_stream
from utils.diagnose import __main__ as diagnose
from utils.diagnose import angles, drift, recovery, shift, surface
from utils.diagnose.finished_run import open_run
from utils.errors import UserError
from utils.run.checkpoint import Place
from utils.storage.files import read_json


def basis(*columns, size=6):
    return torch.eye(size, dtype=torch.float64)[:, list(columns)]


def test_angles_of_spaces_that_are_known():
    assert angles.principal_angles(basis(0, 1), basis(0, 1)) == pytest.approx([0, 0])
    assert angles.principal_angles(basis(0, 1), basis(2, 3)) == pytest.approx([90, 90])
    assert angles.principal_angles(basis(0, 1), basis(1, 2)) == pytest.approx([0, 90])
    half = (basis(0) + basis(2)) / 2**0.5
    assert angles.principal_angles(basis(0), half) == pytest.approx([45])
    assert angles.vector_angles(basis(0, 1), torch.cat([half, basis(1), basis(5)], dim=1)) == pytest.approx([45, 0, 90])


def test_a_space_carries_the_given_energy():
    update = torch.diag(torch.tensor([3.0, 1.0, 0.1]))  # squares: 9, 1, 0.01
    assert [angles.column_space(update, energy).shape[1] for energy in (0.5, 0.9, 0.99, 1.0)] == [1, 2, 2, 3]
    assert angles.column_space(torch.zeros(3, 2), 0.99).shape == (3, 0)


def test_the_angle_of_two_updates():
    early, late = torch.zeros(4, 3), torch.zeros(4, 3)
    early[0, 0], late[0, 1] = 2.0, 5.0
    same = angles.describe_angle(early, late, 0.99)
    assert (same["angle"], same["principal"], same["rank_early"], same["rank_late"]) == pytest.approx((0, 0, 1, 1))
    assert same["random"] == pytest.approx(60)  # one direction of four: arccos sqrt(1/4)
    late = late.flip(0)
    assert angles.describe_angle(early, late, 0.99)["angle"] == pytest.approx(90)
    assert angles.describe_angle(early, torch.zeros(4, 3), 0.99) is None


def test_random_spaces_are_as_far_apart_as_expected():
    torch.manual_seed(0)
    found = angles.describe_angle(torch.randn(200, 20), torch.randn(200, 20), 1.0)
    assert found["angle"] == pytest.approx(found["random"], abs=1)


def test_only_matrices_that_change_have_an_angle():
    a = {"x.weight": torch.zeros(3, 3), "still.weight": torch.ones(3, 3), "x.bias": torch.zeros(3)}
    b, c = ({name: w + k * (name != "still.weight") * torch.eye(3)[: len(w)].squeeze() for name, w in a.items()
             if w.ndim == 2} | {"x.bias": a["x.bias"] + k} for k in (1, 3))  # fmt: skip
    assert [row["weight"] for row in angles.measure(a, b, c, 0.99)] == ["x"]
    with pytest.raises(UserError, match="no weight matrix has changed"):
        angles.measure(a, a, c, 0.99)


def test_a_shift_of_all_rows_alike_is_explained_by_one_direction():
    rng = np.random.default_rng(0)
    before = rng.normal(size=(20, 5)) * [9, 1, 1, 1, 0]  # differs along the first axis; nothing along the last
    found = shift.describe_shift(before, before + np.array([0, 0, 0, 0, 2.0]))
    assert (found["common"], found["first"]) == pytest.approx((1, 1)) and found["second"] == pytest.approx(0)
    assert found["angle"] == pytest.approx(90)
    assert found["relative"] == pytest.approx(2 * 20**0.5 / np.linalg.norm(before))


def test_a_shift_along_one_direction_to_both_sides_is_not_common():
    before, sides = np.random.default_rng(1).normal(size=(20, 5)), np.tile([1.0, -1.0], 10)
    found = shift.describe_shift(before, before + np.outer(sides, [0, 3, 0, 0, 0]))
    assert (found["common"], found["first"]) == pytest.approx((0, 1))


def test_a_shift_of_every_row_its_own_way_is_not_explained():
    found = shift.describe_shift(np.ones((4, 4)), np.ones((4, 4)) + np.eye(4))
    assert (found["common"], found["first"], found["second"]) == pytest.approx((0.25, 0.25, 0.25))


def test_no_shift_has_no_shares():
    found = shift.describe_shift(np.ones((3, 2)), np.ones((3, 2)))
    assert found == {"relative": 0, "common": None, "first": None, "second": None, "angle": None}


def test_a_plane_goes_through_its_corners():
    torch.manual_seed(0)
    a, b, c = ({"w": torch.randn(50)} for _ in range(3))
    for place, corner in {(0, 0): a, (1, 0): b, (1, 1): c}.items():
        assert torch.equal(surface.point(a, b, c, *place)["w"], corner["w"])
    expected = a["w"] + 0.3 * (b["w"] - a["w"]) + 0.7 * (c["w"] - b["w"])
    torch.testing.assert_close(surface.point(a, b, c, 0.3, 0.7)["w"], expected)
    assert surface.axis(13)[2] == 0 and surface.axis(13)[10] == 1


def test_checkpoints_of_a_curve_are_thinned_inside_tasks():
    places = [Place(0, 0, 1), Place(0), *(Place(1, 0, k) for k in range(1, 5)), Place(1)]
    names = [place.name for place in recovery.choose(places, 2)]
    assert names == ["task_0", "task_1_epoch_0_step_2", "task_1_epoch_0_step_4", "task_1"]
    assert recovery.choose(places, 1) == places[1:]


def test_forgetting_where_lower_is_better_or_scores_are_missing():
    R = [[0.8, None, None], [0.5, 0.9, None], [0.6, 0.5, 1.0]]
    assert drift.forgotten(R, [False] * 3, "task") == [None, -0.3, -0.15]
    assert drift.forgotten([[0.8, None], [None, 1.0]], [True] * 2, "task") == [None, None]


def test_a_fit_needs_points_and_says_what_it_explains():
    assert drift.fit([-1, -1, 1, 1], [0, 1, 0, 1]) is None  # two places
    assert drift.fit([-1, 0, 1, 0], [0, 1, 0, -1])[1] == pytest.approx(0)
    assert drift.fit([0, 1, 2], [0, 1, 2]) is None
    assert drift.fit([0, 1, 2, 3], [1, 1, 1, 1]) is None


@pytest.fixture(scope="module")
def kept(small, tmp_path_factory):  # noqa: F811
    """A run of which every third step was kept."""
    options = (
        "--training_epochs 15 --batch_size 12 --lr 1e-2 --save_llm_ckpt true --save_llm_ckpt_step_interval 3 --recovery"
    )
    return run([*small, *options.split()], tmp_path_factory.mktemp("kept"))


def rows(folder, what):
    with open(folder / f"{what}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


SHORT = {"recovery": ["--every", "8"], "shift": [], "angles": [], "surface": ["--points", "4"]}


@pytest.mark.parametrize("what", tiny.quick(SHORT, 2))
@pytest.mark.slow
def test_each_analysis_leaves_a_table_and_a_picture_and_repeats_itself(what, kept, tmp_path, capsys):
    for number in (1, 2):
        assert diagnose.main([what, str(kept), "--out", str(tmp_path / str(number)), *SHORT[what]]) == 0
    shown = capsys.readouterr().out
    assert "SEQ on micro, seed 1" in shown and f"{what}.png" in shown
    one, two = ((tmp_path / number / f"{what}.csv").read_bytes() for number in "12")
    assert one == two
    assert (tmp_path / f"1/{what}.png").stat().st_size > 5000


@pytest.mark.slow
def test_the_curve_ends_as_the_run_did(kept, tmp_path):
    assert diagnose.main(["recovery", str(kept), "--out", str(tmp_path), "--checkpoints", "task_0", "task_2"]) == 0
    results, (first, last) = read_json(kept / "results.json"), rows(tmp_path, "recovery")
    assert float(first["task_0"]) == float(first["learned_task"]) == results["R"][0][0]
    assert float(last["task_0"]) == results["R"][2][0] and float(last["learned_task"]) == results["R"][2][2]
    assert float(last["task_0_recovered"]) == results["recovery"]["after"]
    assert (int(first["step"]), int(last["step"])) == (15, 45)


def test_existing_results_are_not_computed_again(kept, tmp_path, monkeypatch):
    command = ["recovery", str(kept), "--out", str(tmp_path), "--checkpoints", "task_1"]
    assert diagnose.main(command) == 0
    first = (tmp_path / "recovery.csv").read_bytes()
    monkeypatch.setattr(recovery, "relearn", None)  # would fail if it were asked
    assert diagnose.main(command) == 0 and (tmp_path / "recovery.csv").read_bytes() == first


def test_layers_are_those_of_the_model(kept):
    """The states that hooks see are those that transformers gives out, but for the last norm."""
    opened = open_run(kept, recovery=True)
    opened.load(opened.find(["task_1"])[0])
    examples, method = opened.method.stream.tasks[0].test, opened.method
    found = shift.residual_stream(opened, examples)
    batch = shift.collate(
        [shift.Encoded(row.prompt, ()) for row in method.encoder.for_prediction(examples, 48)], examples, 2
    )
    net = method.model.base_model
    positions = (batch.attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        states = net(
            batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions, output_hidden_states=True
        ).hidden_states
    assert len(found) == len(states) == 3
    for mine, other in zip(found[:-1], states[:-1], strict=True):
        np.testing.assert_allclose(mine, other[:, -1].numpy(), atol=1e-5)
    last = net.final_layer_norm(torch.from_numpy(found[-1]).float())
    np.testing.assert_allclose(last.detach().numpy(), states[-1][:, -1].numpy(), atol=1e-5)
    np.testing.assert_allclose(last.detach().numpy(), method.features(examples, 48), atol=1e-5)


@pytest.mark.slow
def test_the_surface_is_that_of_the_loss(kept, tmp_path):
    assert diagnose.main(["surface", str(kept), "--out", str(tmp_path), "--points", "7"]) == 0
    found = {(float(r["x"]), float(r["y"])): float(r["task_0"]) for r in rows(tmp_path, "surface")}
    assert len(found) == 49
    opened = open_run(kept, recovery=True)
    for place, checkpoint in zip(((0, 0), (1, 0), (1, 1)), opened.triple(), strict=True):
        opened.load(checkpoint)
        assert surface.loss(opened, 0, opened.method.stream.tasks[0].test) == pytest.approx(found[place], rel=1e-5)
    assert found[0, 0] < found[1, 1]  # task 0 was just learned in A


def problem(arguments, capsys):
    assert diagnose.main([str(word) for word in arguments]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    return text


def test_errors_are_one_line(kept, tmp_path, capsys):
    assert "is not a run folder: expected config.yaml" in problem(["shift", tmp_path], capsys)
    wrong = ["angles", kept, "--checkpoints", "task_0", "task_9", "task_1"]
    assert "checkpoints/task_9 is missing or incomplete; expected task_0_epoch_2_step_1, " in problem(wrong, capsys)
    still = ["angles", kept, "--checkpoints", "task_0", "task_0", "task_1"]
    assert "no weight matrix has changed" in problem(still, capsys)
    copy = shutil.copytree(kept, tmp_path / "copy")
    for folder in copy.glob("checkpoints/task_1_*"):
        shutil.rmtree(folder)
    assert "holds none from inside task 1; keep them by running with --save_llm_ckpt" in problem(
        ["surface", copy], capsys
    )
    (copy / "checkpoints/task_1/model.safetensors").write_bytes(b"")
    assert "is damaged" in problem(["shift", copy], capsys)
    shutil.rmtree(copy / "checkpoints")
    assert "holds no checkpoint; keep them by" in problem(["recovery", copy], capsys)


def test_methods_that_answer_with_more_than_the_model_are_refused(kept, tmp_path, capsys):
    copy = shutil.copytree(kept, tmp_path / "copy")
    lines = (kept / "config.yaml").read_text(encoding="utf-8").replace("method: SEQ", "method: ICL").splitlines()
    others = [line for line in lines if not line.startswith("SEQ_")]
    (copy / "config.yaml").write_text("\n".join(others), encoding="utf-8")
    assert "method ICL cannot be combined with recovery (nothing is trained)" in problem(["shift", copy], capsys)


@pytest.mark.parametrize(
    "words", [["surface", "x", "--points", "1"], ["angles", "x", "--energy", "2"], ["growth", "x"]]
)
def test_the_command_line_reports_wrong_options(words):
    with pytest.raises(SystemExit) as error:
        diagnose.main(words)
    assert error.value.code == 2


@pytest.mark.slow
def test_heads_are_diagnosed_too(small, tmp_path):  # noqa: F811
    options = "--dataset classes --il_mode CIL --classifier Linear --batch_size 12"
    options += " --save_llm_ckpt true --save_llm_ckpt_step_interval 1"
    streams = save_stream(class_stream(), tmp_path / "streams").parent  # noqa: F811
    folder = run([*small, *options.split(), "--dataset_path", str(streams)], tmp_path / "runs")
    for what in SHORT:
        assert diagnose.main([what, str(folder), *SHORT[what]]) == 0
    results = read_json(folder / "results.json")["R"]
    assert [
        float(row["task_0"]) for row in rows(folder / "diagnosis", "recovery") if "epoch" not in row["checkpoint"]
    ] == [row[0] for row in results]


@pytest.mark.slow
def test_drift_command(kept, tmp_path, capsys):
    for since in ("stream", "task"):
        words = ["drift", str(kept), "--since", since, "--questions", "6", "--out", str(tmp_path / since)]
        assert diagnose.main(words) == 0
        found = rows(tmp_path / since, "drift")
        assert [row["task"] for row in found] == ["1", "2"] and all(float(row["forward"]) > 0 for row in found)
        assert (tmp_path / since / "drift.png").stat().st_size > 1000
    assert "no fit" in capsys.readouterr().out
    assert diagnose.main(["drift", str(tmp_path)]) == 2
    shutil.rmtree(kept / "checkpoints" / "task_0")
    assert diagnose.main(["drift", str(kept), "--since", "task"]) == 2
    assert "task_0 is missing" in capsys.readouterr().err
