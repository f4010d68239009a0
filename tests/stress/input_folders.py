"""Inputs for `python -m tests.stress.inputs`: model folders, chat templates and run folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from hypothesis import strategies as st

import main_CL
from tests import tiny
from tests.chat_templates import FAMILIES
from tests.stress.input_files import KEPT
from tests.stress.input_world import Case, World, chatty_backbone
from tests.stress.spoilt_inputs import spoilt_file, spoilt_json
from utils import sweep
from utils.jobs import runs
from utils.report.__main__ import main as report


def _other_weights(folder: Path, change: Callable[[dict], Any]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _edit(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")

    return change


def _fill(value: float) -> Callable[[Path], None]:
    return lambda folder: _other_weights(folder, lambda weights: weights[min(weights)].fill_(value))


def _cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-20])


SPOIL_MODEL: dict[str, Callable[[Path], Any]] = {
    "config.json absent": lambda folder: (folder / "config.json").unlink(),
    "weights absent": lambda folder: (folder / "model.safetensors").unlink(),
    "weights truncated": _cut("model.safetensors"),
    "tokenizer truncated": _cut("tokenizer.json"),
    "config truncated": _cut("config.json"),
    "weights NaN": _fill(float("nan")),
    "weights infinite": _fill(float("inf")),
    "a weight missing": lambda folder: _other_weights(folder, lambda weights: weights.pop(min(weights))),
    "a weight of another shape": lambda folder: _other_weights(
        folder, lambda weights: weights.update({min(weights): weights[min(weights)][:-1].clone()})
    ),
    "fewer rows than tokens": _edit("config.json", vocab_size=100),
    "another width": _edit("config.json", hidden_size=48),
    "a layer more": _edit("config.json", num_hidden_layers=3),
    "a layer fewer": _edit("config.json", num_hidden_layers=1),
    "no layers": _edit("config.json", num_hidden_layers=0),
    "heads that do not divide the width": _edit("config.json", num_attention_heads=5),
    "an unknown model type": _edit("config.json", model_type="no_such"),
    "an unknown activation": _edit("config.json", hidden_act="no_such"),
    "no end of sequence": _edit("tokenizer_config.json", eos_token=None),
}


@st.composite
def model_folders(draw: Any, world: World) -> Case:
    """A folder with a model: configuration, tokenizer, weights."""
    source = Path(tiny.backbone_folder())
    what = draw(st.sampled_from([*["spoilt"] * len(SPOIL_MODEL), *sorted(SPOIL_MODEL)]))
    file = draw(st.sampled_from(sorted(source.iterdir())))
    content = draw(spoilt_file(file.read_bytes(), file.suffix)) if what == "spoilt" else b""
    evaluate = draw(st.booleans())

    def call() -> Any:
        folder = shutil.copytree(source, world.case / "model")
        if what == "spoilt":
            (folder / file.name).write_bytes(content)
        else:
            SPOIL_MODEL[what](folder)
        more = ["--is_evaluate_only", "true"] if evaluate else []
        return main_CL.main(world.argv(*more, backbone=str(folder)))

    return Case(f"{what} {file.name if what == 'spoilt' else ''} {evaluate=}", call, what != "spoilt")


TEMPLATES = [  # that no run can use
    "{% for i in range(10**9) %}{{ i }}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{{ 'a' * 10**9 }}",
    "{{ messages.__class__.__mro__[-1].__subclasses__() }}",
    "{% include '/etc/passwd' %}",
    "{{ raise_exception('no') }}",
    "{{ messages[0]['content'] }}",
    "{{ messages[7]['content']['x'] }}",
    "nothing",
    "",
    "{% for m in messages %}",
    "{{ no_such(messages) }}",
    "{% for m in messages %}{{ m['content'][::-1] }}{% endfor %}",
    "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
]
PIECES = [
    "{{ bos_token }}", "{{ eos_token }}", "{{ m['role'] }}", "{{ m['content'] }}", "{{ m.content|trim }}", "\n", ": ",
    "{% if add_generation_prompt %}x{% endif %}", "{% if loop.last %}y{% endif %}", "{{ 1/0 }}", "<|im_end|>", "é",
]  # fmt: skip


@st.composite
def templates(draw: Any, world: World) -> Case:
    """The chat template of a tokenizer."""
    family = draw(st.sampled_from(sorted(FAMILIES)))
    how = draw(st.sampled_from(["wrong", "spoilt", "pieces"]))
    if how == "wrong":
        template = draw(st.sampled_from(TEMPLATES))
    elif how == "spoilt":
        at = draw(st.integers(0, len(FAMILIES[family].source)))
        template = FAMILIES[family].source[:at] + draw(st.sampled_from([*PIECES, "", "{%", "}}"]))
        template += FAMILIES[family].source[at + draw(st.integers(0, 4)) :]
    else:
        body = "".join(draw(st.lists(st.sampled_from(PIECES), max_size=6)))
        template = f"{{% for m in messages %}}{body}{{% endfor %}}{draw(st.sampled_from(PIECES))}"

    def call() -> Any:
        return main_CL.main(world.argv(dataset="chats", backbone=chatty_backbone(world, template, family)))

    return Case(f"{how}: {family} {template[:200]!r}", call, how == "wrong")


def _resume(folder: Path) -> Any:
    return main_CL.main(["--resume", str(folder)])


def _diagnose(what: str) -> Callable[[Path], Any]:
    from utils.diagnose.__main__ import main

    return lambda folder: main([what, str(folder)])


def _sweep(folder: Path) -> Any:
    """A sweep whose only run is this folder; a run that would be started fails at once."""
    root = folder.parent / "sweep"
    cfg = root / "x" / "a.yaml"
    cfg.parent.mkdir(parents=True)
    cfg.write_text("method: SEQ\n", encoding="utf-8")
    job = runs.Job(cfg, 1, "p", root, ())
    shutil.copytree(folder, root / job.name / "2026-01-01-00-00-00-seed1", symlinks=True)
    with mock.patch.object(runs.Job, "command", lambda self: ["false"]):
        return sweep.main([str(cfg), "--seeds", "1", "--prefix", "p", "--dump_path", str(root)])


USES: dict[str, tuple[str, Callable[[Path], Any]]] = {  # the run that is used, and the program
    "resume": ("half", _resume),
    "resume of a finished run": ("done", _resume),
    "report": ("done", lambda folder: report([str(folder)])),
    "report of an interrupted run": ("half", lambda folder: report([str(folder)])),
    "shift": ("done", _diagnose("shift")),
    "angles": ("done", _diagnose("angles")),
    "sweep": ("done", _sweep),
}


@st.composite
def run_folders(draw: Any, world: World) -> Case:
    """A run folder with a spoilt, absent or odd file."""
    use = draw(st.sampled_from(sorted(USES)))
    run, call_it = USES[use]
    files = sorted(p.relative_to(world.root / run) for p in (world.root / run).rglob("*") if p.is_file())
    small = [f for f in files if f.suffix in (".json", ".jsonl", ".yaml")]
    file = draw(st.sampled_from(draw(st.sampled_from([files, small, small]))))
    how = draw(st.sampled_from(["spoilt", "spoilt", "spoilt", "value", "absent", "a folder", "a broken link"]))
    before = (world.root / run / file).read_bytes()
    content = draw(spoilt_file(before, file.suffix)) if how == "spoilt" else b""
    if how == "value":
        content = draw(st.sampled_from([b"[]", b"{}", b"null", b"3", b'"x"', b"[null]", b"", b"\xff", b"[[]]"]))
    if file.name == "config.yaml" and how == "spoilt":
        content = _spoilt_options(draw, before)

    def call() -> Any:
        folder = shutil.copytree(world.root / run, world.case / "run")
        path = folder / file
        path.unlink()
        if how == "a folder":
            path.mkdir()
        elif how == "a broken link":
            path.symlink_to("nowhere")
        elif how != "absent":
            path.write_bytes(content)
        return call_it(folder)

    return Case(f"{use}: {file} {how}", call)


def _spoilt_options(draw: Any, content: bytes) -> bytes:
    """A saved configuration with values of other kinds; what says how long a run takes is kept."""
    options = yaml.safe_load(content)
    kept = {name: value for name, value in options.items() if name in KEPT or "epochs" in name}
    return json.dumps(draw(spoilt_json(options)) | kept).encode()
