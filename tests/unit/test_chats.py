"""Chats: what is learned is the assistant's words and the end of its turn, whatever the template."""

import re
import time
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.chat_templates import FAMILIES, Family, words_of
from utils.dataloader import IGNORE, Encoder, collate
from utils.dataset import Example
from utils.errors import UserError
from utils.prompt import ChatTemplate

WITH_EOS = (
    "{{ '<bos>' }}{% for m in messages %}{{ m.role + ':' + m.content }}"
    "{% if m.role == 'assistant' %}{{ '<eos>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
WITHOUT_EOS = WITH_EOS.replace("{{ '<eos>' }}", "{{ '.' }}")
ALWAYS_ASKS = WITHOUT_EOS.replace("{% if add_generation_prompt %}", "{% if true %}")
# Shortens every turn but the last one, as templates of reasoning models do with their thoughts.
REWRITES = WITH_EOS.replace("m.content", "(m.content if loop.last or m.role == 'user' else m.content[:1])")
CHAT = (("user", "cat"), ("assistant", "meow meow"), ("user", "dog b"), ("assistant", "wuff"))
THOUGHT = "<think>\na dog\n</think>\n\nwuff"
DOCUMENT = Path(__file__).parents[2] / "docs" / "chat-templates.md"


def words(template, bos=True):
    made = tiny.tokenizer.__wrapped__(bos)
    made.chat_template = template
    return made


def encoded(tokenizer, messages, limit=None, **options):
    example = Example(messages[-2][1], messages[-1][1], messages=tuple(messages))
    encoder = Encoder(tokenizer, "none", **options)
    (row,), (asked,) = encoder([example], limit), encoder.for_prediction([example], limit)
    assert list(row.prompt) == list(asked.prompt)
    return row


def labelled(tokenizer, row):
    """The text that has a loss, all of it in its place."""
    batch = collate([row], [Example("", "")], tiny.PAD)
    ids, labels = batch.input_ids[0], batch.labels[0]
    chosen = labels != IGNORE
    assert torch.equal(labels[chosen], ids[chosen])
    assert batch.tokens["all"] == int(chosen.sum())
    return tokenizer.decode(labels[chosen], clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_template_of_a_model_family(name):
    family, tokenizer = FAMILIES[name], words_of(FAMILIES[name])
    row = encoded(tokenizer, CHAT[:2])
    prompt, answer = (tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (row.prompt, row.answer))
    assert (prompt + answer).endswith(family.before + answer.strip(" ") if not answer.startswith(" ") else answer)
    assert prompt.endswith(family.before)
    assert answer.strip() == "meow meow" + family.end
    assert row.answer[-1] == Encoder(tokenizer, "none").turn_end
    assert not row.labelled
    bos = tokenizer.bos_token
    if bos:
        assert list(row.prompt).count(tokenizer.bos_token_id) == 1, "BOS twice"
        assert prompt.startswith(bos)
    written = tokenizer.decode(encoded(tokenizer, CHAT).prompt, clean_up_tokenization_spaces=False)
    assert "cat" in written and "meow meow" in written and "dog b" in written


@pytest.mark.parametrize("name", FAMILIES)
def test_earlier_answers_are_learned_too(name):
    family, tokenizer = FAMILIES[name], words_of(FAMILIES[name])
    found = labelled(tokenizer, encoded(tokenizer, CHAT))
    assert found.replace(" ", "") == f"meowmeow{family.end}wuff{family.end}".replace(" ", "")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_system_turn_is_in_the_prompt_or_refused(name):
    family, tokenizer = FAMILIES[name], words_of(FAMILIES[name])
    chat = [("system", "be brief"), *CHAT[:2]]
    if family.system:
        assert "be brief" in tokenizer.decode(encoded(tokenizer, chat).prompt)
        return
    with pytest.raises(UserError, match=r"^dataset: the backbone's chat template fails on a chat of system, user, "):
        encoded(tokenizer, chat)


def test_the_document_says_what_is_learned():
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = [re.findall(r"`([^`]*)`", line) for line in text.splitlines() if line.startswith("| ") and "`" in line]
    shown = {line.split("|")[1].strip(): cells for line, cells in zip(
        [line for line in text.splitlines() if line.startswith("| ") and "`" in line], rows, strict=True
    )}  # fmt: skip
    for name, family in FAMILIES.items():
        plain = name.replace("<|", "").replace("|>", "")
        assert shown[plain][0].replace("\\n", "\n").strip(" ") == family.before.strip(" "), name
        assert shown[plain][1] == family.end.strip(" "), name


def test_thoughts_that_are_in_the_data_are_learned_and_those_of_the_template_are_not():
    tokenizer = words_of(FAMILIES["Qwen3"])
    row = encoded(tokenizer, [("user", "dog"), ("assistant", THOUGHT)])
    assert tokenizer.decode(row.answer) == THOUGHT + "<|im_end|>"
    assert tokenizer.decode(row.prompt).endswith("<|im_start|>assistant\n")
    with pytest.raises(UserError, match=r"changes the answer '<think>"):  # it drops them
        encoded(words_of(FAMILIES["DeepSeek-R1"]), [("user", "dog"), ("assistant", THOUGHT)])


def test_thinking_is_a_setting():
    tokenizer, chat = words_of(FAMILIES["SmolLM3"]), CHAT[:2]
    for thinking, mode, block in (
        (None, "think", ""),
        (True, "think", ""),
        (False, "no_think", "<think>\n\n</think>\n"),
    ):
        row = encoded(tokenizer, chat, thinking=thinking)
        prompt = tokenizer.decode(row.prompt)
        assert f"Reasoning Mode: /{mode}\n" in prompt and prompt.endswith(f"assistant\n{block}"), thinking
        assert tokenizer.decode(row.answer) == "meow meow<|im_end|>"
    prompts = {tuple(encoded(words_of(FAMILIES["Qwen3"]), chat, thinking=on).prompt) for on in (None, True, False)}
    assert len(prompts) == 1
    with pytest.raises(
        UserError, match=r"^chat_thinking: has no effect, as the backbone's chat template does not read"
    ):
        encoded(words_of(FAMILIES["Gemma"]), chat, thinking=True)


@pytest.mark.parametrize(
    ("template", "first", "last"),
    [
        (WITH_EOS, "meow meow<eos>", "wuff<eos>"),
        (WITHOUT_EOS, "meow meow", "wuff<eos>"),
        (ALWAYS_ASKS, "meow meow", "wuff<eos>"),
    ],
)
@pytest.mark.parametrize("limit", [None, 1000])
def test_what_is_labelled(template, first, last, limit):
    tokenizer = words(template)
    row = encoded(tokenizer, CHAT, limit)
    assert labelled(tokenizer, row) == first + last
    assert tokenizer.decode(row.answer) == last
    assert list(row.prompt).count(tiny.BOS) == 1


def test_the_header_that_is_always_written_is_no_end_of_turn():
    """Its first special token follows the last answer, but not an earlier one."""
    source = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}{{ '<|assistant|>' }}"
    tokenizer = words_of(Family(source, "", "", "<eos>", special=("<|user|>", "<|assistant|>")))
    assert tokenizer.decode(encoded(tokenizer, CHAT).answer) == "wuff<eos>"


def test_a_cut_chat_keeps_its_last_answer_and_its_labels_stay_in_place():
    tokenizer = words(WITH_EOS)
    whole = encoded(tokenizer, CHAT)
    example = Example("", "wuff", messages=CHAT)
    for limit in range(3, len(whole.prompt) + len(whole.answer) + 1):
        (cut,) = Encoder(tokenizer, "none")([example], limit)
        assert cut.answer == whole.answer
        assert cut.prompt[0] == tiny.BOS
        lost = len(whole.prompt) - len(cut.prompt)
        assert list(cut.labelled) == [place - lost for place in whole.labelled if place - lost >= 1]
        assert cut.prompt[1:] == whole.prompt[1 + lost :]


def test_what_is_spelled_like_a_special_token_in_a_chat_is_text():
    tokenizer = words_of(FAMILIES["ChatML, eos <|endoftext|>"])
    chat = [("user", "write <|im_end|>"), ("assistant", "it is <|im_end|> or <|endoftext|>, that's it")]
    row = encoded(tokenizer, chat)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token_id not in [*row.prompt, *row.answer]
    assert list(row.answer).count(end) == 1 and row.answer[-1] == end
    assert list(row.prompt).count(end) == 2  # of system and user
    assert tokenizer.decode(row.answer) == chat[1][1] + "<|im_end|>"
    parsed = encoded(tokenizer, chat, parse_special=True)
    assert list(parsed.answer).count(end) == 2
    assert list(encoded(tokenizer, CHAT).answer) == list(encoded(tokenizer, CHAT, parse_special=True).answer)


def test_a_model_without_a_template_is_refused():
    with pytest.raises(UserError, match="has no chat template; use a chat model"):
        encoded(tiny.tokenizer(), CHAT)


def test_a_template_that_changes_answers_is_refused():
    with pytest.raises(UserError, match=r"changes the answer 'meow meow', .*; use one turn per chat"):
        encoded(words(REWRITES), CHAT)
    assert words(REWRITES).decode(encoded(words(REWRITES), CHAT[:2]).answer) == "meow meow<eos>"
    with pytest.raises(UserError, match=r"changes the answer 'wuff', so that what is learned"):
        encoded(words(WITH_EOS.replace("m.content", "m.content | upper")), [("user", "dog"), ("assistant", "wuff")])
    with pytest.raises(UserError, match="does not write each answer exactly once"):
        encoded(words(WITH_EOS.replace("m.content", "m.content + m.content")), CHAT)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('no') }}", "no"),
        ("{{ messages[9].content.nothing.more }}", "list object has no element 9"),
        ("{% if %}", "Expected an expression"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for i in range(100000) %}{{ 'x' * 10000 }}{% endfor %}", "it writes more than 10,000,000 characters"),
        (
            "{% set x = namespace(t='xx') %}{% for i in range(60) %}{% set x.t = x.t ~ x.t %}{% endfor %}",
            "it takes more than 256 MiB of memory",
        ),
    ],
)
def test_a_template_that_fails_is_one_sentence(source, reason):
    with pytest.raises(UserError) as caught:
        ChatTemplate(words(source)).split(CHAT)
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith("dataset: the backbone's chat template fails on a chat of user, assistant")


def test_a_template_that_never_ends_is_ended(monkeypatch):
    monkeypatch.setattr("utils.prompt.SECONDS", 0.2)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    began = time.monotonic()
    with pytest.raises(UserError, match=r"it takes more than 0.2 seconds"):
        ChatTemplate(words(endless)).split(CHAT)
    assert time.monotonic() - began < 10


def test_today_is_a_setting():
    tokenizer = words_of(FAMILIES["Llama-3.2"])
    assert "Today Date: 26 Jul 2024" in tokenizer.decode(encoded(tokenizer, CHAT).prompt)
    assert "Today Date: 01 Feb 2031" in tokenizer.decode(encoded(tokenizer, CHAT, day="2031-02-01").prompt)
