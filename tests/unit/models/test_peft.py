"""The methods on adapters: PEFT, AdapterCL, OLoRA, InfLoRA, SLAO."""

import json
import math
from itertools import pairwise

import pytest
import torch

from models import InfLoRA as inflora
from models.AdapterCL import AdapterCL
from models.common import frozen_sum
from models.common.subspace import design, extend
from models.OLoRA import overlap
from models.PEFT import PEFT, surprise
from models.SLAO import merge, orthonormal
from tests import tiny
from tests.unit.model.test_adapters import KINDS, PROMPTS, loaded_elsewhere
from utils.config import NoOptions
from utils.dataloader import Encoded, collate
from utils.dataset import Example
from utils.errors import UserError
from utils.factory import load_method
from utils.model import adapters
from utils.model.forward import forward
from utils.model.generation import generate
from utils.report.summary import table
from utils.run.fit import fit
from utils.storage.files import read_jsonl, write_jsonl

LORA = {"PEFT_type": "LoRA", "PEFT_lora_dropout": 0.0}
ROWS = [Encoded([5, 6, 7, 8, 9], [11]), Encoded([9, 8], [13]), Encoded([20, 21, 22], [14]), Encoded([30], [1])]


def three_adapters(method="PEFT", kind="LoRA", **options):
    """A method before its third task, with adapters that differ."""
    il_mode = options.pop("il_mode", "CIT")
    config = tiny.make_config(method, PEFT_type=kind, il_mode=il_mode, backbone=tiny.backbone_folder("gpt2"))
    made = tiny.make_method(tiny.make_session(config), **options)
    for index in range(3):
        made.before_task(tiny.make_task(index))
    torch.manual_seed(5)
    for name, w in made.model.named_parameters():
        if adapters.owner(name):
            w.data += 0.5 * torch.randn_like(w)
    made.load_state_dict(made.state_dict())  # earlier adapters are not expected to change
    made.model.eval()
    return made


@pytest.mark.parametrize("kind", tiny.quick(KINDS))
@pytest.mark.slow
def test_earlier_adapters_are_frozen_bit_for_bit(kind, tmp_path):
    """With weight decay; also while a task is learned and evaluated in between, which switches adapters."""
    ends = []

    class Watched(PEFT):
        def after_task(self, task):
            super().after_task(task)
            ends.append(tiny.snapshot(self))

    config = tiny.make_config("PEFT", PEFT_type=kind, weight_decay=0.1, lr=1e-2, evaluate_interval=1)
    tiny.run(tmp_path, config, None, Watched, PEFT_inference="route")
    assert [{adapters.owner(name) for name in end} - {None} for end in ends] == [
        {"task_0"}, {"task_0", "task_1"}, {"task_0", "task_1", "task_2"},
    ]  # fmt: skip
    for i, end in enumerate(ends):
        for name, w in end.items():
            own = adapters.owner(name) == f"task_{i}"
            if i and not own:
                assert torch.equal(w, ends[i - 1][name]), name
    base = [name for name in ends[0] if adapters.owner(name) is None]
    first = dict(tiny.make_method(tiny.make_session(config), method_class=PEFT).model.named_parameters())
    assert base and all(torch.equal(first[name], ends[2][name]) for name in base)


@pytest.mark.slow
def test_evaluating_with_other_adapters_changes_no_training(tmp_path):
    made = []
    for interval in (1, -1):
        (tmp_path / str(interval)).mkdir()
        config = tiny.make_config("AdapterCL", evaluate_interval=interval)
        made.append(tiny.run(tmp_path / str(interval), config).weights)
    assert tiny.same(*made)


def test_what_is_stored_grows_by_one_adapter(tmp_path):
    cost = tiny.run(tmp_path, tiny.make_config("PEFT")).results["cost"]
    (one,) = set(cost["trainable_parameters"])
    stored = cost["stored_parameters"]
    assert [b - a for a, b in pairwise(stored)] == [one, one]


def test_one_adapter_for_all_is_seq_with_that_setting(tmp_path):
    made = []
    for name, options in (("PEFT", {"PEFT_per_task": False}), ("SEQ", {})):
        (tmp_path / name).mkdir()
        made.append(tiny.run(tmp_path / name, tiny.make_config(name, **LORA), None, None, **options))
    assert tiny.same(made[0].weights, made[1].weights)
    assert made[0].results["R"] == made[1].results["R"]


