"""From raw files to scores: every stream is made, learned for a few steps and scored by its own metric."""

import shutil
from pathlib import Path

import pytest

from tests import tiny
from tests.e2e.test_cli import run
from tests.unit.preprocess.raw_data import FIXTURES, REAL, real
from utils.config import EMBEDDED_BACKBONE
from utils.dataformat_preprocess import main
from utils.dataset import Stream, load_stream
from utils.scoring import METRICS, aggregate, score
from utils.storage.files import read_json, read_jsonl

ROOT = Path(__file__).parents[2]
FEW = "--training_epochs 1 --batch_size 4 --lr 1e-3 --is_evaluate_init False"
REAL_STREAMS = {  # data set -> options of preprocessing
    "biography_qa": "--num-person 6000 --num-person-first-task 3000 --num-task 6",
    "TRACE": "",
    "zsre": "--raw-file zsre/zsre_mend_partial.json",
    "concept_1k": "",
    "safety_alignment": "",
    "topic3datasets": "--sources agnews,dbpedia",
    "clinc150": "",
}


def prepare(name: str, raw_dir: Path, out_dir: Path, options: str) -> Stream:
    """The stream that a preprocessing command writes, read again."""
    command = ["--dataset", name, "--raw-dir", str(raw_dir), "--out-dir", str(out_dir), "--name", "made"]
    assert main([*command, *options.split()]) == 0
    return load_stream("made", out_dir)


def learn(stream: Stream, folder: Path, options: str, backbone: str | Path = ROOT / EMBEDDED_BACKBONE) -> Path:
    """The folder of a run with a backbone, the embedded one, on a stream that lies in `folder`."""
    given = ["--cfg", "None", "--dataset", "made", "--dataset_path", str(folder), "--il_mode", stream.il_mode]
    return run([*given, "--backbone", str(backbone), *options.split()], folder / "runs")


def check_scores(folder: Path, stream: Stream) -> None:
    """Every cell of R is what its metric gives for the saved predictions, one for each example."""
    R = read_json(folder / "results.json")["R"]
    for i in range(len(stream.tasks)):
        for j in range(i + 1):
            rows = read_jsonl(folder / f"predictions/after_{i}/task_{j}.jsonl")
            predictions, targets, sources = ([row[k] for row in rows] for k in ("prediction", "target", "input"))
            assert [*zip(sources, targets, strict=True)] == [(e.input, e.target) for e in stream.tasks[j].test]
            accepted = [e.accepted for e in stream.tasks[j].test]
            assert [tuple(row.get("references", [row["target"]])) for row in rows] == accepted
            scores = score(stream.metric(j), predictions, accepted, sources)
            assert R[i][j] == pytest.approx(aggregate(stream.metric(j), scores, predictions, accepted))
            assert 0 <= R[i][j] <= 1


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in ("i2b2", "ontonotes5")])
def test_entities_are_scored_by_macro_span_f1(name, tmp_path):
    from seqeval.metrics import f1_score  # imports scikit-learn

    raw = tmp_path / "raw"
    shutil.copytree(FIXTURES / name, raw / name)
    shutil.copy(raw / name / "train.txt", raw / name / "test.txt")  # so few sentences can be remembered, not understood
    stream = prepare(name, raw, tmp_path, "")
    folder = learn(stream, tmp_path, f"{FEW} --training_epochs_first_task 25 --backbone_max_new_token 48")
    check_scores(folder, stream)
    rows = read_jsonl(folder / "predictions/after_0/task_0.jsonl")
    wanted = [row["target"].split() for row in rows]
    got = [[tag if tag[1:2] == "-" and tag[2:] else "O" for tag in row["prediction"].split()] for row in rows]
    got = [(tags + ["O"] * len(right))[: len(right)] for tags, right in zip(got, wanted, strict=True)]
    macro = read_json(folder / "results.json")["R"][0][0]
    assert macro == pytest.approx(f1_score(wanted, got, average="macro", zero_division=0)) and 0.2 < macro < 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "method"),
    [
        ("superni", "--order 748,363", "--method OLoRA --PEFT_type LoRA"),
        ("long_sequence", "--order mnli,qqp,copa --drop-unlabelled", "--method SEQ --PEFT_type LoRA"),
        ("standard_cl", "--order amazon,agnews --prompt olora", "--method SEQ"),
    ],
)
def test_a_random_t5_learns_the_benchmarks_of_instructions(name, options, method, tmp_path):
    stream = prepare(name, FIXTURES, tmp_path, options)
    folder = learn(stream, tmp_path, f"{FEW} {method} --backbone_max_new_token 8", tiny.backbone_folder("t5"))
    check_scores(folder, stream)


@pytest.mark.parametrize("name", [pytest.param(name, marks=real(name)) for name in REAL_STREAMS])
def test_real_streams(name, tmp_path):
    stream = prepare(name, REAL, tmp_path, f"--limit 6 {REAL_STREAMS[name]}")
    folder = learn(stream, tmp_path, FEW)
    check_scores(folder, stream)
    assert {stream.metric(j) for j in range(len(stream.tasks))} <= METRICS.keys()
    results = read_json(folder / "results.json")
    assert ("R_locality" in results) == (name == "zsre") and ("R_train" in results) == (
        stream.il_mode in ("IIL", "CKE")
    )
