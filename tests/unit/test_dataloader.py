"""From examples to batches: labels, truncation, and how often each example is seen."""

import random
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from models.common.losses import answer_loss
from tests import tiny
from utils import dataloader
from utils.dataloader import IGNORE, Encoded, Encoder, collate, count_tokens, epoch_order, micro_batches, parts_of
from utils.dataset import Example

EXAMPLES = [Example("cat a", "wuff wuff"), Example("dog b cow", " ümläut 🙂 "), Example("pig", "moo", source="memory")]


def encoder(bos):
    return Encoder(tiny.tokenizer(bos), "none")


def encoded(bos=False, examples=EXAMPLES, max_length=None):
    return encoder(bos)(examples, max_length)


@pytest.mark.parametrize("bos", [False, True])
def test_labelled_tokens_are_the_answer_and_eos(bos):
    batch = collate(encoded(bos), EXAMPLES, tiny.PAD)
    for ids, labels, example in zip(batch.input_ids, batch.labels, EXAMPLES, strict=True):
        chosen = labels != IGNORE
        assert torch.equal(labels[chosen], ids[chosen])  # not shifted: logits are, where they are computed
        text = tiny.tokenizer(bos).decode(labels[chosen].tolist())
        assert text == " " + example.target.strip() + "<eos>"


@pytest.mark.parametrize("bos", [False, True])
def test_prompt_and_mask(bos):
    batch = collate(encoded(bos), EXAMPLES, tiny.PAD)
    for ids, mask, labels, example in zip(batch.input_ids, batch.attention_mask, batch.labels, EXAMPLES, strict=True):
        prompt = ids[(mask == 1) & (labels == IGNORE)]
        assert tiny.tokenizer(bos).decode(prompt.tolist()) == "<bos>" * bos + example.input
        assert mask.tolist() == sorted(mask.tolist())  # padding on the left only
        assert (ids[mask == 0] == tiny.PAD).all()
        assert (labels[mask == 0] == IGNORE).all()
        assert labels[-1] == tiny.EOS
    assert batch.input_ids.shape[1] == max(int(mask.sum()) for mask in batch.attention_mask)


def test_a_tokenizer_that_ends_texts_itself_gets_one_eos_and_no_other_bos():
    from tokenizers import processors

    words = tiny.tokenizer.__wrapped__(True)
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", tiny.BOS), ("<eos>", tiny.EOS)]
    )
    (row,) = Encoder(words, "none")(EXAMPLES[:1], None)
    assert row.prompt[0] == tiny.BOS
    assert tiny.EOS not in row.prompt
    assert list(row.answer).count(tiny.EOS) == 1
    assert tiny.BOS not in row.answer


def test_what_is_spelled_like_a_special_token_is_text():
    words = tiny.tokenizer(True)
    example = Example("<bos>what ends <eos>?", "it is <eos> in Llama")
    (row,) = Encoder(words, "none")([example], None)
    assert list(row.prompt).count(tiny.BOS) == 1 and tiny.EOS not in row.prompt
    assert list(row.answer).count(tiny.EOS) == 1
    assert words.decode(row.prompt) == "<bos>" + example.input
    assert words.decode(row.answer) == " " + example.target + "<eos>"
    (parsed,) = Encoder(words, "none", parse_special=True)([example], None)
    assert list(parsed.prompt).count(tiny.BOS) == 1, "BOS twice"
    assert list(parsed.answer).count(tiny.EOS) == 2


def test_tokens_that_a_method_writes_into_its_prompts_are_tokens():
    words = tiny.tokenizer.__wrapped__()
    maker = Encoder(words, "none")
    words.add_tokens(["__ans__"], special_tokens=True)
    maker.render = lambda example: (example.input + "__ans__", " " + example.target)
    (row, plain) = maker([Example("an __ans__ or <eos>", "moo"), Example("cat", "moo")], None)
    (ans,) = words("__ans__")["input_ids"]
    assert list(row.prompt).count(ans) == 1 and row.prompt[-1] == ans
    assert words.decode(row.prompt) == "an __ans__ or <eos>__ans__"
    assert list(plain.prompt) == words("cat__ans__")["input_ids"]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 5, 7, 9, 12, 100])
def test_an_over_long_example_loses_prompt_tokens_from_the_left(bos, limit):
    example = Example("cow cow cow dog bee", "wuff wuff moo")
    (whole,), (cut,) = encoded(bos, [example]), encoded(bos, [example], limit)
    assert list(cut.answer) == list(whole.answer)
    if bos:
        assert cut.prompt[0] == tiny.BOS
    words, kept = whole.prompt[bos:], cut.prompt[bos:]
    assert list(kept) == list(words[len(words) - len(kept) :])
    room = limit - len(whole.answer) - bos
    assert len(kept) == min(len(words), max(room, 0 if bos else 1))


