"""Adapters of the peft library: small parts in or before a base model whose own weights never change.

A model with adapters is a `PeftModel`; peft names, saves and loads them. What is done differently here, and why: peft
runs a model with virtual tokens without positions, so that padding on the left would shift the text; and it makes
adapters trainable when they are switched on. Shapes: B rows, T tokens, v virtual tokens.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.config import Config
from utils.errors import UserError
from utils.model.architecture import kind_of
from utils.seed import seed_torch

FIRST = "default"  # peft saves an adapter of this name beside the model, others in folders of their own
TASK_TYPES = {"decoder": "CAUSAL_LM", "encoder": "FEATURE_EXTRACTION", "encoder-decoder": "SEQ_2_SEQ_LM"}
FITTING = {  # kinds of adapters for each kind of model
    "decoder": ("LoRA", "IA3", "Bottleneck", "PromptTuning", "PrefixTuning"),
    "encoder": ("LoRA", "IA3", "Bottleneck", "PromptTuning"),
    "encoder-decoder": ("LoRA", "IA3", "Bottleneck"),
}
_OWNED = re.compile(r"(?:^|\.)(?:lora_\w+|ia3_l|bottleneck_\w+|prompt_encoder)\.(\w+)(?:\.|$)")


def wrap(model: nn.Module, config: Config) -> nn.Module:
    """A model from transformers with one fresh adapter; the model itself if none is asked for.

    Raises:
        UserError: peft can't put this kind of adapter into this model.
    """
    if config.PEFT_type is None:
        return model
    kind = kind_of(model.config)
    if config.PEFT_type not in FITTING[kind]:
        raise UserError(f"PEFT_type: an {kind} takes {', '.join(FITTING[kind])}; got {config.PEFT_type}")
    from peft import get_peft_model  # seconds to import: not for --help

    seed_torch(config.seed, "adapter", FIRST)
    try:
        wrapped = get_peft_model(model, _recipe(config, model), FIRST)
    except ValueError as error:
        reason = str(error).split("\n")[0] + ("; see PEFT_lora_target_modules" if config.PEFT_type == "LoRA" else "")
        raise UserError(f"PEFT_type: {config.PEFT_type} does not fit {type(model).__name__}: {reason}") from None
    wrapped.words = model.config.vocab_size  # a method may add some
    return wrapped


def _recipe(config: Config, model: nn.Module):
    """The options, as peft wants them."""
    import peft

    kind: dict[str, Any] = {"task_type": TASK_TYPES[kind_of(model.config)]}
    if config.PEFT_type == "LoRA":
        targets = config.PEFT_lora_target_modules
        return peft.LoraConfig(
            **kind,
            r=config.PEFT_lora_r,
            lora_alpha=config.PEFT_lora_alpha,
            lora_dropout=config.PEFT_lora_dropout,
            target_modules="all-linear" if targets == ("all-linear",) else targets and list(targets),
        )
    if config.PEFT_type == "IA3":
        return peft.IA3Config(**kind)
    if config.PEFT_type == "Bottleneck":
        from utils.model import bottleneck

        return bottleneck.BottleneckConfig(
            **kind, size=config.PEFT_bottleneck_size, target_modules=bottleneck.places(model)
        )
    kind["num_virtual_tokens"] = config.PEFT_num_virtual_tokens
    if config.PEFT_type == "PrefixTuning":
        return peft.PrefixTuningConfig(**kind)
    text = config.PEFT_prompt_tuning_init_text
    if text in ("", "auto"):
        return peft.PromptTuningConfig(**kind, prompt_tuning_init="SAMPLE_VOCAB" if text else "RANDOM")
    return peft.PromptTuningConfig(
        **kind, prompt_tuning_init="TEXT", prompt_tuning_init_text=text, tokenizer_name_or_path=model.name_or_path
    )


def has_adapters(model: nn.Module) -> bool:
    """True if the model is one of peft's."""
    return hasattr(model, "get_base_model")


def innermost(model: nn.Module) -> nn.Module:
    """The transformers model, inside what peft has put around it; adapters in its layers are part of it."""
    return model.get_base_model() if has_adapters(model) else model


def add(model: nn.Module, name: str, seed: int) -> None:
    """One more adapter, like those that are there; not yet active."""
    seed_torch(seed, "adapter", name)
    recipe = copy.deepcopy(next(iter(model.peft_config.values())))
    with _unchanged_flags(model):
        model.add_adapter(name, recipe)


def rename(model: nn.Module, old: str, new: str, seed: int) -> None:
    """A fresh adapter of another name in the place of one."""
    add(model, new, seed)
    use(model, [new])
    model.delete_adapter(old)


def names(model: nn.Module) -> list[str]:
    """The adapters, oldest first."""
    return list(model.peft_config)


def active(model: nn.Module) -> list[str]:
    """The adapters in use; several: their sum."""
    return list(model.active_adapters)


def use(model: nn.Module, chosen: Sequence[str]) -> None:
    """Make these the active adapters; which parameters learn stays as it is."""
    with _unchanged_flags(model):
        model.set_adapter(chosen[0])
        if len(chosen) > 1:  # only adapters inside layers can be summed
            model.base_model.set_adapter(list(chosen))