@pytest.mark.parametrize("kind", KINDS)
def test_in_til_the_tasks_own_adapter_answers(kind):
    made = three_adapters(kind=kind, il_mode="TIL", PEFT_inference="task_id")
    answers = [made.predict(ROWS, index, 6) for index in range(3)]
    for index in range(3):
        with adapters.using(made.model, f"task_{index}"):
            assert generate(made.backbone, ROWS, 6) == answers[index]
    assert adapters.active(made.model) == ["task_2"]
    assert len({str(answer) for answer in answers}) == 3
    assert made.predict(ROWS, 7, 6) == answers[2]  # a task that is not learned yet


def test_the_newest_answers_by_default():
    made = three_adapters()
    with adapters.using(made.model, "task_2"):
        assert made.predict(ROWS, None, 6) == generate(made.backbone, ROWS, 6)


def test_the_sum_is_the_base_plus_all_products():
    made = three_adapters(PEFT_inference="sum")
    batch = collate(ROWS, [Example("", "")] * 4, tiny.PAD)
    summed = forward(made.model, batch)
    plain = tiny.load_backbone(tiny.make_config(backbone=tiny.backbone_folder("gpt2"))).model.eval()
    for index in range(3):
        a, b = (adapters.factors(made.model, side, f"task_{index}") for side in "AB")
        for layer in a:
            weight = plain.get_submodule(layer.removeprefix("base_model.model.")).weight
            weight.data += 2 * (b[layer] @ a[layer]).T  # alpha / r is 2; GPT-2 keeps its weights transposed
    assert torch.allclose(summed, forward(plain, batch), atol=1e-4)


