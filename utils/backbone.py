"""Load a language model and its tokenizer from a local folder or the hub, and run it on batches.

A batch looks the same for every model: prompt and answer in one row. A decoder reads the rows as they are. An
encoder-decoder (T5 and its kind) reads the prompts and writes the answers; `split` takes the rows apart for it.
Shapes: B rows, T tokens of a row, S of a prompt, K answer columns, P virtual tokens, V vocabulary, D hidden size.
"""

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
from utils.dataloader import IGNORE, Batch
from utils.errors import UserError
from utils.seed import seed_torch

HUB_TIMEOUT_SECONDS = 5


@dataclass
class Backbone:
    """A language model with its tokenizer."""

    model: nn.Module
    tokenizer: Any
    pad_id: int
    stop_ids: list[int]  # generation ends at any of these

    @property
    def is_encoder_decoder(self) -> bool:
        """True if an encoder reads the prompts and a decoder writes the answers."""
        return self.model.config.is_encoder_decoder


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
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    family = AutoModelForSeq2SeqLM if kind(config) == "encoder-decoder" else AutoModelForCausalLM
    dtype = config.backbone_dtype if config.backbone_dtype == "auto" else getattr(torch, config.backbone_dtype)
    if not config.backbone_random_init:
        return _fetch(family.from_pretrained, config, dtype=dtype)
    shape = _shape(config)
    seed_torch(config.seed, "random_init")
    return family.from_config(shape, dtype=None if dtype == "auto" else dtype)


def kind(config: Config) -> str:
    """What a method's `backbones` must hold, "decoder" or "encoder-decoder"; no weights are loaded for the answer."""
    return "encoder-decoder" if _shape(config).is_encoder_decoder else "decoder"


def _shape(config: Config):
    """The model's own configuration."""
    from transformers import AutoConfig

    return _fetch(AutoConfig.from_pretrained, config)


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

    own = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=False,
        pad_token_id=pad_id,
        eos_token_id=stop_ids,
        bos_token_id=own.bos_token_id,
        decoder_start_token_id=own.decoder_start_token_id,
    )


def answer_logits(model: nn.Module, batch: Batch, prompt: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Run the model; the head scores only the columns that hold answers.

    With a vocabulary of 50,000 and short answers the head would otherwise be most of the work.

    Args:
        model: Decoder or encoder-decoder.
        batch: Prompts and answers.
        prompt: (P, D) float, embeddings of virtual tokens that the model reads before each text; None: no such.

    Returns:
        logits (B, K, V) and the labels (B, K) they predict, those of the last K columns, K = longest answer.
    """
    if model.config.is_encoder_decoder:
        output, written = _translate(model, batch, prompt)
        order = (written != IGNORE).int().argsort(dim=1, stable=True)  # to the last columns, where they are in a batch
        return output.logits.take_along_dim(order[..., None], 1), written.gather(1, order)
    length = min(batch.answer_length, batch.labels.shape[1] - (prompt is None))
    logits = forward(model, batch, prompt, logits_to_keep=length + 1)[:, -length - 1 : -1]
    return logits, batch.labels[:, -length:]


def forward(model: nn.Module, batch: Batch, prompt: Tensor | None = None, logits_to_keep: int = 0) -> Tensor:
    """A decoder's logits (B, P + T, V), or only the last `logits_to_keep` columns where the model can do that.

    Positions count from the first token that is not padding, as in generation; models with absolute positions would
    otherwise see shifted ones.
    """
    keep = {"logits_to_keep": logits_to_keep} if logits_to_keep else {}
    return model(**_inputs(model, batch, prompt, **keep)).logits


def _inputs(model: nn.Module, batch: Batch, prompt: Tensor | None = None, **options: Any) -> dict[str, Any]:
    """What the model is given; options that its forward does not know are left out."""
    accepted = inspect.signature(model.forward).parameters
    texts = text_inputs(model, batch, prompt)
    options |= {"use_cache": False, "position_ids": (texts["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)}
    return texts | {name: value for name, value in options.items() if name in accepted}


def _translate(model: nn.Module, batch: Batch, prompt: Tensor | None = None, **options: Any) -> tuple[Any, Tensor]:
    """Output of an encoder-decoder that reads prompts and writes answers, and the labels (B, K) of its columns."""
    ids, mask, labels = split(batch)
    written = model.prepare_decoder_input_ids_from_labels(labels)
    output = model(**_with_prompt(model, ids, mask, prompt), decoder_input_ids=written, use_cache=False, **options)
    return output, labels


def text_inputs(model: nn.Module, batch: Batch, prompt: Tensor | None = None) -> dict[str, Tensor]:
    """What the model reads: the rows if it is a decoder, their prompts if it is an encoder-decoder.

    Args:
        model: Decoder or encoder-decoder.
        batch: Prompts, with or without answers.
        prompt: See `answer_logits`; virtual tokens come right before each text, padding stays where it was.
    """
    ids, mask = split(batch)[:2] if model.config.is_encoder_decoder else (batch.input_ids, batch.attention_mask)
    return _with_prompt(model, ids, mask, prompt)


def _with_prompt(model: nn.Module, ids: Tensor, mask: Tensor, prompt: Tensor | None) -> dict[str, Tensor]:
    if prompt is None:
        return {"input_ids": ids, "attention_mask": mask}
    text = model.get_input_embeddings()(ids)
    embeddings = torch.cat([prompt.to(text.dtype).expand(len(ids), -1, -1), text], dim=1)
    mask = torch.cat([mask.new_ones(len(ids), len(prompt)), mask], dim=1)
    order = mask.argsort(dim=1, descending=model.config.is_encoder_decoder, stable=True)
    return {"inputs_embeds": embeddings.take_along_dim(order[..., None], 1), "attention_mask": mask.gather(1, order)}


def split(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """What an encoder-decoder reads and writes: prompts (B, S), their mask, labels (B, K); all padded on the right."""
    is_label = batch.labels != IGNORE
    is_prompt = (batch.attention_mask == 1) & ~is_label
    longest = int(is_prompt.sum(dim=1).max())
    order = is_prompt.int().argsort(dim=1, descending=True, stable=True)[:, :longest]
    labels = batch.labels.gather(1, is_label.int().argsort(dim=1, descending=True, stable=True))
    return batch.input_ids.gather(1, order), is_prompt.long().gather(1, order), labels[:, : batch.answer_length]


@torch.no_grad()
def features(model: nn.Module, batch: Batch) -> Tensor:
    """(B, D) float32: last layer's hidden state at the last column, in eval mode; for herding and probes.

    Of an encoder-decoder it is the decoder's before the first token of the answer: it has seen the prompt too.

    Args:
        model: Language model; left in the mode it was found in.
        batch: Rows padded on the left, answers included or not: the last column is what counts.
    """
    with eval_mode(model):
        if model.config.is_encoder_decoder:
            return _translate(model, batch, output_hidden_states=True)[0].decoder_hidden_states[-1][:, 0].float()
        return hidden_states(model.base_model, batch)[:, -1].float()


def hidden_states(base_model: nn.Module, batch: Batch) -> Tensor:
    """(B, T, D): last layer's hidden states of a model without its head."""
    return base_model(**_inputs(base_model, batch)).last_hidden_state
