"""Scores of short answers: the same text, the same choice, the same number, the same words.

All have the signature of `Metric.score`: prediction, target, source (not used here).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from fractions import Fraction

# A sign counts unless a word character precedes it: "10-5" is 10 and then 5. The number of digits is limited, so that
# no text makes a number that is slow to compute with.
NUMBER = re.compile(
    r"(?:(?<!\w)(?P<sign>[-−+]))?(?:[$€£](?P<inner>[-−]?))?"
    r"(?P<digits>(?<!\d)(?<!\d\.)(?:\d{1,3}(?:,\d{3}){1,20}(?:\.\d{1,60})?(?!,?\d)|\d{1,60}(?:\.\d{1,60})?|\.\d{1,60})(?!\d))"
    r"(?:(?: (?P<over>\d{1,60}))? ?/ ?(?P<under>0{0,60}[1-9]\d{0,60})(?!\d))?"
)
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    r"""The text that exact match compares: lower case, without white space at the ends.

    Punctuation, articles and inner spaces count.

    >>> normalise("  New York\n")
    'new york'
    """
    return text.strip().lower()


def exact_match(prediction: str, target: str, source: str = "") -> float:
    """1.0 if both texts are the same after `normalise`, otherwise 0.0.

    An empty prediction is a wrong answer like any other, unless the target is empty too.

    >>> exact_match(" Paris", "paris"), exact_match("Paris.", "paris"), exact_match("", "paris")
    (1.0, 0.0, 0.0)
    """
    return float(normalise(prediction) == normalise(target))


def bare(text: str) -> str:
    r"""The text in lower case, without ASCII punctuation, with single spaces.

    >>> bare(" Very  positive.\n")
    'very positive'
    """
    return " ".join(text.lower().translate(PUNCTUATION).split())


def exact_match_bare(prediction: str, target: str, source: str = "") -> float:
    """1.0 if both texts are the same after `bare`, otherwise 0.0: exact match in the code of SuperNI and SAPT.

    >>> exact_match_bare("True.", "true"), exact_match_bare("an apple", "apple")
    (1.0, 0.0)
    """
    return float(bare(prediction) == bare(target))


def first_letter(prediction: str, target: str, source: str = "") -> float:
    r"""Choice accuracy: 1.0 if both texts begin with the same character, otherwise 0.0.

    TRACE scores ScienceQA in this way: a target is a letter, a line break and the reasons. Case counts, as in TRACE, so
    that an answer like "a bit of both" is not choice A.

    >>> first_letter("B", "B\nThe unit shows ..."), first_letter("b", "B"), first_letter("", "B")
    (1.0, 0.0, 0.0)
    """
    return float(prediction.strip()[:1] == target.strip()[:1])


def numeric(prediction: str, target: str, source: str = "") -> float:
    """1.0 if the first number of the prediction is the target's number, otherwise 0.0.

    The tasks (NumGLUE) ask for the bare result, so the first number is the answer and the text after it does not
    count. A number may have a sign, a currency, thousands separators and a fraction; `12`, `12.0` and `$12` are
    equal, and so are numbers that differ by rounding noise (1e-9 of their size). TRACE compares the texts instead, as
    `exact_match` does here where the target is not a number ("October").

    >>> numeric("The answer is $1,200.", "1200"), numeric("1/2", "0.5"), numeric("12 or 13", "13")
    (1.0, 1.0, 0.0)
    """
    wanted, got = parse_number(target, whole=True), parse_number(prediction)
    if wanted is None or got is None:
        return exact_match(prediction, target)
    return float(abs(wanted - got) <= max(abs(wanted), abs(got)) / 10**9)


def parse_number(text: str, whole: bool = False) -> Fraction | None:
    """The exact value of the first number in a text; None if there is none or, with `whole`, if there is other text.

    >>> parse_number("about -1,250.5 kg"), parse_number("1 1/2"), parse_number("12 kg", whole=True)
    (Fraction(-2501, 2), Fraction(3, 2), None)
    """
    text = text.strip()
    found = NUMBER.search(text)
    if found is None or (whole and found.group() != text.rstrip("%.")):
        return None
    value = Fraction(found["digits"].replace(",", ""))
    if found["under"]:
        under = int(found["under"])
        value = value + Fraction(int(found["over"]), under) if found["over"] else value / under
    return -value if {found["sign"], found["inner"]} & {"-", "−"} else value


def choice_likelihood(prediction: str, target: str, source: str = "") -> float:
    """1.0 if the prediction is the target, otherwise 0.0: of the possible answers the model finds one likeliest.

    Which one, `utils/evaluation.py` decides; of equally likely ones it takes the first.

    >>> choice_likelihood("on foot", "on foot"), choice_likelihood("on Foot", "on foot")
    (1.0, 0.0)
    """
    return float(prediction == target)


def token_f1(prediction: str, target: str, source: str = "") -> float:
    """F1 over words, each counted as often as it occurs, as in SQuAD's official evaluation.

    Words are split at white space (so a Chinese text is one word), in lower case, without ASCII punctuation and English
    articles. If a text has no words, the score is 1.0 if the other has none either, otherwise 0.0.

    >>> token_f1("The Eiffel Tower, Paris", "eiffel tower")
    0.8
    """
    got, wanted = (Counter(_squad_words(text)) for text in (prediction, target))
    if not got or not wanted:
        return float(got == wanted)
    common = (got & wanted).total()
    return 2 * common / (got.total() + wanted.total())


def _squad_words(text: str) -> list[str]:
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION)).split()
