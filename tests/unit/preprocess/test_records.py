"""Which questions are repeated and which are in another split, by their digests."""

import numpy as np

from utils.preprocess.shared.records import are_in, distinct


def test_digests_that_are_distinct_and_known():
    rng = np.random.default_rng(1)
    for size, highest in ((0, 5), (1, 5), (50, 20), (50, 2**64 - 1)):
        one, other = (rng.integers(0, highest, n, np.uint64, endpoint=True) for n in (size, size // 2))
        assert distinct(one).tolist() == sorted(set(one.tolist())), size
        known = set(other.tolist())
        assert are_in(one, distinct(other)).tolist() == [value in known for value in one.tolist()], size
