"""Options: precedence, error messages, and that a saved file repeats the run."""

import pytest
import yaml
from pydantic import ValidationError

from main_CL import main, read_options
from models import METHODS
from utils.config import GROUPS, Config
from utils.options import consistency
from utils.options.parse import ConfigError, clean_name, flatten, option_table, origin, read_yaml, resolve, to_yaml

NAMES = ", ".join(METHODS)


def write(tmp_path, text, name="my.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def read(tmp_path):
    """Resolve a YAML text and a command line."""

    def reader(text="", *argv):
        return resolve(["--cfg", str(write(tmp_path, text)), *argv])

    return reader


@pytest.fixture
def problems(read, tmp_path):
    """The problems of a YAML text and a command line, with the name of the file shortened."""

    def reader(text="", *argv):
        try:
            found = consistency.check(read(text, *argv).config)
        except ConfigError as error:
            found = error.problems
        assert found, "no problem"
        return [problem.replace(str(tmp_path) + "/", "") for problem in found]

    return reader


def test_default_then_yaml_then_command_line(read):
    resolved = read("lr: 0.5\nbatch_size: 7\n", "--batch_size", "9")
    assert (resolved.config.training_epochs, resolved.config.lr, resolved.config.batch_size) == (10, 0.5, 9)
    assert resolved.sources["batch_size"] == "--batch_size"
    assert resolved.sources["lr"].endswith("my.yaml")
    assert "training_epochs" not in resolved.sources


def test_the_default_file_is_read_and_none_reads_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config/biography_demo_task2").mkdir(parents=True)
    write(tmp_path, "lr: 0.25", "config/biography_demo_task2/SEQ.yaml")
    assert resolve([]).config.lr == 0.25
    assert resolve(["--cfg", "None"]).config.lr == Config.model_fields["lr"].default


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr: 5e-6", 5e-6),
        ("lr: 1E-3", 1e-3),
        ("lr: 5.5e-6", 5.5e-6),
        ("lr: 1", 1.0),
        ("lr: +2e-1", 0.2),
        ("lr: 1_0e-1", 1.0),
    ],
)
def test_numbers(read, text, expected):
    assert read(text).config.lr == pytest.approx(expected, rel=1e-15)
    assert read("", "--lr", text.split(": ")[1]).config.lr == pytest.approx(expected, rel=1e-15)


def test_numbers_of_yaml_1_1_are_not_guessed(problems):
    for option, text in {"lr": "1:30", "seed": "010", "batch_size": "0x1F", "training_epochs": "1:00"}.items():
        for found in (problems(f"{option}: {text}"), problems("", f"--{option}", text)):
            assert len(found) == 1 and f"got {text!r}" in found[0], (option, found)


def test_words_of_yaml_1_1_are_text(read):
    for word in ("no", "on", "2024-01-01", "010", "1:30"):
        if ":" not in word:
            assert read(f"exp_prefix: {word}").config.exp_prefix == word
        first = read("", "--backbone_revision", word)
        again = yaml.safe_load(to_yaml(first))["backbone_revision"]  # also for a reader of YAML 1.1
        assert first.config.backbone_revision == again == word
    assert read("recovery: yes").config.recovery is True


def test_aliases_are_refused_before_expansion(problems):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{new}: &{new} [{', '.join(['*' + old] * 9)}]" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
    ]
    (problem,) = problems("\n".join(lines))
    assert problem.endswith("line 2: an alias (*name) is not supported; write the value out")


def test_long_values_are_shortened_in_errors(problems):
    (problem,) = problems("lr: [" + "1, " * 5000 + "1]")
    assert len(problem) < 400 and "characters)" in problem


@pytest.mark.parametrize("word", ["None", "null", "~", ""])
def test_none(read, word):
    assert read(f"max_grad_norm: {word}").config.max_grad_norm is None
    assert read("max_grad_norm: 1.0", "--max_grad_norm", "None").config.max_grad_norm is None
    for option in ("lr_list", "metric_for_each_task", "PEFT_type", "evaluate_limit"):
        if word:
            assert getattr(read("", f"--{option}", word).config, option) is None


def test_a_text_may_be_null(read):
    assert read("", "--wandb_entity", "null").config.wandb_entity == "null"


@pytest.mark.parametrize(("word", "expected"), [("true", True), ("True", True), ("false", False), ("False", False)])
def test_booleans(read, word, expected):
    assert read(f"recovery: {word}").config.recovery is expected
    assert read("recovery: true", "--recovery", word).config.recovery is expected
    assert read("", f"--recovery={word}").config.recovery is expected


