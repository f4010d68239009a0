"""Load a language model and its tokenizer from a local folder or the hub."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from utils import quantization
from utils.config import Config
from utils.dataloader import Encoder
from utils.errors import UserError, reason_of
from utils.model import adapters
from utils.model.architecture import Backbone, Model, kind_of, recompute
from utils.seed import seed_torch
from utils.storage.files import is_file

if TYPE_CHECKING:  # seconds to import: not for --help
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

HUB_TIMEOUT_SECONDS = 5
LONGEST_NAME = 200  # of a model on the hub it is 96


def find_source(config: Config) -> str:
    """The folder or hub name that the options select; nothing is loaded.

    Raises:
        UserError: a folder that is not there or holds no model.
    """
    name = config.backbone
    if config.load_llm_ckpt and config.backbone_cache_path is not None:
        folders = [Path(config.backbone_cache_path), Path(config.backbone_cache_path) / Path(name).name]
        for folder in folders:
            if is_file(folder / "config.json"):
                return str(folder)
        raise UserError(
            f"backbone_cache_path: expected a folder with a saved model, but neither {folders[0]}/config.json nor "
            f"{folders[1]}/config.json exists"
        )
    if is_file(Path(name) / "config.json"):
        return name
    if len(name) > LONGEST_NAME or Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"backbone: {name}/config.json does not exist; expected a folder with a saved model")
    return name


def load_backbone(config: Config) -> Backbone:
    """Load model and tokenizer.

    Raises:
        UserError: the model cannot be found or fetched, or has no end-of-sequence token.
    """
    from transformers import AutoTokenizer  # seconds to import: not for --help

    tokenizer = _fetch(AutoTokenizer.from_pretrained, config, padding_side="left")
    is_encoder = kind(config) == "encoder"
    if tokenizer.eos_token_id is None and not is_encoder:
        raise UserError(f"backbone: the tokenizer of {find_source(config)} has no end-of-sequence token")
    model = load_model(config)
    _check_vocabulary(adapters.innermost(model), tokenizer, find_source(config))
    if is_encoder:
        return Backbone(model, tokenizer, tokenizer.pad_token_id, [])
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    stop_ids = _stop_ids(model, tokenizer)
    _make_greedy(model, pad_id, stop_ids)
    return Backbone(model, tokenizer, pad_id, stop_ids)


def _check_vocabulary(net: PreTrainedModel, tokenizer: Any, source: str) -> None:
    """Refuse a tokenizer that can give ids for which the model has no row.

    Special tokens without a row are harmless, as text in data is never read as a special token, unless they end or pad
    texts or the chat template writes them. Gemma 3 has one, for images.
    """
    rows = len(net.get_input_embeddings().get_parameter("weight"))
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    written = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    beyond = sorted(
        token
        for token, index in tokenizer.get_vocab().items()
        if index >= rows and (token not in special or token in written or token in str(tokenizer.chat_template or ""))
    )
    if beyond:
        raise UserError(
            f"backbone: the tokenizer of {source} has tokens for which the model has no row, such as {beyond[0]!r}: "
            f"{len(tokenizer)} tokens, {rows} rows; use the model's own tokenizer, or resize the model's embeddings"
        )


def load_model(config: Config) -> Model:
    """The model alone, with its weights before any task and, if `PEFT_type` is set, its first adapter."""
    model = adapters.wrap(_load_base(config), config)
    if config.gradient_checkpointing:
        _checkpoint_layers(adapters.innermost(model))
    return model


def _checkpoint_layers(net: PreTrainedModel) -> None:
    """In train mode only. Not reentrant: that would need inputs with gradients, and lose those of adapters."""
    if not net.supports_gradient_checkpointing:
        raise UserError(f"gradient_checkpointing: {type(net).__name__} cannot do that; leave it out")
    recompute(net)


def _load_base(config: Config) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    families = {"encoder-decoder": AutoModelForSeq2SeqLM, "encoder": AutoModelForMaskedLM}
    family = families.get(kind(config), AutoModelForCausalLM)
    dtype = config.backbone_dtype if config.backbone_dtype == "auto" else getattr(torch, config.backbone_dtype)
    attention = {} if config.attn_implementation == "auto" else {"attn_implementation": config.attn_implementation}
    if not config.backbone_random_init:
        load = partial(_load_encoder, config) if family is AutoModelForMaskedLM else partial(_load_whole, family)
        base: PreTrainedModel = _fetch(load, config, dtype=dtype, **attention, **quantization.loading(config))
        quantization.keep_layout(base)
        return base
    own = shape(config)
    seed_torch(config.seed, "random_init")
    try:
        model = family.from_config(own, dtype=None if dtype == "auto" else dtype, **attention)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        where = find_source(config)
        raise UserError(f"backbone: the model in {where} could not be built: {reason_of(error)}") from None
    return model.base_model if family is AutoModelForMaskedLM else model


def _load_whole(family: Any, source: str, **options: Any) -> PreTrainedModel:
    """Load a model; refuse missing weights, which the library would draw at random."""
    model, found = family.from_pretrained(source, output_loading_info=True, **options)
    if found["missing_keys"]:
        raise UserError(f"backbone: {source} lacks weights, such as {min(found['missing_keys'])}")
    _check_depth(model, found["unexpected_keys"], source)
    return model


def _check_depth(model: PreTrainedModel, unused: Iterable[str], source: str) -> None:
    """Refuse weights of layers that the configuration does not have; other unused weights may be of heads."""
    depths = {name: len(layers) for name, layers in model.named_modules() if isinstance(layers, torch.nn.ModuleList)}
    depths |= {name.removeprefix(f"{model.base_model_prefix}."): depth for name, depth in depths.items()}
    for name in sorted(unused):
        place = re.match(r"(.+?)\.(\d+)\.", name)
        if place and int(place[2]) >= depths.get(place[1], sys.maxsize):
            raise UserError(
                f"backbone: {source} holds weights of layers that its config.json does not have, such as {name}; "
                "correct the number of layers in config.json"
            )


def _load_encoder(config: Config, source: str, **options: Any) -> PreTrainedModel:
    """The layers alone, without a pooler: no method trains a head that fills masks, and many checkpoints have none."""
    from transformers import AutoModelForMaskedLM
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # the library would report the absent head at length
    try:
        whole, found = AutoModelForMaskedLM.from_pretrained(source, output_loading_info=True, **options)
    finally:
        logging.set_verbosity(level)
    prefix = whole.base_model_prefix
    own = {name for layer in whole.base_model.state_dict() for name in (layer, f"{prefix}.{layer}")}
    if absent := sorted(own & set(found["missing_keys"])):
        raise UserError(f"backbone: {find_source(config)} lacks weights of the encoder, such as {absent[0]}")
    _check_depth(whole, found["unexpected_keys"], source)
    return whole.base_model


def make_encoder(config: Config, backbone: Backbone, prompt_type: str, strip: bool, cut_side: str) -> Encoder:
    """What encodes questions for this backbone; for the last three see `Encoder`."""
    return Encoder(
        backbone.tokenizer,
        prompt_type,
        ends=backbone.kind != "decoder",
        parse_special=config.parse_special_tokens,
        day=config.chat_date,
        thinking=config.chat_thinking,
        strip=strip,
        cut_side=cut_side,
    )


def kind(config: Config) -> str:
    """Kind of the backbone (see utils/model/architecture.py), by its configuration; no weights are loaded."""
    return kind_of(shape(config))


def shape(config: Config) -> PreTrainedConfig:
    """The model's own configuration."""
    from transformers import AutoConfig

    return _fetch(AutoConfig.from_pretrained, config)


