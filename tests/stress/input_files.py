"""Inputs for `python -m tests.stress.inputs`: options, streams, own data files and raw files."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from hypothesis import strategies as st

import main_CL
from models import METHODS
from tests import tiny
from tests.stress.input_world import Case, World, chatty_backbone
from tests.stress.spoilt_inputs import YAML_VALUES, names, option_lines, spoilt_file, yaml_texts
from utils import dataformat_preprocess
from utils.classifier import AnswerKind
from utils.config import Config
from utils.dataset import CONFIG_FILE, DATA_FILE
from utils.errors import UserError
from utils.factory import load_method
from utils.options.parse import _kind, resolve
from utils.preprocess import PREPROCESSORS

FIXTURES = Path(__file__).parents[1] / "fixtures"
RAW = [name for name in PREPROCESSORS if name not in ("biography_qa", "jsonl")]
# Options that say where a run reads and writes, or how long it takes: not to be replaced by what is drawn.
KEPT = {"cfg", "resume", "dump_path", "dataset_path", "is_wandb", "is_tensorboard", "backbone_cache_path"}
FAMILIES_OF = {
    "decoder": ["neox", "gpt2", "llama"],
    "encoder-decoder": ["t5", "bart"],
    "encoder": ["bert_encoder", "roberta"],
}
LONG = {"training_epochs_list", "recovery_epochs", "dry_run"}


def wrong_option(draw: Any) -> tuple[str, str]:
    """The name of an option and a value, as YAML, that can't be accepted."""
    name = draw(st.sampled_from(sorted(set(Config.model_fields) - KEPT)))
    field = Config.model_fields[name]
    kind = _kind(field.annotation)
    how = draw(st.sampled_from(["name", "type", "limit", "other method"]))
    if how == "other method":
        return draw(st.sampled_from(["EWC_lambda", "LwF_lambda", "OLoRA_lambda", "DERpp_alpha"])), "1"
    if how == "name":
        k = draw(st.integers(1, len(name) - 1))
        spoilt = draw(st.sampled_from([name[:k] + name[k + 1 :], name[:k] + "x" + name[k:], name + "_"]))
        return (spoilt if spoilt not in Config.model_fields else f"{name}_x"), "1"
    limits = [limit for part in field.metadata for limit in [part] if hasattr(limit, "ge") or hasattr(limit, "gt")]
    if how == "limit" and limits and kind in (int, float):
        limit = getattr(limits[0], "ge", None)
        return name, str((limit if limit is not None else limits[0].gt + 1) - 1)
    values = {int: ["abc", "1.5", "[1]", "{a: 1}", "1:30"], float: ["abc", "[1]", "1:30", ".nan"], bool: ["maybe", "2"]}
    if get_origin(kind) is tuple:
        return name, draw(st.sampled_from(["{a: 1}", "1.5"]))
    return name, draw(st.sampled_from(values.get(kind, ["{a: 1}", "[[1]]", "1.5", "!!set {a}"])))


def valid_options(draw: Any) -> dict[str, str]:
    """Options with values of the right kind that the option parser accepts together, as YAML."""
    name = draw(st.sampled_from(list(METHODS)))
    method = load_method(name)
    mode = draw(st.sampled_from(sorted(method.scenarios)))
    family = draw(st.sampled_from([f for kind in sorted(method.backbones) for f in FAMILIES_OF[kind]]))
    lines = {"method": name, "il_mode": mode, "backbone": tiny.backbone_folder(family)}
    heads = family in FAMILIES_OF["encoder"] or (AnswerKind.LINEAR in method.heads and draw(st.booleans()))
    lines |= {"classifier": "Linear"} if heads and mode in ("CIL", "TIL") else {}
    words = mode == "CIL" and heads and family in FAMILIES_OF["encoder"] and draw(st.booleans())
    lines["dataset"] = "words" if words else "classes" if mode in ("CIL", "TIL") else "micro"
    for setting in method.needs:
        lines |= {key: str(value) for key, value in tiny.SETTINGS[str(setting)].items()}
    lines |= {key: str(value) for key, value in tiny.OWN.get(name, {}).items()}
    fields = {**Config.model_fields, **method.Options.model_fields}
    for key in draw(st.lists(st.sampled_from(sorted(set(fields) - KEPT - LONG - set(lines))), max_size=4)):
        value = _valid(draw, fields[key])
        if value is not None and _fits(lines | {key: value}):
            lines[key] = value
    return lines


