"""CLS-ER: two averages, the choice between them, and the evaluated weights."""

import math
from dataclasses import replace

import pytest
import torch

from models.CLSER import CLSER, at_labels, better, follow
from tests import tiny
from utils.dataloader import collate
from utils.evaluation import Cell, predict
from utils.model.weights import borrowed
from utils.options.checks import problems
from utils.run.fit import fit
from utils.storage.files import read_jsonl

FAST = {"is_evaluate_init": False, "training_epochs": 1}


def method_of(tmp_path, config=None, **options):
    session = tiny.make_session(config or tiny.make_config("CLSER", **FAST))
    method = tiny.make_method(session, **options)
    method.before_task(tiny.make_task())
    return method


def test_an_average_by_hand():
    average = {"w": torch.tensor([1.0, -1.0])}
    follow(average, {"w": torch.tensor([3.0, 1.0], dtype=torch.bfloat16), "other": torch.zeros(1)}, 0.75)
    assert average["w"].tolist() == [1.5, -0.5]
    assert average["w"].dtype == torch.float32


@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_averages_after_forced_updates_are_the_closed_form(tmp_path, alpha):
    """With alpha 1 the mean of the first weights and of those after each step; heads included."""
    method = method_of(tmp_path, CLSER_freq_fast=1.0, CLSER_freq_slow=1.0, CLSER_alpha_fast=alpha)
    past = [tiny.snapshot(method)]
    wanted = dict(past[0])
    for n in range(1, 6):
        with torch.no_grad():
            for w in method.model.parameters():
                w.add_(0.1 * n)
        method.after_step(tiny.make_task())
        past.append(tiny.snapshot(method))
        a = min(1 - 1 / (n + 1), alpha)
        wanted = {name: a * value + (1 - a) * past[-1][name] for name, value in wanted.items()}
    assert "embed_out.weight" in method.fast or "lm_head.weight" in method.fast
    assert method.fast.keys() == method.slow.keys() == past[0].keys()
    for name, value in method.fast.items():
        assert torch.allclose(value, wanted[name], atol=1e-5)
        if alpha == 1.0:
            assert torch.allclose(value, torch.stack([weights[name] for weights in past]).mean(dim=0), atol=1e-5)
    assert tiny.same(method.slow, method.fast) is (alpha == 1.0)  # .999 of the slow one is not reached yet


def test_updates_are_drawn_for_each_average_and_count_steps_of_the_whole_stream(tmp_path):
    made = tiny.learn(tiny.make_config("CLSER", **FAST), None, None, CLSER_freq_fast=0.0)
    method = made.method
    assert method.steps == made.log.step == 6 + 4 + 5
    first = tiny.snapshot(tiny.make_method(tiny.make_session(method.config)))
    assert tiny.same(method.fast, first)
    assert not tiny.same(method.slow, first)
    assert not tiny.same(method.slow, made.weights)


def test_the_teacher_of_a_token_is_the_model_that_gives_it_more_probability():
    plastic = torch.tensor([[0.0, 2.0], [5.0, 1.0]])
    stable = torch.tensor([[9.0, 8.0], [1.0, 3.0]])  # higher logits, lower probability of token 1 in the first row
    assert better(plastic, stable, torch.tensor([1, 1])).tolist() == [[0.0, 2.0], [1.0, 3.0]]
    assert better(plastic, stable, torch.tensor([0, 0])).tolist() == [[9.0, 8.0], [5.0, 1.0]]


def test_the_error_is_to_the_chosen_logits_on_remembered_rows_alone(tmp_path):
    method = method_of(tmp_path, CLSER_lambda=2.0)
    fit(method, tiny.make_task(), method.session)
    task, old = tiny.make_task(1), method.memory.rows()[:3]

    def batch(examples):
        return collate(method.session.encoder(examples, 48), examples, tiny.PAD)

    found = method.loss(method.model, batch([*task.train[:2], *old]), task)["consistency"].item()
    errors = []
    for row in old:
        one = batch([row])
        now, fast, slow = (tiny.teacher_logits(method, w, one)[0] for w in ({}, method.fast, method.slow))
        errors.append((now - better(fast, slow, one.labels[0, -len(now) :])).square())
    assert found == pytest.approx(2 * torch.cat(errors).mean().item(), rel=1e-3)
    assert found > 0
    without = method.loss(method.model, batch(task.train[:2]), task)["consistency"]
    assert without.item() == 0 and without.requires_grad
    method.fast = method.slow = tiny.snapshot(method)
    assert method.loss(method.model, batch(old), task)["consistency"].item() == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_with_lambda_0_it_is_replay(tmp_path):
    options = {"backbone": tiny.backbone_folder(dropout=0.1), **FAST}
    needed = tiny.SETTINGS["is_replay"] | tiny.SETTINGS["Replay_update: step"]
    (tmp_path / "plain").mkdir()
    made = tiny.run(tmp_path, tiny.make_config("CLSER", **options), None, None, CLSER_lambda=0.0)
    plain = tiny.run(tmp_path / "plain", tiny.make_config("SEQ", **options, **needed))
    assert tiny.same(made.weights, plain.weights)
    working = read_jsonl(tmp_path / "predictions/after_2_working/task_1.jsonl")
    assert working == read_jsonl(tmp_path / "plain/predictions/after_2/task_1.jsonl")
    (tmp_path / "full").mkdir()
    assert not tiny.same(tiny.run(tmp_path / "full", tiny.make_config("CLSER", **options)).weights, plain.weights)


