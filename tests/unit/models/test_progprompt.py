"""ProgPrompt: inputs, trainable parameters, and the result of folding."""

import pytest
import torch

from models.ProgPrompt import ProgPrompt
from tests import tiny
from utils.dataloader import collate
from utils.model.forward import answer_logits
from utils.model.generation import verify
from utils.run.fit import fit

FAMILIES = ["neox", "gpt2", "t5"]
N = 3  # tokens of a prompt


def make(family="neox", **options):
    session = tiny.make_session(tiny.make_config("ProgPrompt", backbone=tiny.backbone_folder(family), lr=0.05))
    values = {"ProgPrompt_num_tokens_per_task": N, "ProgPrompt_mlp_size": 16} | options
    return tiny.make_method(session, **values)


def learn(method, index, fold=True):
    task = tiny.make_task(index)
    method.before_task(task)
    fit(method, task, method.session)
    if fold:
        method.after_task(task)
    return task


def encoded(method, index):
    examples = tiny.micro_stream().tasks[index].train[:5]
    rows = method.encoder(examples, 48)
    return examples, rows, collate(rows, examples, method.backbone.pad_id)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_and_older_prompts_are_frozen(family):
    method = make(family)
    before = tiny.snapshot(method)
    learn(method, 0)
    between = tiny.snapshot(method)
    learn(method, 1)
    after = tiny.snapshot(method)
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("extra."))
    name = "extra.prompts."
    assert not torch.equal(before[name + "0"], between[name + "0"])
    assert torch.equal(between[name + "0"], after[name + "0"])
    assert not torch.equal(between[name + "1"], after[name + "1"])
    assert torch.equal(before[name + "2"], after[name + "2"])


def test_prompts_are_read_newest_first_and_grow_by_n():
    method = make()
    assert method.soft_prompt(0) is method.soft_prompt(2) is None  # before anything is learned
    learn(method, 0)
    assert torch.equal(method.soft_prompt(0), method.prompts[0])
    assert torch.equal(method.soft_prompt(2), method.prompts[0])  # a task not yet learned: all there are
    learn(method, 1)
    assert torch.equal(method.soft_prompt(0), method.prompts[0])
    assert torch.equal(method.soft_prompt(1), torch.cat([method.prompts[1], method.prompts[0]]))
    learn(method, 2)
    assert torch.equal(method.soft_prompt(2), torch.cat([method.prompts[k] for k in (2, 1, 0)]))
    assert [len(method.soft_prompt(k)) for k in range(3)] == [N, 2 * N, 3 * N]


def test_a_prompt_begins_as_random_words_each_its_own():
    method = make()
    words = method.model.get_input_embeddings().weight
    for prompt in method.prompts:
        assert all(any(torch.equal(token, word) for word in words) for token in prompt)
    method.before_task(tiny.make_task(0))
    assert torch.equal(method.soft_prompt(0), method.prompts[0])  # the MLP gives 0
    assert len({tuple(token.tolist()) for prompt in method.prompts for token in prompt}) > 2 * N


@pytest.mark.parametrize("family", FAMILIES)
def test_folding_leaves_the_outputs(family):
    method = make(family)
    learn(method, 0)
    task = learn(method, 1, fold=False)
    _, _, batch = encoded(method, 1)
    with torch.no_grad():
        before, _ = answer_logits(method.model, batch, method.soft_prompt(1))
        plain, _ = answer_logits(method.model, batch, torch.cat([method.prompts[1], method.prompts[0]]))
        method.after_task(task)
        method.extra["mlp"][2].bias += 1.0  # it is not asked any more
        after, _ = answer_logits(method.model, batch, method.soft_prompt(1))
    assert torch.equal(before, after)
    assert not torch.allclose(before, plain, atol=1e-3)


def test_the_mlp_acts_on_the_newest_prompt_alone():
    method = make()
    learn(method, 0)
    method.before_task(tiny.make_task(1))
    with torch.no_grad():
        method.extra["mlp"][2].bias += 1.0
    both = method.soft_prompt(1)
    assert torch.allclose(both[:N], method.prompts[1] + 1) and torch.equal(both[N:], method.prompts[0])


def test_only_prompt_and_mlp_learn():
    method = make()
    task = tiny.make_task(1)
    mlp = {f"extra.mlp.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    assert method.learning(task).keys() == {"extra.prompts.1", *mlp}
    assert make(ProgPrompt_use_mlp=False).learning(task).keys() == {"extra.prompts.1"}


@pytest.mark.parametrize("family", FAMILIES)
def test_verified_answers_are_the_generated_ones_under_left_padding(family):
    method = make(family)
    for index in (0, 1):
        learn(method, index)
    method.model.eval()
    for index in (0, 1):
        examples, rows, _ = encoded(method, index)
        together = method.predict(rows, index, 8)
        assert together == [method.predict([row], index, 8)[0] for row in rows]
        accepted = [e.accepted for e in examples]
        for answer, text in zip(
            verify(method.backbone, rows, accepted, 8, method.soft_prompt(index)), together, strict=True
        ):
            assert answer is None or text.startswith(answer.text)


def test_learns_and_forgets_nothing(tmp_path):
    config = tiny.make_config("ProgPrompt", lr=0.03, training_epochs=5, info_per_steps=1)
    made = tiny.run(tmp_path, config, ProgPrompt_num_tokens_per_task=5)
    R = made.results["R"]
    assert all(R[i][j] == R[j][j] for i in range(3) for j in range(i + 1))
    first = [event["loss"] for event in made.log.events if event["event"] == "train" and event["task"] == 0]
    assert first[-1] < first[0]
    assert sum("parameters of ProgPrompt itself" in text for text in made.log.messages) == 3


def test_an_mlp_that_is_not_used_has_no_size():
    options = ProgPrompt.Options(ProgPrompt_use_mlp=False, ProgPrompt_mlp_size=4)
    (problem,) = ProgPrompt.problems(tiny.make_config("ProgPrompt"), options, tiny.micro_stream())
    assert problem.startswith("ProgPrompt_mlp_size: has no effect without ProgPrompt_use_mlp")


def test_without_the_mlp_nothing_of_it_is_stored():
    method = make(ProgPrompt_use_mlp=False)
    assert set(method.extra) == {"prompts"}
