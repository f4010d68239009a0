"""First 20 steps of every method; moved only with a reason (tests/golden/make.py)."""

import pytest

from models import METHODS
from tests.golden.make import FILE, STEPS, losses, names
from tests.tiny import KINDS_OF_METHODS, TESTED
from utils.storage.files import read_json


def test_every_method_has_curves():
    assert list(read_json(FILE)) == names()
    assert all(len(curve) == STEPS for curve in read_json(FILE).values())


def cases():
    """Plain training of one method of each kind and every setting of SEQ; the rest in the long run of the tests."""
    for name in names(METHODS.keys() & TESTED):
        quick = name.startswith("SEQ: ") or (name.endswith(": plain") and name.split(":")[0] in KINDS_OF_METHODS)
        yield name if quick else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", cases())
def test_losses_do_not_move(name):
    # abs: six decimals are stored
    assert losses(name) == pytest.approx(read_json(FILE)[name], rel=1e-4, abs=1e-6)