@pytest.mark.parametrize("bos", [False, True])
def test_the_side_on_which_prompts_are_cut(bos):
    example, words = Example("cow cow cow dog bee pig", "moo"), tiny.tokenizer(bos)
    (whole,) = Encoder(words, "none")([example], None)
    text = list(whole.prompt[bos:])
    wanted = {"left": text[-5:], "right": text[:5], "middle": [*text[:3], *text[-2:]]}
    for side, kept in wanted.items():
        cut = Encoder(words, "none", cut_side=side)
        (row,) = cut([example], 5 + bos + len(whole.answer))
        assert list(row.prompt[bos:]) == kept and list(row.answer) == list(whole.answer), side
        assert list(cut.for_prediction([example], 5 + bos)[0].prompt[bos:]) == kept, side
        places = cut._cut(whole._replace(prompt=[*whole.prompt[bos:]], labelled=range(len(text))), 5 + bos, 0).labelled
        assert list(places) == list(range(1, 5 + bos))[: 5 if bos else 4], side  # labels move with their tokens
        assert list(cut([example], None)[0].prompt) == list(whole.prompt), side


@pytest.mark.parametrize("bos", [False, True])
def test_prompts_for_prediction_are_cut_without_a_look_at_the_target(bos):
    long, short = Example("cow cow cow dog bee", "wuff wuff moo cluck"), Example("cow cow cow dog bee", "x")
    rows = encoder(bos).for_prediction([long, short], 4)
    assert list(rows[0].prompt) == list(rows[1].prompt)
    assert len(rows[0].prompt) == 4
    assert [list(r.answer) for r in rows] == [list(r.answer) for r in encoded(bos, [long, short])]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("limit", [None, 6])
def test_an_empty_prompt_still_has_a_token_to_predict_from(bos, limit):
    (row,) = encoded(bos, [Example("", "moo")], limit)
    assert len(row.prompt) == 1
    batch = collate([row], [Example("", "moo")], tiny.PAD)
    assert int((batch.labels[:, 1:] != IGNORE).sum()) == batch.tokens["all"]


def test_lengths_count_everything_before_the_cut():
    for bos in (False, True):
        rows = encoded(bos)
        assert encoder(bos).lengths(EXAMPLES) == [len(row.prompt) + len(row.answer) for row in rows]


def test_a_task_larger_than_the_cache_is_encoded_the_same(monkeypatch):
    examples = [Example(f"cat {i}", "wuff " * (i % 3 + 1)) for i in range(40)]
    whole = encoder(False)
    expected, lengths = whole(examples, None), whole.lengths(examples)
    monkeypatch.setattr(dataloader, "KEPT", 2_000)
    monkeypatch.setattr(dataloader, "BLOCK", 7)
    small = encoder(False)
    assert small.lengths(examples) == lengths == [len(row.prompt) + len(row.answer) for row in expected]
    assert [row for i in range(0, 40, 5) for row in small(examples[i : i + 5], None)] == expected
    assert len(small._ids) < len(whole._ids) == 43  # 40 questions and 3 answers


def test_each_text_is_tokenised_once():
    words, calls = tiny.tokenizer(), []

    class Spy:
        def __getattr__(self, name):
            return getattr(words, name)

        def __len__(self):
            return len(words)

        def __call__(self, texts, **options):
            calls.extend([texts] if isinstance(texts, str) else texts)
            return words(texts, **options)

    maker = Encoder(Spy(), "none")
    first = maker(EXAMPLES * 2, None)
    calls.clear()
    assert maker(EXAMPLES * 2, None) == first
    assert calls == []
    maker.forget(most=10_000)
    assert maker(EXAMPLES * 2, None) == first
    assert calls == []
    for most in (500, 0):  # three examples have six texts
        maker.forget(most)
        assert maker(EXAMPLES * 2, None) == first
        assert len(calls) == 6
        calls.clear()


def test_answer_length_covers_every_label():
    rows = [Encoded([5, 6, 7, 8], [9, 0]), Encoded([5], [9, 9, 9, 0])]
    batch = collate(rows, EXAMPLES[:2], tiny.PAD)
    assert batch.answer_length == 4
    assert (batch.labels[:, : -batch.answer_length] == IGNORE).all()
    assert batch.label_count == 6
    nothing = replace(batch, labels=torch.full_like(batch.labels, IGNORE))
    assert nothing.answer_length == 1 and nothing.label_count == 0


