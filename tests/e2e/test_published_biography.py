"""The published command on the published stream: raw files, config/biography_qa_task2/SEQ.yaml, a GPT-NeoX folder."""

from pathlib import Path

import pytest
import yaml

from tests.e2e.test_cli import call
from tests.tiny import backbone_folder
from utils.dataformat_preprocess import main
from utils.preprocess import biography_synth
from utils.storage.files import read_json

ROOT = Path(__file__).parents[2]
PUBLISHED = """
il_mode: CIT

dataset: biography_qa_task2
classification_type: sentence-level

classifier: None

method: SEQ

training_epochs: 25
training_epochs_first_task: 10

lr: 5e-6
batch_size: 48

info_per_steps: 25

prompt_type: auto
"""
COMMAND = (
    "--exp_prefix published --cfg ./config/biography_qa_task2/SEQ.yaml --backbone pythia-160m-bio-pretrained-100k "
    "--load_llm_ckpt True --backbone_cache_path"
)


def test_the_yaml_file_holds_the_published_options():
    text = (ROOT / "config/biography_qa_task2/SEQ.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == yaml.safe_load(PUBLISHED)


@pytest.mark.slow
def test_the_published_commands_train_on_the_raw_files(tmp_path, monkeypatch, capsys):
    biography_synth.write_raw(tmp_path / "dataset", biography_synth.Options(preset="micro"), 1, False)
    (tmp_path / "config").symlink_to(ROOT / "config")
    monkeypatch.chdir(tmp_path)
    assert main(["--dataset", "biography_qa", "--seed", "1"]) == 0
    assert "biography_qa_task2: 2 tasks" in capsys.readouterr().out
    assert call([*COMMAND.split(), backbone_folder()]) == 0
    (folder,) = tmp_path.glob("experiments/published-SEQ/*")
    R = read_json(folder / "results.json")["R"]
    assert [len([cell for cell in row if cell is not None]) for row in R] == [1, 2]
    used = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    options = yaml.safe_load(PUBLISHED)
    assert {name: used[name] for name in options} == options | {"classifier": None, "lr": 5e-6}
