"""Scores of longer texts by overlap: ROUGE-L, edit similarity, SARI, BLEU.

All have the signature of `Metric.score`: prediction, target, source. Libraries are imported when first used.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from itertools import zip_longest
from typing import Any

# Each Chinese or Japanese character is a word; other words are runs of letters and digits.
SIGNS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{SIGNS}]|[^\W_{SIGNS}]+")
LITERAL = re.compile(r"<(?:STR|NUM|CHAR)_LIT:(.{0,200}?)>", re.DOTALL)
EMPTY_LITERALS = {"<NUM_LIT>": "0", "<STR_LIT>": "", "<CHAR_LIT>": ""}
LONGEST_NGRAM = 4
Ngrams = Counter[tuple[str, ...]]


def words(text: str) -> list[str]:
    """Words for ROUGE-L: lower case, in any script, without punctuation.

    On ASCII texts these are the tokens of the package rouge-score, which has no tokens for Chinese and splits German
    words at each umlaut.

    >>> words("Für 3,5 Millionen!"), words("我爱ROUGE")
    (['für', '3', '5', 'millionen'], ['我', '爱', 'rouge'])
    """
    return WORD.findall(unicodedata.normalize("NFC", text.lower()))


def rouge_l(prediction: str, target: str, source: str = "") -> float:
    """ROUGE-L F1: longest common subsequence of words over the whole texts (Lin 2004), no stemming.

    Equals rouge-score's `rougeL` (not `rougeLsum`) on ASCII texts, but is computed bit-parallel: rouge-score's table of
    all pairs of words does not fit into memory for a transcript. The package `rouge`, which TRACE and the published
    code use, counts distinct words per sentence; its numbers differ.

    >>> rouge_l("the cat sat", "the cat is here")
    0.5714285714285714
    """
    return _common_sequence(prediction, target, words)


def rouge_l_stemmed(prediction: str, target: str, source: str = "") -> float:
    """ROUGE-L F1 in the tokens of rouge-score with its stemmer: the score of SuperNI. English only.

    >>> rouge_l_stemmed("They walked home", "they are walking home")
    0.8571428571428571
    """
    return _common_sequence(prediction, target, _stems().tokenize)


def _common_sequence(prediction: str, target: str, tokenise: Callable[[str], list[str]]) -> float:
    """F1 of the longest common subsequence of tokens; where a text has none, equality of the texts."""
    from rapidfuzz.distance import LCSseq

    got, wanted = tokenise(prediction), tokenise(target)
    if not got or not wanted:
        return float(prediction.strip() == target.strip())
    return 2 * LCSseq.similarity(got, wanted) / (len(got) + len(wanted))


@cache
def _stems() -> Any:
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer(use_stemmer=True)


def edit_similarity(prediction: str, target: str, source: str = "") -> float:
    """Similarity of two lines of code: 2 M / T, for M characters in common (in order) and T characters in both.

    In both lines, literals of Py150 are filled in (see `fill_literals`) and white space at the ends is removed; case
    counts. This is the ratio of fuzzywuzzy with python-Levenshtein, without its rounding to percent.

    >>> edit_similarity("x = <NUM_LIT:1>", "x = 1"), edit_similarity("x = 12", "x = 1")
    (1.0, 0.9090909090909091)
    """
    from rapidfuzz.distance import Indel

    return Indel.normalized_similarity(fill_literals(prediction).strip(), fill_literals(target).strip())


def fill_literals(code: str) -> str:
    """Code with the literals of Py150 filled in: known ones as they are, an unknown number as 0, an unknown text empty.

    >>> fill_literals("f ( '<STR_LIT:utf-8>' , <NUM_LIT> , '<STR_LIT>' )")
    "f ( 'utf-8' , 0 , '' )"
    """
    for marker, text in EMPTY_LITERALS.items():
        code = code.replace(marker, text)
    return LITERAL.sub(r"\1", code)


def sari(prediction: str, target: str, source: str = "") -> float:
    """SARI with one reference; see `sari_of`."""
    return sari_of(prediction, [target], source)


def sari_of(prediction: str, references: Sequence[str], source: str) -> float:
    """Quality of a simplification: are the right n-grams of the source kept, deleted, added? (Xu et al., TACL 2016)

    Mean over n = 1..4 of (F1 of keeping + precision of deleting + F1 of adding) / 3, on lower-case texts in
    sacrebleu's 13a tokens. Details follow Hugging Face evaluate, the source of published numbers: 0/0 is 1, and where
    the source repeats an n-gram that the reference keeps, deleting the repetitions is not fully right, so that even a
    prediction that equals the reference can score less than 1.

    Args:
        prediction: The simplified text.
        references: Accepted simplifications.
        source: The text to simplify.
    """
    tokenise = _tokeniser()
    source_words, prediction_words = tokenise(source), tokenise(prediction)
    reference_words = [tokenise(text) for text in references]
    parts = [
        _sari_of_ngrams(
            _ngrams(source_words, n, len(references)),
            _ngrams(prediction_words, n, len(references)),
            sum((_ngrams(text, n) for text in reference_words), Ngrams()),
        )
        for n in range(1, LONGEST_NGRAM + 1)
    ]
    return sum(parts) / len(parts)


def _sari_of_ngrams(source: Ngrams, prediction: Ngrams, reference: Ngrams) -> float:
    """SARI for one n; source and prediction are counted once per reference."""
    kept, keepable = source & prediction, source & reference
    rightly = kept & reference
    keep = _f1(_share(rightly, kept), rightly.total() / keepable.total() if keepable else 1.0)
    deleted = source - prediction
    delete = _share(deleted - reference, deleted)
    added, addable = prediction.keys() - source.keys(), reference.keys() - source.keys()
    right = len(added & addable)
    add = _f1(right / len(added) if added else 1.0, right / len(addable) if addable else 1.0)
    return (keep + delete + add) / 3


def _share(right: Ngrams, all_: Ngrams) -> float:
    """Mean over the n-grams in `all_` of the share of their occurrences that are right; 1 if there are none."""
    return sum(count / all_[gram] for gram, count in right.items()) / len(all_) if all_ else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _ngrams(tokens: list[str], n: int, times: int = 1) -> Ngrams:
    counts = Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
    return Counter({gram: count * times for gram, count in counts.items()})


def _tokeniser() -> Callable[[str], list[str]]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenise = Tokenizer13a()
    return lambda text: tokenise(text.lower()).split()


def bleu(prediction: str, target: str, source: str = "") -> float:
    """Sentence BLEU with one reference; see `bleu_of`."""
    return bleu_of(prediction, [target], source)


def bleu_of(prediction: str, references: Sequence[str], source: str) -> float:
    """Sentence BLEU of sacrebleu: 13a tokens, case counts, only n-gram orders that occur."""
    from sacrebleu import sentence_bleu

    return min(sentence_bleu(prediction, references).score / 100, 1.0)


def corpus_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU of sacrebleu over all texts; not the mean of their scores."""
    from sacrebleu import corpus_bleu as sacrebleu

    columns = list(zip_longest(*references))  # None where a question has fewer references than others
    return min(sacrebleu(predictions, columns).score / 100, 1.0)
