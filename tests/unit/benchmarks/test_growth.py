"""The bench of growth in miniature: it runs and prints its figures."""

import re

from benchmarks import growth


def test_growth(monkeypatch, capsys):
    monkeypatch.setattr(growth, "SHAPE", {"layers": 1, "width": 16, "initializer_range": 0.05})
    monkeypatch.setattr(growth, "STEPS", 2)
    assert growth.main(["--tasks", "5", "--methods", "PEFT sum", "AdapterCL"]) == 0
    numbers = r"\s+\d+\.\d\d\s+\d+\.\d\d\s+\d+\.\d\dx"
    found = re.findall(rf"^(.+?){numbers}{numbers}\s+\d+\.\d\dx\s+\d+\.\d\dx$", capsys.readouterr().out, re.M)
    assert found == ["PEFT sum", "AdapterCL"]
