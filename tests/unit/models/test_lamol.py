"""LAMOL, which writes pseudo-samples of earlier tasks; test_lamol_teachers.py has LAMOL_KD and L2KD."""

import math
from contextlib import nullcontext
from dataclasses import replace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from models import LAMOL as lamol_module
from models.common.pseudo_samples import make_room, parse, sample_texts, top_up
from models.L2KD import L2KD
from models.LAMOL import LAMOL
from models.SEQ import SEQ
from tests import tiny
from utils.dataloader import collate
from utils.dataset import Example, Stream
from utils.factory import load_method
from utils.model.forward import answer_logits
from utils.run.fit import fit

GEN_KINDS = {
    "common": {},
    "per task": {"LAMOL_use_task_specific_gen_token": True},
    "eos": {"LAMOL_use_eos_as_gen_token": True},
}
TEXT = {"LAMOL_use_ans_token": False, "LAMOL_ans_split_token": "Answer:"}


def make(folder, name="LAMOL", config=None, **options):
    session = tiny.make_session(config or tiny.make_config(name))
    return tiny.make_method(session, **options)


def batch_of(method, examples, task):
    """All rows of one step."""
    rows = method.batch(examples, task, None)
    return collate(method.encoder(rows, task.max_length), rows, method.backbone.pad_id)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat ?__ans__ meow<eos>", ("cat ?", "meow")),
        ("cat ?__ans__ meow<eos><eos>dog__ans__ wuff<eos>", ("cat ?", "meow")),  # what comes after the end is dropped
        ("cat ? meow<eos>", None),
        ("cat ?__ans__ meow__ans__ meow<eos>", None),
        ("__ans__ meow<eos>", None),
        ("cat ?__ans__ <eos>", None),
        ("cat ?__ans__ meo", None),  # truncated
        ("<eos>cat ?__ans__ meow<eos>", None),
    ],
)
def test_what_is_well_formed(text, expected):
    assert parse(text, "<eos>", "__ans__", False) == expected


@pytest.mark.parametrize(("rounds", "kept", "written"), [(0, 4, 8), (1, 6, 12), (5, 8, 16)])
def test_malformed_samples_are_replaced(rounds, kept, written):
    """A writer that gets every second one right."""
    count, asked = iter(range(100)), []

    def write(attempt, number):
        asked.append((attempt, number))
        return [("q", "a") if next(count) % 2 else None for _ in range(number)]

    found, total = top_up(write, 8, rounds)
    assert (len(found), total) == (kept, written)
    assert asked == [(0, 8), (1, 4), (2, 2), (3, 1), (4, 1)][: rounds + 1]


@pytest.mark.parametrize("kind", GEN_KINDS)
@pytest.mark.parametrize("text", [{}, TEXT])
def test_the_two_views_of_an_example(tmp_path, kind, text):
    method = make(tmp_path, **GEN_KINDS[kind], **text)
    example = Example("cat ? ", " meow", task=2)
    question = "cat ?__ans__" if not text else "cat ? Answer:"
    gen = {"common": "__gen__", "per task": "__2__", "eos": "<eos>"}[kind]
    assert method.encoder.render(example) == (question, " meow")
    assert method.encoder.render(replace(example, view="lm")) == (gen, f"{question} meow")
    (row,) = method.encoder([replace(example, view="lm")], None)
    assert len(row.prompt) == 1
    assert row.answer[-1] == tiny.EOS
    question, answer = parse(f"{question} meow<eos>", "<eos>", method.separator, bool(text))
    assert method.encoder.render(Example(question, answer, task=2)) == method.encoder.render(example)


def test_a_question_that_ends_with_the_split_text_keeps_it_once(tmp_path):
    method = make(tmp_path, **TEXT)
    assert method.encoder.render(Example("Who?\nAnswer:", "I")) == ("Who?\nAnswer:", " I")


def test_new_tokens_are_one_id_each_and_learn(tmp_path):
    method = make(tmp_path, **GEN_KINDS["per task"])
    words = method.backbone.tokenizer
    special = ["__ans__", "__0__", "__1__", "__2__"]
    ids = [words(token, add_special_tokens=False)["input_ids"] for token in special]
    assert all(len(row) == 1 for row in ids)
    ans, gen, other = ids[0][0], ids[1][0], ids[3][0]
    rows = method.model.get_input_embeddings().weight
    assert rows.shape[0] == method.model.get_output_embeddings().weight.shape[0] >= len(words)
    before = rows.detach().clone()
    head = method.model.get_output_embeddings().weight.detach().clone()
    with mock.patch.object(torch.optim.AdamW, "__init__", _without_decay):
        fit(method, tiny.make_task(), method.session)
    assert not torch.equal(rows[ans], before[ans])
    assert not torch.equal(rows[gen], before[gen])
    assert torch.equal(rows[other], before[other])  # no example of task 2 was seen
    assert not torch.equal(method.model.get_output_embeddings().weight[ans], head[ans])