@pytest.mark.parametrize("who", ["stable", "working"])
@pytest.mark.slow
def test_who_answers_and_is_saved(tmp_path, who):
    from transformers import AutoModelForCausalLM

    config = tiny.make_config("CLSER", training_epochs=4)
    made = tiny.run(tmp_path, config, None, None, CLSER_predict_with=who, CLSER_alpha_slow=0.5)
    method, test = made.method, tiny.micro_stream().tasks[0].test
    saved = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoints/task_2").named_parameters())
    answering = method.slow if who == "stable" else made.weights
    assert tiny.same(saved, answering)
    with borrowed(method.named(), answering):
        rows = predict(method, method.session, Cell(tmp_path / "x.jsonl", 0, test, "exact_match", 48, 8))
    assert rows == read_jsonl(tmp_path / "predictions/after_2/task_0.jsonl")
    other = {"stable": "working", "working": "stable"}[who]
    assert (tmp_path / f"predictions/after_2_{other}/task_0.jsonl").is_file()
    assert not (tmp_path / f"predictions/base_{other}").exists()


def test_recovery_shows_the_weights_that_were_trained_last(tmp_path):
    config = tiny.make_config("CLSER", **FAST, recovery=True, recovery_epochs=3, recovery_ratio=1.0, lr=1e-2)
    made = tiny.run(tmp_path, config)
    method, test = made.method, tiny.micro_stream().tasks[0].test
    rows = predict(method, method.session, Cell(tmp_path / "x.jsonl", 0, test, "exact_match", 48, 8))
    assert rows == read_jsonl(tmp_path / "predictions/recovery/task_0.jsonl")
    assert math.isfinite(made.results["recovery"]["before"])
    assert not (tmp_path / "predictions/recovery_working").exists()


def test_nothing_answers_for_it_before_training():
    method = tiny.make_method(tiny.make_session(tiny.make_config("CLSER")))
    assert isinstance(method, CLSER)
    assert method.versions() == {"": None}


def test_states_where_labels_are_predicted():
    layers = [torch.arange(8.0).reshape(1, 4, 2) + 10 * layer for layer in range(3)]
    labels = torch.tensor([[-100, 7]])  # of the last two of four columns
    assert at_labels(layers, labels).tolist() == [[[4.0, 5.0], [14.0, 15.0], [24.0, 25.0]]]  # of the third column


def test_the_error_of_states_by_hand(tmp_path):
    """Of one remembered text: the better average at each token, and the mean over embeddings, layers and width."""
    method = method_of(tmp_path, CLSER_match="states", CLSER_lambda=2.0)
    torch.manual_seed(0)
    for average, noise in ((method.fast, 0.1), (method.slow, 0.1)):
        for name, value in average.items():
            average[name] = value + noise * torch.randn_like(value)
    example = replace(tiny.make_task().train[10], source="memory")
    batch = method.collated([example], tiny.make_task())
    labels, found = batch.labels[0, -batch.answer_length :], []
    for weights in ({}, method.fast, method.slow):
        with borrowed(method.named(), weights), torch.no_grad():
            last: list[torch.Tensor] = []
            hook = method.model.base_model.layers[-1].register_forward_hook(lambda *call, to=last: to.append(call[2]))
            output = method.model(batch.input_ids, output_hidden_states=True)
            hook.remove()
        ends = last[0][0] if isinstance(last[0], tuple) else last[0]  # before the last norm
        layers = torch.stack([*output.hidden_states[:-1], ends])[:, 0, -len(labels) - 1 : -1]
        log_p = output.logits[0, -len(labels) - 1 : -1].log_softmax(dim=-1).gather(1, labels[:, None])[:, 0]
        found.append((layers, log_p))
    (own, _), (fast, p), (slow, q) = found
    errors = [(own[:, t] - (fast if p[t] > q[t] else slow)[:, t]).square().mean() for t in range(len(labels))]
    assert {bool(p[t] > q[t]) for t in range(len(labels))} == {True, False}, "each average is the better one somewhere"
    terms = method.loss(method.model, batch, tiny.make_task())
    assert terms["consistency"].item() == pytest.approx(2 * torch.stack(errors).mean().item(), rel=1e-4)


def test_states_need_a_decoder_that_keeps_them():
    for reason, options in {
        "use logits": {"backbone": tiny.backbone_folder("t5")},
        "discards the states": {"gradient_checkpointing": True},
    }.items():
        found = problems(tiny.plan(tiny.make_config("CLSER", **options), CLSER_match="states"))
        assert any(reason in problem for problem in found), reason


@pytest.mark.slow
def test_ilora_is_replay_while_the_slow_average_is_the_working_model():
    """Both averages follow at once, so nothing differs from the better one: as with lambda 0."""
    lora = {"PEFT_type": "LoRA", "PEFT_lora_dropout": 0.0, "lr": 1e-2}
    follows = {f"CLSER_{name}": value for name in ("freq_fast", "freq_slow") for value in [1.0]}
    own = follows | {"CLSER_alpha_fast": 0.0, "CLSER_alpha_slow": 0.0, "CLSER_match": "states"}
    made = [tiny.learn(tiny.make_config("CLSER", **lora), None, None, **own, CLSER_lambda=x) for x in (0.0, 5.0)]
    for name, value in made[0].weights.items():
        torch.testing.assert_close(made[1].weights[name], value, atol=1e-5, rtol=1e-4)
