"""Names of evaluation points: written and read in one place."""

from pathlib import Path

from utils.storage.moment import BASE, RECOVERY, Moment, parse

MOMENTS = {
    "base": BASE,
    "recovery": RECOVERY,
    "after_0": Moment(0),
    "after_12_working": Moment(12).of("working"),
    "after_2_alpha 0.2": Moment(2, version="alpha 0.2"),
    "after_2_a_b": Moment(2, version="a_b"),
    "task_0_epoch_1": Moment(0, 1),
    "task_10_epoch_20_slow": Moment(10, 20, "slow"),
    "base_slow": BASE.of("slow"),
}


def test_a_folder_names_its_moment():
    for folder, moment in MOMENTS.items():
        assert (moment.folder, parse(folder)) == (folder, moment), folder
    for other in ("", "after_", "after_1.tmp", "after_x", "task_1", "task_1_epoch_", "basement", "notes", ".after_1"):
        assert parse(other) is None, other


def test_files_of_a_moment():
    run = Path("run")
    assert Moment(1).predictions(run, "train_task_0") == Path("run/predictions/after_1/train_task_0.jsonl")
    assert BASE.probing(run, 2) == Path("run/probing/base/task_2.jsonl")