def _fits(lines: dict[str, str]) -> bool:
    try:
        resolve([word for name, value in lines.items() for word in (f"--{name}", value)] + ["--cfg", "None"])
    except UserError:
        return False
    return True


def _valid(draw: Any, field: Any) -> str | None:
    """A value that the option allows on its own; None: the default."""
    kind = _kind(field.annotation)
    if get_origin(kind) is Literal:
        return draw(st.sampled_from(get_args(kind)))
    if kind is bool:
        return draw(st.sampled_from(["true", "false"]))
    low = next((limit.ge for limit in field.metadata if hasattr(limit, "ge")), 0)
    if kind is int:
        return str(low + draw(st.integers(0, 3)))
    return str(low + draw(st.sampled_from([0.0, 0.1, 0.5]))) if kind is float else None


@st.composite
def yaml_files(draw: Any, world: World) -> Case:
    """A YAML file of a run."""
    base = {"backbone": tiny.backbone_folder(), "dataset": "micro", "training_epochs": "1"}
    how = draw(st.sampled_from(["lines", "lines", "text", "wrong", "wrong", "twice", "valid", "valid", "valid"]))
    wrong = how in ("wrong", "twice")
    if how == "text":
        text = draw(yaml_texts)
    else:
        lines = dict(draw(option_lines)) if how == "lines" else dict([wrong_option(draw)]) if how == "wrong" else {}
        if how == "valid":
            lines = valid_options(draw)
        text = "\n".join(f"{n}: {v}" for n, v in (base | {n: v for n, v in lines.items() if n not in KEPT}).items())
        text += "\nseed: 1\nseed: 2" if how == "twice" else ""
    file = world.case / "run.yaml"

    def call() -> Any:
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        return main_CL.main(["--cfg", str(file), *world.places()])

    return Case(f"{how}: {text[-300:]!r}", call, wrong)


@st.composite
def command_lines(draw: Any, world: World) -> Case:
    """Words behind main_CL.py."""
    wrong = draw(st.booleans())
    if wrong:
        name, value = wrong_option(draw)
        words = [f"--{name}", value] if Config.model_fields.get(name) is None or value else [f"--{name}"]
        field = Config.model_fields.get(name)
        wrong = field is None or _kind(field.annotation) is not str  # on a command line every word is a text
    else:
        free = st.one_of(names.map("--{}".format), st.sampled_from(YAML_VALUES), st.text(max_size=8))
        words = draw(st.lists(free, min_size=1, max_size=5))
        words = [word for word in words if word.removeprefix("--").split("=")[0] not in KEPT]
    return Case(f"{words!r}"[:300], lambda: main_CL.main([*world.argv(), *words, *world.places()]), wrong)


def _column(data: Any, draw: Any, name: str = "") -> list:
    task = data[draw(st.sampled_from(sorted(data)))]
    columns = task[draw(st.sampled_from(["train", "test"]))]
    return columns[name or draw(st.sampled_from(["input", "target"]))]


def _set_task_fact(config: dict, draw: Any) -> None:
    wrong = {"METRIC": "no_such", "MAX_NEW_TOKENS": 0, "MAX_SEQ_LENGTH": "x", "TASK_NAMES": 1, "CHANCE": 7}
    name = draw(st.sampled_from(sorted(wrong)))
    config[name] = [wrong[name]] * config["NUM_TASK"]


