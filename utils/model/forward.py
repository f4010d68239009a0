"""Run a model on batches: logits of the next tokens, and hidden states.

A batch has the same form for every model: prompt and answer in one row, padded on the left. A decoder reads the rows
as they are. An encoder-decoder (such as T5) reads the prompts and writes the answers; `split` separates them. An
encoder (such as BERT) reads the rows with their padding moved to the right, as its positions require.

Shapes: B rows, T tokens of a row, S of a prompt, K answer columns, P virtual tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.dataloader import IGNORE, Batch
from utils.model import adapters, freeze
from utils.model.architecture import Model, kind_of, recomputes
from utils.model.head import Scores, as_scores
from utils.model.shortcuts.padding_free import PaddingFree, pack
from utils.model.weights import eval_mode

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel  # seconds to import: not for --help


def answer_scores(model: Model, batch: Batch, prompt: Tensor | None = None) -> tuple[Scores, Tensor]:
    """Run the layers; the head is left to the loss, which needs it where there are labels, a piece at a time.

    With a vocabulary of 50,000 the head and its logits would otherwise be most of the work and of the memory.

    Args:
        model: Decoder or encoder-decoder.
        batch: Prompts and answers.
        prompt: (P, D) float, embeddings of virtual tokens that the model reads before each text; None: none.

    Returns:
        Scores (B, K, V) and the labels (B, K) they predict, those of the last K columns, K = longest answer.
    """
    net = adapters.innermost(model)
    if not has_plain_head(net):
        logits, labels = answer_logits(model, batch, prompt)
        return as_scores(logits), labels
    length = min(batch.answer_length, batch.labels.shape[1] - (prompt is None))
    head = cast("nn.Module", net.get_output_embeddings())
    states = _text_states(model, batch, prompt, slice(-length - 1, -1))
    return Scores(states, head, head.get_parameter("weight").shape[0], head), batch.labels[:, -length:]


def _text_states(model: Model, batch: Batch, prompt: Tensor | None, columns: slice) -> Tensor:
    """(B, columns, D): last layer's hidden states of a decoder in these columns, counted from the last one."""
    net = adapters.innermost(model)
    layers = cast("PreTrainedModel", net.base_model)
    free: PaddingFree | None = vars(net).get("padding_free")
    if prompt is None and free is not None and (packed := pack(batch, free.limit)) is not None:
        states = layers(input_ids=packed.ids, position_ids=packed.positions, use_cache=False).last_hidden_state
        return cast("Tensor", states.flatten(end_dim=1)[packed.places[:, columns]])
    return cast("Tensor", layers(**model_inputs(model, layers, batch, prompt)).last_hidden_state[:, columns])


def has_plain_head(net: PreTrainedModel) -> bool:
    """True for a decoder whose logits are what its output layer makes of the last hidden states, and nothing else.

    Some models scale or cap logits, or have more layers in their head. A few tokens show it; the model remembers.
    """
    if "has_plain_head" not in vars(net):
        head = net.get_output_embeddings() if kind_of(net.config) == "decoder" else None
        found: Any = isinstance(head, nn.Linear) and _makes_the_logits(net, head)
        net.has_plain_head = found
    return bool(net.has_plain_head)


@torch.no_grad()
def _makes_the_logits(net: PreTrainedModel, head: nn.Module) -> bool:
    """True if logits of a few tokens are what `head` returns for the last hidden state of the layers.

    A model without values (in the plan of a run) is taken to be so.
    """
    seen: dict[str, Any] = {}
    hooks = [
        net.base_model.register_forward_hook(lambda _, __, output: seen.update(states=output)),
        head.register_forward_hook(lambda _, given, output: seen.update(read=given[0], written=output)),
    ]
    try:
        with eval_mode(net):
            words = net.get_input_embeddings().get_parameter("weight")[:8]  # not through hooks of the embedding
            logits = net(inputs_embeds=words[:, None]).logits
        states = seen["states"].last_hidden_state
        if logits.is_meta:
            return True
        return torch.equal(seen["read"], states) and torch.equal(seen["written"].to(logits.dtype), logits)
    except (KeyError, AttributeError, TypeError):  # the layers, the head or what they return are others
        return False
    finally:
        for hook in hooks:
            hook.remove()


