"""DER++: two draws, stored logits, and what each of the three terms is made of."""

import random
from dataclasses import replace

import pytest
import torch

from models.common.losses import answer_loss
from models.DERpp import DERpp, dark_error, stored
from tests import tiny
from utils.dataloader import collate
from utils.factory import check_capability
from utils.model.forward import answer_logits
from utils.run.checkpoint import pack, unpack
from utils.run.cost import kept_bytes
from utils.run.fit import fit


def method_of(tmp_path, index=0, **options):
    """A method that has learned the tasks up to `index`."""
    own = {name: value for name, value in options.items() if name.startswith("DERpp")}
    session = tiny.make_session(tiny.make_config("DERpp", **{k: v for k, v in options.items() if k not in own}))
    method = tiny.make_method(session, **own)
    for task in map(tiny.make_task, range(index + 1)):
        method.before_task(task)
        fit(method, task, session)
        method.after_task(task)
    return method


def batch_of(method, new=2, old=0, dark=0):
    """New rows of task 1 and rows of memory as one batch."""
    examples = [*tiny.micro_stream().tasks[1].train[:new], *method.memory.rows()[:old]]
    examples += [replace(row, source="dark") for row in method.memory.rows()[:dark]]
    return collate(method.session.encoder(examples, 48), examples, tiny.PAD)


def terms(method, batch):
    return method.loss(method.model, batch, tiny.make_task(1))


def largest(logits, k):
    """The k largest logits (N, k) of (N, V) as they are stored."""
    values, tokens = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return stored(values, tokens, torch.zeros(len(logits), dtype=torch.int64))


def test_the_error_to_stored_logits_by_hand():
    values, tokens = largest(torch.tensor([[1.0, 4.0, 3.0], [2.0, 0.0, 1.0]]), 2)
    assert values.tolist() == [[4.0, 3.0], [2.0, 1.0]]
    assert tokens.tolist() == [[1, 2], [0, 2]]
    now = torch.tensor([[9.0, 5.0, 1.0], [2.0, 9.0, 4.0]])
    assert dark_error(now, (values, tokens)).item() == pytest.approx((1 + 4) / 2 + (0 + 9) / 2)
    assert dark_error(now[1:], (values, tokens)).item() == pytest.approx(9 / 2)  # the last positions are common
    assert dark_error(now, (values[1:], tokens[1:])).item() == pytest.approx(9 / 2)
    assert dark_error(now[:0], (values, tokens)).item() == 0
    assert largest(now, 64)[0].shape == (2, 3)


def test_the_error_is_0_right_after_insertion_and_grows_as_the_model_moves(tmp_path):
    method, task = method_of(tmp_path), tiny.make_task(1)
    for row in method.memory.rows():
        method.memory.notes[row.presentation] = largest(full(method, row), 64)
    batch = batch_of(method, dark=len(method.memory))
    method.model.eval()
    assert terms(method, batch)["dark"].item() == pytest.approx(0, abs=1e-8)
    kept = {row: [part.clone() for part in note] for row, note in method.memory.notes.items()}
    fit(method, task, method.session)
    assert terms(method, batch_of(method, dark=len(method.memory)))["dark"].item() > 1e-6
    stayed = kept.keys() & method.memory.notes.keys()
    assert stayed
    for row in stayed:
        assert all(torch.equal(a, b) for a, b in zip(kept[row], method.memory.notes[row], strict=True))


def test_logits_are_those_of_the_training_pass_that_brought_the_example(tmp_path):
    """Before the step and under dropout: no other pass gives the same."""
    seen, fresh = {}, []

    class Watched(DERpp):
        def scores(self, model, batch, index):
            scores, labels = super().scores(model, batch, index)
            assert model.training
            for z, y, row in zip(scores.detached().whole().detach(), labels, batch.examples, strict=True):
                if row.source == "task":
                    seen[id(row)] = z[y != -100]
            return scores, labels

        def after_step(self, task):
            offered, first = self.offered, self.memory.seen + 1
            super().after_step(task)
            assert set(self.memory.notes) == {row.presentation for row in self.memory.rows()}
            for row in self.memory.rows():
                if row.presentation >= first:
                    values, tokens = self.memory.notes[row.presentation]
                    logits = seen[id(offered[row.presentation - first])]
                    torch.testing.assert_close(values, logits.gather(-1, tokens.long()))
                    torch.testing.assert_close(values, logits.topk(64).values)
                    fresh.append(row)

    settings = {"backbone": tiny.backbone_folder(dropout=0.1), "is_evaluate_init": False}
    tiny.run(tmp_path, tiny.make_config("DERpp", gradient_accumulation_steps=2, **settings), None, Watched)
    assert len(fresh) > 8  # some replaced others


def test_two_independent_draws_and_a_constant_number_of_new_rows(tmp_path):
    steps = []

    class Watched(DERpp):
        def batch(self, examples, task, rng):
            rows = super().batch(examples, task, rng)
            steps.append((task.index, rows))
            return rows

    tiny.run(tmp_path, tiny.make_config("DERpp", batch_size=5, is_evaluate_init=False), None, Watched)
    sources = ("memory", "dark")
    drawn = [[[r.presentation for r in rows if r.source == source] for source in sources] for _, rows in steps]
    assert drawn[0] == [[], []]  # nothing to replay yet
    assert all(len(set(rows)) == len(rows) == 2 for pair in drawn[1:] for rows in pair)
    assert sum(set(old) != set(dark) for old, dark in drawn) > len(drawn) / 2
    assert max(len(rows) for _, rows in steps) == 3 + 2 + 2


