"""Each kind of fault once: reported in one sentence with the right exit code; the resumed run has the same numbers."""

import random

import pytest

from models import METHODS
from tests import tiny
from tests.stress.injected import KINDS, reference, verdict


@pytest.fixture(scope="module")
def case_of(tmp_path_factory):
    """The undisturbed run of a method, made once."""
    made = {}

    def maker(name):
        if name not in made:
            made[name] = reference(name, tmp_path_factory.mktemp(name))
        return made[name]

    return maker


def check(case, kind, dump):
    try:
        assert verdict(KINDS[kind], case, dump, random.Random(kind))[0] == []
    except OSError as error:
        pytest.skip(f"no mounts here: {error}")


@pytest.mark.parametrize("kind", tiny.quick(KINDS))
@pytest.mark.slow
def test_one_fault(case_of, kind, tmp_path):
    check(case_of("SEQ"), kind, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", METHODS)
def test_every_method(case_of, name, tmp_path):
    for kind in KINDS:
        check(case_of(name), kind, tmp_path / kind)
