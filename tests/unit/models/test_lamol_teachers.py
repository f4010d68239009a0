"""Teachers of the methods on LAMOL: LAMOL_KD and L2KD, and training with pseudo-samples."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from models.common.pseudo_samples import make_room
from models.L2KD import L2KD
from models.LAMOL import LAMOL
from tests import tiny
from tests.unit.models.test_lamol import batch_of, make, scripted
from utils.dataloader import collate, micro_batches
from utils.dataset import Example
from utils.logger import Aside
from utils.model.weights import borrowed
from utils.run.fit import fit
from utils.session import Session


def with_pseudo(folder, name, task, **options):
    """A method in the middle of a task, with pseudo-samples that a script wrote."""
    method = make(folder, name, LAMOL_gamma=0.5, **options)
    method.longest = 9
    _, script = scripted(
        [f"{animal} z__ans__ {sound}<eos>" for animal, sound in zip(tiny.ANIMALS, tiny.SOUNDS, strict=True)]
    )
    with script:
        method.before_task(task)
    return method


def bodies(batch):
    return list(zip(batch.input_ids.tolist(), batch.labels.tolist(), batch.attention_mask.tolist(), strict=True))


def test_picked_rows_are_a_separate_batch(tmp_path):
    method, task = make(tmp_path), tiny.make_task()
    examples = [Example("cow", "moo"), Example("cow " * 9, "moo"), Example("cow cow", "moo")]
    rows = method.encoder(examples, None)
    batch = collate(rows, examples, method.backbone.pad_id)
    alone = collate([rows[0], rows[2]], [examples[0], examples[2]], method.backbone.pad_id)
    assert bodies(batch.only([0, 2])) == bodies(alone)
    assert batch.only([0, 2]).examples == alone.examples and batch.only([0]).tokens == batch.tokens
    assert bodies(batch.only([0, 1, 2])) == bodies(batch)
    batch = micro_batches(rows[:1], examples[:1], method.backbone.pad_id, 1, 2, 1)[0]  # a row without labels
    assert method.loss(method.model, batch, task)["answer"].item() == 0


def test_distillation_by_hand(tmp_path):
    """Each pseudo row alone through both: KL at the positions that predict the labels, times tau^2."""
    task, tau, w = tiny.make_task(1), 2.0, 3.0
    method = with_pseudo(tmp_path, "LAMOL_KD", task, LAMOL_KD_distill_weight=w, LAMOL_KD_temperature=tau)
    teacher = tiny.make_model(seed=1)
    make_room(teacher, method.model.get_input_embeddings().weight.shape[0])
    method.teacher = tiny.weights.snapshot(dict(teacher.named_parameters()))
    rows = list(method.train_examples(task)[-6:])
    assert [row.source for row in rows] == ["task"] * 2 + ["pseudo"] * 4
    terms = method.loss(method.model, batch_of(method, rows, task), task)
    for view, weight in (("answer", 1.0), ("lm", 0.25)):
        kl, count = 0.0, 0
        for row in method.encoder([replace(row, view=view) for row in rows[2:]], None):
            ids = torch.tensor([[*row.prompt, *row.answer]])
            s, t = (net(input_ids=ids).logits[0].log_softmax(-1) for net in (method.model, teacher))
            s, t = (F.log_softmax(x / tau, dim=-1) for x in (s, t))
            for label in range(len(row.prompt), ids.shape[1]):
                kl += (t[label - 1].exp() * (t[label - 1] - s[label - 1])).sum().item()
                count += 1
        assert terms[f"pseudo {view}"].item() == pytest.approx(w * weight * tau**2 * kl / count, rel=1e-4)
    assert terms.keys() == {"task answer", "task lm", "pseudo answer", "pseudo lm"}
    plain = LAMOL.loss(method, method.model, batch_of(method, rows[:2], task), task)
    assert terms["task answer"].item() == pytest.approx(plain["answer"].item(), rel=1e-5)
    assert terms["task lm"].item() == pytest.approx(plain["lm"].item(), rel=1e-5)


def test_the_teacher_is_the_model_before_the_task_and_frozen(tmp_path):
    config = tiny.make_config("LAMOL_KD", backbone=tiny.backbone_folder(dropout=0.1))
    session = tiny.make_session(config)
    with mock.patch.object(tiny, "make_session", lambda *_: session):
        method = with_pseudo(tmp_path, "LAMOL_KD", task := tiny.make_task(1))
    assert tiny.same(method.teacher, tiny.snapshot(method))
    before, seen = tiny.weights.snapshot(method.teacher), []

    def loss(model, batch, task):
        terms = type(method).loss(method, model, batch, task)
        seen.append({name: term.item() for name, term in terms.items()})
        return terms

    method.model.eval()
    whole = batch_of(method, method.train_examples(task), task)
    terms = method.loss(method.model, whole, task)
    assert terms["pseudo answer"].item() == pytest.approx(0, abs=1e-6)
    assert terms["pseudo lm"].item() == pytest.approx(0, abs=1e-6)
    with mock.patch.object(method, "loss", loss):
        fit(method, task, method.session)
    method.model.eval()
    assert method.loss(method.model, whole, task)["pseudo answer"].item() > 1e-4
    assert tiny.same(method.teacher, before)
    method.after_task(task)
    assert method.teacher == {}


def test_without_pseudo_samples_there_is_nothing_to_teach(tmp_path):
    made = []
    for name in ("LAMOL", "LAMOL_KD"):
        (tmp_path / name).mkdir()
        made.append(tiny.learn(tiny.make_config(name), LAMOL_gamma=0.0))
    assert tiny.same(made[0].weights, made[1].weights)


FAMILY = {
    "LAMOL": {},
    "LAMOL_KD": {},
    "L2KD": {"L2KD_variant": "word"},
    "L2KD seq": {"L2KD_variant": "seq"},
    "L2KD seq_soft": {"L2KD_variant": "seq_soft"},
}


@pytest.mark.parametrize("name", FAMILY)
def test_parts_of_a_step_with_pseudo_samples_are_one_step(tmp_path, name):
    """Terms of micro-batches, some without pseudo rows, average to those of the whole step."""
    task = tiny.make_task(1)
    method = with_pseudo(tmp_path, name.split()[0], task, **FAMILY[name])
    if name == "LAMOL_KD":  # else student and teacher agree
        method.teacher = {key: value * 0.9 for key, value in method.teacher.items()}
    method.model.eval()
    rows = method.batch(method.train_examples(task)[-7:], task, None)
    encoded = method.encoder(rows, task.max_length)

    def mean_terms(world, parts):
        batches = [
            batch
            for rank in range(world)
            for batch in micro_batches(encoded, rows, method.backbone.pad_id, rank, world, parts)
        ]
        terms = [method.loss(method.model, batch, task) for batch in batches]
        for one in terms:
            torch.autograd.grad(sum(one.values()), list(method.model.parameters()), allow_unused=True)
        assert all(one.keys() == terms[0].keys() for one in terms)
        return {key: sum(one[key].item() for one in terms) / len(terms) for key in terms[0]}

    whole = mean_terms(1, 1)
    assert all(value > 0 for value in whole.values())
    for world, parts in ((1, 3), (2, 2), (2, 8)):
        assert mean_terms(world, parts) == pytest.approx(whole, rel=1e-4)


def fitted(*_):
    """Every (method, task, session, weights at the start) that is trained on the side."""
    calls = []

    def spy(session, method, task, **options):
        if isinstance(session.log, Aside):
            calls.append((method, list(method.train_examples(task)), tiny.snapshot(method)))
        return fit(method, task, session, **options)

    return calls, mock.patch.object(Session, "fit", spy)


def test_a_teacher_learns_its_task_alone_from_the_first_weights(tmp_path):
    calls, spy = fitted()
    first = tiny.snapshot(make(tmp_path, "L2KD"))
    with spy:
        made = tiny.run(tmp_path, tiny.make_config("L2KD", is_evaluate_init=False))
    assert len(calls) == 3
    for index, (method, rows, start) in enumerate(calls):
        assert type(method) is LAMOL
        assert rows == list(tiny.micro_stream().tasks[index].train)
        assert tiny.same(start, first)
    assert made.method.teacher == {} and made.method.written == []
    events = [event["event"] for event in made.log.events]
    assert events.count("teacher_train") == 3
    assert any(message.startswith("teacher: task 1") for message in made.log.messages)


@pytest.mark.slow
def test_the_first_task_is_lamol_without_its_teacher(tmp_path):
    calls, spy = fitted()
    kept = {}

    class First(L2KD):
        def after_task(self, task):
            super().after_task(task)
            kept.setdefault(task.index, tiny.snapshot(self))

    class Plain(LAMOL):
        after_task = First.after_task

    with spy:
        (tmp_path / "a").mkdir()
        tiny.learn(tiny.make_config("L2KD"), None, First, L2KD_first_task_teacher=False)
    assert len(calls) == 2
    (tmp_path / "b").mkdir()
    made = tiny.learn(tiny.make_config("LAMOL"), tiny.micro_stream(1))
    assert tiny.same(kept[0], made.weights)


@pytest.mark.parametrize("variant", ["word", "seq", "seq_soft"])
def test_what_the_teacher_gives(tmp_path, variant):
    """The student is as before, new rows hold what the teacher says, pseudo rows are learned plainly."""
    task = tiny.make_task(1)
    before = tiny.snapshot(make(tmp_path, "L2KD"))
    method = with_pseudo(tmp_path, "L2KD", task, L2KD_variant=variant, L2KD_distill_weight=2.0)
    assert tiny.same(tiny.snapshot(method), before)
    rows = method.train_examples(task)
    new = [row for row in rows if row.source == "task"]
    assert [row.input for row in new] == [row.input for row in task.train]
    if variant == "word":
        assert new == list(task.train)
    if variant != "seq":
        with borrowed(method.named(), method.teacher):
            method.model.eval()
            answers = method.predict(method.encoder.for_prediction(task.train, 48), None, 8)
        assert variant == "word" or [row.target for row in new] == answers
    assert bool(method.teacher) is (variant != "seq")
    method.model.eval()
    terms = method.loss(method.model, batch_of(method, rows, task), task)
    kinds = [[row for row in rows if row.source == source] for source in ("task", "pseudo")]
    alone = [LAMOL.loss(method, method.model, batch_of(method, part, task), task)["answer"].item() for part in kinds]
    assert terms["pseudo answer"].item() == pytest.approx(alone[1], rel=1e-4)
    if variant == "seq":
        assert terms["task answer"].item() == pytest.approx(2 * alone[0], rel=1e-4)
    else:  # no hard loss
        method.teacher = tiny.snapshot(method)
        terms = method.loss(method.model, batch_of(method, rows, task), task)
        assert terms["task answer"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "name", ["LAMOL", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILY if name != "LAMOL")]
)
@pytest.mark.slow
def test_a_run_with_pseudo_samples_is_resumed_to_the_bit(tmp_path, name):
    """The contract's models are too little trained to write; this one learns until it does."""
    kind, options = name.split()[0], FAMILY[name] | {"LAMOL_gamma": 0.8}
    config = tiny.make_config(
        kind, backbone=tiny.backbone_folder(dropout=0.1), training_epochs=8, lr=1e-2, is_evaluate_init=False,
        info_per_steps=1, save_llm_ckpt_step_interval=2,
    )  # fmt: skip
    cuts = {"task_1_epoch_2_step_2": tmp_path / "cut"}
    whole = tiny.run(tmp_path / "whole", config, tiny.micro_stream(2), cuts=cuts, **options)
    written = [event["well_formed"] for event in whole.log.events if event["event"] == "pseudo"]
    assert written[0] > 0  # else nothing is tested
    torch.manual_seed(999)
    resumed = tiny.run(tmp_path / "cut", config, tiny.micro_stream(2), **options)
    assert tiny.same(whole.weights, resumed.weights)
    assert resumed.losses == whole.losses[len(whole.losses) - len(resumed.losses) :]
