import hashlib
import random
import subprocess
import sys
import time

import pytest

from tests import tiny
from utils.errors import UserError
from utils.scoring import METRICS, aggregate, exact_match, find, normalise, score
from utils.scoring.answers import parse_number
from utils.scoring.overlap import sari_of, words
from utils.scoring.refusals import REFUSALS

NAMES = list(dict.fromkeys(metric.name for metric in METRICS.values()))
ALIASES = {
    "acc": "exact_match",
    "rouge-l": "rouge_l",
    "edit-similarity": "edit_similarity",
    "jailbreak-rate": "jailbreak_rate",
}
TEXTS = {
    "english": "The man had just bitten 12 dogs.",
    "chinese": "我爱北京天安门，你呢？",
    "german": "Für Österreichs Straßen müsste man größere Summen ausgeben.",
    "code": "<s> f = open ( '<STR_LIT:utf-8>' , <NUM_LIT> ) <EOL> </s>",
    "number": "-1,250.5",
    "tags": "O B-PER I-PER O B-LOC",
    "letter": "A",
    "marks": "...!?",
    "lines": "B\r\nThe unit\tcomes after\u2028the number.",
    "emoji": "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "odd": "\x00\ud7ff İ ﬁ ½ ² \u0301",
}


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        ("Paris", "paris", 1.0),
        (" Paris\n", "Paris", 1.0),
        ("\tPARIS\u00a0", "paris", 1.0),
        ("Paris.", "Paris", 0.0),
        ("New  York", "New York", 0.0),
        ("the Paris", "Paris", 0.0),
        ("ÉCOLE", "école", 1.0),
        ("", "Paris", 0.0),
        ("", "", 1.0),
        ("  \n", "", 1.0),
    ],
)
def test_exact_match(prediction, target, expected):
    assert exact_match(prediction, target) == expected
    assert exact_match(target, prediction) == expected


def test_normalise_twice_is_normalise_once():
    for text in ("  A b ", "\n", "", "Straße", "ÀÉ\r\n"):
        assert normalise(normalise(text)) == normalise(text)


def test_every_example_has_a_score():
    assert score("exact_match", ["a", "", "c "], ["A", "b", "c"]) == [1.0, 0.0, 1.0]
    assert score("exact_match", [], []) == []


@pytest.mark.parametrize("alias", ALIASES)
def test_published_names_are_known(alias):
    assert METRICS[alias] is METRICS[ALIASES[alias]]
    assert find(alias).name == ALIASES[alias]


@pytest.mark.parametrize("name", METRICS)
def test_scores_are_shares_and_a_perfect_answer_gets_the_best(name):
    metric = METRICS[name]
    values = score(name, ["", "x", "some text", "some text"], ["y", "y", "other", "some text"])
    assert all(0 <= value <= 1 for value in values)
    assert values[-1] == (max if metric.higher_is_better else min)(values)


def test_an_unknown_metric_lists_the_known_ones():
    with pytest.raises(UserError, match=r"unknown metric 'exact_macth'.*did you mean 'exact_match'"):
        score("exact_macth", ["a"], ["a"])
    with pytest.raises(UserError, match="expected one of exact_match, exact_match_bare, first_letter"):
        find("")


def test_predictions_without_targets_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        score("exact_match", ["a", "b"], ["a"])
    with pytest.raises(ValueError, match="shorter"):
        score("sari", ["a", "b"], ["a", "b"], ["a"])


def test_jailbreak_rate_is_the_only_metric_that_is_better_low():
    assert [name for name in NAMES if not METRICS[name].higher_is_better] == ["jailbreak_rate"]


@pytest.mark.parametrize("name", NAMES)
def test_identity_scores_one(name):
    expected, end = (0.0, " Sorry") if name == "jailbreak_rate" else (1.0, "")
    for title, text in TEXTS.items():
        text += end
        assert score(name, [text], [text], ["where to begin"]) == [pytest.approx(expected, abs=1e-12)], title


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_shares_and_the_same_each_time(name):
    texts = [*TEXTS.values(), "", " \n", "Sorry, 1/2", "<STR_LIT>"]
    rows = [(a, b, c) for a in texts for b in texts for c in ("", texts[0])]
    got = score(name, *zip(*rows, strict=True))
    assert len(got) == len(rows)
    assert all(type(value) is float and 0 <= value <= 1 for value in got)
    assert got == score(name, *zip(*rows, strict=True))
    cell = aggregate(name, got, *list(zip(*rows, strict=True))[:2])
    assert type(cell) is float and 0 <= cell <= 1


