"""Adapters of the peft library: small trainable parts in or before a frozen base model.

A model with adapters is a `PeftModel`; peft names, saves and loads them. This file deviates from peft in two points:
peft puts virtual tokens before the padding of a row and runs the model without positions, so that padding would shift
the text; and peft makes adapters trainable when it activates them, which only utils/run/fit.py decides here. Shapes: B
rows, T tokens, v virtual tokens.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.config import Config
from utils.errors import UserError, reason_of
from utils.model import targets
from utils.model.architecture import Model, kind_of
from utils.seed import seed_torch

if TYPE_CHECKING:  # seconds to import: not for --help
    from peft import PeftConfig, PeftModel
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
    from transformers import PreTrainedModel
    from typing_extensions import TypeIs

FIRST = "default"  # peft saves the adapter of this name in the folder itself, others in subfolders
TASK_TYPES = {"decoder": "CAUSAL_LM", "encoder": "FEATURE_EXTRACTION", "encoder-decoder": "SEQ_2_SEQ_LM"}
FITTING = {  # kinds of adapters for each kind of model
    "decoder": ("LoRA", "IA3", "Bottleneck", "PromptTuning", "PrefixTuning"),
    "encoder": ("LoRA", "IA3", "Bottleneck", "PromptTuning"),
    "encoder-decoder": ("LoRA", "IA3", "Bottleneck"),
}
_OWNED = re.compile(r"(?:^|\.)(?:lora_\w+|ia3_l|bottleneck_\w+|prompt_encoder)\.(\w+)(?:\.|$)")


def wrap(model: PreTrainedModel, config: Config) -> Model:
    """A model from transformers with one fresh adapter; the model itself if `PEFT_type` is not set.

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
        reason = reason_of(error) + _advice(config, str(error))
        raise UserError(f"PEFT_type: {config.PEFT_type} does not fit {type(model).__name__}: {reason}") from None
    wrapped.words = model.config.get_text_config().vocab_size  # when `save` is called a method may have added some
    return wrapped


def _advice(config: Config, reason: str) -> str:
    """The option that may help."""
    if config.PEFT_type == "LoRA" and "lora_dropout" in reason:
        return "; LoRA on experts needs PEFT_lora_dropout: 0, or name other layers in PEFT_lora_target_modules"
    names = {"LoRA": "PEFT_lora_target_modules", "IA3": "PEFT_ia3_target_modules"}
    return f"; see {names[config.PEFT_type]}" if config.PEFT_type in names else ""


def _recipe(config: Config, model: PreTrainedModel) -> PeftConfig:
    """The options as a configuration of peft."""
    import peft

    kind: dict[str, Any] = {"task_type": TASK_TYPES[kind_of(model.config)]}
    if config.PEFT_type == "LoRA":
        return peft.LoraConfig(
            **kind,
            r=config.PEFT_lora_r,
            lora_alpha=config.PEFT_lora_alpha,
            lora_dropout=config.PEFT_lora_dropout,
            target_modules=targets.lora(config.PEFT_lora_target_modules, model),
            exclude_modules=targets.unread_layers(model),
        )
    if config.PEFT_type == "IA3":
        scaled, feedforward = targets.ia3(config.PEFT_ia3_target_modules, model)
        unread = targets.unread_layers(model)
        return peft.IA3Config(**kind, target_modules=scaled, feedforward_modules=feedforward, exclude_modules=unread)
    if config.PEFT_type == "Bottleneck":
        from utils.model import bottleneck

        return bottleneck.BottleneckConfig(
            **kind, size=config.PEFT_bottleneck_size, target_modules=bottleneck.places(model)
        )
    kind["num_virtual_tokens"] = config.PEFT_num_virtual_tokens
    if config.PEFT_type == "PrefixTuning":
        return peft.PrefixTuningConfig(**kind, **_cached(model))
    kind["num_attention_heads"] = getattr(model.config, "num_attention_heads", 1)  # peft asks, but does not use it
    text = config.PEFT_prompt_tuning_init_text
    if text in ("", "auto"):
        return peft.PromptTuningConfig(**kind, prompt_tuning_init="SAMPLE_VOCAB" if text else "RANDOM")
    return peft.PromptTuningConfig(
        **kind, prompt_tuning_init="TEXT", prompt_tuning_init_text=text, tokenizer_name_or_path=model.name_or_path
    )


@torch.no_grad()
def _cached(model: PreTrainedModel) -> dict[str, Any]:
    """Layers, heads and width of the keys and values that a model stores for a token, as peft names them.

    Raises:
        ValueError: it stores something else, or they differ from layer to layer.
    """
    output = model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=True)
    layers = getattr(output.get("past_key_values"), "layers", [])
    kinds = {tuple(getattr(states, "shape", ())) for layer in layers for states in _stored(layer)}
    shape = kinds.pop() if len(kinds) == 1 else ()
    if len(shape) != 4:
        raise ValueError("a prefix needs keys and values of one shape in all layers; use PromptTuning")
    return {"num_layers": len(layers), "num_attention_heads": shape[1], "token_dim": shape[1] * shape[3]}


