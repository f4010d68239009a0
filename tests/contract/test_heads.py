"""What every method that may have a classifier must keep with one."""

import pytest
import torch

from tests import tiny
from tests.contract.test_methods import predictions
from utils.factory import load_method

WITH_HEADS = [name for name in tiny.TESTED if "Linear" in load_method(name).heads]
BACKBONES = ("bert_encoder", "neox")
pytestmark = pytest.mark.parametrize("name", tiny.one_of_each_kind(WITH_HEADS))


def config_of(name, family, **options):
    """In CIL, or TIL where it must; the other kind of head with decoders."""
    modes = load_method(name).scenarios
    head = {"classifier": "Linear" if family in tiny.ENCODERS else "CosineLinear", "classifier_lr": 1e-2}
    folder = tiny.backbone_folder(family, dropout=0.1)
    il_mode = "CIL" if "CIL" in modes else "TIL"
    return tiny.make_config(name, backbone=folder, il_mode=il_mode, **head, **options)


@pytest.mark.parametrize("family", [BACKBONES[0], pytest.param(BACKBONES[1], marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(name, family, tmp_path):
    if family not in ("neox",) and "encoder" not in load_method(name).backbones:
        pytest.skip("refused before")
    folders = [tmp_path / "whole", tmp_path / "cut"]
    config = config_of(name, family, training_epochs=1, save_llm_ckpt_step_interval=2)
    whole = tiny.run(folders[0], config, tiny.class_stream(), cuts={"task_1_epoch_0_step_2": folders[1]})
    torch.manual_seed(999)
    resumed = tiny.run(folders[1], config, tiny.class_stream())
    assert tiny.same(whole.weights, resumed.weights)
    assert predictions(folders[0]) == predictions(folders[1])
    assert all(row["prediction"].startswith("kind ") for rows in predictions(folders[0]).values() for row in rows)


@pytest.mark.slow
def test_accumulated_parts_are_one_big_batch(name):
    options = {"adam_epsilon": 1.0, "lr": 1.0, "classifier_lr": 1.0, "weight_decay": 0.0, "training_epochs": 1}
    options |= {"classifier_weight_decay": 0.0, "backbone": tiny.backbone_folder(), "info_per_steps": 1}
    made = []
    for count in (1, 3):
        config = config_of(name, "neox").model_copy(update=options | {"gradient_accumulation_steps": count})
        made.append(tiny.learn(config, tiny.class_stream()))
    assert made[1].losses == pytest.approx(made[0].losses, rel=1e-4)
    for key, w in made[0].weights.items():
        assert torch.allclose(w, made[1].weights[key], rtol=1e-4, atol=1e-5), key