# What makes a stream wrong, of its data or of its configuration.
SPOIL_DATA: dict[str, Callable[[Any, Any], Any]] = {
    "a column too short": lambda data, draw: _column(data, draw).pop(),
    "a target is null": lambda data, draw: _column(data, draw, "target").__setitem__(0, None),
    "an input is a number": lambda data, draw: _column(data, draw, "input").__setitem__(0, 3),
    "an input is a list": lambda data, draw: _column(data, draw, "input").__setitem__(0, ["a"]),
    "no train rows": lambda data, draw: [column.clear() for column in data["0"]["train"].values()],
    "no test rows": lambda data, draw: [column.clear() for column in data["1"]["test"].values()],
    "no test split": lambda data, draw: data["1"].pop("test"),
    "no task 0": lambda data, draw: data.pop("0"),
    "a task more": lambda data, draw: data.__setitem__("9", data["0"]),
    "a label is a text": lambda data, draw: _column(data, draw, "label_idx_cil").__setitem__(0, "1"),
    "a label is true": lambda data, draw: _column(data, draw, "label_idx_cil").__setitem__(0, True),
}
SPOIL_CONFIG: dict[str, Callable[[Any, Any], Any]] = {
    "NUM_TASK": lambda config, draw: config.__setitem__("NUM_TASK", draw(st.sampled_from([0, 3, "2", None]))),
    "a fact of a task": lambda config, draw: _set_task_fact(config, draw),
    "too few facts": lambda config, draw: config["MAX_NEW_TOKENS"].pop(),
    "PROMPT_TYPE": lambda config, draw: config.__setitem__("PROMPT_TYPE", "no_such"),
    "IL_MODE": lambda config, draw: config.__setitem__("IL_MODE", 5),
}


@st.composite
def streams(draw: Any, world: World) -> Case:
    """The files of a stream."""
    name = draw(st.sampled_from(["micro", "micro", "classes", "words", "chats"]))
    files = {file: (world.root / name / file).read_bytes() for file in (DATA_FILE, CONFIG_FILE)}
    how = draw(st.sampled_from(["spoilt", "data", "config"]))
    more: list[str] = []
    if how == "spoilt":
        file = draw(st.sampled_from(sorted(files)))
        what, files[file] = f"{name}: {file}", draw(spoilt_file(files[file], ".json"))
    else:
        name, file, table = "micro", *((DATA_FILE, SPOIL_DATA) if how == "data" else (CONFIG_FILE, SPOIL_CONFIG))
        what, content = draw(st.sampled_from(sorted(table))), json.loads((world.root / "micro" / file).read_bytes())
        table[what](content, draw)
        files = {other: (world.root / "micro" / other).read_bytes() for other in files}
        files[file] = json.dumps(content).encode()
    if name == "classes":
        more = ["--classifier", "Linear", "--il_mode", draw(st.sampled_from(["CIL", "TIL"]))]
    backbone = tiny.backbone_folder("bert_encoder") if name == "words" else None
    more += ["--classifier", "Linear", "--il_mode", "CIL"] if name == "words" else []

    def call() -> Any:
        (world.case / "s").mkdir()
        for file, content in files.items():
            (world.case / "s" / file).write_bytes(content)
        argv = [*world.argv(*more, dataset="s", backbone=backbone), "--dataset_path", str(world.case)]
        return main_CL.main(argv)

    return Case(what, call, how != "spoilt")