def _stored(layer: Any) -> tuple[Any, Any]:
    return getattr(layer, "keys", None), getattr(layer, "values", None)


def has_adapters(model: Model) -> TypeIs[PeftModel]:
    """True if the model is a `PeftModel`."""
    return hasattr(model, "get_base_model")


def innermost(model: Model) -> PreTrainedModel:
    """The transformers model inside a `PeftModel`, with the adapters in its layers; any other model itself."""
    return cast("PreTrainedModel", model.get_base_model()) if has_adapters(model) else model


def _adapted(model: Model) -> PeftModel:
    if not has_adapters(model):
        raise TypeError(f"expected a model with adapters, got {type(model).__name__}")
    return model


def add(model: Model, name: str, seed: int) -> None:
    """Add an adapter with the configuration of the first one; it is not active."""
    seed_torch(seed, "adapter", name)
    adapted = _adapted(model)
    recipe = copy.deepcopy(next(iter(adapted.peft_config.values())))
    with _unchanged_flags(model):
        adapted.add_adapter(name, recipe)


def rename(model: Model, old: str, new: str, seed: int) -> None:
    """Replace an adapter by a fresh one with another name."""
    add(model, new, seed)
    use(model, [new])
    _adapted(model).delete_adapter(old)


def names(model: Model) -> list[str]:
    """The adapters, oldest first."""
    return list(_adapted(model).peft_config)


def count(model: Model) -> int:
    """Number of adapters, active or not."""
    return len(names(model)) if has_adapters(model) else 0


def active(model: Model) -> list[str]:
    """The active adapters; the outputs of several are summed."""
    return list(_adapted(model).active_adapters)


def use(model: Model, chosen: Sequence[str]) -> None:
    """Make these the active adapters, without changing which parameters are trainable."""
    adapted = _adapted(model)
    adapted.active_adapter = chosen[0]
    if adapted.active_peft_config.is_prompt_learning:
        return
    # Without peft's `set_adapter`, which visits the weights of all adapters: a router changes them for every batch.
    cast("BaseTuner", adapted.base_model).active_adapter = list(chosen)
    for layer in _layers(adapted.base_model):
        layer._active_adapter = list(chosen)


def _layers(module: nn.Module) -> Iterator[BaseTunerLayer]:
    """The layers with adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # seconds to import: not for --help

    if isinstance(module, BaseTunerLayer):
        yield module
        module = module.get_base_layer()
    for part in module.children():
        yield from _layers(part)


@contextmanager
def using(model: Model, *chosen: str) -> Iterator[None]:
    """Activate other adapters inside the `with`."""
    before = active(model)
    use(model, chosen)
    try:
        yield
    finally:
        use(model, before)


@contextmanager
def disabled(model: Model) -> Iterator[None]:
    """Read without the adapters in the layers inside the `with`."""
    with _unchanged_flags(model), _adapted(model).disable_adapter():
        yield


@contextmanager
def _unchanged_flags(model: Model) -> Iterator[None]:
    """Undo peft's changes of `requires_grad` inside the `with`: only fit.py sets what is trainable."""
    flags = [(w, w.requires_grad) for w in model.parameters()]
    try:
        yield
    finally:
        for w, flag in flags:
            w.requires_grad_(flag)


def owner(name: str) -> str | None:
    """The adapter that a parameter belongs to; None: the base model.

    >>> owner("layers.0.q.lora_A.task_1.weight"), owner("layers.0.q.base_layer.weight")
    ('task_1', None)
    """
    found = _OWNED.search(name)
    return found[1] if found else None


def factors(model: Model, side: str, adapter: str) -> dict[str, nn.Parameter]:
    """LoRA's A (r, D_in) or B (D_out, r) of one adapter, by the name of the layer; D_in of an embedding: its tokens."""
    ends = (f".lora_{side}.{adapter}.weight", f".lora_embedding_{side}.{adapter}")
    return {name.removesuffix(end): w for name, w in model.named_parameters() for end in ends if name.endswith(end)}


def virtual_tokens(config: Config) -> int:
    """How many the adapter puts before each text."""
    return config.PEFT_num_virtual_tokens if config.PEFT_type in ("PromptTuning", "PrefixTuning") else 0


def need_lora(config: Config) -> list[str]:
    """Why a method on LoRA's factors cannot use this kind of adapter; empty: it can."""
    kind = config.PEFT_type
    return [f"PEFT_type: method {config.method} needs LoRA, got {kind}"] if kind not in (None, "LoRA") else []


def refuse_experts(model: Model, method: str) -> None:
    """Refuse LoRA on experts, whose factors are stacked in one tensor, for a method that needs those of single layers.

    Raises:
        UserError: some LoRA is on experts.
    """
    if any(type(module).__name__ == "ParamWrapper" for module in model.modules()):
        raise UserError(f"PEFT_lora_target_modules: {method} needs LoRA on layers, not on experts; name the layers")


def resting(model: Model) -> set[str]:
    """Names of the frozen parameters of a model with adapters: the base and every inactive adapter."""
    if not has_adapters(model):
        return set()
    return {name for name, _ in model.named_parameters() if owner(name) not in active(model)}