def test_a_flag_alone_is_true_and_swallows_nothing(read):
    config = read("", "--recovery", "--lr", "0.5").config
    assert config.recovery is True
    assert config.lr == 0.5


def test_lists(read):
    config = read("freeze_parts: [embeddings, layers 0-2]\ntraining_epochs_list: [1, 2]").config
    assert config.freeze_parts == ("embeddings", "layers 0-2")
    assert config.training_epochs_list == (1, 2)
    assert read("", "--freeze_parts", "[head, layers 5]").config.freeze_parts == ("head", "layers 5")
    assert read("", "--training_epochs_list", "[3,4]").config.training_epochs_list == (3, 4)
    for words in ["[a b.jsonl, 7.csv]"], ["a b.jsonl", "7.csv"], ["[a b.jsonl,", "7.csv]"]:
        assert read("", "--dataset_files", *words, "--seed", "2").config.dataset_files == ("a b.jsonl", "7.csv")
    assert read("", "--training_epochs_list", "3", "4").config.training_epochs_list == (3, 4)
    assert read("", "--max_seq_length_list", "None").config.max_seq_length_list is None


def test_seed_0_is_a_seed(read):
    assert read("seed: 0").config.seed == 0
    assert read("", "--seed", "0").config.seed == 0


def test_numbers_are_good_names(read):
    assert read("exp_prefix: 7").config.exp_prefix == "7"


def test_names_of_the_run(read, tmp_path):
    assert read("exp_prefix: try").config.wandb_name == "try-my"
    assert read("", "--wandb_name", "given").config.wandb_name == "given"
    for words, expected in {
        "": "default-SEQ",
        "--method EWC": "default-EWC",
        "--cfg None": "default-biography_demo_task2-SEQ",
        "--dataset other --method EWC": "default-other-EWC",
        "--dataset_files [x/a.jsonl,b.jsonl]": "default-a-SEQ",
        "--cfg config/biography_demo_task2/EWC.yaml": "default-EWC",
        "--cfg config/biography_demo_task2/SEQ.yaml --method LwF": "default-LwF",
        "--cfg config/biography_demo_task2/SEQ.yaml --dataset other": "default-other-SEQ",
    }.items():
        assert resolve(words.split()).config.wandb_name == expected, words


def test_a_name_is_cleaned_at_the_start_and_can_be_read_again(tmp_path):
    for stem in ("my run", "a,b", "SEQ (copy)", "x" * 120, "é-ü", ".hidden", "a'b\"c", "$(x)"):
        first = resolve(["--cfg", str(write(tmp_path, "", f"{stem}.yaml"))])
        saved = write(tmp_path, to_yaml(first), "saved.yaml")
        assert resolve(["--cfg", str(saved)]).config.wandb_name == first.config.wandb_name, stem
    names = {clean_name("x" * 120 + end) for end in "ab"}
    assert len(names) == 2 and all(len(name) == 100 for name in names)


def test_the_demo_s_file_is_for_the_demo_alone():
    demo = resolve([]).config
    assert resolve(["--lr", "1"]).config.training_epochs_list == demo.training_epochs_list
    default = Config.model_fields["lr"].default
    for option, value in {
        "backbone": "x", "dataset": "x", "dataset_path": "x", "dataset_files": "[a.jsonl]", "load_llm_ckpt": "true",
    }.items():  # fmt: skip
        more = ["--backbone_cache_path", "x"] if option == "load_llm_ckpt" else []
        resolved = resolve([f"--{option}", value, *more])
        assert resolved.config.cfg is None and resolved.config.lr == default, option
        said = origin(resolved)
        assert said.startswith(f"options: no YAML file (--{option} without --cfg); defaults: ") and "\n" not in said
        assert ("dataset biography" in said) == (option not in ("dataset", "dataset_files")), said
        assert f"lr {default}" in said and "training_epochs 10" in said
    assert origin(resolve([])) == "options: config/biography_demo_task2/SEQ.yaml, the demo's, as no --cfg is given"
    given = ["--cfg", "config/biography_demo_task2/SEQ.yaml", "--backbone", "x"]
    assert origin(resolve(given)) == "options: config/biography_demo_task2/SEQ.yaml"


def test_a_changed_copy_is_validated(read):
    config = read("lr: 0.5").config
    assert config.updated(seed=7).seed == 7 and config.updated(seed=7).lr == 0.5 and config.seed == 1
    for wrong in ({"seed": -1}, {"lr": "fast"}, {"nothing": 1}):
        with pytest.raises(ValidationError):
            config.updated(**wrong)