def test_labels_of_earlier_turns_are_in_their_columns():
    batch = collate([Encoded([5, 6, 7, 8], [9, 0], [1, 2]), Encoded([5], [9])], EXAMPLES[:2], tiny.PAD)
    assert batch.labels[0].tolist() == [IGNORE, 6, 7, IGNORE, 9, 0]
    assert batch.answer_length == 5
    assert batch.tokens["all"] == 5


def test_tokens_are_counted_per_source():
    rows = [Encoded([1], [5] * n) for n in (2, 3, 4)]
    examples = [*EXAMPLES[:-1], replace(EXAMPLES[-1], view="lm")]
    whole = count_tokens(rows, examples, 1)
    assert whole["all"] == 9 and (whole["task"], whole["memory"]) == (5, 4)
    both = [value for kind, value in whole.items() if " " in kind and not kind.startswith("rows")]
    assert sum(both) == whole["answer"] + whole["lm"] == 9
    assert sum(value for kind, value in whole.items() if kind.startswith("rows")) == 3
    assert whole["lm"] == whole[f"{examples[-1].source} lm"] == len(rows[-1].answer)
    assert count_tokens(rows, examples, 2) == {kind: value / 2 for kind, value in whole.items()}


@pytest.mark.parametrize("count", [1, 7, 200, 203, 1000])
@pytest.mark.parametrize("size", [1, 4, 16])
def test_an_epoch_passes_over_each_example_once(count, size):
    lengths = [random.Random(i).randrange(5, 90) for i in range(count)]
    for by_length in (False, True):
        batches = epoch_order(lengths, size, random.Random(1), by_length)
        assert sorted(i for batch in batches for i in batch) == list(range(count)), by_length
        assert all(0 < len(batch) <= size for batch in batches), by_length
        assert sum(len(batch) < size for batch in batches) <= 1, by_length
        assert len(batches) == -(-count // size), by_length


def test_the_order_depends_on_the_seed_alone():
    for by_length in (False, True):
        first, same, other = (epoch_order(list(range(60)), 4, random.Random(seed), by_length) for seed in (1, 1, 2))
        assert first == same != other, by_length


def test_the_order_is_uniform_whatever_the_lengths():
    """Chi-square over 3000 epochs: each example in each batch, each pair in one batch."""
    count, size, epochs = 12, 4, 3000
    places, pairs = Counter(), Counter()
    for seed in range(epochs):
        for number, batch in enumerate(epoch_order([2**i for i in range(count)], size, random.Random(seed))):
            places.update((i, number) for i in batch)
            pairs.update(combinations(sorted(batch), 2))
    expected = epochs * size / count
    assert len(places) == 36
    assert sum((n - expected) ** 2 / expected for n in places.values()) < 60  # 22 degrees of freedom, p < 1e-5
    expected = epochs * (size - 1) / (count - 1)
    assert len(pairs) == 66
    assert sum((n - expected) ** 2 / expected for n in pairs.values()) < 130  # at most 65 degrees of freedom, p < 1e-5


def test_batches_mix_tasks_of_different_lengths():
    rng = random.Random(0)
    lengths = [int(rng.gauss(mean, mean / 10)) for mean in (60, 130, 400, 900) for _ in range(500)]

    def single(by_length):
        batches = epoch_order(lengths, 16, random.Random(1), by_length)
        return sum(len({i // 500 for i in batch}) == 1 for batch in batches) / len(batches)

    assert single(False) == 0
    assert single(True) > 0.5  # why grouping is an option


def test_grouped_batches_hold_examples_of_similar_length_in_no_order_of_length():
    lengths = [random.Random(i).randrange(1000) for i in range(400)]
    batches, others = (epoch_order(lengths, 8, random.Random(seed), True) for seed in (3, 4))
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches]
    assert sum(spread) / len(spread) < 150  # at random it would be some 800
    means = [sum(lengths[i] for i in b) / len(b) for b in batches]
    assert means not in (sorted(means), sorted(means, reverse=True))
    assert len({frozenset(b) for b in batches} & {frozenset(b) for b in others}) < 20


def test_a_step_is_cut_into_micro_batches_of_similar_length():
    rows = [Encoded([1] * n, [5]) for n in (9, 1, 8, 2)]
    examples = [Example(str(len(row.prompt)), "") for row in rows]
    cut = micro_batches(rows, examples, tiny.PAD, 0, 1, 2)
    assert [[e.input for e in batch.examples] for batch in cut] == [["1", "2"], ["8", "9"]]
    (whole,) = micro_batches(rows, examples, tiny.PAD, 0, 1, 1)
    assert whole.examples == examples


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("most", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_micro_batches_are_the_step_cut_up(world, most, count):
    examples = [Example(f"cat {i}", "moo " * (1 + i % 3), source="memory" if i % 2 else "task") for i in range(count)]
    rows = encoder(True)(examples, None)
    cut = [micro_batches(rows, examples, tiny.PAD, rank, world, most) for rank in range(world)]
    parts = parts_of(count, world, most)
    assert all(len(batches) == parts for batches in cut)  # every process joins every collective
    batches = [batch for batches in cut for batch in batches]
    filled = [batch for batch in batches if (batch.labels != IGNORE).any()]
    assert sorted(e.input for batch in filled for e in batch.examples) == sorted(e.input for e in examples)
    assert len(batches) - len(filled) == max(0, world - count)  # only a process without a row has an empty part
    labelled = sum(int((batch.labels != IGNORE).sum()) for batch in batches)
    # every micro-batch divides by the same number, and their average is one mean over the whole step
    assert {batch.tokens["all"] for batch in batches} == {labelled / (world * parts)}
    weights = [int((batch.labels != IGNORE).sum()) / batch.tokens["all"] for batch in batches]
    assert sum(weights) / len(weights) == pytest.approx(1)
    by_source = {
        source: batches[0].tokens[source] * world * parts
        for source in ("task", "memory")
        if source in batches[0].tokens
    }
    assert sum(by_source.values()) == pytest.approx(labelled)


def test_labels_are_counted_before_a_batch_is_moved():
    batch = collate(encoded(), EXAMPLES, tiny.PAD)
    moved = batch.to(torch.device("meta"))  # whose values cannot be read
    assert moved.answer_length == batch.answer_length and moved.label_count == batch.label_count


def test_a_filler_row_has_loss_and_gradient_0():
    rows = encoder(False)(EXAMPLES[:1], None)
    (filler,) = micro_batches(rows, EXAMPLES[:1], tiny.PAD, 1, 2, 1)
    logits = torch.randn(1, 4, 9, requires_grad=True)
    loss = answer_loss(logits, filler.labels[:, -4:], filler.tokens["all"])
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_loss_of_a_step_is_the_same_however_it_is_cut():
    backbone = tiny.make_backbone()
    examples = [Example(f"cat {i}", "moo " * (1 + i)) for i in range(5)]
    rows = encoder(False)(examples, None)

    def loss(world, parts):
        from utils.model.forward import answer_logits

        terms = []
        for rank in range(world):
            for batch in micro_batches(rows, examples, tiny.PAD, rank, world, parts):
                terms.append(answer_loss(*answer_logits(backbone.model, batch), batch.tokens["all"]))
        return (sum(terms) / len(terms)).item()

    with torch.no_grad():
        whole = loss(1, 1)
        for world, parts in ((1, 2), (2, 1), (2, 3), (3, 2), (1, 7)):
            assert loss(world, parts) == pytest.approx(whole, rel=1e-5)


def test_some_rows_of_a_batch_keep_the_tokens_of_the_step():
    batch = collate(encoded(), EXAMPLES, tiny.PAD)
    part = batch.only(batch.rows("memory"))
    assert part.examples == EXAMPLES[2:]
    alone = collate(encoded()[2:], EXAMPLES[2:], tiny.PAD)  # the padding that all have is gone
    assert torch.equal(part.labels, alone.labels) and torch.equal(part.input_ids, alone.input_ids)
    assert part.tokens == batch.tokens
    assert batch.only([]).labels.shape[0] == 0


def test_labels_that_nothing_can_predict_are_left_out():
    row = Encoded([5, 6, 7, 8], [9], [0, 1, 2, 3])
    assert encoder(False)._cut(row, None, 1).labelled == [1, 2, 3]  # nothing comes before the first token
    assert encoder(True)._cut(row, None, 1).labelled == [1, 2, 3, 4]  # here BOS does
    assert encoder(False)._cut(row, 3, 1) == Encoded([7, 8], [9], [1])
    assert encoder(True)._cut(row, 4, 1).labelled == [1, 2]


def test_no_token_of_a_chat_crosses_the_border_of_an_answer():
    """The tokenizer would write each word as one token."""
    encoder, text, cuts = Encoder(tiny.tokenizer(), "none"), "wuff wuff", (2, 7, 9)
    ids, places = encoder._ids_at(text, cuts)
    assert [encoder.tokenizer.decode(ids[:place]) for place in places] == [text[:cut] for cut in cuts]
    assert len(ids) > len(encoder.special.encode([text])[0])
    assert encoder._ids_at(text, (4, 9)) == (encoder.special.encode([text])[0], [1, 2])
