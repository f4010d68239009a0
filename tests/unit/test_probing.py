"""Probes: correct by hand, repeatable, resumable, and without effect on training."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression

from tests import tiny
from utils import probing
from utils.errors import UserError
from utils.options import consistency
from utils.probing import equal_weights, fit_probes, stratified, weighted_loss
from utils.report import summary
from utils.report.probing import PROBES, accuracies
from utils.storage.files import read_json, read_jsonl
from utils.storage.moment import BASE, Moment

THREE = np.repeat([0, 1, 2], 30)


def clouds(labels, seed=0, width=6, gap=8.0):
    """Rows around far-apart points, one for each class, turned by a random rotation."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(width, width)))
    points = gap * np.eye(width)[np.asarray(labels) % width]
    return ((points + rng.normal(size=points.shape)) @ turn).astype(np.float32)


@pytest.mark.parametrize("name", PROBES)
def test_separable_classes_are_found_after_any_rotation(name):
    """A head that had learned the classes along the axes is at chance; each probe is at 100 %."""
    x, new = clouds(THREE), clouds(np.roll(THREE, 7), seed=0)
    observed = x[:, :3].argmax(axis=1)  # reads the axes, which have been turned away
    assert (observed == THREE).mean() < 0.6
    probe = fit_probes(x, THREE)[name]
    assert probe.predict(x) == THREE.tolist()
    assert np.mean(np.array(probe.predict(new)) == np.roll(THREE, 7)) == 1


@pytest.mark.parametrize("name", PROBES)
def test_random_labels_are_not_found(name):
    rng = np.random.default_rng(0)
    x, y, new = rng.normal(size=(300, 4)), rng.integers(0, 3, 300), rng.normal(size=(300, 4))
    score = np.mean(np.array(fit_probes(x, y)[name].predict(new)) == rng.integers(0, 3, 300))
    assert abs(score - 1 / 3) < 0.1


def test_prototypes_are_the_exact_means_of_the_classes():
    rng = np.random.default_rng(1)
    x, y = (3 + 5 * rng.normal(size=(50, 4))).astype(np.float32), rng.integers(0, 3, 50)
    probe = fit_probes(x, y)["PrototypeProb"]
    for c in range(3):
        np.testing.assert_allclose(probe.weight[c] * probe.std + probe.mean, x[y == c].mean(axis=0), atol=1e-6)
    means = np.stack([x[y == c].mean(axis=0) for c in range(3)]) / probe.std
    near = np.linalg.norm((x / probe.std)[:, None] - means, axis=2).argmin(axis=1)
    assert probe.predict(x) == near.tolist()


def test_the_linear_probe_is_logistic_regression():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(40, 3)), np.array([0] * 30 + [1] * 6 + [2] * 4)
    probe = fit_probes(x, y)["LinearProb"]
    z = (x - probe.mean) / probe.std
    other = LogisticRegression(class_weight="balanced", tol=1e-8, max_iter=1000).fit(z, y)
    np.testing.assert_allclose(probe.weight, other.coef_, atol=2e-3)
    assert probe.predict(x) == other.predict(z).tolist()


def test_classes_weigh_alike_by_hand():
    """Three rows of one class and one of another: mean and std are those of one row each."""
    y = np.array([0, 0, 0, 1])
    weights = torch.from_numpy(equal_weights(y))
    logits = torch.zeros(4, 2, dtype=torch.float64)
    logits[3, 1] = float(np.log(3.0))  # three times as likely: -log 3/4
    expected = (np.log(2) + np.log(4 / 3)) / 2
    assert weighted_loss(logits, torch.from_numpy(y), weights).item() == pytest.approx(expected)
    probe = fit_probes(np.float32([[0], [0], [0], [4]]), y)["PrototypeProb"]
    assert (probe.mean, probe.std) == (2, 2)


@pytest.mark.parametrize("labels", [[5, 9], [5, 5, 9, 7], [4] * 3, [0] * 200 + [1]])
def test_any_number_of_rows_will_do(labels):
    for name, probe in fit_probes(clouds(labels), labels).items():
        assert probe.predict(clouds(labels)) == labels, name
        assert np.isfinite(probe.weight).all()


def test_a_dimension_that_never_changes_does_no_harm():
    x = np.hstack([clouds(THREE), np.tile(np.float32([[7, 0]]), (90, 1))])
    assert all(probe.predict(x) == THREE.tolist() for probe in fit_probes(x, THREE).values())


def test_rows_are_drawn_from_every_class():
    labels = [1] * 50 + [2] * 3 + [3]
    places = stratified(labels, 5, random.Random(0))
    assert [labels[p] for p in places] == [1] * 5 + [2] * 3 + [3] and places == sorted(set(places))
    assert places == stratified(labels, 5, random.Random(0)) != stratified(labels, 5, random.Random(1))
    assert stratified(labels, None, random.Random(0)) == list(range(54))


