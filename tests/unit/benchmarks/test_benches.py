"""Each bench in miniature: it runs, checks that both ways agree, and prints its figures."""

import re

import pytest

from benchmarks import prompts, training


@pytest.mark.slow
def test_training(monkeypatch, tmp_path, capsys):
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    monkeypatch.setattr(training, "SHAPE", training.SHAPE | shape)
    monkeypatch.setattr(training, "RAW", tmp_path)  # the embedded stream
    for name, value in {"TRAIN_STEPS": 1, "EVALUATED": 4, "LEARNED": 4, "LEARN_EPOCHS": 1}.items():
        monkeypatch.setattr(training, name, value)
    assert training.main(["--rounds", "1"]) == 0
    ratios = re.findall(r"^(\w+).*\d\.\d\dx ", capsys.readouterr().out, re.M)
    assert ratios == ["evaluation", "training", "evaluation", "evaluation"]


def test_prompts(monkeypatch, capsys):
    monkeypatch.setattr(prompts, "COUNTS", (2, 4))
    assert prompts.main(["--rounds", "1"]) == 0
    assert re.findall(r"^(\d) virtual tokens .*\d\.\d\dx ", capsys.readouterr().out, re.M) == ["2", "4"]