def test_config_is_frozen(read):
    with pytest.raises(ValueError, match="frozen"):
        read("").config.lr = 1.0


@pytest.mark.parametrize(
    ("text", "argv", "expected"),
    [
        ("lrr: 1", [], ["lrr: unknown option; did you mean 'lr'?  (my.yaml)"]),
        ("zzzz: 1", [], ["zzzz: unknown option; see python main_CL.py --help  (my.yaml)"]),
        ("", ["--batchsize", "3"], ["batchsize: unknown option; did you mean 'batch_size'?  (--batchsize)"]),
        ("", ["--batchsize=3"], ["batchsize: unknown option; did you mean 'batch_size'?  (--batchsize=3)"]),
        ("batch_size: 2.5", [], ["batch_size: expected a valid integer, got 2.5  (my.yaml)"]),
        ("batch_size: true", [], ["batch_size: expected a valid integer, got True  (my.yaml)"]),
        ("batch_size: '3'", [], ["batch_size: expected a valid integer, got '3'  (my.yaml)"]),
        ("batch_size: 0", [], ["batch_size: expected greater than or equal to 1, got 0  (my.yaml)"]),
        ("lr: true", [], ["lr: expected a valid number, got True  (my.yaml)"]),
        ("lr: .nan", [], ["lr: expected a finite number, got nan  (my.yaml)"]),
        ("lr: .inf", [], ["lr: expected a finite number, got inf  (my.yaml)"]),
        ("lr: -1e-3", [], ["lr: expected greater than or equal to 0, got -0.001  (my.yaml)"]),
        ("lr: fast", ["--lr", "slow"], ["lr: expected a valid number, got 'slow'  (--lr)"]),
        ("warmup_ratio: 1", [], ["warmup_ratio: expected less than 1, got 1  (my.yaml)"]),
        ("recovery: maybe", [], ["recovery: expected a valid boolean, got 'maybe'  (my.yaml)"]),
        ("seed: None", [], ["seed: expected a valid integer, got None  (my.yaml)"]),
        ("seed: -1", [], ["seed: expected greater than or equal to 0, got -1  (my.yaml)"]),
        (
            "freeze_parts: embeddings",
            [],
            ["freeze_parts: expected a list, such as [a, b], got 'embeddings'  (my.yaml)"],
        ),
        (
            "training_epochs_list: [1, 2.5]",
            [],
            ["training_epochs_list[1]: expected a valid integer, got 2.5  (my.yaml)"],
        ),
        (
            "training_epochs_list: [1, -2]",
            [],
            ["training_epochs_list[1]: expected greater than or equal to 0, got -2  (my.yaml)"],
        ),
        (
            "backbone_max_new_token_list: [0]",
            [],
            ["backbone_max_new_token_list[0]: expected greater than or equal to 1, got 0  (my.yaml)"],
        ),
        (
            "max_seq_length_list: [-1]",
            [],
            ["max_seq_length_list[0]: expected greater than or equal to 1, got -1  (my.yaml)"],
        ),
        (
            "evaluation_mode: guess",
            [],
            ["evaluation_mode: expected 'verify' or 'generate', got 'guess'  (my.yaml)"],
        ),
        ("classifier: Tree", [], ["classifier: expected 'Linear' or 'CosineLinear', got 'Tree'  (my.yaml)"]),
        (
            "classifier: Linear",
            [],
            ["classifier: Linear needs il_mode CIL or TIL, where answers are classes; got CIT"],
        ),
        (
            "classifier: Linear\nil_mode: CIL\nclassifier_scale: 4",
            [],
            ["classifier_scale: has no effect with classifier Linear"],
        ),
        ("classifier_lr: 0.1", [], ["classifier_lr: has no effect with classifier None"]),
        ("method: SEC", [], [f"method: expected one of {NAMES}, got 'SEC'; did you mean 'SEQ'?  (my.yaml)"]),
        (
            "method: Joint",
            ["--method", "SEC"],
            [f"method: expected one of {NAMES}, got 'SEC'; did you mean 'SEQ'?  (--method)"],
        ),
        ("", ["wandb_name=x"], ["'wandb_name=x': unknown option; did you mean 'wandb_name'?  (wandb_name=x)"]),
        ("", ["wandb_name"], ["'wandb_name': unknown option; did you mean 'wandb_name'?  (wandb_name)"]),
        ("max_seq_length: 0", [], ["max_seq_length: expected -1 or at least 1, got 0"]),
        ("evaluate_interval: 0", [], ["evaluate_interval: expected -1 or at least 1, got 0"]),
    ],
)
def test_errors_name_option_value_and_remedy(problems, text, argv, expected):
    assert problems(text, *argv) == expected


