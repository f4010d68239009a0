"""Any input starts a run or ends in one clear error: no traceback, no code run from data, no file written elsewhere.

The examples are random with a fixed seed; the faults they found have separate tests below.
"""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import strategies as st

import main_CL
from main_CL import read_options
from tests import tiny
from tests.stress.input_files import raw_folder
from tests.stress.spoilt_inputs import YAML_VALUES, holds, names, spoilt_file, spoilt_json, yaml_texts
from utils import dataformat_preprocess
from utils.backbone import load_backbone
from utils.config import Config
from utils.dataset import encode, load_stream
from utils.errors import UserError
from utils.options import checks
from utils.options.parse import ConfigError, resolve, to_yaml
from utils.preprocess import PREPROCESSORS, jsonl
from utils.prompt import choose
from utils.report.results import build

FIXTURES = Path(__file__).parents[2] / "fixtures"


def few_and_many(few: int, many: int):
    """Numbers of examples of a property test: in the quick tests, and in the slow ones, which still find faults."""
    return pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])


def outcome(call, *arguments):
    """The result, or None after an error with a clear message."""
    try:
        return call(*arguments)
    except UserError as error:
        text = str(error)
        assert text.strip() and "Traceback" not in text
        assert "\n" not in text or isinstance(error, ConfigError), text
        return None


@few_and_many(15, 600)
def test_yaml_files(tmp_path, examples):
    file, again = tmp_path / "a.yaml", tmp_path / "b.yaml"

    def check(text):
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        found = outcome(resolve, ["--cfg", str(file)])
        if found is not None:
            stays_inside(found.config)
            again.write_text(to_yaml(found), encoding="utf-8")
            same = resolve(["--cfg", str(again)])
            assert same.config == found.config.updated(cfg=str(again), resume=None)

    holds(check, examples, text=yaml_texts)


def stays_inside(config: Config) -> None:
    for name in ("exp_prefix", "wandb_name", "dataset", "logger_filename"):
        inside = Path("/root") / getattr(config, name)
        assert inside.resolve().parent == Path("/root"), name


@few_and_many(10, 1000)
def test_command_lines(tmp_path, examples, capsys):
    words = st.one_of(names.map("--{}".format), st.sampled_from(YAML_VALUES), st.text(max_size=8))

    def check(argv):
        if not {"-h", "--help"} & set(argv):  # it ends the program, and well
            outcome(read_options, ["--cfg", "None", *argv])

    holds(check, examples, argv=st.lists(words, max_size=5))


@pytest.mark.parametrize("stream", [tiny.micro_stream(), tiny.class_stream(), tiny.word_stream()], ids=lambda s: s.name)
@few_and_many(8, 1500)
def test_streams(tmp_path, stream, examples):
    files = {name: text.encode() for name, text in encode(stream).items()}

    def check(data):
        (tmp_path / "s").mkdir(exist_ok=True)
        chosen = data.draw(st.sampled_from(sorted(files)))
        for name, content in files.items():
            spoilt = data.draw(spoilt_file(content, ".json")) if name == chosen else content
            (tmp_path / "s" / name).write_bytes(spoilt)
        outcome(begin, tmp_path)

    holds(check, examples, data=st.data())


def begin(root: Path) -> None:
    """What a run does with a stream before it loads a model, and what its report needs."""
    stream, config = load_stream("s", root), tiny.make_config(dataset="s")
    heads = config.updated(il_mode="CIL", classifier="Linear")
    found = [problem for one in (config, heads) for problem in checks.problems(tiny.plan(one, stream=stream))]
    assert all(isinstance(problem, str) for problem in found)
    choose("auto", stream)
    for k in range(len(stream.tasks)):
        assert all(e.input is not None and e.target is not None for e in stream.tasks[k].train)
        assert stream.max_new_tokens(k) > 0 and isinstance(stream.metric(k), str) and stream.chance(k) != ""


