"""Each bench in miniature: it runs, checks that both ways agree, and prints its figures."""

import re

import pytest

from benchmarks import common, evaluation, memory, methods, prompts, training


@pytest.fixture
def miniature(monkeypatch, tmp_path):
    """A tiny model and the embedded stream."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    monkeypatch.setattr(common, "SHAPE", common.SHAPE | shape | {"vocab_size": 2000})
    monkeypatch.setattr(common, "RAW", tmp_path)
    monkeypatch.setattr(common, "WORDS", 1500)
    monkeypatch.setitem(training.DATA, "short", training.Data("", 4, 2, 32))
    return ["--raw", str(tmp_path), "--rows", "neox short full", "neox short half", "neox long full"]


@pytest.mark.slow
def test_training(miniature, capsys):
    assert training.main([*miniature, "--rounds", "1", "--ways", "trainer", "plain"]) == 0
    found = re.findall(r"^(neox .*?)  +(\d+\.\d\d \(|no data)", capsys.readouterr().out, re.M)
    assert [row for row, _ in found] == ["neox short full", "neox short half", "neox long full"]
    assert found[-1][1] == "no data"  # that of TRACE


def test_losses_that_differ_are_an_error(miniature, monkeypatch):
    monkeypatch.setitem(training.START, "plain", lambda *_: lambda: 1.0)
    with pytest.raises(AssertionError, match="losses differ"):
        training.main([*miniature, "--rounds", "1", "--ways", "plain"])


def test_memory(miniature, tmp_path):
    assert int(memory.peak("neox short full", "own", tmp_path, tmp_path)) >= 0
    assert memory.peak("smollm2 short full", "own", tmp_path, tmp_path) == "-"


@pytest.fixture
def few(miniature, monkeypatch):
    """At most one epoch."""
    for state in evaluation.STATES:
        monkeypatch.setattr(state, "epochs", min(state.epochs, 1))


@pytest.mark.slow
def test_evaluation(few, capsys):
    assert evaluation.main(["--rounds", "1", "--questions", "4"]) == 0
    row = r"^(.*?)  .*%  generate \d+\.\d\dx .*  generate 16 \d+\.\d\dx"
    assert re.findall(row, capsys.readouterr().out, re.M) == [state.title for state in evaluation.STATES]


def test_scores_that_differ_are_an_error(few, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation.Bench, "generate_in_order", lambda *_: [2.0] * 4)
    with pytest.raises(AssertionError, match="the ways disagree"):
        evaluation.line(evaluation.prepare(evaluation.find_stream(), tmp_path, 4), evaluation.STATES[0], 1)


@pytest.mark.slow
def test_prompts(monkeypatch, capsys):
    monkeypatch.setattr(prompts, "COUNTS", (2, 4))
    assert prompts.main(["--rounds", "1"]) == 0
    assert re.findall(r"^(\d) virtual tokens .*\d\.\d\dx ", capsys.readouterr().out, re.M) == ["2", "4"]


@pytest.mark.slow
def test_methods(monkeypatch, capsys):
    monkeypatch.setattr(methods, "in_a_process", lambda name, given: methods.measure(name, given.steps, given.smollm2))
    assert methods.main(["--methods", "SEQ", "SDFT", "ICL", "--steps", "1"]) == 0
    seq, sdft, icl = capsys.readouterr().out.splitlines()[2:]
    assert [seq.split()[k] for k in (0, 2, 5, 6, 7)] == ["SEQ", "1.00", "1.00", "1.00", "0.00"]
    assert float(sdft.split()[2]) > 1.5 and float(sdft.split()[-1]) > 1, "a second pass, and sampled answers"
    assert icl.split()[1:] == ["no", "steps"]
    assert methods.main(["--rollouts", "--steps", "1"]) == 0
    assert re.search(r"ratio \d+\.\d\d$", capsys.readouterr().out.strip())
