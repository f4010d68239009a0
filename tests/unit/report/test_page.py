"""The page, the tables and the figures of a comparison."""

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks.report import make_run as synthetic
from benchmarks.report import measure
from tests.unit.report.test_summary import make_run
from utils.errors import UserError
from utils.report import differences
from utils.report.__main__ import main
from utils.report.compare import check_columns, compare_text
from utils.report.page import curves, exports, figures, render
from utils.report.page.charts import Chart, Look, Series, ticks
from utils.report.page.forgotten import MOST_CHARACTERS, lost
from utils.report.page.panels import best, panels
from utils.report.page.svg import draw
from utils.report.results import build, group
from utils.storage.files import read_jsonl, write_json, write_jsonl, write_text

EVIL = "</script><img src=x onerror=alert(1)>'\"&\x00"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def comparison(tmp_path, runs):
    """Sections and results of runs, as the command makes them."""
    built = [(tmp_path / name, build(make_run(tmp_path / name, **facts))) for name, facts in runs.items()]
    sections, results = group(built), {str(run): one for run, one in built}
    differences.add_intervals(sections, results)
    return sections, results


TWO = {
    "a": {"R": [[0.8, None], [0.2, 0.9]], "seed": 1},
    "b": {"R": [[0.6, None], [0.4, 0.7]], "seed": 2},
    "c": {"R": [[0.9, None], [0.8, 0.9]], "method": "EWC"},
}


def page(tmp_path, runs):
    sections, results = comparison(tmp_path, runs)
    return render.html([render.part_of(section, results) for section in sections], [], [])


def text_of(svg):
    return [element.text for element in ET.fromstring(svg).iter("text")]


def test_average_has_a_band_over_seeds(tmp_path):
    (section,), results = comparison(tmp_path, TWO)
    charts = {one.key: one for one in curves.charts(section, [0, 1], panels(section, [0, 1], results), results)}
    seq, ewc = charts["average_accuracy"].series
    assert seq.y == pytest.approx([70, 55]) and seq.spread == pytest.approx([14.1421, 0], abs=1e-3)
    assert ewc.y == pytest.approx([90, 85]) and ewc.spread == [None, None]  # one run
    assert charts["task-0"].series[0].y == [None, pytest.approx(70), pytest.approx(30)]
    assert "2 runs" in seq.hints[0] and "after 1 of 2 tasks" in seq.hints[0]


def test_drift_is_drawn_over_forgetting_where_runs_have_it(tmp_path):
    (section,), results = comparison(tmp_path, TWO)
    for row, nats in zip(section["rows"], (2.0, 0.5), strict=True):
        row["columns"]["drift_forward"] |= {"mean": nats, "n": 1}
    (chart,) = [one for one in curves.charts(section, [0, 1], [], results) if one.key == "drift"]
    assert [(one.x, one.y) for one in chart.series] == [([2.0], [pytest.approx(40)]), ([0.5], [pytest.approx(10)])]


def test_no_line_passes_a_point_that_was_not_measured():
    chart = Chart("key", "t", "x", "y", [Series("one", Look.of(0), [1, 2, 3, 4], [1.0, None, 2.0, 3.0])])
    root = ET.fromstring(draw(chart))
    (line,) = [path.get("d") for path in root.iter("path") if path.get("class") == "line"]
    assert line.count("M") == 1 and line.count("L") == 1  # from 3 to 4 alone
    assert len(list(root.iter("use"))) == 3


def test_a_chart_has_titles_units_and_values():
    series = Series("a <b>", Look.of(1), [1, 2], [0.5, 1.5], [0.25, None])
    chart = Chart("key", "a & b", "steps", "loss, nats", [series], whole_x=True)
    root = ET.fromstring(draw(chart))  # well-formed, so everything is escaped
    assert root.get("aria-label") == "a & b" and {"steps", "loss, nats", "1", "2"} <= set(text_of(draw(chart)))
    assert [title.text for title in root.iter("title")] == ["a <b>: 1, 0.5 ± 0.25", "a <b>: 2, 1.5"]
    assert render.values(chart) == [["steps", "a <b>"], ["1", "0.5 ± 0.25"], ["2", "1.5"]]