@pytest.mark.parametrize("name", [n for n in PREPROCESSORS if n not in ("biography_qa", "jsonl")])
@few_and_many(3, 200)
def test_raw_files(tmp_path, name, examples, capsys):
    shutil.copytree(raw_folder(name), tmp_path / "raw" / raw_folder(name).name)
    files = sorted(p for p in (tmp_path / "raw").rglob("*") if p.is_file())
    contents = {file: file.read_bytes() for file in files}
    argv = ["--dataset", name, "--raw-dir", str(tmp_path / "raw"), "--out-dir", str(tmp_path / "out"), "--force"]

    def check(data):
        file = data.draw(st.sampled_from(files))
        file.write_bytes(data.draw(spoilt_file(contents[file], file.suffix)))
        ends_well(dataformat_preprocess.main(argv), capsys)
        file.write_bytes(contents[file])

    holds(check, examples, data=st.data())


def ends_well(code: int, capsys) -> None:
    errors = capsys.readouterr().err
    assert code in (0, 2)
    assert (errors.startswith("error: ") and errors.count("\n") == 1) if code else not errors, errors


@few_and_many(10, 1000)
def test_users_own_files(tmp_path, examples):
    contents = [(FIXTURES / "jsonl/sums.jsonl").read_bytes()]
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "label": "x"}
    rows = [chat | {"messages": [chat["messages"][0] | {"content": str(i)}, chat["messages"][1]]} for i in range(9)]
    contents.append("\n".join(map(json.dumps, rows)).encode())
    file = tmp_path / "own.jsonl"

    def check(content):
        file.write_bytes(content)
        stream = outcome(jsonl.read_tasks, [file], jsonl.Options(), 1)
        if stream is not None:
            encode(stream)

    holds(check, examples, content=st.one_of(*(spoilt_file(content, ".jsonl") for content in contents)))


@few_and_many(8, 300)
def test_damaged_models(tmp_path, examples):
    source = Path(tiny.backbone_folder())
    contents = {path.name: path.read_bytes() for path in sorted(source.iterdir())}
    config = tiny.make_config(backbone=str(tmp_path / "model"))

    def check(data):
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        shutil.copytree(source, tmp_path / "model")
        name = data.draw(st.sampled_from(sorted(contents)))
        spoilt = data.draw(st.one_of(spoilt_file(contents[name], Path(name).suffix), st.none()))
        path = tmp_path / "model" / name
        path.unlink() if spoilt is None else path.write_bytes(spoilt)
        outcome(load_backbone, config)

    holds(check, examples, data=st.data())


@few_and_many(8, 1500)
def test_run_folders(tmp_path, examples):
    facts = {
        "name": "a", "stream": "s", "method": "SEQ", "seed": 1, "il_mode": "CIT", "backbone": "b",
        "task_names": ["x"], "metrics": ["exact_match"], "chance": [None],
    }  # fmt: skip
    rows = [{"index": i, "input": "q", "target": "a", "prediction": "a", "score": 1.0} for i in range(2)]
    cell = tmp_path / "predictions/after_0/task_0.jsonl"
    cell.parent.mkdir(parents=True)

    def check(facts, rows):
        (tmp_path / "facts.json").write_text(json.dumps(facts))
        cell.write_text("\n".join(map(json.dumps, rows)))
        outcome(build, tmp_path)

    holds(check, examples, facts=st.one_of(st.just(facts), spoilt_json(facts)), rows=spoilt_json(rows))


# What the examples above have found, or what was looked for where they do not reach.


@pytest.mark.parametrize(
    "argv",
    [
        ["--seed", "2020-99-99"],  # a date for YAML, and not a possible one
        ["--seed", "9" * 5000],  # more digits than Python reads
        ["--freeze_parts", "[" * 3000],
        ["--resume", "a" * 300],  # longer than a file's name may be
        ["--exp_prefix", "a" * 300],
        ["--logger_filename", "config.yaml"],  # which a resumed run reads
        ["--logger_filename", "log.jsonl"],
        ["--wandb_name", ".."],
        ["--dataset", "../x"],
    ],
    ids=lambda argv: argv[0][2:],
)
def test_impossible_options(argv):
    with pytest.raises(UserError) as caught:
        checks.check(read_options(["--cfg", "None", *argv])[0])
    assert f"{argv[0][2:]}: " in str(caught.value)


