"""The estimate of hours: FLOP of a token by what is trained, least time of a pass, and the launch that fits."""

import pytest

from tests import tiny
from utils import estimate
from utils.estimate import DEVICES, LAUNCH, USE, Net, Work


def work(**options):
    method = tiny.make_method(tiny.make_session(tiny.make_config(**options)))
    task = tiny.make_task(1, epochs=2)
    done = estimate.training(method, task, len(task.train), 4)
    return method, done.flops / (2 * len(task.train)) / estimate._forward(
        estimate.net_of(method.model), *estimate._tokens(method, task.train, 1)
    )


def test_training_costs_three_passes_a_frozen_base_two_and_frozen_layers_less():
    assert work()[1] == pytest.approx(3)
    adapters = work(PEFT_type="LoRA", PEFT_lora_r=1)[1]
    assert 2 < adapters < 2.2
    assert 1.5 < work(freeze_parts=["embeddings", "layers 0"])[1] < 2.5  # of two layers


def test_the_output_layer_reads_answers_only():
    method, _ = work()
    net, table = estimate.net_of(method.model), method.model.get_input_embeddings().weight.numel()
    assert net.head == table and net.layers == 2
    assert net.prompt == sum(w.numel() for w in method.model.parameters()) - 2 * table
    assert estimate._forward(Net(10, 20, 5, 1), 3, 2) == 2 * (10 * 3 + (20 + 5) * 2)


def test_time_is_by_work_or_by_passes():
    heavy, light = Work(USE * 1e12 * 80, 8, (8, 1), 1), Work(1, 64, (8, 8), 3)
    assert estimate.seconds([heavy], 2, 0, 1e12) == pytest.approx(80)
    assert estimate.seconds([heavy], 2, 1, 1e12) == pytest.approx(80 / DEVICES)
    assert estimate.seconds([light], 2, 0, 1e12) == pytest.approx(8 * 3 * 2 * LAUNCH)
    assert estimate.seconds([light], 2, 1, 1e12) == pytest.approx(3 * 2 * LAUNCH)


def test_eight_devices_divide_only_what_they_must():
    method, _ = work()
    for memory, fits, launch in (
        ((1e9, 1e9, 2e9), True, "gpu_8"),
        ((27e9, 27e9, 54e9), False, "zero_2"),
        ((80e9, 80e9, 160e9), False, "fsdp_2"),
        ((800e9, 800e9, 1600e9), False, None),
    ):
        found = estimate.estimate(method, [], memory)
        assert (found.fits, found.launch) == (fits, launch)