def test_earlier_adapters_of_a_sum_are_read_at_once():
    """As factors and as their product; the outputs are those of adapters that are read one by one."""
    for rank, count in ((2, 2), (24, 1)):  # two of rank 24 are more work than a matrix of 32 columns
        config = tiny.make_config("PEFT", **LORA, PEFT_lora_r=rank)
        made = tiny.make_method(tiny.make_session(config), PEFT_inference="sum")
        for index in range(3):
            made.before_task(tiny.make_task(index))
        torch.manual_seed(5)
        for name, w in made.model.named_parameters():
            if adapters.owner(name):
                w.data += 0.3 * torch.randn_like(w)
        made.load_state_dict(made.state_dict())
        *earlier, newest = adapters.names(made.model)
        layer = next(part for part in made.model.modules() if hasattr(part, "lora_A"))
        assert len(frozen_sum._factors(layer, earlier)) == count
        batch = collate(ROWS, [Example("", "")] * 4, tiny.PAD)
        at_once = forward(made.model.eval(), batch)
        assert adapters.active(made.model) == [newest]
        assert made.earlier.set(made.model, [])
        with adapters.using(made.model, *earlier, newest):
            torch.testing.assert_close(at_once, forward(made.model, batch), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_an_adapter_reads_a_question_once(tmp_path):
    """An adapter that is no longer trained, over all evaluations of a run; also when tasks are evaluated inside."""
    read = []

    class Watched(AdapterCL):
        def _surprises(self, rows):
            read.extend((adapters.active(self.model)[0], tuple(row.prompt)) for row in rows)
            return super()._surprises(rows)

    config = tiny.make_config("AdapterCL", training_epochs=1, is_evaluate_init=False)
    whole = tiny.run(tmp_path / "whole", config, method_class=Watched, cuts={"task_1": tmp_path / "cut"})
    assert len(read) == len(set(read)) == 3 * sum(len(task.test) for task in tiny.micro_stream().tasks)
    for name, more in (("cut", {}), ("inside", {"evaluate_interval": 1})):
        assert (
            tiny.run(tmp_path / name, config.updated(**more), method_class=Watched).results["R"] == whole.results["R"]
        )


def slow_route(made, row):
    """Mean negative log-likelihood of a prompt under each adapter, token by token."""
    sums = []
    for name in adapters.names(made.model):
        with adapters.using(made.model, name), torch.no_grad():
            ids = list(row.prompt)
            batch = collate([Encoded(ids, ())], [Example("", "")], tiny.PAD)
            logits = forward(made.model, batch)[0].log_softmax(dim=-1)
        sums.append(sum(-logits[k - 1, ids[k]].item() for k in range(1, len(ids))) / max(1, len(ids) - 1))
    return sums.index(min(sums))


@pytest.mark.parametrize("kind", KINDS)
def test_the_route_is_the_lowest_perplexity_whatever_the_padding(kind):
    made = three_adapters("AdapterCL", kind)
    torch.manual_seed(1)
    rows = [Encoded(torch.randint(3, 300, (n,)).tolist(), [1]) for n in (2, 9, 4, 3, 6, 12, 5, 2, 7, 3)]
    wanted = [slow_route(made, row) for row in rows]
    assert len(set(wanted)) > 1
    assert made.route(rows) == wanted
    assert [made.route([row])[0] for row in rows] == wanted
    assert adapters.active(made.model) == ["task_2"]


def test_decoding_in_groups_is_decoding_one_by_one():
    made = three_adapters("AdapterCL")
    together = made.predict(ROWS, None, 6)
    assert together == [made.predict([row], None, 6)[0] for row in ROWS]


def test_an_adapter_that_was_trained_on_a_text_is_found(tmp_path):
    config = tiny.make_config("AdapterCL", lr=2e-2, training_epochs=12, backbone=tiny.backbone_folder("gpt2"))
    made = tiny.run(tmp_path, config, tiny.micro_stream(2))
    found = [event for event in made.log.events if event["event"] == "route"]
    assert [event["task"] for event in found] == [0, 1]  # after task 1: before there was one adapter
    assert [event["accuracy"] for event in found] == [1.0, 1.0]
    counts = [read_jsonl(file) for file in tmp_path.glob("predictions/after_1/*.jsonl")]
    assert all(row["decided"] == "generated" for rows in counts for row in rows)
    assert reported(tmp_path, made)["routing"] == [1.0, 1.0]  # so the router costs nothing
    assert made.results["versions"] == {"task given": [[None, None], made.results["R"][1]]}


def reported(folder, made):
    """The results of a run with its log, which tests keep in memory."""
    write_jsonl(folder / "log.jsonl", made.log.events)
    return tiny.build(folder)


def test_a_router_is_shown_with_its_upper_bound(tmp_path):
    """What the adapters of the tasks themselves answer, and how often the router picked them."""

    class Wrong(load_method("PEFT")):
        def route(self, rows):
            return [0] * len(rows)

    config = tiny.make_config("PEFT", PEFT_type="LoRA", PEFT_lora_dropout=0.0, lr=2e-2, training_epochs=12)
    made = tiny.run(tmp_path, config, tiny.micro_stream(2), Wrong, PEFT_inference="route")
    results = reported(tmp_path, made)
    assert results["routing"] == [1.0, 0.0]
    told, routed = made.results["versions"]["task given"][1], made.results["R"][1]
    assert told[0] == routed[0] and told[1] > routed[1]
    page = table(results)
    assert "Routed right" in page and "100.00, 0.00" in page and "| task given" in page
    compared = tiny.compare_text(tiny.group([(tmp_path, results)]))
    assert "routed right" in compared and ": task given" in compared


def test_the_task_is_given_only_while_the_upper_bound_answers():
    made = three_adapters(PEFT_inference="route")
    bound = next(version for version in made.versions() if version)
    with pytest.raises(UserError), made.answering(bound):
        assert made.is_task_given
        raise UserError("stopped")
    assert not made.is_task_given
    with made.answering(""):
        assert not made.is_task_given


def test_surprise_by_hand():
    logits = torch.zeros(2, 3, 4)
    logits[0, 1, 2] = math.log(5)  # p = 5/8 of token 2 after the first real token
    ids, mask = torch.tensor([[0, 1, 2], [3, 3, 3]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    assert surprise(logits, ids, mask).tolist() == pytest.approx([-math.log(5 / 8), math.log(4)])
    assert surprise(logits, ids, torch.tensor([[0, 0, 1], [0, 0, 1]])).tolist() == [0, 0]


def test_adaptercl_learns_every_token_of_a_text(tmp_path):
    """Against the loss that transformers computes itself with all tokens as labels."""
    seen = []

    class Watched(AdapterCL):
        def loss(self, model, batch, task):
            terms = super().loss(model, batch, task)
            labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
            first = batch.attention_mask.argmax(dim=1)
            labels[range(len(labels)), first] = -100  # padding does not predict it
            positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "position_ids": positions}
            theirs = adapters.innermost(model)(**inputs, labels=labels).loss
            seen.append((terms["answer"].item(), theirs.item()))
            return terms

    session = tiny.make_session(tiny.make_config("AdapterCL"))
    method = tiny.make_method(session, None, Watched)
    fit(method, tiny.make_task(), session)
    ours, theirs = zip(*seen, strict=True)
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "changes", "options", "expected"),
    [
        ("PEFT", {}, {"PEFT_inference": "task_id"}, "PEFT_inference: task_id needs il_mode TIL"),
        ("PEFT", {"PEFT_type": "IA3"}, {"PEFT_inference": "sum"}, "PEFT_inference: sum needs PEFT_type LoRA"),
        ("PEFT", {}, {"PEFT_inference": "route", "PEFT_per_task": False}, "PEFT_inference: has no effect with"),
        ("PEFT", {"keep_optimizer_state": True}, {}, "keep_optimizer_state: has no effect with PEFT_per_task"),
        (
            "PEFT",
            {"backbone": tiny.backbone_folder("t5")},
            {"PEFT_inference": "route"},
            "PEFT_inference: route needs the perplexity of a question",
        ),
        ("PEFT", {"recovery": True}, {"PEFT_inference": "route"}, "recovery: trains task 0's adapter"),
        (
            "PEFT",
            {"is_probing": True, "il_mode": "CIL"},
            {"PEFT_inference": "route"},
            "is_probing: reads each task's own",
        ),
        (
            "PEFT",
            {"is_replay": True, "classifier": "Linear", "il_mode": "CIL"},
            {},
            "is_replay: remembered rows need the adapters and heads of earlier tasks",
        ),
        ("OLoRA", {"PEFT_type": "IA3"}, {}, "PEFT_type: method OLoRA needs LoRA, got IA3"),
        ("InfLoRA", {"PEFT_type": "IA3"}, {}, "PEFT_type: method InfLoRA needs LoRA, got IA3"),
        ("SLAO", {"PEFT_type": "PromptTuning"}, {}, "PEFT_type: method SLAO needs LoRA, got PromptTuning"),
    ],
)
def test_contradictory_options_are_refused(name, changes, options, expected):
    kind = load_method(name)
    config, own = tiny.make_config(name, **changes), kind.Options(**options)
    (problem,) = kind.problems(config, own, tiny.micro_stream())
    assert problem.startswith(expected)
    assert kind.problems(tiny.make_config(name), kind.Options(), tiny.micro_stream()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PEFT", "SLAO"])
def test_the_checkpoint_of_a_run_answers_the_same_without_this_program(name, tmp_path):
    config = tiny.make_config(name, lr=3e-2, training_epochs=6)
    made = tiny.run(tmp_path, config, tiny.micro_stream(2))
    folder = tmp_path / "checkpoints/task_1"
    assert not list(folder.rglob("model.safetensors"))
    rows = [Encoded(made.method.backbone.tokenizer(prompt)["input_ids"], ()) for prompt in PROMPTS]
    made.method.model.eval()
    with tiny.weights.borrowed(made.method.named(), made.method.versions()[""] or {}):
        answers = []
        for adapter in adapters.names(made.method.model):
            with adapters.using(made.method.model, adapter):
                answers.append(generate(made.method.backbone, rows, 6))
    folders = [folder / part for part in (("task_0", "task_1") if name == "PEFT" else (".",))]
    told = loaded_elsewhere(json.dumps([tiny.backbone_folder(), PROMPTS, *map(str, folders)]))
    assert [json.loads(line) for line in told.splitlines()] == answers


def test_overlap_by_hand():
    assert overlap(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.5, -3.0]])).item() == 0.5 + 6
    assert overlap(torch.eye(4)[:2], torch.eye(4)[2:]).item() == 0