def _set_cell(key: str, value: Any) -> Callable[[list[dict]], Any]:
    return lambda rows: rows[len(rows) // 2].__setitem__(key, value)


SPOIL_RECORDS: dict[str, Callable[[list[dict]], Any]] = {
    "a target missing": lambda rows: rows[1].pop("target"),
    "a target null": _set_cell("target", None),
    "an input an object": _set_cell("input", {"a": 5}),
    "an input a list": _set_cell("input", ["a"]),
    "one record of many with a label": _set_cell("label", "x"),
    "one record of many a chat": _set_cell("messages", [{"role": "user", "content": "a"}]),
    "no records": lambda rows: rows.clear(),
    "one record": lambda rows: rows.__delitem__(slice(1, None)),
    "a record a list": lambda rows: rows.__setitem__(0, ["a", "b"]),
    "a record a number": lambda rows: rows.__setitem__(-1, 5),
}
SPOIL_CHATS: dict[str, Callable[[list[dict]], Any]] = {
    "ends with the user": lambda rows: rows[0]["messages"].pop(),
    "no turns": _set_cell("messages", []),
    "turns are texts": _set_cell("messages", ["a", "b"]),
    "a role unknown": lambda rows: rows[2]["messages"][0].__setitem__("role", "human"),
    "a content null": lambda rows: rows[2]["messages"][1].__setitem__("content", None),
    "a content with an image": lambda rows: rows[2]["messages"][1].__setitem__("content", [{"type": "image_url"}]),
}


def plain_rows(size: int = 12) -> list[dict]:
    """Records of questions and answers."""
    return [{"input": f"what says the {tiny.ANIMALS[i]}", "target": tiny.SOUNDS[i]} for i in range(size)]


def chat_rows(size: int = 12) -> list[dict]:
    """Records of chats of one question."""
    roles = ("user", "assistant")
    return [
        {"messages": [{"role": r, "content": t} for r, t in zip(roles, row.values(), strict=True)]}
        for row in plain_rows(size)
    ]


@st.composite
def own_files(draw: Any, world: World) -> Case:
    """Files of --dataset_files."""
    chats = draw(st.booleans())
    rows = chat_rows() if chats else plain_rows()
    table = SPOIL_CHATS if chats else SPOIL_RECORDS
    how = draw(st.sampled_from(["spoilt", "wrong", "path"]))
    content, paths, what = "\n".join(map(json.dumps, rows)).encode(), ["own.jsonl"], how
    if how == "spoilt":
        content = draw(spoilt_file(content, ".jsonl"))
    elif how == "wrong":
        what, rows = draw(st.sampled_from(sorted(table))), copy.deepcopy(rows)
        table[what](rows)
        content = "\n".join(map(json.dumps, rows)).encode()
    else:
        lists = [["absent.jsonl"], ["own.jsonl", "own.jsonl"], ["own.csv"], ["own.jsonl", "absent.json"], ["a" * 300]]
        paths = draw(st.sampled_from([*lists, ["x\n.jsonl"], ["\x00.jsonl"], ["../own.parquet"], []]))

    def call() -> Any:
        (world.case / "own.jsonl").write_bytes(content)
        (world.case / "own.csv").write_text("input,target\na,b\n", encoding="utf-8")
        backbone = chatty_backbone(world) if chats else None
        files = json.dumps([str(world.case / path) for path in paths])
        return main_CL.main([*world.argv("--dataset_files", files, backbone=backbone)])

    return Case(f"{'chats' if chats else 'records'}: {what} {paths}", call, how != "spoilt")


def raw_folder(name: str) -> Path:
    """A few raw records of a data set; three data sets are of one benchmark."""
    return FIXTURES / name if (FIXTURES / name).is_dir() else FIXTURES / "cl_benchmark"


@st.composite
def raw_files(draw: Any, world: World) -> Case:
    """The raw files of a data set."""
    name = draw(st.sampled_from(RAW))
    folder = raw_folder(name)
    file = draw(st.sampled_from(sorted(p for p in folder.rglob("*") if p.is_file())))
    how = draw(st.sampled_from(["spoilt", "spoilt", "spoilt", "absent", "other bytes", "a folder"]))
    content = draw(spoilt_file(file.read_bytes(), file.suffix)) if how == "spoilt" else b"\xff\xfe\x00\x01"

    def call() -> Any:
        path = shutil.copytree(folder, world.case / "raw" / folder.name) / file.relative_to(folder)
        path.unlink()
        if how == "a folder":
            path.mkdir()
        elif how != "absent":
            path.write_bytes(content)
        folders = ["--raw-dir", str(world.case / "raw"), "--out-dir", str(world.case / "out")]
        return dataformat_preprocess.main(["--dataset", name, *folders, "--force"])

    # A stream may be made without some of its files; these are then named in the output.
    return Case(f"{name}: {file.relative_to(folder)} {how}", call, how in ("other bytes", "a folder"))
