"""Load a language model and its tokenizer from a local folder or the hub, and run it on batches."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from utils.config import Config
from utils.copies import eval_mode
from utils.dataloader import Batch
from utils.errors import UserError
from utils.seed import seed_torch

HUB_TIMEOUT_SECONDS = 5


@dataclass
class Backbone:
    """A causal language model with its tokenizer."""

    model: nn.Module
    tokenizer: Any
    pad_id: int
    stop_ids: list[int]  # generation ends at any of these


def find_source(config: Config) -> str:
    """Folder or hub name that the options mean; nothing is loaded.

    Raises:
        UserError: a folder that is not there or holds no model.
    """
    name = config.backbone
    if config.load_llm_ckpt:
        folders = [Path(config.backbone_cache_path), Path(config.backbone_cache_path) / Path(name).name]
        for folder in folders:
            if (folder / "config.json").is_file():
                return str(folder)
        raise UserError(
            f"backbone_cache_path: expected a folder with a saved model, but neither {folders[0]}/config.json nor "
            f"{folders[1]}/config.json exists"
        )
    if (Path(name) / "config.json").is_file():
        return name
    if Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"backbone: {name}/config.json does not exist; expected a folder with a saved model")
    return name


def load_backbone(config: Config) -> Backbone:
    """Load model and tokenizer.

    Raises:
        UserError: the model cannot be found or fetched, or has no end-of-sequence token.
    """
    from transformers import AutoTokenizer  # seconds to import: not for --help

    tokenizer = _fetch(AutoTokenizer.from_pretrained, config, padding_side="left")
    if tokenizer.eos_token_id is None:
        raise UserError(f"backbone: the tokenizer of {find_source(config)} has no end-of-sequence token")
    model = load_model(config)
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    stop_ids = _stop_ids(model, tokenizer)
    _make_greedy(model, pad_id, stop_ids)
    return Backbone(model, tokenizer, pad_id, stop_ids)


def load_model(config: Config) -> nn.Module:
    """The model alone, with the weights it has before any task."""
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = config.backbone_dtype if config.backbone_dtype == "auto" else getattr(torch, config.backbone_dtype)
    if not config.backbone_random_init:
        return _fetch(AutoModelForCausalLM.from_pretrained, config, dtype=dtype)
    shape = _fetch(AutoConfig.from_pretrained, config)
    seed_torch(config.seed, "random_init")
    return AutoModelForCausalLM.from_config(shape, dtype=None if dtype == "auto" else dtype)


def _fetch(load, config: Config, **options):
    source = find_source(config)
    if config.backbone_revision is not None:
        options["revision"] = config.backbone_revision
    if config.backbone_cache_path is not None and not config.load_llm_ckpt:
        options["cache_dir"] = config.backbone_cache_path
    if not Path(source).exists() and not hub_answers():
        options["local_files_only"] = True  # what is in the cache
    try:
        return load(source, trust_remote_code=False, **options)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        what = "could not be loaded" if Path(source).exists() else "is no local folder and could not be fetched"
        raise UserError(
            f"backbone: {source} {what} ({reason}). With a network, python utils/download_backbones.py "
            f"--backbone {source} --out DIR fetches a model; then use --backbone DIR"
        ) from None


@cache
def hub_answers() -> bool:
    """True if the hub can be reached; where it can't, the library would try each file for a minute."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS)
    except Exception:  # whatever the HTTP library of the day raises
        return False
    return True


def _stop_ids(model: nn.Module, tokenizer) -> list[int]:
    """The tokenizer's EOS and those of the model's generation config (chat models have several)."""
    own = model.generation_config.eos_token_id
    own = [] if own is None else own if isinstance(own, list) else [own]
    return sorted({tokenizer.eos_token_id, *own})


def _make_greedy(model: nn.Module, pad_id: int, stop_ids: list[int]) -> None:
    """Greedy decoding whatever the checkpoint asks for: Llama-2-chat, say, would sample."""
    from transformers import GenerationConfig

    bos = model.generation_config.bos_token_id
    model.generation_config = GenerationConfig(
        do_sample=False, pad_token_id=pad_id, eos_token_id=stop_ids, bos_token_id=bos
    )


def answer_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Run the model; the head scores only the columns that hold answers.

    With a vocabulary of 50,000 and short answers the head would otherwise be most of the work.

    Returns:
        logits (B, K, V) and the labels (B, K) they predict, K = longest answer of the batch.
    """
    length = min(batch.answer_length, batch.labels.shape[1] - 1)
    logits = forward(model, batch, logits_to_keep=length + 1)[:, -length - 1 : -1]
    return logits, batch.labels[:, -length:]


def forward(model: nn.Module, batch: Batch, logits_to_keep: int = 0) -> Tensor:
    """Logits (B, T, V), or only those of the last `logits_to_keep` columns where the model can do that.

    Positions count from the first token that is not padding, as in generation; models with absolute positions would
    otherwise see shifted ones.
    """
    keep = {"logits_to_keep": logits_to_keep} if logits_to_keep else {}
    return model(**_inputs(model, batch, **keep)).logits


def _inputs(model: nn.Module, batch: Batch, **options: Any) -> dict[str, Any]:
    """What the model is given; options that its forward does not know are left out."""
    accepted = inspect.signature(model.forward).parameters
    options |= {"use_cache": False, "position_ids": (batch.attention_mask.cumsum(dim=1) - 1).clamp(min=0)}
    known = {name: value for name, value in options.items() if name in accepted}
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask} | known


@torch.no_grad()
def features(model: nn.Module, batch: Batch) -> Tensor:
    """(B, D) float32: last layer's hidden state at the last column, in eval mode; for herding and probes.

    Args:
        model: Causal language model; left in the mode it was found in.
        batch: Rows padded on the left, answers included or not: the last column is what counts.
    """
    with eval_mode(model):
        return hidden_states(model.base_model, batch)[:, -1].float()


def hidden_states(base_model: nn.Module, batch: Batch) -> Tensor:
    """(B, T, D): last layer's hidden states of a model without its head."""
    return base_model(**_inputs(base_model, batch)).last_hidden_state