def test_the_penalty_of_olora_pulls_at_the_new_factors_alone():
    made = three_adapters("OLoRA", OLoRA_lambda_1=0.1, OLoRA_lambda_2=0.01)
    rows = made.encoder(tiny.micro_stream().tasks[2].train, None)
    batch = collate(rows, tiny.micro_stream().tasks[2].train, tiny.PAD)
    for w in made.model.parameters():
        w.requires_grad_(False)
    learning = made.learning(tiny.make_task(2))
    assert {adapters.owner(name) for name in learning} == {"task_2"}
    for w in learning.values():
        w.requires_grad_(True)
    terms = made.loss(made.model, batch, tiny.make_task(2))
    by_hand = norm = 0.0
    new = adapters.factors(made.model, "A", "task_2")
    for layer, a in new.items():
        for old in ("task_0", "task_1"):
            by_hand += (adapters.factors(made.model, "A", old)[layer] @ a.T).abs().sum().item()
        norm += a.norm().item() + adapters.factors(made.model, "B", "task_2")[layer].norm().item()
    assert terms["orthogonal"].item() == pytest.approx(0.1 * by_hand, rel=1e-5)
    assert terms["norm"].item() == pytest.approx(0.01 * norm, rel=1e-5)
    pulled = torch.autograd.grad(terms["orthogonal"], list(learning.values()), allow_unused=True)
    assert [g is not None for g in pulled] == [".lora_A." in name for name in learning]