def test_together_or_one_for_each_task():
    """A probe per task has to separate only that task's classes."""
    labels = [[0, 0, 1, 1], [2, 2, 3, 3]]
    train = [np.float32([[0], [0.1], [1], [1.1]])] * 2  # the tasks look the same
    together, apart = (probing.ask(train, labels, train, whole) for whole in (True, False))
    assert [answers["PrototypeProb"] for answers in apart] == labels
    assert [answers["PrototypeProb"] for answers in together] == [[0, 0, 1, 1], [0, 0, 1, 1]]


@pytest.fixture
def made():
    session = tiny.make_session(tiny.make_config(il_mode="CIL", is_probing=True))
    return tiny.make_method(session), session


@pytest.mark.parametrize("size", [1, 5])
def test_features_do_not_depend_on_the_batch_nor_on_the_mode(made, size):
    method, _ = made
    examples = tiny.micro_stream().tasks[1].train
    plain = method.features(examples, 48)
    method.session.config = tiny.make_config(evaluate_batch_size=size)
    method.model.train()
    np.testing.assert_allclose(probing.extract(method, examples, 1), plain, atol=1e-5)
    assert method.model.training


def test_processes_share_the_examples(made, monkeypatch):
    """Each of three processes extracts its share; together they hold what one would."""
    method, _ = made
    examples = tiny.micro_stream().tasks[1].train
    whole, parts = probing.extract(method, examples, 1), {}

    def gather(mine, count):
        parts[rank] = list(zip(range(rank, count, 3), mine, strict=True))
        return whole  # in place of the other processes' shares

    for rank in range(3):
        monkeypatch.setattr(probing, "share", lambda count, rank=rank: range(rank, count, 3))
        monkeypatch.setattr(probing, "gather", gather)
        probing.extract(method, examples, 1)
    order = sorted(range(8), key=method.encoder.lengths(examples).__getitem__)
    together = dict(pair for part in parts.values() for pair in part)
    assert sorted(together) == list(range(8))
    np.testing.assert_allclose([together[k] for k in range(8)], whole[order], atol=1e-5)


OPTIONS = {"is_probing": True, "save_features": True, "probing_rows_per_class": 2, "evaluate_unseen": True}


@pytest.mark.parametrize("il_mode", ["CIL", "TIL"])
def test_a_run_is_probed_at_every_moment(il_mode, tmp_path):
    made = tiny.run(tmp_path, tiny.make_config(il_mode=il_mode, **OPTIONS))
    stream, found = tiny.micro_stream(), made.results["probing"]
    assert list(found) == list(PROBES)
    for matrix in found.values():
        assert len(matrix["R"]) == 3 and not any(None in row for row in [matrix["base"], *matrix["R"]])
    rows = read_jsonl(tmp_path / "probing/after_1/task_2.jsonl")
    assert [row["label"] for row in rows] == [example.label for example in stream.tasks[2].test]
    own = {example.label for example in stream.tasks[2].train}
    assert il_mode == "CIL" or {row[name] for row in rows for name in PROBES} <= own
    saved = load_file(tmp_path / "features/after_2/task_0.safetensors")
    assert {name: array.shape for name, array in saved.items()} == {
        "train": (6, 32), "train_labels": (6,), "test": (6, 32), "test_labels": (6,),
    }  # fmt: skip
    np.testing.assert_allclose(saved["test"], made.method.features(stream.tasks[0].test, 48), atol=1e-5)
    (event,) = [e for e in made.log.events if e["event"] == "probing" and e["moment"] == "after_1"]
    R = found["LinearProb"]["R"][1]
    assert event["LinearProb_Acc_Task_Seen"] == pytest.approx(sum(R[:2]) / 2)
    assert event["LinearProb_Acc_Task_All"] == pytest.approx(sum(R) / 3)
    before = next(e for e in made.log.events if e["event"] == "probing")
    assert before["moment"] == "base" and "LinearProb_Acc_Task_Seen" not in before


@pytest.mark.parametrize("il_mode", ["CIL", "TIL"])
@pytest.mark.slow
def test_a_run_with_heads_is_probed_too(il_mode, tmp_path):
    made = tiny.run(
        tmp_path, tiny.make_config(il_mode=il_mode, classifier="Linear", is_probing=True), tiny.class_stream()
    )
    assert all(None not in row for row in made.results["probing"]["LinearProb"]["R"])


def test_probing_leaves_no_trace_in_training(tmp_path):
    options = {"il_mode": "CIL", "backbone": tiny.backbone_folder(dropout=0.1), "is_replay": True}
    plain = tiny.run(tmp_path / "plain", tiny.make_config(Replay_buffer_ratio=0.5, **options))
    probed = tiny.run(tmp_path / "probed", tiny.make_config(Replay_buffer_ratio=0.5, **options, **OPTIONS))
    assert tiny.same(plain.weights, probed.weights)
    assert plain.results["cost"]["train_sequences"] == probed.results["cost"]["train_sequences"]
    assert "probing" not in plain.results and not (tmp_path / "plain/probing").exists()