def test_each_term_is_the_mean_over_its_own_rows(tmp_path):
    """A short last batch: one new row among eight from memory moves the first term alone."""
    method = method_of(tmp_path, DERpp_alpha=2.0, DERpp_beta=3.0)
    found = terms(method, batch_of(method, new=1, old=4, dark=4))
    for name, parts, weight in (("answer", {"new": 1}, 1), ("memory", {"new": 0, "old": 4}, 3)):
        logits, labels = answer_logits(method.model, (part := batch_of(method, **parts)))
        assert found[name].item() == pytest.approx(
            weight * answer_loss(logits, labels, part.tokens["all"]).item(), rel=1e-4
        )
    rows = method.memory.rows()[:4]
    errors = [
        (
            logits[0].gather(-1, order(logits[1], method.memory.notes[row.presentation][1]))
            - method.memory.notes[row.presentation][0]
        ).square()
        for row, logits in zip(rows, [largest(full(method, row), 10**6) for row in rows], strict=True)
    ]
    assert found["dark"].item() == pytest.approx(2 * torch.cat(errors).mean().item(), rel=1e-3)


def full(method, row):
    """All logits at the answer tokens of one example."""
    batch = collate(method.session.encoder([row], 48), [row], tiny.PAD)
    return tiny.teacher_logits(method, {}, batch)[0]


def order(tokens, wanted):
    """Columns of the wanted tokens."""
    return torch.stack([(row[None] == w[:, None]).int().argmax(dim=1) for row, w in zip(tokens, wanted, strict=True)])


def test_without_the_two_replay_terms_it_is_sequential(tmp_path):
    """Of plain training on batches of as many new rows. A large epsilon keeps rounding small, as in the contract."""
    options = {"adam_epsilon": 1.0, "lr": 1.0, "weight_decay": 0.0, "is_evaluate_init": False, "training_epochs": 1}
    (tmp_path / "plain").mkdir()
    made = tiny.run(tmp_path, tiny.make_config("DERpp", **options), DERpp_alpha=0.0, DERpp_beta=0.0)
    plain = tiny.run(tmp_path / "plain", tiny.make_config("SEQ", **options, batch_size=2))
    for name, w in plain.weights.items():
        assert torch.allclose(w, made.weights[name], rtol=1e-4, atol=1e-5), name


def test_a_part_without_some_rows_still_has_a_graph(tmp_path):
    method = method_of(tmp_path)
    for counts in ({"new": 2}, {"new": 0, "old": 2}, {"new": 0, "dark": 2}):
        found = terms(method, replace(batch_of(method, **counts), tokens={"all": 9.0, "task": 9.0}))
        assert all(value.requires_grad and torch.isfinite(value) for value in found.values())
        assert sum(value.item() != 0 for value in found.values()) <= 1 + ("dark" in counts)


def test_the_previous_model_teaches_all_logits_from_the_second_task_on(tmp_path):
    method = method_of(tmp_path, DERpp_targets="previous_model")
    assert not method.memory.notes
    assert not method.teacher
    batch = batch_of(method, new=2, old=2, dark=4)
    assert terms(method, batch)["dark"].item() == 0
    method.before_task(tiny.make_task(1))
    assert terms(method, batch)["dark"].item() == pytest.approx(0, abs=1e-9)
    teacher = [full(method, row) for row in method.memory.rows()[:4]]
    fit(method, tiny.make_task(1), method.session)
    rows = batch.only(batch.rows("dark")).examples
    errors = [(full(method, row) - old).square() for row, old in zip(rows, teacher, strict=True)]
    assert terms(method, batch)["dark"].item() == pytest.approx(0.5 * torch.cat(errors).mean().item(), rel=1e-3)


def test_logits_are_dropped_with_their_example_saved_and_counted(tmp_path):
    method = method_of(tmp_path, index=1)
    state = method.state_dict()
    other = tiny.make_method(tiny.make_session(method.config))
    other.load_state_dict(unpack(*pack(state)))
    assert set(other.memory.notes) == {row.presentation for row in method.memory.rows()}
    for row, note in other.memory.notes.items():
        assert all(torch.equal(a, b) for a, b in zip(note, method.memory.notes[row], strict=True))
    tokens = sum(len(note[0]) for note in method.memory.notes.values())
    method.memory.notes = {}
    assert kept_bytes(state) - kept_bytes(method.state_dict()) >= tokens * 64 * (4 + 4)


def test_declares_its_requirements():
    config = tiny.make_config("DERpp").model_copy(update={"Replay_update": "task"})
    (problem,) = check_capability(config, DERpp)
    assert problem.startswith("method DERpp needs Replay_update: step (")
    assert problem.endswith("; set Replay_update: step")
    refused = DERpp.problems(config, DERpp.Options(DERpp_targets="previous_model", DERpp_topk=8), tiny.micro_stream())
    assert refused == ["DERpp_topk: has no effect with DERpp_targets previous_model, which stores no logits"]


def test_draws_depend_on_the_generator_alone(tmp_path):
    method = method_of(tmp_path)
    new = tiny.micro_stream().tasks[1].train[:2]
    a, b, c = (method.batch(new, tiny.make_task(1), random.Random(seed)) for seed in (0, 0, 1))
    assert a == b != c


def test_the_teacher_answers_for_the_classes_of_the_tasks_before(tmp_path, monkeypatch):
    method = method_of(tmp_path, DERpp_targets="previous_model")
    method.before_task(tiny.make_task(1))
    indices = []
    teacher_scores = method.teacher_scores
    monkeypatch.setattr(method, "teacher_scores", lambda *given: indices.append(given[-1]) or teacher_scores(*given))
    terms(method, batch_of(method, new=2, old=2, dark=4))
    assert indices == [0]
