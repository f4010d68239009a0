"""From names to methods, and what may be combined with what."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys

from models import METHODS
from models.Base import Method, Setting
from utils.classifier import answer_kind
from utils.config import Config
from utils.errors import UserError


def load_method(name: str) -> type[Method]:
    """Import and return one method's class; only that file is imported.

    Args:
        name: A name in METHODS, or package.module:Class for a class outside this project.

    Raises:
        UserError: there is no such method.
    """
    if ":" in name:
        return _outside(name)
    if name not in METHODS:
        raise UserError(f"expected one of {', '.join(METHODS)}, got {name!r}{_hint(name)}")
    return getattr(importlib.import_module(METHODS[name]), name)


def _outside(name: str) -> type[Method]:
    """The class `package.module:Class`; modules in the working directory are found, too."""
    module, _, class_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), class_name, None)
    except (ModuleNotFoundError, ValueError, TypeError) as error:  # the others: no name of a module
        raise UserError(f"{name!r} cannot be imported: {error}; expected package.module:Class") from None
    if found is None:
        raise UserError(f"module {module} has no class {class_name!r}")
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"{name!r} is not a subclass of Method in models/Base.py")
    if class_name in METHODS:
        raise UserError(f"{name!r} has the name of a method of this project; rename the class")
    prefixes = tuple(f"{base.__name__}_" for base in found.__mro__ if issubclass(base, Method))
    for option in found.Options.model_fields:
        if not option.startswith(prefixes):
            raise UserError(f"option {option} of {name!r} must begin with {class_name}_")
        if option in Config.model_fields:
            raise UserError(f"option {option} of {name!r} is an option of every run; rename it")
    return found


def short_name(config: Config) -> str:
    """The name of the method's class."""
    return config.method.rpartition(":")[2]


SETTING_OF = {  # names of published methods that are settings of any method here
    "replay": "--is_replay True",
    "er": "--is_replay True",
    "experiencereplay": "--is_replay True",
    "freeze": "--freeze_parts '[embeddings, layers 0-2]'",
    "lora": "--PEFT_type LoRA",
    "seqlora": "--PEFT_type LoRA",
    "ia3": "--PEFT_type IA3",
    "adapter": "--PEFT_type Bottleneck",
    "bottleneck": "--PEFT_type Bottleneck",
    "prompttuning": "--PEFT_type PromptTuning",
    "prefixtuning": "--PEFT_type PrefixTuning",
}
ALSO_CALLED = {"multitask": "Joint", "mtl": "Joint", "finetune": "SEQ", "finetuning": "SEQ", "sft": "SEQ"}


def _hint(name: str) -> str:
    """What a name that is no method may mean."""
    word = re.sub(r"[^a-z0-9]", "", name.lower())
    if word in SETTING_OF:
        return f"; {name} is a setting of any method: --method SEQ {SETTING_OF[word]}"
    known = {method.lower().replace("_", ""): method for method in METHODS} | ALSO_CALLED
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {known[near[0]]!r}?" if near else ""


def check_capability(config: Config, method: type[Method]) -> list[str]:
    """Why this method cannot run as configured; empty if it can. Nothing is loaded for the answer."""
    problems = []
    for option, value, allowed in (
        ("il_mode", config.il_mode, method.scenarios),
        ("classifier", answer_kind(config), method.heads),
    ):
        if value not in allowed:
            problems.append(f"method {config.method} supports {option} {', '.join(sorted(allowed))}; got {value}")
    problems += [
        f"method {config.method} needs {need} ({why}); set {need}{_switched_on(need)}"
        for need, why in sorted(method.needs.items(), key=str)
        if not need.holds(config)
    ]
    problems += [
        f"method {config.method} cannot be combined with {setting} ({why}); leave {setting} out"
        for setting, why in sorted(method.excludes.items(), key=str)
        if setting.holds(config)
    ]
    return problems


def _switched_on(setting: Setting) -> str:
    return ": True" if Config.model_fields[setting.option].annotation is bool else ""


def describe(config: Config) -> str:
    """The method with the settings that make it another experiment: `SEQ + replay 10 %`."""
    words = [short_name(config)]
    if config.freeze_parts:
        match = " (substring)" if config.freeze_match == "substring" else ""
        words.append(f"freeze {', '.join(config.freeze_parts)} from task {config.freeze_from_task}{match}")
    if config.PEFT_type:
        sizes = {"LoRA": f" r {config.PEFT_lora_r}", "Bottleneck": f" {config.PEFT_bottleneck_size}"}
        base = f" on {config.backbone_quantization}" if config.backbone_quantization else ""
        words.append(config.PEFT_type + sizes.get(config.PEFT_type, "") + base)
    if config.is_replay:
        size = config.Replay_buffer_size
        words.append(f"replay {f'{config.Replay_buffer_ratio:.3g}' if size is None else size}")
    return " + ".join(words)