def test_olora_without_weight_is_the_sum_of_adapters(tmp_path):
    made = []
    for name, options in (
        ("OLoRA", {"OLoRA_lambda_1": 0.0}),
        ("PEFT", {"PEFT_inference": "sum"}),
    ):
        (tmp_path / name).mkdir()
        made.append(tiny.learn(tiny.make_config(name), None, None, **options).weights)
    assert tiny.same(*made)


@pytest.mark.slow
def test_olora_comes_out_more_orthogonal(tmp_path):
    overlaps = []
    for weight in (0.0, 1.0):
        (tmp_path / str(weight)).mkdir()
        config = tiny.make_config("OLoRA", training_epochs=8, lr=1e-2)
        model = tiny.learn(config, None, None, OLoRA_lambda_1=weight).method.model
        first, last = (adapters.factors(model, "A", f"task_{index}") for index in (0, 2))
        overlaps.append(sum(overlap(first[layer], last[layer]).item() for layer in first))
    assert overlaps[1] < 0.5 * overlaps[0]


def inputs(seed, rank, dim=12):
    """A covariance of this rank."""
    torch.manual_seed(seed)
    x = torch.randn(40, rank, dtype=torch.float64) @ torch.randn(rank, dim, dtype=torch.float64)
    return x.T @ x


