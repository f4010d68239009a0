"""Every method on a GPU, in float32 and in bfloat16 autocast: trained, interrupted inside a task, resumed.

python -m pytest -m gpu tests/gpu/test_methods.py -n 0 -s
"""

import shlex
import shutil

import pytest
import torch

from tests.e2e.test_cli import call, run
from tests.e2e.test_two_processes import VARIANTS, common_options, losses_of
from tests.tiny import backbone_folder
from utils.run.checkpoint import checkpoints

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
SHORT = "--training_epochs 2 --is_evaluate_init false --save_llm_ckpt true --save_llm_ckpt_step_interval 2"
DIRECTION = " --GradientProjection_begin_step 1 --GradientProjection_end_step 3"
ONE_PASS = ("learned", "best", "bfloat16")  # variants that need all their epochs, or have a precision
LORA = "--PEFT_type LoRA --PEFT_lora_dropout 0 --PEFT_lora_target_modules [all-linear] --Replay_buffer_ratio 0.5"
ON_A_GPU = {
    "nf4": f"{LORA} --backbone_quantization nf4 --backbone_dtype bfloat16 --gradient_checkpointing",
    "int8": f"{LORA} --backbone_quantization int8",
    "moments of 8 bits": "--adam_states int8 --Replay_buffer_ratio 0.5",
    "tf32": "--tf32 --Replay_buffer_ratio 0.5",
    "deterministic": "--deterministic --Replay_buffer_ratio 0.5",
    "kept in memory": "--is_replay false --freeze_parts [embeddings,0] --keep_frozen_states memory",
    "kept on disk": "--is_replay false --freeze_parts [embeddings,0] --keep_frozen_states disk",
}
NAMES = {name: words for name, words in VARIANTS.items() if name not in ONE_PASS} | ON_A_GPU


@pytest.fixture(scope="module")
def common(tmp_path_factory):
    return common_options(tmp_path_factory.mktemp("streams"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_run_has_the_losses_of_the_whole(name, precision, common, tmp_path):
    words = NAMES[name].replace("ENCODER", backbone_folder("bert_encoder")) + DIRECTION * (name == "GradientProjection")
    folder = run([*common, *shlex.split(f"{words} {SHORT} --mixed_precision {precision}")], tmp_path)
    whole, places = losses_of(folder), checkpoints(folder / "checkpoints")
    inside = next((i for i, place in enumerate(places) if place.task == 1 and not place.finished), len(places))
    for place in places[inside + 1 :]:
        shutil.rmtree(folder / "checkpoints" / place.name)
    for later in [*folder.glob("predictions/after_[12]"), *folder.glob("predictions/task_[12]_*")]:
        shutil.rmtree(later)
    assert call(["--resume", str(folder)]) == 0
    assert losses_of(folder) == pytest.approx(whole, rel=1e-2)