_init = torch.optim.AdamW.__init__


def _without_decay(self, groups, **options):
    _init(self, [{**group, "weight_decay": 0.0} for group in groups], **options)


@pytest.mark.parametrize("tied", [False, True])
def test_new_rows_are_the_mean_of_the_others(tied):
    net = tiny.make_model("llama", tie_word_embeddings=tied)
    before = net.get_input_embeddings().weight.detach().clone()
    make_room(net, tiny.VOCABULARY + 2)
    for layer in (net.get_input_embeddings(), net.get_output_embeddings()):
        assert layer.weight.shape[0] == tiny.VOCABULARY + 2
        assert torch.allclose(layer.weight[-2:], layer.weight[:-2].mean(dim=0).expand(2, -1))
    assert torch.equal(net.get_input_embeddings().weight[:-2], before)
    assert (net.get_input_embeddings().weight is net.get_output_embeddings().weight) is tied
    make_room(net, tiny.VOCABULARY)  # there are spare rows
    assert net.get_input_embeddings().weight.shape[0] == tiny.VOCABULARY + 2


def test_the_loss_by_hand(tmp_path):
    """Means over the tokens of each view, from the model's own loss, row by row."""
    method, task = make(tmp_path, LAMOL_lambda=0.5), tiny.make_task()
    rows = [*task.train[:2], replace(task.train[2], source="pseudo")]
    terms = method.loss(method.model, batch_of(method, rows, task), task)
    for view, weight in (("answer", 1.0), ("lm", 0.5)):
        total, count = 0.0, 0
        for row in method.encoder([replace(row, view=view) for row in rows], None):
            ids = torch.tensor([[*row.prompt, *row.answer]])
            labels = ids.clone()
            labels[:, : len(row.prompt)] = -100
            total += method.model(input_ids=ids, labels=labels).loss.item() * len(row.answer)
            count += len(row.answer)
        assert terms[view].item() == pytest.approx(weight * total / count, rel=1e-5)
    assert terms.keys() == {"answer", "lm"}


def test_without_writing_it_is_sequential_fine_tuning_on_its_own_format(tmp_path):
    class Formatted(SEQ):
        def setup(self):
            self.other = LAMOL(self.session, LAMOL.Options(), self.backbone, self.stream)
            self.other.setup()

        def render(self, example, template):
            return self.other.render(example, template)

    made = []
    for number, (kind, options) in enumerate([(Formatted, {}), (LAMOL, {"LAMOL_lambda": 0.0, "LAMOL_gamma": 0.0})]):
        folder = tmp_path / str(number)
        folder.mkdir()
        made.append(tiny.run(folder, tiny.make_config("SEQ" if kind is Formatted else "LAMOL"), None, kind, **options))
    assert tiny.same(made[0].weights, made[1].weights)
    assert made[0].results["R"] == made[1].results["R"]


def scripted(texts):
    """In place of sampling: these texts in turn, and what was asked for."""
    asked, turn = [], iter(texts)

    def sample(backbone, prompt, count, longest, top_k, *seed, **_):
        asked.append((backbone.tokenizer.decode(prompt), count, seed[1:], backbone.model.training))
        return [next(turn) for _ in range(count)]

    return asked, mock.patch.object(lamol_module, "sample_texts", sample)


@pytest.mark.parametrize(
    ("kind", "index", "shares"),
    [
        ("common", 2, [("__gen__", 7)]),
        ("eos", 2, [("<eos>", 7)]),
        ("per task", 1, [("__0__", 5)]),
        ("per task", 2, [("__0__", 4), ("__1__", 3)]),
    ],
)
def test_as_many_as_gamma_says_shared_with_the_remainder(tmp_path, kind, index, shares):
    method = make(tmp_path, LAMOL_gamma=0.7, **GEN_KINDS[kind])  # floor(0.7 * 8) = 5, floor(0.7 * 10) = 7
    method.longest, task = 9, tiny.make_task(index)
    method.model.train()
    asked, script = scripted([f"cow {i % 3}__ans__ moo<eos>" for i in range(7)])
    with script:
        method.before_task(task)
    assert [(prompt, count) for prompt, count, _, _ in asked] == shares
    assert not any(training for *_, training in asked)  # written in eval mode
    assert method.model.training
    rows = method.train_examples(task)
    pseudo = [row for row in rows if row.source == "pseudo"]
    assert len(pseudo) == math.floor(0.7 * len(task.train)) and list(rows[: len(task.train)]) == list(task.train)
    assert {row.task for row in pseudo} == ({-1} if kind in ("common", "eos") else set(range(index)))
    events = [event for event in method.session.log.events if event["event"] == "pseudo"]
    assert [event["requested"] for event in events] == [count for _, count in shares]
    assert all(event["written"] == event["well_formed"] == event["requested"] for event in events)
    assert all(event["distinct"] == 3 for event in events)
    assert any("'cow 0' -> 'moo'" in message for message in method.session.log.messages)
    method.after_task(task)
    assert len(method.train_examples(task)) == len(task.train)