@pytest.mark.parametrize("name", ["exp_prefix", "dataset", "wandb_name", "logger_filename", "method"])
def test_names_cannot_leave_their_folder(problems, name):
    for value in ("../up", "a/b", "/etc", "..", ".hidden", "a b", "", "a\\b", "x\n"):
        (problem,) = problems("", f"--{name}", value)
        assert problem.startswith(f"{name}: expected")
        assert repr(value) in problem


def test_all_problems_are_reported_together(problems):
    found = problems("lrr: 1\nbatch_size: 0\nseed: x\n", "--nothing")
    assert [problem.split(":")[0] for problem in found] == ["lrr", "nothing", "seed", "batch_size"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("Replay_buffer_ratio: 0.5", "Replay_buffer_ratio: has no effect without is_replay; set is_replay: True"),
        ("general_metrics: [f1]", "general_metrics: has no effect without general_files; set general_files"),
        ("recovery_epochs: 3", "recovery_epochs: has no effect without recovery; set recovery: True"),
        ("wandb_project: x", "wandb_project: has no effect without is_wandb; set is_wandb: True"),
        (
            "is_replay: true\nReplay_buffer_ratio: 0.5\nReplay_buffer_size: 3",
            "Replay_buffer_ratio, Replay_buffer_size: expected one of them, got both",
        ),
        (
            "is_replay: true\nReplay_fix_budge_each_class: true",
            "Replay_fix_budge_each_class: needs Replay_class_balanced and Replay_buffer_size",
        ),
        (
            "is_replay: true\nReplay_sampling_algorithm: reservoir",
            "Replay_sampling_algorithm: reservoir needs Replay_buffer_size",
        ),
        (
            "is_replay: true\nReplay_sampling_algorithm: reservoir\nReplay_buffer_size: 3\nReplay_class_balanced: true",
            "Replay_class_balanced: has no effect with Replay_sampling_algorithm reservoir",
        ),
        ("is_replay: true\nbatch_size: 1", "Replay_batch_level: needs a batch_size of at least 2, got 1"),
        ("load_llm_ckpt: true", "load_llm_ckpt: needs backbone_cache_path, the folder of the checkpoint"),
        ("lr_min_ratio: 0.1", "lr_min_ratio: has no effect with lr_scheduler constant"),
        ("freeze_match: substring", "freeze_match: has no effect without freeze_parts"),
        ("freeze_from_task: 0", "freeze_from_task: has no effect without freeze_parts"),
        ("save_total_limit: 2", "save_total_limit: has no effect without save_llm_ckpt; set save_llm_ckpt: True"),
        (
            "early_stop_patience: 2",
            "early_stop_patience: has no effect without evaluate_interval, the epochs between two evaluations",
        ),
        (
            "evaluate_interval: 2\nkeep_best: true\nkeep_optimizer_state: true",
            "keep_best: the optimizer's moments belong to later weights; leave keep_optimizer_state out",
        ),
    ],
)
def test_combinations_without_effect_are_refused(problems, options, expected):
    assert problems(options) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n- b\n", "has to consist of lines `option: value`"),
        ("just words", "has to consist of lines `option: value`"),
        ("1: 2", "has to consist of lines `option: value`"),
        ("a: [1", "is not YAML"),
        ("lr: 1\nlr: 2\n", "is not YAML: line 2: 'lr' is given twice"),
        ("lr: !!python/object/apply:os.system [echo]", "is not YAML"),
    ],
)
def test_a_file_that_is_no_list_of_options(tmp_path, text, expected):
    with pytest.raises(ConfigError) as caught:
        read_yaml(write(tmp_path, text))
    (problem,) = caught.value.problems
    assert problem.startswith(f"cfg: {tmp_path}/my.yaml {expected}")
    assert "\n" not in problem


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "my.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"cfg: .*my\.yaml cannot be read"):
        read_yaml(tmp_path / "my.yaml")


def test_a_missing_file_names_the_nearest(tmp_path):
    write(tmp_path, "", "SEQ.yaml")
    with pytest.raises(ConfigError) as caught:
        read_yaml(tmp_path / "SEC.yaml")
    assert caught.value.problems == [f"cfg: {tmp_path}/SEC.yaml does not exist; did you mean {tmp_path}/SEQ.yaml?"]


def test_an_empty_file_is_all_defaults(read):
    assert read("# nothing\n").config.lr == Config.model_fields["lr"].default


