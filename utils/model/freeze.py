"""Choose the parts of a model to freeze (Zheng et al., ICLR 2025, Freeze).

Parts are found through the accessors of transformers, so one name fits every architecture:

    embeddings       the input embedding
    head             the output layer (the same tensor as the embedding where weights are tied)
    layers 0-2       the blocks 0, 1 and 2, exactly; `layers 5` is one block. An encoder-decoder's are counted from the
                     encoder's first to the decoder's last: of 12 + 12, `layers 0-11` is the encoder
    attention 0-2    the attention module of these blocks; `mlp 0-2` their feed-forward module
    a.b.c            any parameter whose name holds these whole dotted parts
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import nn

from utils.errors import UserError
from utils.model.architecture import Model

NOTHING_LEFT = "freeze_parts: nothing is left to train; freeze less"
_BLOCKS = re.compile(r"(layers|attention|mlp) (\d+)(?:-(\d+))?")
# Names of a block's own children; whole, because the norm between them is called post_attention_layernorm.
_ATTENTION = re.compile(r"(self_?|cross_?|encoder_?|EncDec)?(attn|attention)", re.IGNORECASE)
_MLP = re.compile(r"mlp|ffn|feed_?forward|intermediate|output|fc\d|DenseReluDense", re.IGNORECASE)


def matches(name: str, component: str) -> bool:
    """True if `component` is a run of whole dotted parts of `name`.

    >>> matches("model.layers.1.mlp.weight", "layers.1"), matches("model.layers.10.mlp.weight", "layers.1")
    (True, False)
    """
    return f".{component}." in f".{name}."


def select(model: Model, parts: tuple[str, ...], match: str = "component") -> set[str]:
    """Names of the parameters that belong to any of the parts.

    Args:
        model: A transformers model.
        parts: See the module's docstring.
        match: "component", or "substring" as in the published code, where a part matches every parameter whose name
            contains it (`layers.1` also matches `layers.10`).

    Raises:
        UserError: a part matches nothing; a silent no-op would be a wrong experiment.
    """
    found: set[str] = set()
    for part in parts:
        hits = _substring(model, part) if match == "substring" else _component(model, part)
        if not hits:
            example = next(name for name, _ in model.named_parameters())
            raise UserError(
                f"freeze_parts: {part!r} matches no parameter (freeze_match {match}); "
                f"the model has {len(blocks(model))} layers and parameters such as {example!r}"
            )
        found |= hits
    return found


def writer(model: Model) -> set[str]:
    """Names of the parameters of the language-model head; empty if embedding and head are tied."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return _names(model, [head]) - _names(model, [model.get_input_embeddings()])


def blocks(model: Model) -> nn.ModuleList:
    """The model's transformer blocks: the largest list of modules of its text part; of an encoder-decoder, both lists.

    Raises:
        UserError: the model has no such list.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return nn.ModuleList([*_largest_list(model.get_encoder()), *_largest_list(model.get_decoder())])
    return _largest_list(model.get_decoder() if _has_other_parts(model) else model)


def _has_other_parts(model: Model) -> bool:
    """True for a model that also reads images or sounds."""
    config = getattr(model, "config", None)
    return config is not None and not config.is_encoder_decoder and config.get_text_config() is not config


def unread(model: Model) -> set[str]:
    """Names of the parameters that no text goes through: those of the parts that read images or sounds."""
    if not _has_other_parts(model):
        return set()
    prompt = getattr(model, "prompt_encoder", None)  # of PromptTuning and PrefixTuning
    text = [model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings(), prompt]
    return {name for name, _ in model.named_parameters()} - _names(model, text)


def _largest_list(model: nn.Module) -> nn.ModuleList:
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise UserError(f"freeze_parts: {type(model).__name__} has no list of layers; name parameters instead")
    return max(lists, key=lambda module: sum(w.numel() for w in module.parameters()))


def describe(model: Model) -> str:
    """Which blocks are trainable, for the log: `trainable: embeddings, layers 3-11 of 12, head (12,345 parameters)`."""
    layers = blocks(model)
    learning = [i for i, block in enumerate(layers) if all(w.requires_grad for w in block.parameters())]
    partly = [i for i, block in enumerate(layers) if any(w.requires_grad for w in block.parameters())]
    words = []
    if any(w.requires_grad for w in model.get_input_embeddings().parameters()):
        words.append("embeddings")
    if learning:
        words.append(f"layers {_ranges(learning)} of {len(layers)}")
    if rest := [i for i in partly if i not in learning]:
        words.append(f"parts of layers {_ranges(rest)}")
    head = model.get_output_embeddings()
    if head is not None and any(w.requires_grad for w in head.parameters()):
        words.append("head")
    count = sum(w.numel() for w in model.parameters() if w.requires_grad)
    return f"trainable: {', '.join(words) or ('other parts' if count else 'nothing')} ({count:,} parameters)"


def _component(model: Model, part: str) -> set[str]:
    if part == "embeddings":
        return _names(model, [model.get_input_embeddings()])
    if part == "head":
        return _names(model, [model.get_output_embeddings()])
    if found := _BLOCKS.fullmatch(part):
        kind, first, last = found[1], int(found[2]), int(found[3] or found[2])
        chosen = list(blocks(model))[first : last + 1]
        if len(chosen) < last - first + 1:  # a layer that does not exist
            return set()
        if kind == "layers":
            return _names(model, chosen)
        pattern = _ATTENTION if kind == "attention" else _MLP
        return _names(model, [child for b in chosen for name, child in _children(b) if pattern.fullmatch(name)])
    return {name for name, _ in model.named_parameters() if matches(name, part)}


def _children(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A block's own modules by name; where it is a list of sublayers (T5), those of the sublayers."""
    for name, child in block.named_children():
        if isinstance(child, nn.ModuleList):
            yield from (pair for sublayer in child for pair in sublayer.named_children())
        else:
            yield name, child


def _substring(model: Model, part: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if part in name}


def _names(model: Model, modules: Sequence[nn.Module | None]) -> set[str]:
    inside = {id(w) for module in modules if module is not None for w in module.parameters()}
    return {name for name, w in model.named_parameters() if id(w) in inside}


def _ranges(numbers: list[int]) -> str:
    """Consecutive numbers as ranges: [0, 1, 2, 5] is `0-2, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
