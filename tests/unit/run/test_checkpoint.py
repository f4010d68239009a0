"""Checkpoints: whole or refused, and usable without this program."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests import tiny
from utils.errors import UserError
from utils.run import checkpoint
from utils.run.checkpoint import Place, checkpoints, load_state, load_weights, pack, save, unpack

STATE = {
    "method": {"fisher": {"a.b": torch.arange(6.0).reshape(2, 3)}, 3: [1, (2, None), "x"], (1, "k"): {"deep": [{}]}},
    "moments": {},
    "flags": [True, 1.5, -0.0, "é\n", torch.tensor(7), torch.zeros(0, 4, dtype=torch.bfloat16)],
}


@pytest.fixture
def model():
    return tiny.make_model()


def write(root, place, model, limit=None, state=None):
    save(root, place, model, tiny.tokenizer(), pack(STATE if state is None else state), limit)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def test_pack_and_unpack():
    plain, tensors = pack(STATE)
    assert equal(unpack(json.loads(json.dumps(plain)), tensors), STATE)
    assert all(not isinstance(value, torch.Tensor) for value in plain.values())
    for value in ({}, [], (), None, 0, "", {"tensor": 1}, {"dict": []}, {1: {"list": (1,)}}, [[torch.ones(1)]]):
        plain, tensors = pack(value)
        assert equal(unpack(json.loads(json.dumps(plain)), tensors), value), value


def test_packed_tensors_do_not_follow_the_originals():
    original = torch.ones(3)
    plain, tensors = pack([original, original.view(3, 1), original[::2]])
    original += 1
    assert [t.tolist() for t in unpack(plain, tensors)] == [[1, 1, 1], [[1], [1], [1]], [1, 1]]


def test_a_saved_state_comes_back(tmp_path, model):
    write(tmp_path, Place(0), model)
    assert equal(load_state(tmp_path / "task_0"), STATE)


def test_what_comes_back_lies_as_new_tensors_lie(tmp_path, model):
    """Products of tensors at another alignment are rounded otherwise: a resumed run would end with other bits."""
    state = {"tensors": [torch.ones(n, n, dtype=torch.float64) for n in range(1, 9)]}
    save(tmp_path, Place(0), model, tiny.tokenizer(), pack(state), None)
    loaded = load_state(tmp_path / "task_0")["tensors"]
    assert [w.data_ptr() % 64 for w in loaded] == [0] * 8


def test_moments_stay_in_the_file(tmp_path, model):
    """Eight processes of a machine that resume do not hold eight copies."""
    state = {"moments": {"w": torch.ones(2000, 2000)}, "method": torch.ones(2000, 2000)}
    save(tmp_path, Place(0), model, tiny.tokenizer(), pack(state), None)
    before = Path("/proc/self/maps").read_text().count("state.safetensors")
    loaded = load_state(tmp_path / "task_0")
    assert Path("/proc/self/maps").read_text().count("state.safetensors") > before
    assert equal(loaded, state)
    del loaded["moments"]
    assert Path("/proc/self/maps").read_text().count("state.safetensors") == before, "the rest is copied"


def test_weights_come_back_bit_for_bit(tmp_path, model):
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        write(tmp_path, Place(0), model)
        other = tiny.make_model(seed=1).to(dtype)
        load_weights(other, tmp_path / "task_0")
        assert tiny.same(dict(other.named_parameters()), dict(model.named_parameters()))


def test_tied_weights_stay_tied(tmp_path):
    net = tiny.make_model("gpt2", tie_word_embeddings=True)
    write(tmp_path, Place(0), net)
    other = tiny.make_model("gpt2", seed=1, tie_word_embeddings=True)
    load_weights(other, tmp_path / "task_0")
    assert other.lm_head.weight is other.transformer.wte.weight
    assert tiny.same(dict(other.named_parameters()), dict(net.named_parameters()))


def test_transformers_alone_can_load_it(tmp_path, model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write(tmp_path, Place(3), model)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "task_3")
    assert tiny.same(dict(loaded.named_parameters()), dict(model.named_parameters()))
    words = AutoTokenizer.from_pretrained(tmp_path / "task_3")
    assert words("cat a wuff")["input_ids"] == tiny.tokenizer()("cat a wuff")["input_ids"]
    assert words.eos_token_id == tiny.EOS


def test_nothing_is_pickled(tmp_path, model):
    write(tmp_path, Place(0), model)
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".txt", ".jinja"}


PLACES = [Place(0, 0, 2), Place(0, 0, 10), Place(0, 1, 1), Place(0), Place(1, 0, 1), Place(1), Place(2), Place(10)]


def test_the_newest_is_the_last(tmp_path):
    for place in reversed(PLACES):
        (tmp_path / place.name).mkdir()
    assert checkpoints(tmp_path) == PLACES
    assert [place.finished for place in PLACES] == [False, False, False, True, False, True, True, True]


def test_what_is_no_checkpoint_is_ignored(tmp_path, model):
    write(tmp_path, Place(1), model)
    for name in (".task_2.tmp", ".task_2.old", "task_x", "task_3_backup", "notes"):
        shutil.copytree(tmp_path / "task_1", tmp_path / name)
    assert checkpoints(tmp_path) == [Place(1)]
    assert checkpoints(tmp_path / "nothing") == []


@pytest.mark.parametrize(("limit", "kept"), [(None, PLACES[:4]), (1, PLACES[3:4]), (3, PLACES[1:4]), (9, PLACES[:4])])
def test_the_oldest_go_when_there_are_too_many(tmp_path, model, limit, kept):
    for place in PLACES[:4]:
        write(tmp_path, place, model, limit)
    assert checkpoints(tmp_path) == kept
    assert not list(tmp_path.glob(".*"))


class Crash(BaseException):
    pass


@pytest.mark.parametrize("point", ["write_json", "_sync", "save_file"])
def test_a_crash_while_saving_leaves_the_older_one(tmp_path, model, monkeypatch, point):
    write(tmp_path, Place(0), model, 1)

    def crash(*_, **__):
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(checkpoint, point, crash)
        write(tmp_path, Place(1), model, 1)
    assert checkpoints(tmp_path) == [Place(0)]
    assert equal(load_state(tmp_path / "task_0"), STATE)
    write(tmp_path, Place(1), model, 1)  # and what the crash left is in nobody's way
    assert checkpoints(tmp_path) == [Place(1)]


def test_the_same_place_can_be_written_again_even_after_a_crash(tmp_path, model):
    write(tmp_path, Place(0), model, state={"n": 1})
    shutil.copytree(tmp_path / "task_0", tmp_path / ".task_0.old")  # a crash between two renames
    write(tmp_path, Place(0), model, state={"n": 2})
    assert load_state(tmp_path / "task_0") == {"n": 2}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "state.safetensors", "state.json", "manifest.json", "config.json"]
)
@pytest.mark.parametrize("how", ["missing", "truncated", "one bit"])
def test_damage_is_one_sentence(tmp_path, model, name, how):
    write(tmp_path, Place(0), model)
    path = tmp_path / "task_0" / name
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    with pytest.raises(UserError) as caught:
        load_state(tmp_path / "task_0")
    assert str(tmp_path / "task_0") in str(caught.value)
    assert "\n" not in str(caught.value)
    if name != "manifest.json":
        expected = "missing" if how == "missing" else "damaged"
        assert str(caught.value) == (
            f"{path} is {expected}; delete the folder {tmp_path / 'task_0'} and resume again from the "
            "checkpoint before it or from the beginning"
        )


def test_an_old_checkpoint_may_be_a_link(tmp_path, model):
    write(tmp_path / "elsewhere", Place(0), model)
    root = tmp_path / "checkpoints"
    root.mkdir()
    (root / "task_0").symlink_to(tmp_path / "elsewhere/task_0")
    write(root, Place(0), model, limit=2)  # the link gives way to a folder
    assert [path.name for path in root.iterdir()] == ["task_0"] and not (root / "task_0").is_symlink()
    shutil.rmtree(root / "task_0")
    (root / "task_0").symlink_to(tmp_path / "elsewhere/task_0")
    write(root, Place(1), model, limit=1)
    assert [path.name for path in root.iterdir()] == ["task_1"]
    assert (tmp_path / "elsewhere/task_0/manifest.json").is_file()