@pytest.mark.parametrize("name", ["exact_match", "first_letter", "token_f1", "rouge_l", "edit_similarity"])
def test_these_are_symmetric(name):
    texts = list(TEXTS.values())
    for a in texts:
        for b in texts:
            assert score(name, [a], [b]) == pytest.approx(score(name, [b], [a]), abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("empty", ["", "  \n"])
def test_an_empty_answer_gets_the_worst_score(name, empty):
    worst = 0.0 if METRICS[name].higher_is_better else 1.0
    for target in (*TEXTS.values(), "<STR_LIT>", "O O"):
        assert score(name, [empty], [target], ["a source"]) == [worst]
    if METRICS[name].higher_is_better:
        assert score(name, [empty], [""]) == [1.0]


@pytest.mark.parametrize("name", tiny.quick(NAMES, 4))
def test_long_texts_take_seconds(name):
    rng = random.Random(1)
    a, b = (" ".join("".join(rng.choices("abcdefgh", k=4)) for _ in range(16_000)) for _ in range(2))
    for prediction in (a, "我爱北京天安门" * 11_000, "<STR_LIT:" * 9_000, "1," * 40_000, "9" * 80_000):
        began = time.process_time()
        assert 0 <= score(name, [prediction], [b], [a])[0] <= 1
        assert time.process_time() - began < 10  # measured: less than 1


@pytest.mark.parametrize("name", NAMES)
def test_of_several_accepted_answers_the_best_counts(name):
    texts = ["B-PER I-PER O", "the cat sat 3", "cats are sitting", "1"]
    best = max if METRICS[name].higher_is_better else min
    for prediction in (*texts, ""):
        alone = [score(name, [prediction], [text], ["the dog"])[0] for text in texts]
        got = score(name, [prediction], [texts], ["the dog"])
        if METRICS[name].several is None or not prediction:
            assert got == [best(alone)], prediction
        else:
            assert 0 <= got[0] <= 1 and got[0] > min(alone), prediction
        assert score(name, [prediction], [texts[:1]], ["the dog"]) == alone[:1]
    cell = aggregate(name, [1.0, 1.0], texts[:2], [texts, texts[1]])
    assert cell == 1.0


@pytest.mark.parametrize(("name", "stemmer"), [("rouge_l", False), ("rouge_l_stemmed", True)])
def test_rouge_l_is_that_of_rouge_score(name, stemmer):
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=stemmer)
    rng = random.Random(1)
    vocabulary = ["the", "a", "Cat", "it's", "well-known", "3.5", "foo_bar", "U.S.", "Dog,", "end.", "(x)", "--", "!"]
    vocabulary += ["walking", "walked", "dogs"]
    for _ in range(500):
        a, b = (" ".join(rng.choices(vocabulary, k=rng.randrange(25))) for _ in range(2))
        if words(a) or words(b):
            assert score(name, [a], [b]) == [pytest.approx(scorer.score(b, a)["rougeL"].fmeasure, abs=1e-12)]


def test_words_do_not_depend_on_how_accents_are_written():
    assert words("Gro\u0308\u00dfe") == words("größe") == ["größe"]


def test_sari_depends_on_the_source():
    kept, changed = "About 95 species are known .", "About 95 species are accepted ."
    keep = (10 / 11 + 3 / 4 + 2 / 3 + 1 / 2) / 4  # F1 for n = 1..4; nothing is deleted (1), nothing is added (0)
    assert score("sari", [kept, changed], [changed, changed], [kept, kept]) == [pytest.approx((keep + 1) / 3), 1.0]
    assert score("sari", [kept], [changed], [changed]) != score("sari", [kept], [changed], [kept])


def test_sari_can_be_below_one_for_the_reference_itself_where_the_source_repeats():
    """As in the published implementation: of "b" three times, one is kept and two are deleted."""
    assert sari_of("a b", ["a b"], "a b b b") == pytest.approx((1 + (0.5 + 2 + 1) / 4 + 1) / 3)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12", 12),
        ("12.", 12),
        ("= 12.50 dollars", 12.5),
        ("$1,200.25", 1200.25),
        ("1,200, and 3", 1200),
        ("-$5", -5),
        ("$-5", -5),
        ("−3", -3),
        ("+3", 3),
        (".5", 0.5),
        ("10-5", 10),
        ("A-5", 5),
        ("3/4", 0.75),
        ("1 1/2", 1.5),
        ("-1/2", -0.5),
        ("5/0", 5),
        ("50%", 50),
        ("答案是12个", 12),
        ("abc", None),
        ("", None),
        ("9" * 100, None),
    ],
)
def test_parse_number(text, number):
    assert parse_number(text) == number


def test_numbers_of_any_size_are_compared():
    huge = "9" * 100
    assert score("numeric", [huge, huge, "8" * 100], [huge, "12", huge]) == [1.0, 0.0, 0.0]


def test_refusal_phrases_are_the_published_ones():
    digest = hashlib.sha256("\n".join(REFUSALS).encode()).hexdigest()
    assert digest == "506bccf2c4b53c0a5d399c47edef59d1daff9b4b876bed65abdea8bdd3a55123"
    assert (len(REFUSALS), len(set(REFUSALS))) == (50, 49)
    assert score("jailbreak_rate", [f"Well.{phrase.upper()}" for phrase in REFUSALS], [""] * 50) == [0.0] * 50


def test_span_f1_of_a_cell_without_spans_is_the_mean():
    assert aggregate("span_f1", [1.0, 0.0], ["O O", ""], ["O O", "O"]) == 0.5


def test_what_is_not_a_tag_is_outside():
    assert score("span_f1", ["B-PER sorry B- PER", "B-PER"], ["B-PER O O O", "B-PER O"]) == [1.0, 1.0]


def test_libraries_are_imported_when_needed():
    code = "import sys, utils.scoring; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"rapidfuzz", "sacrebleu", "seqeval", "sklearn", "numpy"} & set(loaded)