def answer_logits(model: Model, batch: Batch, prompt: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """All logits (B, K, V) of the columns that hold answers, and their labels; arguments as in `answer_scores`."""
    if adapters.innermost(model).config.is_encoder_decoder:
        output, written = _translate(model, batch, prompt)
        order = (written != IGNORE).int().argsort(dim=1, stable=True)  # to the last columns, as in a batch
        return output.logits.take_along_dim(order[..., None], 1), written.gather(1, order)
    length = min(batch.answer_length, batch.labels.shape[1] - (prompt is None))
    logits = forward(model, batch, prompt, logits_to_keep=length + 1)[:, -length - 1 : -1]
    return logits, batch.labels[:, -length:]


def forward(model: Model, batch: Batch, prompt: Tensor | None = None, logits_to_keep: int = 0) -> Tensor:
    """A decoder's logits (B, P + T, V), or only the last `logits_to_keep` columns if the model supports that.

    Positions count from the first token that is not padding, as in generation; models with absolute positions would
    otherwise see shifted ones.
    """
    keep = {"logits_to_keep": logits_to_keep} if logits_to_keep else {}
    net = adapters.innermost(model)
    logits = net(**model_inputs(model, net, batch, prompt, **keep)).logits
    return logits if logits_to_keep else logits[:, -batch.input_ids.shape[1] :]  # virtual tokens come first


def model_inputs(
    model: Model, net: PreTrainedModel, batch: Batch, prompt: Tensor | None = None, **options: Any
) -> dict[str, Any]:
    """Inputs of `net` (the model or its layers), without options that its forward does not accept."""
    options |= {"use_cache": False}
    if prompt is not None and len(prompt) > 1 and can_read_ahead(net):
        # The last one is read with the texts: its output predicts the first token of each text.
        given = text_inputs(model, batch, prompt[-1:])
        options |= {"past_key_values": _read_ahead(net, prompt[:-1], len(batch.examples)), "use_cache": True}
        given["attention_mask"] = F.pad(given["attention_mask"], (len(prompt) - 1, 0), value=1)
    else:
        given = text_inputs(model, batch, prompt)
    columns = given["input_ids" if "input_ids" in given else "inputs_embeds"].shape[1]
    positions = (given["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)[:, -columns:]
    if kind_of(adapters.innermost(model).config) == "decoder":  # an encoder numbers its positions itself
        options["position_ids"] = positions
    accepted = inspect.signature(net.forward).parameters
    return given | {name: value for name, value in options.items() if name in accepted}


def can_read_ahead(net: PreTrainedModel) -> bool:
    """True if rows with the same beginning can share its keys and values."""
    config = net.config
    return (
        kind_of(config) == "decoder"
        and "past_key_values" in inspect.signature(net.forward).parameters
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and not (net.training and (drops_out(net) or recomputes(net)))
    )


def drops_out(net: PreTrainedModel) -> bool:
    """True if the model uses dropout in training, which differs from row to row."""
    return any(
        (isinstance(part, nn.Dropout) and part.p > 0)
        or any("dropout" in name and isinstance(value, float) and value > 0 for name, value in vars(part).items())
        for part in net.modules()
    )


def _read_ahead(net: PreTrainedModel, prompt: Tensor, rows: int) -> Cache:
    """Keys and values of the virtual tokens that all rows begin with: computed once instead of once per row."""
    words = net.get_input_embeddings().get_parameter("weight")
    cache: Cache = net.base_model(inputs_embeds=prompt.to(words.dtype)[None], use_cache=True).past_key_values
    cache.batch_repeat_interleave(rows)
    return cache


def _translate(model: Model, batch: Batch, prompt: Tensor | None = None, **options: Any) -> tuple[Any, Tensor]:
    """Output of an encoder-decoder that reads prompts and writes answers, and the labels (B, K) of its columns."""
    net, (_, _, labels) = adapters.innermost(model), split(batch)
    shift_right = cast("Callable[..., Tensor]", net.prepare_decoder_input_ids_from_labels)  # of encoder-decoders only
    written = shift_right(labels)
    output = net(**text_inputs(model, batch, prompt), decoder_input_ids=written, use_cache=False, **options)
    return output, labels


def text_inputs(model: Model, batch: Batch, prompt: Tensor | None = None) -> dict[str, Any]:
    """Inputs of the innermost model: the rows of the batch; of an encoder-decoder, their prompts.

    Args:
        model: Any model, with or without adapters.
        batch: Prompts, with or without answers.
        prompt: See `answer_logits`; virtual tokens come right before each text.
    """
    net = adapters.innermost(model)
    kind = kind_of(net.config)
    ids, mask = split(batch)[:2] if kind == "encoder-decoder" else (batch.input_ids, batch.attention_mask)
    if kind == "encoder":
        order = mask.argsort(dim=1, descending=True, stable=True)
        ids, mask = ids.gather(1, order), mask.gather(1, order)
    if prompt is None:
        return adapters.inputs(model, ids, mask)
    text = net.get_input_embeddings()(ids)
    embeddings, mask = adapters.before_text(prompt, text, mask, padding_last=kind != "decoder")
    return {"inputs_embeds": embeddings, "attention_mask": mask}


def split(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs and labels of an encoder-decoder: prompts (B, S), their mask, labels (B, K); all padded on the right."""
    is_label = batch.labels != IGNORE
    is_prompt = (batch.attention_mask == 1) & ~is_label
    order = is_prompt.int().argsort(dim=1, descending=True, stable=True)[:, : batch.prompt_length]
    labels = batch.labels.gather(1, is_label.int().argsort(dim=1, descending=True, stable=True))
    return batch.input_ids.gather(1, order), is_prompt.long().gather(1, order), labels[:, : batch.answer_length]


def token_states(model: Model, batch: Batch, prompt: Tensor | None = None) -> Tensor:
    """(B, T, D): last layer's hidden states of a decoder or an encoder, in the columns of the batch."""
    net, columns = adapters.innermost(model), batch.input_ids.shape[1]
    if kind_of(net.config) == "decoder":
        return _text_states(model, batch, prompt, slice(-columns, None))
    layers = cast("PreTrainedModel", net.base_model)
    states = layers(**model_inputs(model, layers, batch, prompt)).last_hidden_state
    virtual = states.shape[1] - columns  # they come first
    places = virtual + (torch.arange(columns, device=states.device) - _padding(batch)).clamp(min=0)
    return states.take_along_dim(places[..., None], 1)


def labelled_states(model: Model, batch: Batch, prompt: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Hidden states at the class labels of the rows, with gradients: the input of a classifier.

    Args:
        model: Any model.
        batch: Rows whose labels are classes, at the places that are classified; an encoder-decoder has one place for
            a text, the decoder's first.
        prompt: See `answer_logits`.

    Returns:
        States (B, K, D) and labels (B, K), K being the most labels of a row; a row with fewer begins with IGNORE.
    """
    if adapters.innermost(model).config.is_encoder_decoder:
        return _first_written(model, batch, prompt), batch.labels.amax(dim=1, keepdim=True)
    labelled = batch.labels != IGNORE
    count = max(1, int(labelled.sum(dim=1).max()))
    places = labelled.int().argsort(dim=1, stable=True)[:, -count:]
    return token_states(model, batch, prompt).take_along_dim(places[..., None], 1), batch.labels.gather(1, places)


@torch.no_grad()
def features(model: Model, batch: Batch, extract: str = "last_token") -> Tensor:
    """(B, D) float32: last layer's hidden state of a text, in eval mode; for herding and probes.

    In an encoder-decoder it is the decoder's state before the first token of the answer, which has read the prompt.

    Args:
        model: Any model; its mode is restored.
        batch: Prompts without answers.
        extract: The token whose state is taken: "last_token", or "cls_token", the first of an encoder.
    """
    with eval_mode(model):
        if adapters.innermost(model).config.is_encoder_decoder:
            return _first_written(model, batch)[:, 0].float()
        states = token_states(model, batch)
        if extract == "cls_token":
            return states.take_along_dim(_padding(batch)[..., None], 1)[:, 0].float()
        return states[:, -1].float()


@contextmanager
def layer_states(model: Model) -> Iterator[list[Tensor]]:
    """A list of the input of the first block and the output of each, (B, T, D), in the last pass inside the `with`."""
    layers = freeze.blocks(model)
    found: list[Tensor] = []

    def given(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found[:] = [args[0] if args else kwargs["hidden_states"]]

    def result(_block: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handles = [layers[0].register_forward_pre_hook(given, with_kwargs=True)]
    handles += [layer.register_forward_hook(result) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _padding(batch: Batch) -> Tensor:
    """(B, 1): columns of padding before each row."""
    return batch.input_ids.shape[1] - batch.attention_mask.sum(dim=1, keepdim=True)


def _first_written(model: Model, batch: Batch, prompt: Tensor | None = None) -> Tensor:
    """(B, 1, D): the state of an encoder-decoder's decoder at its start token."""
    unanswered = replace(batch, labels=torch.full_like(batch.labels, IGNORE))
    return _translate(model, unanswered, prompt, output_hidden_states=True)[0].decoder_hidden_states[-1][:, :1]
