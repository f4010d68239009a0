"""From names to methods, and what may be combined with what."""

from __future__ import annotations

import difflib
import importlib
import re

from models import METHODS
from utils.config import Config
from utils.errors import UserError


def load_method(name: str) -> type:
    """Import and return one method's class; only that file is imported.

    Raises:
        UserError: there is no such method.
    """
    if name not in METHODS:
        raise UserError(f"expected one of {', '.join(METHODS)}, got {name!r}{_hint(name)}")
    return getattr(importlib.import_module(METHODS[name]), name)


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


def check_capability(config: Config, method: type) -> list[str]:
    """Why this method can't run as configured; empty if it can. Nothing is loaded for the answer."""
    problems = []
    for option, value, allowed in (
        ("il_mode", config.il_mode, method.scenarios),
        ("classifier", str(config.classifier), method.heads),
    ):
        if value not in allowed:
            problems.append(f"method {config.method} supports {option} {', '.join(sorted(allowed))}; got {value}")
    problems += [
        f"method {config.method} needs {need} ({why}); set {need if ': ' in need else need + _switched_on(need)}"
        for need, why in sorted(method.needs.items())
        if not _holds(config, need)
    ]
    problems += [
        f"method {config.method} cannot be combined with {setting} ({why}); leave {setting} out"
        for setting, why in sorted(method.excludes.items())
        if getattr(config, setting)
    ]
    return problems


def _holds(config: Config, need: str) -> bool:
    """True if a setting is on ("is_replay") or has the value that is needed ("Replay_update: step")."""
    setting, _, value = need.partition(": ")
    return getattr(config, setting) == value if value else bool(getattr(config, setting))


def _switched_on(setting: str) -> str:
    return ": True" if Config.model_fields[setting].annotation is bool else ""


def describe(config: Config) -> str:
    """The method with the settings that make it another experiment: `SEQ + replay 10 %`."""
    words = [config.method]
    if config.freeze_parts:
        match = " (substring)" if config.freeze_match == "substring" else ""
        words.append(f"freeze {', '.join(config.freeze_parts)} from task {config.freeze_from_task}{match}")
    if config.PEFT_type:
        sizes = {"LoRA": f" r {config.PEFT_lora_r}", "Bottleneck": f" {config.PEFT_bottleneck_size}"}
        words.append(config.PEFT_type + sizes.get(config.PEFT_type, ""))
    if config.is_replay:
        size = config.Replay_buffer_size
        words.append(f"replay {f'{config.Replay_buffer_ratio:.3g}' if size is None else size}")
    return " + ".join(words)
