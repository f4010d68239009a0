"""Checking an answer in one pass gives the score that generating it gives."""

import random
from types import SimpleNamespace

import pytest
import torch

from tests import tiny
from utils.backbone import _make_greedy
from utils.dataloader import Encoded, Encoder
from utils.dataset import Example
from utils.model import staged
from utils.model.architecture import Backbone
from utils.model.generation import decode, generate, is_hopeless, verify
from utils.model.staged import STAGES as DEVICES
from utils.scoring import METRICS, score

STAGES = {"each token": (0,), "cpu": DEVICES["cpu"], "gpu": DEVICES["other"], "many": (1, 30)}

PIECES = [
    "cat",
    "Dog",
    "PIG",
    "wuff",
    "ΟΔΟΣ",
    "straße",
    "İstanbul",
    "🙂",
    "é",
    "é",
    "日本",
    "\t",
    "  ",
    ".",
    "7",
    "x" * 9,
]


def sharpened(seed, family, bos):
    """A model whose greedy answers vary, repeat and stop."""
    backbone = tiny.make_backbone(family, bos, seed=seed, initializer_range=0.6)
    with torch.no_grad():
        head = backbone.model.get_output_embeddings().weight
        head[tiny.EOS] *= 1.5
    return backbone


def random_text(rng):
    return " ".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 4)))


def wish(backbone, rows, rng, limit):
    """Targets of every relation to the greedy answer: equal, other case, a beginning, longer, unlike."""
    targets = []
    for answer in generate(backbone, rows, limit + rng.randrange(3)):
        kinds = [
            answer, answer.upper(), answer.swapcase(), answer + " and more", answer[: rng.randrange(len(answer) + 1)],
            random_text(rng), "", f"  {answer} ", answer.replace("\ufffd", "?"),
        ]  # fmt: skip
        targets.append(rng.choice(kinds))
    return targets


@pytest.mark.parametrize("seed", range(20))
def test_verification_scores_as_generation_does(seed, monkeypatch):
    rng = random.Random(seed)
    bos, limit = rng.random() < 0.5, rng.choice([1, 2, 3, 5, 8])
    backbone = sharpened(seed, rng.choice(["neox", "llama", "gpt2"]), bos)
    if rng.random() < 0.3:
        backbone.stop_ids = sorted({*backbone.stop_ids, *rng.sample(range(3, tiny.VOCABULARY), 20)})
        _make_greedy(backbone.model, backbone.pad_id, backbone.stop_ids)
    encoder = Encoder(backbone.tokenizer, "none")
    prompts = [random_text(rng) for _ in range(12)]
    targets = wish(backbone, encoder([Example(p, "") for p in prompts], None), rng, limit)
    examples = [Example(p, t) for p, t in zip(prompts, targets, strict=True)]
    rows = encoder(examples, None)
    generated = generate(backbone, rows, limit)
    expected = score("exact_match", generated, targets)
    accepted = [[target] for target in targets]
    ways = {"at once": verify(backbone, rows, accepted, limit)}
    for name, stages in STAGES.items():
        monkeypatch.setitem(DEVICES, "cpu", stages)
        ways[name] = staged.answer(backbone, rows, accepted, limit)
        assert None not in ways[name]
    for way, answers in ways.items():
        for answer, text, target, points in zip(answers, generated, targets, expected, strict=True):
            if answer is None:
                continue
            assert score("exact_match", [answer.text], [target]) == [points], (way, answer, text, target)
            if answer.decided != "refuted":
                assert answer.text == text, way
            else:
                assert points == 0
                assert text.startswith(answer.text)


def test_both_ways_of_being_decided_occur_often_enough():
    counts = {"verified": 0, "refuted": 0, None: 0, "right": 0}
    for seed in range(20):
        backbone, rng = sharpened(seed, "neox", False), random.Random(seed)
        encoder = Encoder(backbone.tokenizer, "none")
        prompts = [random_text(rng) for _ in range(12)]
        targets = wish(backbone, encoder([Example(p, "") for p in prompts], None), rng, 5)
        rows = encoder([Example(p, t) for p, t in zip(prompts, targets, strict=True)], None)
        for answer, target in zip(verify(backbone, rows, [[t] for t in targets], 5), targets, strict=True):
            counts[answer and answer.decided] += 1
            counts["right"] += answer is not None and score("exact_match", [answer.text], [target]) == [1.0]
    assert all(n >= 10 for n in counts.values()), counts


@pytest.mark.parametrize("family", ["neox", "gpt2"])
def test_answers_do_not_depend_on_the_batch(family):
    backbone = sharpened(3, family, True)
    rows = Encoder(backbone.tokenizer, "none")([Example("cat " * (i + 1), "moo") for i in range(6)], None)
    together = generate(backbone, rows, 6)
    assert together == [generate(backbone, [row], 6)[0] for row in rows]
    assert len(set(together)) > 1


