"""The heat map: numbers where they can be read, a colour bar where there are too many."""

from utils.report import plots


def drawn(monkeypatch, tasks):
    """The figure of a run of some tasks, before it is written."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, _path: figures.append(figure))
    same = {"higher_is_better": [True] * tasks, "chance": [0.1] * tasks, "metrics": ["exact_match"] * tasks}
    R = [[0.5 if j <= i else None for j in range(tasks)] for i in range(tasks)]
    names = {"task_names": [f"task {j}" for j in range(tasks)], "method": "SEQ", "stream": "toy", "seed": 1}
    plots.heat_map({"base": [None] * tasks, "R": R, **names, **same}, None)
    return figures[0]


def test_many_tasks_have_a_colour_bar_instead_of_numbers(monkeypatch):
    monkeypatch.setattr(plots, "MOST_NUMBERS", 2)
    few, many = drawn(monkeypatch, 2), drawn(monkeypatch, 3)
    assert [text.get_text() for text in few.axes[0].texts] == ["50.0", "–", "50.0", "50.0"]
    assert len(few.axes) == 1
    cells, bar = many.axes
    assert not cells.texts
    assert [label.get_text() for label in cells.get_yticklabels()] == ["after task 0", "after task 1", "after task 2"]
    assert bar.get_ylabel() == "score, percent"
