"""Errors about unknown options and methods suggest the name used here."""

import pytest

from models import METHODS
from utils.config import Config
from utils.factory import SETTING_OF
from utils.options.hints import ELSEWHERE
from utils.options.parse import ConfigError, resolve


def problem(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(["--cfg", "None", *argv])
    (only,) = caught.value.problems
    return only


def test_a_method_is_found_whatever_its_case_and_punctuation():
    for name, meant in {"ewc": "EWC", "seq": "SEQ", "O-LoRA": "OLoRA", "a-gem": "AGEM", "der++": "DERpp"}.items():
        assert problem("--method", name).endswith(f"got {name!r}; did you mean {meant!r}?  (--method)"), name


def test_settings_that_are_taken_for_methods_are_named():
    for name, words in {"Replay": "--is_replay True", "Freeze": "--freeze_parts", "LoRA": "--PEFT_type LoRA"}.items():
        assert f"{name} is a setting of any method: --method SEQ {words}" in problem("--method", name), name
    for words in SETTING_OF.values():
        option, value = words.removeprefix("--").split(" ", 1)
        assert resolve(["--cfg", "None", f"--{option}", value.strip("'")]).config.is_changed(option), words


def test_an_option_of_another_method_names_its_method():
    expected = "EWC_lambda: unknown option; it belongs to method EWC, and the method is SEQ; set method: EWC"
    assert problem("--EWC_lambda", "3") == f"{expected}  (--EWC_lambda)"
    assert "did you mean 'EWC_lambda' of method EWC?" in problem("--EWC_lamda", "3")
    assert "did you mean 'EWC_lambda'?" in problem("--method", "EWC", "--EWC_lamda", "3")
    assert "LAMOL or LAMOL_KD" in problem("--LAMOL_lambda", "3")


def test_names_of_other_programs_are_translated():
    for name, here in {
        "learning_rate": "lr",
        "num_train_epochs": "training_epochs",
        "per_device_train_batch_size": "batch_size",
        "model_name_or_path": "backbone",
        "output_dir": "dump_path",
    }.items():
        assert f"{name}: unknown option; here it is {here}" in problem(f"--{name}", "1"), name
    for name, here in ELSEWHERE.items():
        assert here.split(" ")[0] in Config.model_fields and name not in Config.model_fields, name


def test_case_and_dashes_do_not_hide_an_option():
    assert "did you mean 'batch_size'?" in problem("--batch-size", "3")
    assert "did you mean 'is_replay'?" in problem("--IS_REPLAY", "true")
    assert "see python main_CL.py --help" in problem("--zzzz", "1")
    assert all(method in METHODS for method in ("EWC", "OLoRA", "DERpp"))