def test_ticks_are_within_their_limits():
    for low, high, is_log in ((0, 1, False), (0.3, 0.31, False), (1e-5, 3, True), (4, 7, True), (-3, 2, False)):
        found = ticks(low, high, is_log)
        assert 2 <= len(found) <= 9 and min(found) >= low - 1e-9 and max(found) <= high + 1e-9, (low, high, found)


def test_forgotten_are_those_right_then_and_wrong_now(tmp_path):
    run = make_run(tmp_path / "run", [[0.8, None], [0.5, 0.9]])
    (one,) = lost(run, "", build(run), most=4)
    assert (one.task, one.count, one.asked) == ("task_0", 6, 20)  # the first 16 were right, then the first 10
    assert [(e.index, e.then, e.now) for e in one.examples] == [(k, "yes", "no") for k in (10, 11, 12, 13)]


def test_texts_of_users_are_escaped_and_cut(tmp_path):
    run = make_run(tmp_path / "a", [[0.8, None], [0.2, 0.9]], method=EVIL, task_names=[EVIL, "b"], stream=EVIL)
    path = run / "predictions/after_1/task_0.jsonl"
    write_jsonl(path, [row | {"prediction": f"no {EVIL}", "input": "q" * 999} for row in read_jsonl(path)])
    first = run / "predictions/after_0/task_0.jsonl"
    write_jsonl(first, [row | {"input": "q" * 999} for row in read_jsonl(first)])
    sections, results = group([(run, build(run))]), {str(run): build(run)}
    differences.add_intervals(sections, results)
    html = render.html([render.part_of(sections[0], results)], [], [])
    assert "<img" not in html and html.count("</script>") == 1 and "\x00" not in html
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in html
    assert "q" * (MOST_CHARACTERS // 2 + 1) not in html
    assert render.visible("\ud800") == "?"


def test_page_holds_options_commands_and_warnings(tmp_path):
    runs = {
        name: facts | {"options": {"lr": lr, "batch_size": 16, "seed": 1}, "identity": {"code": lr}}
        for (name, facts), lr in zip(TWO.items(), ("1e-3", "1e-3", "1e-4"), strict=True)
    }
    for name in runs:
        write_json(tmp_path / name / "env.json", {"command": f"python main_CL.py {name}", "dirty": name == "a"})
    write_text(tmp_path / "a/train.log", "[12:00:00] warning: watch <out>\n[12:00:01] hidden line\n")
    html = page(tmp_path, runs)
    assert re.search(r"<th scope=\"row\">lr</th><td>1e-3</td><td>1e-4</td>", html)
    assert "python main_CL.py b" in html and "hidden line" not in html
    for warning in ("watch &lt;out&gt; (1 of 3 runs)", "1 of 3 runs: the code had changes", "versions of the code"):
        assert warning in html, warning


def test_a_comparison_of_many_rows_draws_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr(render, "MOST_LINES", 1)
    sections, _ = comparison(tmp_path, TWO)
    assert best(sections[0], 1) == [1]  # EWC
    sections[0]["baseline"] = "SEQ"
    assert best(sections[0], 1) == [0]
    assert "the tables show all 2" in page(tmp_path, TWO)


def test_latex_marks_the_best_and_escapes(tmp_path):
    sections, _ = comparison(tmp_path, TWO | {"d": {"R": [[0.5, None], [0.1, 0.9]], "method": "A_b & c"}})
    text = exports.latex(sections, ["average_accuracy", "forgetting", "train_seconds"])
    assert r"\textbf{85.00} & \textbf{+10.00} & 20.0" in text  # least forgetting; costs are not marked
    assert r"A\_b \& c & 1" in text and r"\toprule" in text and r"55.00 $\pm$ 0.00" in text
    assert text.count("&", text.index("Method"), text.index(r"\midrule")) == 5  # with the interval


def test_csv_has_all_tasks_as_shares(tmp_path):
    sections, results = comparison(tmp_path, TWO)
    lines = exports.table_csv(sections, results, ["average_accuracy"]).splitlines()
    assert lines[1].startswith("toy,SEQ,1 2,stored stored,average_accuracy,0.55,0.0,2,")
    assert "toy,EWC,1,stored,last score of task_1,0.9,,1,," in lines


def test_columns_are_chosen(tmp_path):
    sections, _ = comparison(tmp_path, TWO)
    text = compare_text(sections, ["backward_transfer_all_pairs", "task_0"])
    titles = [cell.strip() for cell in text.splitlines()[2].strip("|").split("|")]
    assert titles == ["method", "n", "backward transfer all pairs", "task 0"]
    with pytest.raises(UserError, match="metrics: there is no column speed; expected some of task_0"):
        check_columns(["task_0", "speed"])
    assert main(["nowhere", "--metrics", "speed"]) == 2


def test_orders_have_a_matrix_each(tmp_path):
    names = ["x", "y"]
    runs = {
        "a": {"R": [[0.8, None], [0.2, 0.9]], "task_names": names, "options": {"task_order": "stored"}},
        "b": {"R": [[0.6, None], [0.4, 0.7]], "task_names": names[::-1], "options": {"task_order": "reversed"}},
    }
    (section,), results = comparison(tmp_path, runs)
    assert len(section["rows"]) == 1
    found = panels(section, [0], results)
    assert [(one.title, one.names) for one in found] == [
        ("SEQ, order stored", ["x", "y"]),
        ("SEQ, order reversed", ["y", "x"]),
    ]
    one, other = next(curves.task_charts(section, found)).series
    assert one.y[1:] == pytest.approx([80, 20]) and other.y[1:] == [None, pytest.approx(70)]  # of task x
    mean, _ = exports.last_scores(section["rows"][0], ["x", "y"], results)
    assert mean.tolist() == pytest.approx([0.45, 0.65])


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A report over three made-up runs of four tasks, with hostile texts."""
    folder = tmp_path_factory.mktemp("report")
    for number in (0, 1, 12):
        synthetic(folder / "runs", number, tasks=4, questions=10)
    path = folder / "runs/Method1/seed1/predictions/after_3/task_0.jsonl"
    write_jsonl(path, [row | {"prediction": EVIL} for row in read_jsonl(path)])
    size = measure(folder / "runs", folder / "out")["page MB"]
    assert size < 3
    return folder / "out"


@pytest.mark.slow
def test_report_writes_all_files(reported):
    names = {f"{name}.{ending}" for name in ("average_accuracy", "tasks", "R", "loss") for ending in figures.FORMATS}
    assert names <= {path.name for path in (reported / "figures").iterdir()}
    assert {"report.html", "table.tex", "table.csv", "compare.md", "compare.json"} <= {
        p.name for p in reported.iterdir()
    }
    for path in (reported / "figures").glob("*.svg"):
        ET.parse(path)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_the_page_without_errors(reported, tmp_path):
    html = (reported / "report.html").read_text(encoding="utf-8")
    probe = (
        "<script>document.body.dataset.errors = '';"
        "addEventListener('error', event => { document.body.dataset.errors += event.message; });</script>"
    )
    check = (
        "<script>document.querySelectorAll('details').forEach(one => { one.open = true; });"
        "document.querySelector('table.sorted th').click();"
        "document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth;"
        "document.body.dataset.charts = document.querySelectorAll('figure > svg').length;"
        "document.body.dataset.images = document.images.length;</script>"
    )
    write_text(tmp_path / "page.html", html.replace("<body>", "<body>" + probe).replace("</body>", check + "</body>"))
    for width in (500, 1400):  # the narrowest window that chromium opens
        dom, log = browse(tmp_path / "page.html", width, tmp_path / f"{width}.png")
        marks = dict(re.findall(r'data-(\w+)="([^"]*)"', re.search(r"<body[^>]*>", dom)[0]))
        assert marks == {"errors": "", "wide": "false", "charts": "8", "images": "0"}, (width, marks)
        assert "CONSOLE" not in log, log
        assert (tmp_path / f"{width}.png").stat().st_size > 20_000


def browse(page: Path, width: int, picture: Path) -> tuple[str, str]:
    """DOM and log of a page after its scripts; a picture of it."""
    words = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--hide-scrollbars",
    ]
    words += [f"--user-data-dir={picture.parent / 'browser'}", f"--window-size={width},3000"]
    outputs = [
        subprocess.run([*words, action, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
        for action in ("--dump-dom", f"--screenshot={picture}")
    ]
    return outputs[0].stdout, "".join(output.stderr for output in outputs)