@contextmanager
def using(model: nn.Module, *chosen: str) -> Iterator[None]:
    """Let other adapters be the active ones inside the `with`."""
    before = active(model)
    use(model, chosen)
    try:
        yield
    finally:
        use(model, before)


@contextmanager
def _unchanged_flags(model: nn.Module) -> Iterator[None]:
    """peft's functions also switch gradients on and off; fit.py alone decides that."""
    flags = [(w, w.requires_grad) for w in model.parameters()]
    try:
        yield
    finally:
        for w, flag in flags:
            w.requires_grad_(flag)


def owner(name: str) -> str | None:
    """The adapter that a parameter belongs to; None: the base.

    >>> owner("layers.0.q.lora_A.task_1.weight"), owner("layers.0.q.base_layer.weight")
    ('task_1', None)
    """
    found = _OWNED.search(name)
    return found and found[1]


def factors(model: nn.Module, side: str, adapter: str) -> dict[str, nn.Parameter]:
    """LoRA's A (r, D_in) or B (D_out, r) of one adapter, by the name of the layer it is in."""
    end = f".lora_{side}.{adapter}.weight"
    return {name.removesuffix(end): w for name, w in model.named_parameters() if name.endswith(end)}


def need_lora(config: Config) -> list[str]:
    """The problem of a method about LoRA's factors with another kind of adapter."""
    kind = config.PEFT_type
    return [f"PEFT_type: method {config.method} needs LoRA, got {kind}"] if kind not in (None, "LoRA") else []


def resting(model: nn.Module) -> set[str]:
    """Names of the parameters that never learn now: the base and every adapter that is not active."""
    if not has_adapters(model):
        return set()
    return {name for name, _ in model.named_parameters() if owner(name) not in active(model)}


def inputs(model: nn.Module, ids: Tensor, mask: Tensor) -> dict[str, Any]:
    """What `innermost` is given for rows of text; virtual tokens come before the text and its padding.

    Args:
        model: Any model.
        ids: (B, T) int64.
        mask: (B, T) int64, 0 on padding.

    Returns:
        attention_mask (B, v + T) and either input_ids (B, T), with prefixes in past_key_values, or inputs_embeds
        (B, v + T, D).
    """
    if not (has_adapters(model) and model.active_peft_config.is_prompt_learning):
        return {"input_ids": ids, "attention_mask": mask}
    prompt = model.get_prompt(len(ids))
    virtual = mask.new_ones(len(ids), model.active_peft_config.num_virtual_tokens)
    mask = torch.cat([virtual, mask], dim=1)
    if not isinstance(prompt, Tensor):
        return {"input_ids": ids, "attention_mask": mask, "past_key_values": prompt}
    words = innermost(model).get_input_embeddings()(ids)
    return {"inputs_embeds": torch.cat([prompt.to(words.dtype), words], dim=1), "attention_mask": mask}


def generate(model: nn.Module, given: dict[str, Any], **options: Any) -> Tensor:
    """New tokens (B, N) that the innermost model generates after what it is given, see `inputs`."""
    net = innermost(model)
    if "past_key_values" in given:  # generate() takes what is in a cache for the beginning of its ids
        ids, mask = given["input_ids"], given["attention_mask"]
        given = given | {"input_ids": F.pad(ids, (mask.shape[1] - ids.shape[1], 0))}
    output = net.generate(**given, **options)
    if net.config.is_encoder_decoder:
        return output[:, 1:]  # it begins with the start token
    return output[:, given["input_ids"].shape[1] :] if "input_ids" in given else output


def save(model: nn.Module, folder: Path) -> None:
    """Write a model; of one with adapters the adapters alone, and the embeddings if tokens were added."""
    if not has_adapters(model):
        model.save_pretrained(folder)
        return
    resized = innermost(model).config.vocab_size != model.words
    model.save_pretrained(folder, save_embedding_layers=resized)


def fingerprint(model: nn.Module) -> str | None:
    """What tells one base from another, as it is not saved: its tensors begin like this. None: no adapters."""
    if not has_adapters(model):
        return None
    digest = hashlib.sha256()
    for name, w in model.named_parameters():
        if owner(name) is None:
            digest.update(name.encode() + w.detach().flatten()[:64].double().cpu().numpy().tobytes())
    return digest.hexdigest()


def load(model: nn.Module, folder: Path) -> None:
    """Give a model exactly the adapters that `save` wrote, whichever it has."""
    from peft import set_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights

    files = sorted(folder.rglob("adapter_config.json"), key=lambda file: (len(file.parent.name), file.parent.name))
    saved = {FIRST if file.parent == folder else file.parent.name: file.parent for file in files}
    for name, place in saved.items():
        if name not in names(model):
            add(model, name, seed=0)
        set_peft_model_state_dict(model, load_peft_weights(str(place), device="cpu"), name)
    use(model, [next(reversed(saved))])
    for name in names(model):
        if name not in saved:
            model.delete_adapter(name)