AWKWARD = {
    "exp_prefix": "5e-6",
    "dump_path": "None",
    "logger_filename": "1_000.log",
    "dataset_path": "a: b # c",
    "backbone": "héllo 'x' \"y\"\nz",
    "backbone_revision": "0x1F",
    "lr": 5e-6,
    "seed": 0,
    "freeze_parts": ["5e-3", "None", "layers 0-2"],
    "max_grad_norm": None,
    "recovery": True,
    "training_epochs_list": [1, 2],
}


def test_the_saved_file_repeats_the_options(tmp_path, read):
    argv = [word for k, v in AWKWARD.items() if isinstance(v, str) and v != "None" for word in (f"--{k}", v)]
    plain = yaml.safe_dump({k: v for k, v in AWKWARD.items() if not isinstance(v, str) and k != "freeze_parts"})
    quoted = 'freeze_parts: ["5e-3", "None", layers 0-2]\ndump_path: "None"\n'
    first = read(plain + quoted, *argv)
    assert flatten(first)["exp_prefix"] == "5e-6"
    saved = write(tmp_path, to_yaml(first), "saved.yaml")
    second = resolve(["--cfg", str(saved)])
    assert flatten(second) == flatten(first)
    assert {name: flatten(second)[name] for name in AWKWARD} == AWKWARD
    lines = saved.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(flatten(first))
    assert all(line.count("  # ") >= 1 for line in lines)
    assert "seed: 0  # " in saved.read_text(encoding="utf-8")
    assert "batch_size: 32  # default" in lines


def test_the_order_of_the_keys_does_not_matter(read):
    lines = ["lr: 0.5", "batch_size: 3", "method: Joint", "seed: 4"]
    assert read("\n".join(lines)).config == read("\n".join(reversed(lines))).config


def test_option_table_has_a_row_for_every_option():
    rows = option_table(*GROUPS).splitlines()
    assert rows[:2] == ["| option | type | default | meaning |", "|---|---|---|---|"]
    assert [row.split("`")[1] for row in rows[2:]] == [name for group in GROUPS for name in group.model_fields]
    table = {row.split("`")[1]: row for row in rows[2:]}
    kinds = {
        "lr": "float", "seed": "int", "recovery": "true/false", "dataset": "str", "wandb_name": "str",
        "freeze_parts": "[str, ...]", "training_epochs_first_task": "int", "max_grad_norm": "float",
        "training_epochs_list": "[int, ...]", "classifier": "Linear/CosineLinear", "Replay_buffer_size": "int",
        "cfg": "str",
    }  # fmt: skip
    for name, kind in kinds.items():
        assert table[name].split(" | ")[1].replace("\\|", "/").replace("false", "false") == kind, name
    assert "verify\\|generate" in table["evaluation_mode"]
    assert all(row.replace("\\|", "").count("|") == 5 for row in rows)


def test_every_option_has_help_and_lies_in_its_limits():
    Config()  # the defaults are valid
    for name, field in Config.model_fields.items():
        assert field.description, name
        assert field.description.endswith((".", "?")), name


def test_help_needs_no_stream_and_lists_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--cfg", "None", "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert all(f"--{name} " in out or f"--{name}\n" in out for name in Config.model_fields)


def test_help_shows_the_options_of_the_chosen_method_and_names_the_others(capsys):
    for words in (["--method", "EWC"], ["--cfg", "config/biography_demo_task2/EWC.yaml"]):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        out = capsys.readouterr().out
        assert "--EWC_lambda float" in out and "--SEQ_fix_encoder" not in out
        assert "--method NAME --help" in " ".join(out.split())
        assert all(name in out for name in METHODS)


def test_configuration_errors_exit_with_code_2_and_no_traceback(tmp_path, capsys):
    assert main(["--cfg", str(write(tmp_path, "lrr: 1"))]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"error: invalid options:\n  - lrr: unknown option; did you mean 'lr'?  ({tmp_path}/my.yaml)\n"


def test_resume_takes_the_options_of_the_run_and_no_others(tmp_path):
    write(tmp_path, "lr: 0.125\nwandb_name: old", "config.yaml")
    options, folder = read_options(["--resume", str(tmp_path)])
    assert folder == tmp_path
    assert options.config.lr == 0.125
    with pytest.raises(ConfigError) as caught:
        read_options(["--resume", str(tmp_path), "--lr", "1"])
    assert caught.value.problems == ["lr: cannot be changed in a resumed run; leave it out"]
    with pytest.raises(ConfigError) as caught:
        read_options(["--resume", str(tmp_path / "none")])
    assert "does not exist; expected a run folder" in caught.value.problems[0]