def test_the_designed_projection_spans_the_inputs_off_the_basis():
    first, second = inputs(0, 3), inputs(1, 4)
    basis = extend(first[:, :0], first, 1.0)
    assert basis.shape == (12, 3)
    assert torch.allclose(basis.T @ basis, torch.eye(3, dtype=torch.float64))
    assert torch.allclose(basis @ basis.T @ first, first)
    a = design(second, basis, 2)
    assert torch.allclose(a @ basis, torch.zeros(2, 3, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(a @ a.T, torch.eye(2, dtype=torch.float64) / 3)
    off = torch.eye(12, dtype=torch.float64) - basis @ basis.T
    left, _, _ = torch.linalg.svd(off @ torch.linalg.cholesky(second + 1e-12 * torch.eye(12)))
    assert torch.allclose(a.T @ a * 3, left[:, :2] @ left[:, :2].T, atol=1e-6)
    for scale in (1e-9, 1, 1e9):  # whatever the size of the inputs
        nothing_left = design(scale * first, basis, 2)
        assert torch.equal(nothing_left, torch.zeros_like(nothing_left)), scale
        assert torch.allclose(design(scale * second, basis, 2), a), scale


@pytest.mark.parametrize("wanted", [0.5, 0.9, 0.99, 1.0])
def test_the_basis_holds_the_share_with_as_few_directions_as_possible(wanted):
    first, second = inputs(0, 3), inputs(1, 9)
    old = extend(first[:, :0], first, 0.9)
    basis = extend(old, second, wanted)
    assert torch.equal(basis[:, : old.shape[1]], old)
    held = torch.trace(basis.T @ second @ basis) / second.trace()
    assert held >= wanted - 1e-9
    if basis.shape[1] > old.shape[1]:
        fewer = basis[:, :-1]
        assert torch.trace(fewer.T @ second @ fewer) / second.trace() < wanted


def test_a_share_that_is_reached_exactly_needs_no_further_direction():
    """Two of four equal directions hold half of the inputs."""
    for power in (2, 4):
        covariance = torch.eye(4, dtype=torch.float64)
        assert extend(covariance[:, :0], covariance, 0.5, power).shape == (4, 2), power


def test_the_share_of_fourth_powers_needs_fewer_directions():
    """`InfLoRA_share_of: fourths`: singular values 3, 2, 1 have 9, 4, 1 and 81, 16, 1."""
    covariance = torch.diag(torch.tensor([9.0, 4.0, 1.0], dtype=torch.float64))
    nothing = covariance[:, :0]
    for wanted, squares, fourths in ((0.6, 1, 1), (0.8, 2, 1), (0.95, 3, 2), (1.0, 3, 3)):
        assert extend(nothing, covariance, wanted).shape[1] == squares, wanted
        assert extend(nothing, covariance, wanted, 4).shape[1] == fourths, wanted
    old = covariance.new_tensor([[1.0], [0], [0]])
    assert extend(old, covariance, 0.8, 4).shape[1] == 1  # the old direction holds 81 of 98
    assert extend(old, covariance, 0.9, 4).shape[1] == 2


def test_rows_that_learn_nothing_are_reported():
    session = tiny.make_session(tiny.make_config("InfLoRA"))
    method = tiny.make_method(session)
    method.before_task(tiny.make_task(0))
    for layer, covariance in method.covariances(tiny.make_task(0)).items():
        method.basis[layer] = torch.eye(len(covariance), dtype=torch.float64)[:, 2:]  # two directions are left
    method.before_task(tiny.make_task(1))
    found = [event for event in session.log.events if event["event"] == "subspace"]
    assert found[0]["empty"] == 0
    layers = len(adapters.factors(method.model, "A", "task_1"))
    assert found[1]["empty"] == found[1]["rows"] - 2 * layers > 0


def test_layers_with_the_same_inputs_share_covariance_and_basis(monkeypatch):
    config = tiny.make_config(
        "InfLoRA", backbone=tiny.backbone_folder("llama"), PEFT_lora_target_modules=("all-linear",)
    )
    method, made = tiny.make_method(tiny.make_session(config)), []
    monkeypatch.setattr(inflora, "design", lambda *given: made.append(len(given[0])) or design(*given))
    method.before_task(task := tiny.make_task(0))
    shared = method.covariances(task)
    ends = [("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")] * 2
    assert sorted(name.partition(".layers.")[2][2:] for name in shared) == sorted(sum(ends, ()))
    assert len(made) == len(shared) == 8 and len(method.readers) == 14
    factors = adapters.factors(method.model, "A", "task_0")
    first = {layer: name for layer, name in method.readers.items() if layer != name}
    assert len(first) == 6 and all(torch.equal(factors[a], factors[b]) for a, b in first.items())
    alone, method.readers = {}, {}
    for layer in factors:  # watched one by one, no two layers are called in a row
        monkeypatch.setattr(adapters, "factors", lambda *_, layer=layer: {layer: factors[layer]})
        alone |= method.covariances(task)
    assert all(torch.equal(alone[layer], shared[first.get(layer, layer)]) for layer in factors)
    monkeypatch.undo()
    method.readers = {layer: first.get(layer, layer) for layer in factors}
    method.after_task(task)
    assert method.basis.keys() == shared.keys()


def test_inflora_leaves_inputs_of_earlier_tasks_unchanged(tmp_path):
    session = tiny.make_session(tiny.make_config("InfLoRA", lr=1e-1))
    method = tiny.make_method(session, InfLoRA_threshold=0.9)
    for index in range(2):
        method.before_task(tiny.make_task(index))
        fit(method, tiny.make_task(index), session)
        if index == 0:
            method.after_task(tiny.make_task(0))
    for layer, basis in method.basis.items():
        assert 0 < basis.shape[1] < 24  # of 32
        update = (
            adapters.factors(method.model, "B", "task_1")[layer] @ adapters.factors(method.model, "A", "task_1")[layer]
        )
        scale = update.norm()
        assert scale > 0
        assert (update.double() @ basis).norm() < 1e-5 * scale


@pytest.mark.parametrize("outer", ["embed_in", "lm_head"])
def test_inflora_is_refused_outside_the_layers(outer):
    config = tiny.make_config("InfLoRA", PEFT_lora_target_modules=("query_key_value", outer))
    with pytest.raises(UserError, match=r"^PEFT_lora_target_modules: InfLoRA needs inner layers; leave out"):
        tiny.make_method(tiny.make_session(config))


def test_inflora_trains_b_alone_and_counts_real_tokens(tmp_path):
    session = tiny.make_session(tiny.make_config("InfLoRA", evaluate_batch_size=5))
    method, task = tiny.make_method(session), tiny.make_task()
    method.before_task(task)
    before = tiny.snapshot(method)
    assert all(".lora_B.task_0." in name for name in method.learning(task))
    rows = session.encoder(task.train, None)
    seen = []
    (layer, *_) = adapters.factors(method.model, "A", "task_0")
    hook = method.model.get_submodule(layer).register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    method.model.eval()
    for row in rows:  # no padding at all
        forward(method.model, collate([row], task.train[:1], tiny.PAD))
    hook.remove()
    x = torch.cat(seen).double()
    assert torch.allclose(method.covariances(task)[layer], x.T @ x, rtol=1e-4, atol=1e-4)
    fit(method, task, session)
    moved = {name for name, w in tiny.snapshot(method).items() if not torch.equal(w, before[name])}
    assert moved and all(".lora_B." in name for name in moved)


@pytest.mark.parametrize("name", ["OLoRA", "SLAO"])
def test_embeddings_with_lora_have_factors_like_layers(name, tmp_path):
    config = tiny.make_config(name, PEFT_lora_target_modules=("query_key_value", "embed_in"), lr=1e-2)
    made = tiny.learn(config, tiny.micro_stream(2)).method
    newest = adapters.names(made.model)[-1]
    a, b = (adapters.factors(made.model, side, newest) for side in "AB")
    (embedding,) = (layer for layer in a if layer.endswith("embed_in"))
    assert a[embedding].shape == (made.config.PEFT_lora_r, tiny.VOCABULARY) and b[embedding].shape[0] == 32
    if name == "OLoRA":
        task = tiny.make_task(1)
        batch = made.collated(task.train[:2], task)
        olds = adapters.factors(made.model, "A", "task_0")
        wanted = made.options.OLoRA_lambda_1 * sum(overlap(olds[layer], a[layer]) for layer in a)
        assert made.loss(made.model, batch, task)["orthogonal"].item() == pytest.approx(wanted.item(), rel=1e-4)
    else:
        (name,) = (name for name in made.merged if "lora_embedding_A" in name)
        assert torch.equal(made.merged[name], made.named()[name])  # A is the last task's, as of any layer


def test_orthonormal_rows_span_the_same():
    rows = torch.tensor([[2.0, 0, 0, 0], [1, -3, 0, 0]])
    assert torch.allclose(orthonormal(rows), torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 0]]), atol=1e-6)
    torch.manual_seed(0)
    rows = torch.randn(4, 16)
    made = orthonormal(rows)
    assert torch.allclose(made @ made.T, torch.eye(4), atol=1e-6)
    assert torch.allclose((rows @ made.T) @ made, rows, atol=1e-5)