@pytest.mark.parametrize("after", ["task_0", "task_1"])
@pytest.mark.slow
def test_an_interrupted_run_is_probed_to_the_end(after, tmp_path):
    config = tiny.make_config(il_mode="TIL", **OPTIONS)
    whole = tiny.run(tmp_path / "whole", config, cuts={after: tmp_path / "cut"})
    assert tiny.run(tmp_path / "cut", config).results["probing"] == whole.results["probing"]
    for name in ("probing", "features"):
        files = sorted((tmp_path / "whole" / name).rglob("*.*"))
        assert len(files) == 12
        for file in files:
            assert file.read_bytes() == (tmp_path / "cut" / file.relative_to(tmp_path / "whole")).read_bytes()


def test_a_probed_evaluation_point_is_not_probed_again(made, tmp_path, monkeypatch):
    method, session = made
    probing.probe(method, session, tmp_path, BASE, 0)
    monkeypatch.setattr(probing, "fit_probes", None)  # would fail if it were asked
    probing.probe(method, session, tmp_path, BASE, 0)


def test_the_evaluated_weights_are_probed(tmp_path):
    config = tiny.make_config("TaskVector", il_mode="CIL", **OPTIONS)
    made = tiny.run(
        tmp_path, config, TaskVector_alpha=0.0, TaskVector_merge="wise_ft"
    )  # answers as before any training
    answers = [
        [read_jsonl(tmp_path / f"probing/{moment}/task_{j}.jsonl") for j in range(3)] for moment in ("base", "after_2")
    ]
    assert answers[0] == answers[1] and made.losses


def probed_run(folder, observed, answers, labels=(0, 1, 2, 3)):
    """Two tasks of four questions whose probes all say `answers` (moment -> task -> classes)."""
    from tests.unit.report.test_summary import make_run
    from utils.storage.files import write_jsonl

    make_run(folder, observed, il_mode="CIL")
    for moment, tasks in answers.items():
        for j, said in enumerate(tasks):
            rows = [
                {"index": i, "label": label, **dict.fromkeys(PROBES, s)}
                for i, (label, s) in enumerate(zip(labels, said, strict=True))
            ]
            write_jsonl(folder / f"probing/{moment}/task_{j}.jsonl", rows)
    return folder


def test_report_shows_observed_next_to_probing_accuracy(figures, tmp_path):
    right, half = [0, 1, 2, 3], [0, 1, 0, 0]
    answers = {"base": [half, half], "after_0": [right, half], "after_1": [right, half]}
    run = probed_run(tmp_path / "run", [[1.0, None], [0.2, 0.9]], answers)
    results = summary.write(run)
    assert results["probing"]["PrototypeProb"] == {"base": [0.5, 0.5], "R": [[1.0, 0.5], [1.0, 0.5]]}
    page = (run / "results.md").read_text(encoding="utf-8")
    table = page.split("## Probing")[1].split("## Cost")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    assert lines[2] == ["before training", "observed", "-", "-", "-", "-"]
    assert lines[7] == ["after task_0", "observed", "100.00", "-", "100.00", "-"]
    assert lines[12] == ["after task_1", "observed", "20.00", "90.00", "55.00", "55.00"]
    assert lines[13] == ["", "linear", "100.00", "50.00", "75.00", "75.00"]
    assert "after task_0 | linear" not in summary.table(results) and "cosine-prototype" in summary.table(results)
    assert (run / "probing.png").stat().st_size > 5000
    assert "linear probe" in tiny.compare([run]) and "75.00" in tiny.compare([run])


def test_a_broken_answer_file_is_reported(tmp_path):
    run = probed_run(tmp_path / "run", [[1.0]], {"after_0": [[0, 0, 0, 0]]})
    (run / "probing/after_0/task_0.jsonl").write_text('{"label": 1}\n', encoding="utf-8")
    with pytest.raises(UserError, match="expected rows with label"):
        accuracies(run, Moment(0), 1)


def test_streams_without_classes_are_refused(tmp_path):
    def problem(stream, **options):
        return probing.problems(tiny.make_config(**{"is_probing": True} | options), stream)

    stream = tiny.micro_stream()
    words = SimpleNamespace(name="words", is_word_level=True)
    bare = SimpleNamespace(name="bare", is_word_level=False, tasks=[
        SimpleNamespace(train=[tiny.Example("a", "b")], test=[]),
    ])  # fmt: skip
    assert problem(stream, il_mode="CIL") == problem(stream, il_mode="CIT", is_probing=False) == []
    assert "il_mode must be CIL or TIL; got CIT" in problem(stream)[0]
    assert "words is word-level" in problem(words, il_mode="CIL")[0]
    assert "bare has examples without a class" in problem(bare, il_mode="TIL")[0]


@pytest.mark.parametrize("option", ["probing_rows_per_class", "save_features"])
def test_options_without_probing_are_refused(option):
    config = tiny.make_config(**{option: 1 if "rows" in option else True})
    assert consistency.check(config) == [f"{option}: has no effect without is_probing; set is_probing: True"]


def test_results_of_a_run_without_probes_are_as_they_were(tmp_path):
    made = tiny.run(tmp_path, tiny.make_config(training_epochs=1))
    assert "probing" not in read_json(tmp_path / "results.json") and "Probing" not in summary.table(made.results)