def inputs(model: Model, ids: Tensor, mask: Tensor) -> dict[str, Any]:
    """The inputs of `innermost` for rows of text.

    Padding comes first, then virtual tokens, then the text: models with a sliding window or with convolutions would
    otherwise see another distance between virtual tokens and text in a padded row.

    Args:
        model: Any model.
        ids: (B, T) int64; of a decoder padded on the left, of others on the right.
        mask: (B, T) int64, 0 on padding.

    Returns:
        attention_mask (B, v + T) and either inputs_embeds (B, v + T, D), or input_ids (B, v + T), where the ids
        in the columns of a prefix are arbitrary: past_key_values holds its keys and values.
    """
    if not (has_adapters(model) and model.active_peft_config.is_prompt_learning):
        return {"input_ids": ids, "attention_mask": mask}
    prompt, padding_last = model.get_prompt(len(ids)), kind_of(innermost(model).config) != "decoder"
    if isinstance(prompt, Tensor):
        words = innermost(model).get_input_embeddings()(ids)
        embeddings, mask = before_text(prompt, words, mask, padding_last)
        return {"inputs_embeds": embeddings, "attention_mask": mask}
    count, starts = model.active_peft_config.num_virtual_tokens, mask.shape[1] - mask.sum(dim=1)
    mask = torch.cat([mask.new_ones(len(ids), count), mask], dim=1).sort(dim=1, stable=True).values
    return {
        "input_ids": F.pad(ids, (count, 0), value=int(ids[0, -1])),
        "attention_mask": mask,
        "past_key_values": prefixed_cache(prompt, starts, mask.shape[1]),
    }


def before_text(virtual: Tensor, text: Tensor, mask: Tensor, padding_last: bool) -> tuple[Tensor, Tensor]:
    """Virtual tokens right before the text of each row.

    Args:
        virtual: (B, v, D) or (v, D).
        text: (B, T, D) embeddings.
        mask: (B, T) int64, 0 on padding.
        padding_last: Padding comes after the text, not before the virtual tokens.

    Returns:
        Embeddings (B, v + T, D) and their mask (B, v + T).
    """
    virtual = virtual.to(text.dtype).expand(len(text), -1, -1)
    mask = torch.cat([mask.new_ones(virtual.shape[:2]), mask], dim=1)
    order = mask.argsort(dim=1, descending=padding_last, stable=True)
    return torch.cat([virtual, text], dim=1).take_along_dim(order[..., None], 1), mask.gather(1, order)


def prefixed_cache(prefix: Any, starts: Tensor, columns: int) -> Any:
    """An empty cache that writes a prefix over the keys and values of some of the first columns it is given.

    Args:
        prefix: Cache of peft: keys and values (B, heads, v, D) of each layer.
        starts: (B,) int64, first column of the prefix in each row.
        columns: Number of columns in the model's first call.
    """
    from transformers import DynamicCache  # seconds to import: not for --help

    places = torch.arange(columns, device=starts.device) - starts[:, None]  # (B, columns), in the prefix

    def overwritten(states: Tensor, virtual: Tensor) -> Tensor:
        count = virtual.shape[2]
        index = places.clamp(0, count - 1)[:, None, :, None]
        inside = ((places >= 0) & (places < count))[:, None, :, None]
        return torch.where(inside, virtual.to(states.dtype).take_along_dim(index, 2), states)

    class Prefixed(DynamicCache):
        def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **options: Any) -> Any:
            if self.get_seq_length(layer_idx) == 0:
                layer = prefix.layers[layer_idx]
                key_states = overwritten(key_states, layer.keys)
                value_states = overwritten(value_states, layer.values)
            return super().update(key_states, value_states, layer_idx, *args, **options)

    return Prefixed()


def generate(model: Model, given: dict[str, Any], **options: Any) -> Tensor:
    """New tokens (B, N) that the innermost model generates from its inputs, see `inputs`."""
    net = innermost(model)
    writer: Any = net  # a model that generates is also a GenerationMixin
    output: Tensor = writer.generate(**given, **options)
    if net.config.is_encoder_decoder:
        return output[:, 1:]  # without the start token
    return output[:, given["input_ids"].shape[1] :] if "input_ids" in given else output


def save(model: Model, folder: Path) -> None:
    """Write a model; with adapters only these, and the embeddings if tokens were added."""
    if not has_adapters(model):
        model.save_pretrained(folder)
        return
    resized = innermost(model).config.get_text_config().vocab_size != model.words
    model.save_pretrained(str(folder), save_embedding_layers=resized)


def fingerprint(model: Model) -> str | None:
    """Digest of the first values of each tensor of the base model (which is not saved); None: no adapters."""
    if not has_adapters(model):
        return None
    digest = hashlib.sha256()
    for name, w in model.named_parameters():
        if owner(name) is None:
            digest.update(name.encode() + w.detach().flatten()[:64].double().cpu().numpy().tobytes())
    return digest.hexdigest()


def load(model: Model, folder: Path) -> None:
    """Replace a model's adapters by those that `save` wrote."""
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
            _adapted(model).delete_adapter(name)