def test_merging_by_hand():
    def factors(a, b):
        return {"x.lora_A.default.weight": torch.tensor([a]), "x.lora_B.default.weight": torch.tensor([b])}

    first = merge({}, factors(1.0, 2.0), 1)
    assert first == factors(1.0, 2.0)
    fourth = merge(first, factors(5.0, 10.0), 4)
    assert fourth == factors(5.0, 2.0 + (10.0 - 2.0) / 2)


def test_slao_answers_with_the_merged_and_trains_on_from_the_tuned(tmp_path):
    tuned, starts = [], []

    class Watched(load_method("SLAO")):
        def trainable(self, task):
            starts.append(tiny.snapshot(self))
            return super().trainable(task)

        def after_task(self, task):
            super().after_task(task)
            tuned.append(tiny.snapshot(self))

    made = tiny.learn(tiny.make_config("SLAO", lr=1e-2), tiny.micro_stream(2), Watched)
    for name in made.method.merged:
        if ".lora_B." in name:
            expected = tuned[0][name] + (tuned[1][name] - tuned[0][name]) / math.sqrt(2)
            assert torch.allclose(made.method.merged[name], expected)
            assert torch.equal(starts[-1][name], tuned[0][name])
        else:
            assert torch.equal(made.method.merged[name], tuned[1][name])
            assert torch.equal(starts[-1][name], orthonormal(tuned[0][name]))
    assert NoOptions is Watched.Options