def test_a_model_that_writes_nothing_usable_is_logged_and_trained(tmp_path):
    method = make(tmp_path, LAMOL_gamma=0.5, LAMOL_top_up=2)
    method.longest, task = 9, tiny.make_task(1)
    asked, script = scripted(["nonsense<eos>"] * 12)
    with script:
        method.before_task(task)
    assert [seed[-1] for _, _, seed, _ in asked] == [0, 1, 2]
    assert list(method.train_examples(task)) == list(task.train)
    assert "4 requested, 12 written, 0 well formed, 0 distinct" in method.session.log.messages[-1]


def test_texts_too_long_to_generate_are_left_out_and_logged(tmp_path):
    method = make(tmp_path)
    task = replace(tiny.make_task(), train=(Example("cow " * 60, "moo"), *tiny.make_task().train), max_length=30)
    method.before_task(task)
    assert "1 of 13 examples have more than 30 tokens" in method.session.log.messages[-1]
    rows = method.batch(task.train, task, None)
    assert [row.view for row in rows] == ["answer"] * 13 + ["lm"] * 12
    assert all(len(row.prompt) + len(row.answer) <= 30 for row in method.encoder(rows, 30))
    method.after_task(task)
    assert method.longest == max(method.encoder.lengths(rows[13:]))


def test_samples_do_not_depend_on_what_was_drawn_before_or_on_how_many_are_wanted(tmp_path):
    method = make(tmp_path)
    with mock.patch("models.common.pseudo_samples.TOKENS", 40):  # chunks of 4
        first = sample_texts(method.backbone, [5], 10, 10, 20, 1, "pseudo")
        torch.manual_seed(999)
        assert sample_texts(method.backbone, [5], 12, 10, 20, 1, "pseudo")[:8] == first[:8]
        assert sample_texts(method.backbone, [5], 10, 10, 20, 2, "pseudo") != first
    assert len(first) == 10 and len(set(first)) > 5
    greedy = sample_texts(method.backbone, [5], 3, 10, 1, 1)
    assert len(set(greedy)) == 1


def test_samples_longer_than_a_chunk_are_written_one_by_one(tmp_path):
    method, sizes = make(tmp_path), []
    with mock.patch("models.common.pseudo_samples.TOKENS", 4):
        sample_texts(method.backbone, [5], 3, 9, 1, 1, condition=lambda size: sizes.append(size) or nullcontext())
    assert sizes == [1, 1, 1]


def test_it_writes_what_it_has_learned(tmp_path):
    """Four examples learned by heart: asked for task 0, it writes these and nothing else."""
    config = tiny.make_config("LAMOL", lr=1e-2)
    method = make(tmp_path, config=config, LAMOL_gamma=1.0, **GEN_KINDS["per task"])
    known = tiny.make_task().train[:4]
    fit(method, task := replace(tiny.make_task(epochs=60), train=known), method.session)
    method.after_task(task)
    method.before_task(tiny.make_task(1))
    assert len(method.pseudo) == 8
    found = [(question, answer) for question, answer, _ in method.pseudo]
    right = [pair in {(e.input, e.target) for e in known} for pair in found]
    assert sum(right) >= 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"LAMOL_use_task_specific_gen_token": True, "LAMOL_use_eos_as_gen_token": True}, "has no effect with"),
        ({"LAMOL_use_ans_token": False}, "LAMOL_ans_split_token: needed"),
        ({"LAMOL_ans_split_token": "Answer:"}, "LAMOL_ans_split_token: needed"),
        ({"LAMOL_lambda": 0.0}, "LAMOL_gamma: needs"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, words):
    (problem,) = LAMOL.problems(tiny.make_config("LAMOL"), LAMOL.Options(**options), tiny.micro_stream())
    assert words in problem


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LAMOL", {"LAMOL_topk": 7}),
        ("LAMOL_KD", {"LAMOL_KD_temperature": 3.0}),
        ("L2KD", {"LAMOL_top_up": 1}),
        ("LFPT5", {"LFPT5_label_filter": False}),
        ("PCLL", {"PCLL_KD_weight": 0.1}),
    ],
)
def test_options_of_pseudo_samples_without_pseudo_samples_are_refused(name, options):
    config, method, stream = tiny.make_config(name), load_method(name), tiny.micro_stream()
    problems = [method.problems(config, method.Options(LAMOL_gamma=gamma, **options), stream) for gamma in (0.0, 0.5)]
    assert problems == [[f"{next(iter(options))}: has no effect with LAMOL_gamma 0"], []]
    assert set(method.sampling) <= set(method.Options.model_fields)