def load_first_weights(model: Model, config: Config) -> None:
    """Give the model the weights again that it had before any task."""
    model.load_state_dict(load_model(config).state_dict())


def _fetch(load: Callable[..., Any], config: Config, **options: Any) -> Any:
    source = find_source(config)
    if config.backbone_revision is not None:
        options["revision"] = config.backbone_revision
    if config.backbone_cache_path is not None and not config.load_llm_ckpt:
        options["cache_dir"] = config.backbone_cache_path
    if not Path(source).exists() and not hub_answers():
        options["local_files_only"] = True  # what is in the cache
    try:
        return load(source, trust_remote_code=False, **options)
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a folder from elsewhere can make the library raise nearly anything
        reason = reason_of(error)
        if Path(source).exists():
            raise UserError(f"backbone: the model in {source} could not be loaded: {reason}") from None
        raise UserError(
            f"backbone: {source} is no local folder and could not be fetched ({reason}). With a network, "
            f"python utils/download_backbones.py --backbone {source} --out DIR fetches a model; then use --backbone DIR"
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


def _stop_ids(model: Model, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's EOS and those of the model's generation config (chat models have several)."""
    own = adapters.innermost(model).generation_config.eos_token_id
    own = [] if own is None else own if isinstance(own, list) else [own]
    if not all(isinstance(token, int) for token in own):
        raise UserError(f"backbone: generation_config.json: eos_token_id: expected numbers of tokens, got {own}")
    return sorted({tokenizer.eos_token_id, *own})


def stop_also_at(backbone: Backbone, token: int) -> None:
    """End answers at one more token."""
    backbone.stop_ids = sorted({*backbone.stop_ids, token})
    adapters.innermost(backbone.model).generation_config.eos_token_id = backbone.stop_ids


def _make_greedy(model: Model, pad_id: int, stop_ids: list[int]) -> None:
    """Greedy decoding whatever the checkpoint asks for: Llama-2-chat, say, would sample."""
    from transformers import GenerationConfig

    net = adapters.innermost(model)
    own = net.generation_config
    net.generation_config = GenerationConfig(
        do_sample=False,
        pad_token_id=pad_id,
        eos_token_id=stop_ids,
        bos_token_id=own.bos_token_id,
        decoder_start_token_id=own.decoder_start_token_id,
    )