def test_yaml_runs_no_code(tmp_path, capsys):
    for tag in ("!!python/object/apply:pathlib.Path.touch", "!!python/object/new:os.system", "!!python/name:os.abort"):
        (tmp_path / "a.yaml").write_text(f"exp_prefix: {tag} ['{tmp_path}/proof']\n")
        assert main_CL.main(["--cfg", str(tmp_path / "a.yaml")]) == 2
        assert capsys.readouterr().err.startswith("error: invalid options:\n  - cfg: ")
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("content", ["[" * 100_000, "1" * 5000, '"\\ud800"', "\x00", "{"])
def test_texts_that_are_not_json(tmp_path, content):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/continual_data.json").write_text(content)
    (tmp_path / "s/continual_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"continual_data\.json (is not JSON|holds half of a character)"):
        load_stream("s", tmp_path)
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"a\.jsonl"):
        jsonl.read_tasks([tmp_path / "a.jsonl"], jsonl.Options(), 1)


@pytest.mark.parametrize(
    ("key", "value"),
    [("CUR_NUM_CLASS", [3, "x", 3]), ("NUM_CLASS", "9"), ("idx2label", [1]), ("LOCALITY_SPLIT", "x")],
)
def test_facts_of_a_wrong_kind(tmp_path, key, value):
    files = encode(tiny.micro_stream())
    files["continual_config.json"] = json.dumps(json.loads(files["continual_config.json"]) | {key: value})
    (tmp_path / "s").mkdir()
    for name, text in files.items():
        (tmp_path / "s" / name).write_text(text)
    with pytest.raises(UserError, match=key):
        load_stream("s", tmp_path)


def test_missing_weights_are_not_drawn_at_random(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny.backbone_folder(), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights, such as gpt_neox\.layers\.1\.mlp\.dense_h_to_4h\.weight"):
        load_backbone(tiny.make_config(backbone=str(folder)))


def test_an_eos_that_is_no_token_is_reported(tmp_path):
    folder = shutil.copytree(tiny.backbone_folder(), tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ""}))
    with pytest.raises(UserError, match=r"eos_token_id: expected numbers of tokens, got \[''\]"):
        load_backbone(tiny.make_config(backbone=str(folder)))


def test_a_pickled_model_runs_no_code(tmp_path):
    import pickle

    class Proof:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "proof",))

    folder = shutil.copytree(tiny.backbone_folder(), tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Proof()))
    with pytest.raises(UserError, match="could not be loaded"):
        load_backbone(tiny.make_config(backbone=str(folder)))
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "x.C"}, "model_type": "x"}))
    (folder / "x.py").write_text(f"open({str(tmp_path / 'proof')!r}, 'w')")
    with pytest.raises(UserError, match="could not be loaded"):
        load_backbone(tiny.make_config(backbone=str(folder)))
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    ("facts", "row"),
    [
        ({"task_names": 1}, {}), ({"metrics": "x"}, {}), ({"metrics": [None]}, {}), ({"chance": ["x"]}, {}),
        ({}, {"prediction": None}), ({}, {"index": []}), ({}, {"input": None}),
    ],
)  # fmt: skip
def test_a_broken_run_folder_is_reported(tmp_path, facts, row):
    whole = dict.fromkeys(("name", "stream", "method", "seed", "il_mode", "backbone"), "x")
    whole |= {"task_names": ["x"], "metrics": ["exact_match"], "chance": [None]}
    (tmp_path / "facts.json").write_text(json.dumps(whole | facts))
    (tmp_path / "predictions/after_0").mkdir(parents=True)
    rows = json.dumps({"index": 0, "prediction": "a", "target": "a"} | row)
    (tmp_path / "predictions/after_0/task_0.jsonl").write_text(rows + "\n")
    with pytest.raises(UserError):
        build(tmp_path)