def test_new_tokens_with_a_frozen_base_are_refused():
    config, eos = tiny.make_config("LAMOL", PEFT_type="LoRA"), {"LAMOL_use_eos_as_gen_token": True}
    text = {"LAMOL_use_ans_token": False, "LAMOL_ans_split_token": "="}
    for options in ({}, eos, text):
        (problem,) = LAMOL.problems(config, LAMOL.Options(**options), tiny.micro_stream())
        assert problem.startswith("PEFT_type: new tokens would not be trained")
    assert LAMOL.problems(config, LAMOL.Options(**eos, **text), tiny.micro_stream()) == []


def test_a_temperature_without_probabilities_is_refused():
    options = L2KD.Options(L2KD_variant="seq", L2KD_temperature=1.0)
    (problem,) = L2KD.problems(tiny.make_config("L2KD"), options, tiny.micro_stream())
    assert problem.startswith("L2KD_temperature: has no effect")


def test_chats_and_templates_are_refused():
    stream = tiny.micro_stream(1)
    chat = Example("hi", "ho", messages=(("user", "hi"), ("assistant", "ho")))
    talk = Stream("talk", (replace(stream.tasks[0], test=(chat,)),), stream.config)
    problems = LAMOL.problems(tiny.make_config("LAMOL", prompt_type="qa"), LAMOL.Options(), talk)
    assert [problem.split()[0] for problem in problems] == ["prompt_type:", "method"]
    assert LAMOL.problems(tiny.make_config("LAMOL"), LAMOL.Options(), stream) == []


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_with_a_token_at_the_beginning_the_model_still_sees_gen(tmp_path, family):
    config = tiny.make_config("LAMOL", backbone=tiny.backbone_folder(family, family == "llama"))
    method = make(tmp_path, config=config)
    task = tiny.make_task()
    batch = batch_of(method, task.train[:3], task)
    logits, labels = answer_logits(method.model, batch)
    loss = F.cross_entropy(logits[3:].flatten(0, 1), labels[3:].flatten(), ignore_index=-100)
    assert method.loss(method.model, batch, task)["lm"].item() == pytest.approx(0.25 * loss.item(), rel=1e-5)
    gen = method.backbone.tokenizer.convert_tokens_to_ids("__gen__")
    assert all((row == gen).sum() == 1 for row in batch.input_ids[3:])
    fit(method, task, method.session)


def test_an_example_as_long_as_the_limit_is_written_and_one_longer_is_not(tmp_path):
    method = make(tmp_path)
    example = replace(tiny.make_task().train[0], view="lm")
    (length,) = method.encoder.lengths([example])
    for limit, count in ((length, 1), (length - 1, 0), (None, 1)):
        assert len(method.others([example], replace(tiny.make_task(), max_length=limit))) == count, limit


def test_pseudo_samples_are_written_from_the_second_task_on_and_only_by_a_model_that_has_learned(tmp_path):
    method = make(tmp_path, LAMOL_gamma=0.5)
    asked = []
    method.write = lambda task, old, attempt, count: asked.append((task.index, count)) or [("q", "a")] * count
    method.before_task(tiny.make_task(0))
    assert not method.pseudo and not asked
    method.before_task(tiny.make_task(1))  # nothing has been learned: longest is 0
    assert not method.pseudo
    method.longest = 10
    method.before_task(tiny.make_task(1))
    assert method.pseudo == [("q", "a", -1)] * (len(tiny.make_task(1).train) // 2)


def test_the_longest_text_is_that_of_all_tasks_so_far(tmp_path):
    method = make(tmp_path)
    method.longest = 1000
    method.after_task(tiny.make_task())
    assert method.longest == 1000
    assert method.pseudo == []


def test_a_share_of_29_in_100_is_29_samples(tmp_path):
    """0.29 * 100 is 28.999999999999996 in floating point."""
    method, task = make(tmp_path, LAMOL_gamma=0.29), tiny.make_task(1)
    method.longest, method.write = 10, lambda task, old, attempt, count: [("q", "a")] * count
    method.before_task(replace(task, train=task.train[:1] * 100))
    assert len(method.pseudo) == 29
