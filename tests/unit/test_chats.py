"""Chats: the loss is on the assistant's words and nothing else."""

import pytest
import torch

from tests import tiny
from utils.dataloader import IGNORE, Encoder, collate
from utils.dataset import Example
from utils.errors import UserError
from utils.prompt import encode_chat

WITH_EOS = (
    "{{ '<bos>' }}{% for m in messages %}{{ m.role + ':' + m.content }}"
    "{% if m.role == 'assistant' %}{{ '<eos>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
WITHOUT_EOS = WITH_EOS.replace("{{ '<eos>' }}", "{{ '.' }}")
# Shortens every turn but the last one, as templates of reasoning models do with their thoughts.
REWRITES = WITH_EOS.replace("m.content", "(m.content if loop.last or m.role == 'user' else m.content[:1])")
CHAT = (("user", "cat"), ("assistant", "meow meow"), ("user", "dog b"), ("assistant", "wuff"))


def words(template, bos=True):
    made = tiny.tokenizer.__wrapped__(bos)
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    ("template", "first", "last"),
    [(WITH_EOS, "meow meow<eos>", "wuff<eos>"), (WITHOUT_EOS, "meow meow.\n", "wuff.\n<eos>")],
)
@pytest.mark.parametrize("limit", [None, 1000])
def test_what_is_labelled(template, first, last, limit):
    tokenizer = words(template)
    example = Example("", "wuff", messages=CHAT)
    rows = Encoder(tokenizer, "none")([example], limit)
    batch = collate(rows, [example], tiny.PAD)
    ids, labels = batch.input_ids[0], batch.labels[0]
    chosen = labels != IGNORE
    assert torch.equal(labels[chosen], ids[chosen])
    assert tokenizer.decode(labels[chosen]) == first + last
    assert tokenizer.decode(rows[0].answer) == last
    assert ids.tolist().count(tiny.BOS) == 1
    assert batch.tokens["all"] == int(chosen.sum())


def test_a_cut_chat_keeps_its_last_answer_and_its_labels_stay_in_place():
    tokenizer = words(WITH_EOS)
    example = Example("", "wuff", messages=CHAT)
    (whole,) = Encoder(tokenizer, "none")([example], None)
    for limit in range(3, len(whole.prompt) + len(whole.answer) + 1):
        (cut,) = Encoder(tokenizer, "none")([example], limit)
        assert cut.answer == whole.answer
        assert cut.prompt[0] == tiny.BOS
        lost = len(whole.prompt) - len(cut.prompt)
        assert list(cut.labelled) == [place - lost for place in whole.labelled if place - lost >= 1]
        assert cut.prompt[1:] == whole.prompt[1 + lost :]


def test_a_model_without_a_template_is_refused():
    with pytest.raises(UserError, match="has no chat template; use a chat model"):
        encode_chat(tiny.tokenizer(), CHAT)


def test_a_template_that_rewrites_earlier_turns_is_refused():
    with pytest.raises(UserError, match="rewrites earlier turns; use one turn per chat"):
        encode_chat(words(REWRITES), CHAT)
    prompt, labelled, answer = encode_chat(words(REWRITES), CHAT[:2])  # one turn is unharmed
    assert labelled == []
    assert words(REWRITES).decode(answer) == "meow meow<eos>"
    assert prompt