def test_generation_reads_only_the_prompt():
    backbone = sharpened(1, "neox", False)
    assert generate(backbone, [Encoded([5, 6, 7], [9, 0])], 5) == generate(
        backbone, [Encoded([5, 6, 7], [30, 31, 0])], 5
    )


def test_generation_equals_a_plain_loop():
    """Argmax of a forward over everything so far, one token at a time, without a cache."""
    for family in ("neox", "llama", "gpt2"):
        backbone = sharpened(5, family, False)
        for prompt in ([5, 6, 7, 8], [40], [9] * 10):
            ids = list(prompt)
            for _ in range(6):
                with torch.no_grad():
                    best = int(backbone.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
                if best == tiny.EOS:
                    break
                ids.append(best)
            text = backbone.tokenizer.decode(ids[len(prompt) :]).strip()
            assert generate(backbone, [Encoded(prompt, ())], 6) == [text]


class Scripted(torch.nn.Module):
    """Predicts a fixed continuation of one prompt, whatever the row contains."""

    def __init__(self, prompt_length, tokens):
        super().__init__()
        self.start, self.tokens = prompt_length, tokens
        self.device, self.config = torch.device("cpu"), SimpleNamespace(is_encoder_decoder=False)

    def forward(self, input_ids, attention_mask):
        logits = torch.zeros(*input_ids.shape, tiny.VOCABULARY)
        for k, token in enumerate(self.tokens):
            if self.start - 1 + k < input_ids.shape[1]:
                logits[:, self.start - 1 + k, token] = 1
        return SimpleNamespace(logits=logits)


def decided(said, target, limit, *others):
    """What `verify` makes of a model that would say these words; further answers are accepted too."""
    words = tiny.tokenizer()
    ids = [*words(said)["input_ids"], tiny.EOS]
    (row,) = Encoder(words, "none")([Example("cat", target)], None)
    backbone = Backbone(Scripted(len(row.prompt), ids), words, tiny.PAD, [tiny.EOS])
    answer = verify(backbone, [row], [[target, *others]], limit)[0]
    return answer if answer is None else answer[:2]


def test_cases_by_hand():
    assert decided(" moo", "moo", 8) == ("moo", "verified")
    assert decided("", "moo", 8) == ("", "verified")  # stops immediately
    assert decided(" moo. moo", "moo", 8) == ("moo.", "refuted")
    assert decided(" MOO", "moo", 8) is None  # other tokens, may become the same text
    assert decided(" moo. moo", "moo", 8, "moo. cluck") is None  # may become another accepted answer
    assert decided(" moo. moo", "moo", 8, "cluck") == ("moo.", "refuted")
    long = "wuff wuff moo cluck"
    text, how = decided(" " + long, long, 2)  # the target is longer than an answer may be
    assert how == "verified"
    assert long.startswith(text) and text != long


@pytest.mark.parametrize(
    ("beginning", "target", "expected"),
    [
        (" Paris, Te", "paris", True),
        (" Paris", "paris", False),
        (" PAR", "Paris", False),
        (" Paris ", "Paris", False),
        (" Paris \n\t", "Paris", False),
        (" Paris x", "Paris", True),
        ("  \n", "Paris", False),
        ("", "", False),
        ("   ", "", False),
        ("x", "", True),
        (" New  York", "New York", True),
        (" caf\ufffd", "café", False),
        (" caf\u00e9", "caf\ufffd\ufffd\ufffd", False),
        (" ΟΔΟΣ", "οδος", False),
        (" ΟΔΟΣ", "οδοςα", False),
        (" parisian", "paris", True),
        (" Pari", "  PARIS ", False),
        (" İ", "i̇stanbul", False),
    ],
)
def test_is_hopeless(beginning, target, expected):
    assert is_hopeless(beginning, target) is expected


def test_a_hopeless_beginning_never_becomes_right():
    rng = random.Random(0)
    for _ in range(3000):
        target = random_text(rng)
        whole = rng.choice([target, target.upper(), target.lower(), f" {target}\n", random_text(rng)])
        cut = rng.randrange(len(whole) + 1)
        for metric in ("exact_match", "exact_match_bare"):
            if is_hopeless(whole[:cut], target, METRICS[metric].compared):
                assert score(metric, [whole], [target]) == [0.0], (whole, cut, target)


def test_decode_stops_at_the_first_stop_token():
    backbone = tiny.make_backbone()
    ids = tiny.tokenizer()(" moo cat")["input_ids"]
    assert decode(backbone, [*ids, tiny.EOS, *ids, tiny.PAD]) == "moo cat"
    assert decode(backbone, ids, strip=False) == " moo cat"
    assert decode(backbone, [tiny.EOS]) == decode(backbone, []) == ""
    assert decode(backbone, tiny.tokenizer()(" it 's , ok")["input_ids"]) == "it 's , ok"  # not tidied up
