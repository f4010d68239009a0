"""OSF: after training with AdamW the preserved directions of every matrix are as they were."""

import pytest
import torch

from models.OSF import free_part
from tests import tiny
from utils.run.fit import fit


def test_the_free_part_of_a_change_by_hand():
    u, v = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0], [0.0]])
    change = torch.arange(1.0, 7).reshape(2, 3)
    assert free_part(change, u, v).tolist() == [[0, 0, 0], [4, 0, 6]]


def learn(name, tasks=(0, 1), family="neox", **options):
    session = tiny.make_session(tiny.make_config(name, backbone=tiny.backbone_folder(family), weight_decay=0.1))
    method, start = tiny.make_method(session, **options), {}
    for index in tasks:
        method.before_task(tiny.make_task(index))
        start = tiny.snapshot(method)
        fit(method, tiny.make_task(index), session)
    return method, start


@pytest.mark.parametrize("family", ["neox", "gpt2"])
def test_no_change_in_the_preserved_directions(family):
    method, start = learn("OSF", family=family, OSF_preserve=0.5)
    assert method.kept
    for name, (u, v) in method.kept.items():
        w = start[name].double()
        change = method.named()[name].detach().double() - w
        assert change.norm() > 1e-3 * w.norm(), name
        assert (u.double().T @ change).abs().max() < 1e-5 * change.norm(), name
        assert (change @ v.double()).abs().max() < 1e-5 * change.norm(), name
        top = torch.linalg.svdvals(w)[: u.shape[1]]
        assert torch.allclose((u.double().T @ w @ v.double()).diag(), top, rtol=1e-4, atol=1e-6), name


def test_share_0_is_sequential_fine_tuning_and_share_1_holds_the_matrices():
    plain, free = (tiny.snapshot(learn(name, **own)[0]) for name, own in (("SEQ", {}), ("OSF", {"OSF_preserve": 0.0})))
    assert tiny.same(plain, free)
    method, start = learn("OSF", OSF_preserve=1.0)
    for name in method.kept:
        assert torch.allclose(method.named()[name], start[name], atol=1e-6), name


def test_the_share_rises_with_the_tasks():
    ranks = []
    for index in (0, 1, 2):
        method = tiny.make_method(tiny.make_session(tiny.make_config("OSF")))
        method.before_task(tiny.make_task(index))
        ranks.append({name: u.shape[1] / min(method.named()[name].shape) for name, (u, _) in method.kept.items()})
    assert ranks[0] == {}
    assert all(abs(share - 1 / 3) < 0.05 for share in ranks[1].values())
    assert all(abs(share - 2 / 3) < 0.05 for share in ranks[2].values())
