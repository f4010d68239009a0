"""Every method answers questions outside the stream: the same in any batch, and without a trace in its weights."""

import json

import pytest

from tests import tiny
from utils.general import asking
from utils.storage.files import read_jsonl
from utils.storage.moment import BASE, Moment

LINES = [
    {"question": f"{animal} a", "choices": ["meow", "moo boom", "x"], "answer": "moo boom"}
    for animal in tiny.ANIMALS[:4]
]


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny.TESTED)
def test_questions_outside_the_stream_leave_no_trace(name, tmp_path):
    file = tmp_path / "mc.jsonl"
    file.write_text("\n".join(map(json.dumps, LINES)), encoding="utf-8")
    options = {"training_epochs": 1, "general_files": (str(file),), "evaluate_batch_size": 5}
    method = tiny.learn(config := tiny.make_config(name, **options)).method
    before, mode = tiny.snapshot(method), method.model.training
    found = []
    for moment, size in ((BASE, 5), (Moment(2), 64)):
        method.session.config = config.updated(evaluate_batch_size=size)
        asking.ask(method, tmp_path, moment, asking.outside(config))
        found.append([row["log_likelihoods"] for row in read_jsonl(moment.predictions(tmp_path, "general_0"))])
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, abs=1e-3)
    assert tiny.same(tiny.snapshot(method), before) and method.model.training is mode
