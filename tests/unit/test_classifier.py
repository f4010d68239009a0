"""Classes, heads, and what is learned with them; the states they read: model/test_token_states.py."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.common.losses import answer_loss
from models.SEQ import SEQ
from tests import tiny
from utils.classifier import MASKED, AnswerKind, ClassEncoder, Classes, CosineLinear, Heads
from utils.dataloader import collate
from utils.dataset import Stream, TaskData
from utils.errors import UserError
from utils.evaluation import annotated
from utils.model import adapters
from utils.model.forward import labelled_states
from utils.model.weights import eval_mode, snapshot
from utils.options.checks import backbone_fits, stream_fits
from utils.probing import extract
from utils.run.fit import fit
from utils.run.recovery import relearn

HEADS = {"classifier": "Linear", "il_mode": "CIL"}


def made(family="neox", stream=None, method="SEQ", options=None, **own):
    """A method with heads, in its session."""
    config = tiny.make_config(method, backbone=tiny.backbone_folder(family), **(HEADS | (options or {})))
    stream = stream or tiny.class_stream()
    session = tiny.make_session(config, stream=stream)
    return tiny.make_method(session, stream, **own)


def learned(method, *indices):
    """The method after a step of each of these tasks."""
    for index in indices:
        task = tiny.make_task(index, method.stream)
        method.before_task(task)
        fit(method, task, method.session, limit=1)
        method.after_task(task)
    return method


def batch_from(method, *tasks):
    rows = [example for task in tasks for example in method.stream.tasks[task].train[:3]]
    return collate(method.session.encoder(rows, 48), rows, tiny.PAD)


# --- heads


def test_cosine_heads_normalise_features_and_weights():
    torch.manual_seed(0)
    head, x = CosineLinear(8, 3, scale=4.0), torch.randn(2, 5, 8) * 7
    unit = x / x.norm(dim=-1, keepdim=True)
    expected = 4 * unit @ (head.weight / head.weight.norm(dim=-1, keepdim=True)).T
    assert torch.allclose(head(x), expected, atol=1e-6)
    assert head(x).abs().max() <= 4


def test_in_cil_logits_are_those_of_all_heads_so_far():
    method = made()
    batch = batch_from(method, 0, 1)
    for index, width in ((0, 3), (1, 6), (2, 9), (3, 9)):  # 3: recovery, after the last task
        assert tiny.outputs(method, method.model, batch, index)[0].shape == (6, 1, width)
    states, _ = labelled_states(method.model, batch)
    logits, labels = tiny.outputs(method, method.model, batch, 1)
    heads = list(method.classifier)
    assert torch.allclose(logits, torch.cat([heads[0](states), heads[1](states)], dim=-1), atol=1e-6)
    assert labels[:, 0].tolist() == [example.label for example in batch.examples]
    loss = method.loss(method.model, batch, tiny.make_task(1, method.stream))["answer"]
    assert loss.item() == pytest.approx(F.cross_entropy(logits[:, 0], labels[:, 0]).item(), rel=1e-5)


def test_in_til_each_row_is_a_question_to_its_own_head():
    method = made(options={"il_mode": "TIL"})
    batch = batch_from(method, 0, 1)
    states, _ = labelled_states(method.model, batch)
    own = [method.classifier[e.task](states[i, 0]) for i, e in enumerate(batch.examples)]
    apart = [F.cross_entropy(z, torch.tensor(e.label_in_task)) for z, e in zip(own, batch.examples, strict=True)]
    loss = method.loss(method.model, batch, tiny.make_task(1, method.stream))["answer"]
    assert loss.item() == pytest.approx(sum(apart).item() / 6, rel=1e-5)
    logits, _ = tiny.outputs(method, method.model, batch, 1)
    assert (logits[:3, 0, 3:] == MASKED).all() and (logits[3:, 0, :3] == MASKED).all()


@pytest.mark.parametrize(
    ("options", "own", "expected"),
    [
        ({}, {}, [{0}, {0, 1}, {0, 1, 2}]),
        ({"il_mode": "TIL"}, {}, [{0}, {1}, {2}]),
        ({"il_mode": "TIL", "is_replay": True, "Replay_buffer_ratio": 0.5}, {}, [{0}, {0, 1}, {0, 1, 2}]),
        ({}, {"SEQ_fix_old_classifier": True}, [{0}, {1}, {2}]),
        ({}, {"SEQ_preallocated_classifier": True}, [{0, 1, 2}] * 3),
        ({}, {"SEQ_preallocated_classifier": True, "SEQ_fix_old_classifier": True}, [{0, 1, 2}, {1, 2}, {2}]),
    ],
)
def test_which_heads_learn(options, own, expected):
    method = made(options=options, **own)
    for index, heads in enumerate(expected):
        before = snapshot(dict(method.classifier.named_parameters()))
        learned(method, index)
        moved = {int(name[0]) for name, w in method.classifier.named_parameters() if not torch.equal(w, before[name])}
        assert moved == method.learning_heads(tiny.make_task(index, method.stream)) == heads


@pytest.mark.parametrize("family", ["neox", "bert_encoder", "t5"])
def test_backbone_and_heads_have_separate_learning_rates(family):
    method = made(family, options={"classifier_lr": 0.1, "classifier_weight_decay": 0.3, "lr": 1e-4})
    groups = method.trainable(tiny.make_task(0, method.stream))
    assert [(g.lr, g.weight_decay) for g in groups] == [(1e-4, method.config.weight_decay), (0.1, 0.3)]
    before = tiny.snapshot(method)
    learned(method, 0)
    still = {name for name, w in method.named().items() if torch.equal(w, before[name])}
    kept = {name for name in still if not name.startswith("extra.heads.")}
    assert all(re.search(r"embed_out|lm_head", name) for name in kept)  # what only writes does not learn
    assert len(kept) <= 1


def test_a_head_that_is_tied_to_the_embedding_does_not_stop_it():
    method = made("t5")  # whose head is its embedding
    assert "shared.weight" in method.learning(tiny.make_task(0, method.stream))


def test_answers_are_names_and_no_more_than_the_prompt_is_seen():
    method = learned(made(), 0)
    encoder, rows = method.session.encoder, method.stream.tasks[0].test
    encoded = encoder.for_prediction(rows, 48)
    assert all(label == 0 for row in encoded for _, label in row.classes)
    method.model.eval()
    answers = method.predict(encoded, None, 8)
    assert set(answers) <= {"kind 0", "kind 1", "kind 2"}
    assert answers == method.predict(encoder(rows, 48), None, 8)
    learned(method, 1)
    assert set(method.predict(encoder.for_prediction(method.stream.tasks[1].train, 48), None, 8)) <= {
        f"kind {k}" for k in range(6)
    }


@pytest.mark.slow
def test_it_can_learn(tmp_path):
    options = HEADS | {"training_epochs": 30, "lr": 3e-3, "classifier_lr": 3e-2}
    run = tiny.run(tmp_path, tiny.make_config(**options), tiny.class_stream())
    assert run.results["R"][0][0] == 1.0
    assert run.results["R"][2][2] == 1.0
    assert run.results["R"][2][0] < 0.5


# --- SEQ*


def test_the_backbone_is_trained_in_the_warm_up_and_then_frozen():
    warm = {"SEQ_fix_encoder": True, "SEQ_warmup_epoch_before_fix_encoder": 2}
    for target in ("causal-lm", "ce-loss"):
        method = made(SEQ_warmup_target=target, **warm)
        start = tiny.snapshot(method)
        method.before_task(tiny.make_task(0, method.stream))
        warmed = tiny.snapshot(method)
        heads = {name for name in start if name.startswith("extra.heads")}
        moved = {name for name in start if not torch.equal(start[name], warmed[name])}
        assert ("gpt_neox.embed_in.weight" in moved) and (bool(moved & heads) == (target == "ce-loss"))
        assert ("embed_out.weight" in moved or "lm_head.weight" in moved) == (target == "causal-lm")
        fit(method, tiny.make_task(0, method.stream), method.session)
        after = tiny.snapshot(method)
        changed = {name for name in after if not torch.equal(after[name], warmed[name])}
        assert changed == {name for name in heads if name.startswith("extra.heads.0")}


def test_preallocated_heads_are_in_the_loss_from_the_first_task():
    method = made(SEQ_preallocated_classifier=True)
    batch = batch_from(method, 0)
    logits, labels = tiny.outputs(method, method.model, batch, 2)
    loss = method.loss(method.model, batch, tiny.make_task(0, method.stream))["answer"]
    assert loss.item() == pytest.approx(F.cross_entropy(logits[:, 0], labels[:, 0]).item(), rel=1e-5)
    learned(method, 0)
    method.model.eval()
    rows = method.session.encoder.for_prediction(method.stream.tasks[1].train, 48)
    assert set(method.predict(rows, None, 8)) <= {"kind 0", "kind 1", "kind 2"}  # answers are of classes seen


@pytest.mark.parametrize("size", [1, 3, 64])
@pytest.mark.parametrize("head", ["Linear", "CosineLinear"])
def test_prototypes_are_class_means_whatever_the_batch(size, head):
    options = {"evaluate_batch_size": size, "classifier": head}
    method = made("bert_encoder", options=options, SEQ_use_prototype_for_prediction=True)
    learned(method, 0)
    train = method.stream.tasks[0].train
    labels, found = np.array([e.label for e in train]), method.features(train, 48)
    means = np.stack([found[labels == c].mean(axis=0) for c in range(3)])
    assert method.classifier[0].weight.detach().numpy() == pytest.approx(means, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "own", "problem"),
    [
        ({"classifier": None}, {"SEQ_fix_encoder": True}, "SEQ_fix_encoder: has no effect without a classifier"),
        ({}, {"SEQ_warmup_epoch_before_fix_encoder": 1},
         "SEQ_warmup_epoch_before_fix_encoder: has no effect without SEQ_fix_encoder"),
        ({}, {"SEQ_warmup_target": "ce-loss"},
         "SEQ_warmup_target: has no effect without SEQ_warmup_epoch_before_fix_encoder"),
        ({"il_mode": "TIL"}, {"SEQ_preallocated_classifier": True},
         "SEQ_preallocated_classifier: has no effect in TIL"),
        ({}, {"SEQ_use_prototype_for_prediction": True, "SEQ_fix_old_classifier": True},
         "SEQ_fix_old_classifier: has no effect with prototypes"),
        ({"keep_best": True}, {"SEQ_use_prototype_for_prediction": True},
         "keep_best: has no effect with prototypes, which are not trained"),
    ],
)  # fmt: skip
def test_options_without_effect_are_refused(options, own, problem):
    config = tiny.make_config(**(HEADS | options))
    assert SEQ.problems(config, SEQ.Options(**own), tiny.class_stream()) == [problem]


def test_an_encoder_cannot_warm_up_by_writing():
    config = tiny.make_config(backbone=tiny.backbone_folder("bert_encoder"), **HEADS)
    options = SEQ.Options(SEQ_fix_encoder=True, SEQ_warmup_epoch_before_fix_encoder=1)
    (problem,) = SEQ.problems(config, options, tiny.class_stream())
    assert problem == "SEQ_warmup_target: an encoder writes no answers; set SEQ_warmup_target: ce-loss"


# --- other methods


def test_all_logits_of_classes_are_stored_and_compared():
    method = learned(made(method="DERpp"), 0)
    (note, *_) = method.memory.notes.values()
    assert note[0].shape == (1, 3)
    learned(method, 1)
    assert {values.shape for values, _ in method.memory.notes.values()} == {(1, 3), (1, 6)}


def test_in_til_old_heads_are_distilled_one_by_one():
    method = learned(made(method="LwF", options={"il_mode": "TIL"}), 0)
    task = tiny.make_task(1, method.stream)
    method.before_task(task)
    assert method.learning_heads(task) == {0, 1}
    batch = batch_from(method, 1)
    method.model.eval()
    assert method.loss(method.model, batch, task)["distillation"].item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        method.classifier[0].weight.add_(torch.randn(3, 32, generator=torch.manual_seed(0)))
    assert method.loss(method.model, batch, task)["distillation"].item() > 0.01


@pytest.mark.parametrize(
    ("method", "options"),
    [("SEQ", {}), ("LwF", {"il_mode": "TIL"}), ("PEFT", {"PEFT_type": "LoRA", "PEFT_lora_dropout": 0.0})],
)
def test_heads_are_in_float32_whatever_the_backbone_is_in(method, options):
    made_in_half = learned(made(method=method, options={"backbone_dtype": "bfloat16"} | options), 0, 1)
    assert {w.dtype for w in made_in_half.classifier.parameters()} == {torch.float32}
    rows = made_in_half.session.encoder.for_prediction(made_in_half.stream.tasks[1].test, 48)
    made_in_half.model.eval()
    assert all(
        answer.startswith("kind ") for answer in made_in_half.predict(rows, 1 if "il_mode" in options else None, 8)
    )


def test_averages_hold_each_head_from_its_first_task_on():
    method = made(method="CLSER")
    learned(method, 0)
    assert "extra.heads.0.weight" in method.slow and "extra.heads.1.weight" not in method.slow
    learned(method, 1)
    assert not torch.equal(method.slow["extra.heads.1.weight"], method.classifier[1].weight)


LORA = {"PEFT_type": "LoRA", "PEFT_lora_dropout": 0.0}


def test_in_cil_every_adapter_is_asked_with_its_own_head():
    method = learned(made("bert_encoder", method="PEFT", options=LORA), 0, 1)
    batch = batch_from(method, 0, 1)
    method.model.eval()
    with torch.no_grad():
        logits, _ = tiny.outputs(method, method.model, batch, None)
        for k in (0, 1):
            with adapters.using(method.model, f"task_{k}"):
                states, _ = labelled_states(method.model, batch)
            assert torch.equal(logits[..., 3 * k : 3 * k + 3], method.classifier[k](states))
        alone, _ = tiny.outputs(method, method.model, batch, 1)
        assert torch.equal(alone[..., 3:], logits[..., 3:]) and (alone[..., :3] == MASKED).all()
    before = tiny.snapshot(method)
    learned(method, 2)
    old = [name for name in before if "task_2" not in name and not name.startswith("extra.heads.2")]
    assert all(torch.equal(before[name], method.named()[name]) for name in old)


def test_a_label_of_a_masked_class_stops_training():
    method = learned(made("bert_encoder", method="PEFT", options=LORA), 0, 1)
    with torch.no_grad():
        logits, labels = tiny.outputs(method, method.model, batch_from(method, 0, 1), 1)
    assert torch.isinf(answer_loss(logits, labels, 1.0))  # rows of task 0 among the classes of task 1
    with torch.no_grad():
        logits, labels = tiny.outputs(method, method.model, batch_from(method, 1), 1)
    assert torch.isfinite(answer_loss(logits, labels, 1.0))


def test_probes_and_recovery_use_each_tasks_own_adapter():
    method = learned(made("bert_encoder", method="PEFT", options=LORA), 0, 1)
    torch.manual_seed(0)
    for name, w in method.model.named_parameters():
        if adapters.owner(name):
            w.data += 0.5 * torch.randn_like(w)
    method.model.eval()
    for k in (0, 1):
        examples = tiny.class_stream().tasks[k].test
        with adapters.using(method.model, f"task_{k}"):
            own = method.features(examples, None)
        with adapters.using(method.model, f"task_{1 - k}"):
            other = method.features(examples, None)
        found = extract(method, examples, k)
        assert np.allclose(found, own, atol=1e-4) and not np.allclose(found, other, atol=1e-2), k
    before = tiny.snapshot(method)
    relearn(method, 2)
    moved = {name for name, w in method.named().items() if not torch.equal(before[name], w)}
    assert moved and all("task_0" in name or name.startswith("extra.heads.0") for name in moved), moved
    assert any("task_0" in name for name in moved) and method.answers.newest == 1
    assert adapters.active(method.model) == ["task_1"]


def test_with_adapters_of_words_outside_is_what_the_first_says():
    method = learned(made("bert_encoder", tiny.word_stream(), "PEFT", LORA), 0, 1)
    batch = batch_from(method, 1)
    method.model.eval()
    logits, labels = tiny.outputs(method, method.model, batch, 1)
    assert labels[0].tolist() == [0, 3, 4, 0] and (logits[..., 1:3] == MASKED).all()
    with adapters.using(method.model, "task_0"), torch.no_grad():
        states, _ = labelled_states(method.model, batch)
        assert torch.equal(logits[..., 0], method.classifier[0](states)[..., 0])


# --- words


def word_method(options=None, **own):
    return made("bert_encoder", tiny.word_stream(), options=options, **own)


def test_the_first_piece_of_each_word_is_labelled():
    method = word_method()
    encoder, example = method.session.encoder, tiny.word_stream().tasks[1].train[3]
    (row,) = encoder([example], None)
    words = example.input.split(" ")
    pieces = [
        encoder.tokenizer(" " + w if i else w, add_special_tokens=False)["input_ids"] for i, w in enumerate(words)
    ]
    assert row.prompt == [tiny.BOS, *(i for piece in pieces for i in piece), tiny.EOS]
    starts = np.cumsum([1, *map(len, pieces)])[:-1].tolist()
    assert row.classes == tuple(zip(starts, [0, 3, 4, 0], strict=True))
    (cut,) = encoder([example], starts[2] + 1)  # room for CLS, two words and SEP
    assert [place for place, _ in cut.classes] == starts[:2] and cut.prompt[-1] == tiny.EOS
    (short,) = method.predict([cut._replace(classes=tuple((p, 0) for p, _ in cut.classes))], None, 8)
    assert len(short.split()) == 2
    (whole,) = encoder.for_prediction([example], starts[2] + 1)  # every word is scored
    assert [place for place, _ in whole.classes] == starts and whole.prompt == row.prompt


def test_tags_that_are_not_known_yet_are_outside():
    method = word_method()
    example = replace(tiny.word_stream().tasks[0].train[0], target="B-T0 B-T2 B-NEW O")
    rows = method.session.encoder([example], None)
    batch = collate(rows, [example], tiny.PAD)
    for index, labels in ((0, [1, 0, 0, 0]), (2, [1, 5, 0, 0])):
        assert tiny.outputs(method, method.model, batch, index)[1].tolist() == [labels]


def test_types_that_a_split_is_not_annotated_with_do_not_count():
    classes = Classes(tiny.word_stream())
    assert annotated("B-T0 I-T0 B-T1 O B-T2", classes, 1) == "B-T0 I-T0 B-T1 O O"
    assert annotated("B-T0 I-T0 B-T1 O B-T2", classes, 0) == "B-T0 I-T0 O O O"


@pytest.mark.parametrize("method", tiny.quick(["SEQ", "EWC", "LwF", "DERpp", "CLSER"]))
@pytest.mark.slow
def test_words_are_learned(method, tmp_path):
    backbone, options = tiny.backbone_folder("bert_encoder"), {"training_epochs": 12, "lr": 3e-3, "classifier_lr": 3e-2}
    config = tiny.make_config(method, backbone=backbone, **HEADS, **options)
    own = {"CLSER_alpha_slow": 0.9} if method == "CLSER" else {}  # or it would not get to the new head in 24 steps
    run = tiny.run(tmp_path, config, tiny.word_stream(), **own)
    assert run.results["R"][0][0] > 0.9
    assert run.results["R"][2][2] > 0.5


# --- refused


def classes_of(**facts):
    stream = tiny.class_stream()
    return Classes(Stream("s", stream.tasks, stream.config | facts))


def test_streams_without_classes_are_refused_for_heads():
    with pytest.raises(UserError, match="stream s does not state CUR_NUM_CLASS"):
        classes_of(CUR_NUM_CLASS=None)
    with pytest.raises(UserError, match=r"task 0 of s has the classes 0 to 1 .*, but an example of class 2"):
        classes_of(CUR_NUM_CLASS=[2, 3, 3])
    rows = tuple(replace(e, target="the same") for e in tiny.class_stream().tasks[0].train)
    with pytest.raises(UserError, match="3 classes of s have 1 different names"):
        Classes(Stream("s", (TaskData("t", rows, (), rows),), {"CUR_NUM_CLASS": [3]}))


@pytest.mark.parametrize(
    ("family", "options", "words", "text"),
    [
        ("bert_encoder", {}, False, "classifier: expected Linear or CosineLinear, as .* is an encoder"),
        ("neox", HEADS, True, "words are classified by encoders"),
        ("neox", {"backbone_extract_token": "cls_token"}, False, "cls_token needs an encoder; .* is decoder"),
    ],
)
def test_backbones_that_do_not_fit_are_refused(family, options, words, text):
    config = tiny.make_config(backbone=tiny.backbone_folder(family), **options)
    stream = tiny.word_stream() if words else tiny.class_stream()
    (problem,) = backbone_fits(tiny.plan(config, stream=stream))
    assert re.search(text, problem)


def test_word_level_classes_are_for_cil():
    config = tiny.make_config(classifier="Linear", il_mode="TIL")
    assert stream_fits(tiny.plan(config, stream=tiny.word_stream())) == [
        "il_mode: word-level classes need CIL, as the tag O belongs to no task; got TIL"
    ]
    with pytest.raises(UserError):
        Classes(tiny.micro_stream())


def test_a_words_encoder_has_a_piece_for_every_word():
    encoder = ClassEncoder(tiny.make_session(tiny.make_config()).encoder, Classes(tiny.word_stream()), "last_token")
    assert encoder._pieces("") == [tiny.PAD]


def test_a_teacher_with_heads_is_calm_under_dropout():
    config = tiny.make_config(backbone=tiny.backbone_folder("bert_encoder", dropout=0.5), **HEADS)
    session = tiny.make_session(config, stream=tiny.class_stream())
    method = tiny.make_method(session, tiny.class_stream())
    batch, weights = batch_from(method, 0), tiny.snapshot(method)
    method.model.train()
    first, second = (tiny.teacher_logits(method, weights, batch, 0) for _ in range(2))
    assert torch.equal(first, second) and method.model.training
    with eval_mode(method.model), torch.no_grad():
        assert torch.equal(first, tiny.outputs(method, method.model, batch, 0)[0])


def test_heads_compute_in_float32_inside_autocast():
    states = torch.randn(2, 1, 8)
    heads = Heads(AnswerKind.COSINE, 8, Classes(tiny.class_stream()), False, 1.0, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(heads(states, 3, [0, 0]), heads(states.float(), 3, [0, 0]))
        short = heads.one(0, states)
    assert torch.equal(short, heads.one(0, states))
