"""Tiny models, tokenizers, streams and in-process runs: everything a test trains on, made in milliseconds."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    ModernBertConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    T5Config,
)

from models import METHODS
from models.Base import Method, Task
from utils.backbone import load_backbone
from utils.classifier import ClassEncoder, Classes
from utils.config import Config
from utils.dataloader import Batch, Encoder
from utils.dataset import Example, Stream, TaskData
from utils.distributed.modes import make_accelerator
from utils.factory import load_method
from utils.general.asking import outside
from utils.logger import RunLog
from utils.model import weights
from utils.model.architecture import Backbone
from utils.options.checks import Plan
from utils.options.parse import Resolved
from utils.report import summary
from utils.report.compare import compare_text
from utils.report.results import build, group
from utils.run import checkpoint
from utils.run.checkpoint import Place
from utils.run.fit import fit
from utils.run.launch import facts, quieten
from utils.run.trainer import Trainer
from utils.session import Session
from utils.storage.files import write_json

quieten()
gc.freeze()  # training collects garbage after each task; the libraries' own objects need not be looked at

EOS, BOS, PAD = 0, 1, 2
ENCODER_DECODERS = ("t5", "bart")
ENCODERS = ("bert_encoder", "roberta", "modernbert")
VOCABULARY = 320
FOLDERS = tempfile.TemporaryDirectory()  # holds saved backbones until the tests end
ANIMALS = ["cat", "dog", "hen", "pig", "cow", "ant", "bee", "owl", "fox", "elk", "yak", "emu"]
SOUNDS = [
    "meow",
    "wuff wuff",
    "cluck",
    "oink oink oink",
    "moo",
    "click",
    "buzz buzz",
    "hoo",
    "yip",
    "bugle",
    "grunt grunt grunt",
    "boom",
]
# The methods that tests run over: all, or those named, as `python -m tests.check METHOD` does.
TESTED = os.environ["TESTED_METHOD"].split(",") if "TESTED_METHOD" in os.environ else list(METHODS)
# A setting that a method can't do without, as an option that switches it on.
SETTINGS = {
    "is_replay": {"is_replay": True, "Replay_buffer_ratio": 0.5},
    "Replay_update: step": {
        "Replay_update": "step",
        "Replay_sampling_algorithm": "reservoir",
        "Replay_buffer_size": 8,
        "Replay_buffer_ratio": 0.01,  # its default: size replaces it
    },
    "PEFT_type": {"PEFT_type": "LoRA", "PEFT_lora_dropout": 0.0},
}

# Options of a method's own whose defaults are too large for a stream of thirty questions.
OWN = {
    "GradientProjection": {
        "GradientProjection_begin_step": 1, "GradientProjection_end_step": 3, "GradientProjection_runs": 2,
    },
    # A model that knows nothing has no right answer to learn from.
    "SDFT": {"SDFT_probe": 2},
    "SelfSFT": {"SelfSFT_fallback": "target", "SelfSFT_samples": 2},
    "GRPO": {"GRPO_warm_start": 1, "GRPO_samples": 2},
    "SSR": {"SSR_demonstrations": 3, "SSR_draws": 1, "SSR_new_tokens": 24, "SSR_clusters": 2, "SSR_keep": 3},
}  # fmt: skip


@cache
def tokenizer(bos: bool = False, eos: bool = True, end: bool = False, both: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; every text has a code.

    With `end` it puts EOS behind a text, as T5's does; with `both` also BOS in front, as BERT's CLS and SEP.
    """
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<eos>", "<bos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"{e.input} {e.target}" for t in micro_stream().tasks for e in t.train]
    fast.train_from_iterator(texts * 3, trainer)
    if bos:
        fast.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
        )
    if end:
        fast.post_processor = processors.TemplateProcessing(
            single="$A <eos>", pair="$A $B <eos>", special_tokens=[("<eos>", EOS)]
        )
    if both:
        fast.post_processor = processors.TemplateProcessing(
            single="<bos> $A <eos>", pair="<bos> $A $B <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
        )
    names = {"pad_token": "<pad>"} | ({"eos_token": "<eos>"} if eos else {}) | ({"bos_token": "<bos>"} if bos else {})
    return PreTrainedTokenizerFast(tokenizer_object=fast, padding_side="left", **names)


def shape(family: str, layers: int = 2, dropout: float = 0.0, width: int = 32, **more: Any) -> PretrainedConfig:
    """Configuration of a small model of one family."""
    common = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": EOS, "pad_token_id": PAD}
    size = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 2 * width}
    drop = {"hidden_dropout": dropout, "attention_dropout": dropout}
    makers = {
        "neox": lambda: GPTNeoXConfig(**common, **size, **drop, max_position_embeddings=256, **more),
        "llama": lambda: LlamaConfig(**common, **size, max_position_embeddings=256, **more),
        "gpt2": lambda: GPT2Config(
            **common, n_embd=width, n_layer=layers, n_head=2, n_positions=256, resid_pdrop=dropout, embd_pdrop=dropout,
            attn_pdrop=dropout, **more,
        ),
        "bert": lambda: BertConfig(**common, **size, max_position_embeddings=256, is_decoder=True, **more),
        "bert_encoder": lambda: BertConfig(
            **common, **size, max_position_embeddings=256, hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout, **more,
        ),
        "roberta": lambda: RobertaConfig(
            **common, **size, max_position_embeddings=256, hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout, **more,
        ),
        "modernbert": lambda: ModernBertConfig(
            **common, **size, max_position_embeddings=256, mlp_dropout=dropout, **more
        ),
        "t5": lambda: T5Config(
            **common, d_model=width, d_kv=width // 2, d_ff=2 * width, num_layers=layers, num_heads=2,
            dropout_rate=dropout, decoder_start_token_id=PAD, **more,
        ),
        "bart": lambda: BartConfig(
            **common, d_model=width, encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=2 * width, decoder_ffn_dim=2 * width, dropout=dropout,
            max_position_embeddings=256, decoder_start_token_id=PAD, **more,
        ),
    }  # fmt: skip
    return makers[family]()


def make_model(family: str = "neox", seed: int = 0, **more: Any) -> torch.nn.Module:
    """A model with weights large enough that its greedy answers differ from each other."""
    torch.manual_seed(seed)
    more.setdefault("initializer_range", 0.2)
    if family == "t5":  # whose spread has another name, and another unit: 1 is an embedding of standard deviation 1
        more["initializer_factor"] = more.pop("initializer_range") / 0.05
    if family == "bart":
        more["init_std"] = more.pop("initializer_range")
    kind = AutoModelForSeq2SeqLM if family in ENCODER_DECODERS else AutoModelForCausalLM
    kind = AutoModelForMaskedLM if family in ENCODERS else kind
    model = kind.from_config(shape(family, **more), dtype=torch.float32).eval()
    return model.base_model if family in ENCODERS else model


def make_backbone(family: str = "neox", bos: bool = False, **more: Any) -> Backbone:
    """A backbone as `load_backbone` would give it, without files."""
    from utils.backbone import _make_greedy

    model, words = make_model(family, **more), tokenizer_of(family, bos)
    if family in ENCODERS:
        return Backbone(model, words, PAD, [])
    _make_greedy(model, PAD, [EOS])
    return Backbone(model, words, PAD, [EOS])


def tokenizer_of(family: str, bos: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer that fits a family."""
    return tokenizer(both=True) if family in ENCODERS else tokenizer(bos, end=family in ENCODER_DECODERS)


@cache
def backbone_folder(family: str = "neox", bos: bool = False, dropout: float = 0.0) -> str:
    """A saved model with its tokenizer; the same folder for every test."""
    folder = Path(FOLDERS.name) / f"{family}-{bos}-{dropout}"
    make_model(family, dropout=dropout, initializer_range=0.05).save_pretrained(folder)
    tokenizer_of(family, bos).save_pretrained(folder)
    return str(folder)


@cache
def micro_stream(tasks: int = 3) -> Stream:
    """Tasks of 8 to 12 questions of two words, with answers of unequal length; half of them are tested."""
    sizes = (12, 8, 10)[:tasks]

    def example(task: int, i: int) -> Example:
        sound = SOUNDS[(i + 5 * task) % len(SOUNDS)]
        label = (i + 5 * task) % 3 + 3 * task
        return Example(f"{ANIMALS[i]} {'abc'[task]}", sound, label, label - 3 * task, task=task)

    rows = [tuple(example(t, i) for i in range(size)) for t, size in enumerate(sizes)]
    data = tuple(TaskData(f"micro {t}", r, r[::2], r[::2]) for t, r in enumerate(rows))
    facts = {
        "NUM_CLASS": 3 * tasks,
        "CUR_NUM_CLASS": [3] * tasks,
        "MAX_NEW_TOKENS": [8] * tasks,
        "MAX_SEQ_LENGTH": [48] * tasks,
    }
    return Stream("micro", data, {"PROMPT_TYPE": "none", "IL_MODE": "CIT"} | facts)


@cache
def class_stream() -> Stream:
    """The micro stream with the names of three classes a task as answers."""
    stream = micro_stream()

    def named(rows: tuple[Example, ...]) -> tuple[Example, ...]:
        return tuple(replace(e, target=f"kind {e.label}") for e in rows)

    tasks = tuple(TaskData(t.name, named(t.train), named(t.dev), named(t.test)) for t in stream.tasks)
    return Stream("classes", tasks, stream.config | {"IL_MODE": "CIL"})


@cache
def word_stream() -> Stream:
    """Sentences of four words; each task brings one type of spans, of two words."""

    def example(task: int, i: int) -> Example:
        tags = ["O", f"B-T{task}", f"I-T{task}", "O"]
        return Example(f"the {ANIMALS[i]} {'abc'[task]}{ANIMALS[-i]} ran", " ".join(tags), task=task)

    rows = [tuple(example(t, i) for i in range(8 + (t == 2))) for t in range(3)]  # an odd number of tests
    names = ["O", *(f"{prefix}-T{t}" for t in range(3) for prefix in "BI")]
    facts = {"IL_MODE": "CIL", "CLASSIFICATION_TYPE": "word-level", "METRIC": ["span_f1"] * 3, "idx2label": names}
    facts |= {"CUR_NUM_CLASS": [3, 2, 2], "NUM_CLASS": 7, "MAX_SEQ_LENGTH": [48] * 3, "PROMPT_TYPE": "none"}
    return Stream("words", tuple(TaskData(f"words {t}", r, r[::2], r[::2]) for t, r in enumerate(rows)), facts)


def make_config(method: str = "SEQ", **options: Any) -> Config:
    """Options of a small run."""
    kind = load_method(method) if method in METHODS or ":" in method else Method
    needed = [SETTINGS[name] for name in SETTINGS if name in map(str, kind.needs)]
    values: dict[str, Any] = {
        "cfg": None,
        "wandb_name": "tiny",
        "method": method,
        "backbone": backbone_folder(),
        "lr": 3e-3,
        "batch_size": 4,
        "training_epochs": 2,
        "checkpoint_minutes": 0,
    }
    if "CIT" not in kind.scenarios:
        values["il_mode"] = min(kind.scenarios)
    for setting in needed:
        values |= setting
    return Config(**values | options)


def plan(config: Config, method: type[Method] | None = None, stream: Stream | None = None, **own: Any) -> Plan:
    """A plan of these options, for the checks; `own` are the method's."""
    method = method or load_method(config.method)
    return Plan(Resolved(config, method.Options(**own), {}), method, read=lambda _: stream or micro_stream())


class Recorder(RunLog):
    """A log that keeps events and messages in memory."""

    def __init__(self, config: Config):
        super().__init__(config, False)
        self.events: list[dict] = []
        self.messages: list[str] = []

    def event(self, kind: str, **fields: Any) -> None:
        self.events.append({"event": kind, "step": self.step, **fields})

    def info(self, text: str) -> None:
        self.messages.append(text)

    warning = info


def forget_processes() -> None:
    """Make the next accelerator of this process a new one; accelerate keeps the settings of the first."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def make_session(config: Config, prompt_type: str = "none", stream: Stream | None = None) -> Session:
    """A fresh session on the CPU."""
    forget_processes()
    family, bos = Path(config.backbone).name.split("-")[:2] if config.backbone.startswith(FOLDERS.name) else ("", "")
    encoder = Encoder(tokenizer_of(family, bos == "True"), prompt_type, family in (*ENCODER_DECODERS, *ENCODERS))
    if config.classifier is not None:
        encoder = ClassEncoder(encoder, Classes(stream or micro_stream()), config.backbone_extract_token)
    return Session(config, make_accelerator(config), encoder, Recorder(config), fit)


def make_method(
    session: Session, stream: Stream | None = None, method_class: type[Method] | None = None, **options: Any
) -> Method:
    """A method with its backbone loaded; `options` are its own."""
    config, stream = session.config, stream or micro_stream()
    method_class = method_class or load_method(config.method)
    backbone = load_backbone(config)
    encoder = getattr(session.encoder, "plain", session.encoder)
    encoder.tokenizer = backbone.tokenizer  # one object, as in a real run: a method may add tokens to it
    own = method_class.Options(**OWN.get(config.method, {}) | options)
    method = method_class(session, own, backbone, stream)
    encoder.method = method
    method.setup()
    return method


def outputs(method: Method, model: torch.nn.Module, batch: Batch, index: int | None) -> tuple[torch.Tensor, ...]:
    """All logits (B, K, V) of a method's scores, and their labels (B, K)."""
    scores, labels = method.scores(model, batch, index)
    return scores.whole(), labels


def teacher_logits(method: Method, *given: Any) -> torch.Tensor:
    """All logits of `Method.teacher_scores`."""
    return method.teacher_scores(*given).whole()


def make_task(index: int = 0, stream: Stream | None = None, epochs: int = 1) -> Task:
    """A task of the stream, as the trainer would hand it to training."""
    data = (stream or micro_stream()).tasks[index]
    return Task(index, data.name, data.train, epochs, 48, 8)


class Run(NamedTuple):
    """A finished run."""

    results: dict[str, Any]
    method: Method
    log: Recorder

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Copies of all weights."""
        return snapshot(self.method)

    @property
    def losses(self) -> list[float]:
        """Mean losses as logged."""
        return [event["loss"] for event in self.log.events if event["event"] == "train"]


def run(
    folder: Path,
    config: Config,
    stream: Stream | None = None,
    method_class: type[Method] | None = None,
    cuts: Mapping[str, Path] = MappingProxyType({}),
    **options: Any,
) -> Run:
    """Train and evaluate in this process; resumes an interrupted run in the same folder.

    Args:
        folder: Run folder.
        config: See `make_config`.
        stream: Default: the micro stream.
        method_class: Replaces the class that config names.
        cuts: Name of a checkpoint -> a new folder that gets what a power failure right after it would leave.
        options: The method's own.
    """
    stream = stream or micro_stream()
    method = make_method(make_session(config, stream=stream), stream, method_class, **options)
    write_json(folder / "facts.json", facts(config, stream))
    without_plots = mock.patch.object(summary, "write", _write_without_plots)
    with _copied(folder, cuts), without_plots, mock.patch.object(os, "fsync"), mock.patch.object(gc, "collect"):
        results = Trainer(method, folder, outside(config)).run()
    return Run(results, method, method.session.log)


def learn(
    config: Config, stream: Stream | None = None, method_class: type[Method] | None = None, **options: Any
) -> Run:
    """Only train: neither evaluate nor save, which takes half of the time of `run`. There are no results."""
    stream = stream or micro_stream()
    method = make_method(make_session(config, stream=stream), stream, method_class, **options)
    nothing = {name: lambda *_, **__: {} for name in ("_save", "_evaluate_row", "_report")}
    with mock.patch.multiple(Trainer, **nothing), mock.patch.object(gc, "collect"):
        Trainer(method, Path("no folder")).run()
    return Run({}, method, method.session.log)


_write, _save = summary.write, checkpoint.save


def _write_without_plots(folder: Path, **_: Any) -> dict[str, Any]:
    return _write(folder, plots=False)


@contextmanager
def _copied(folder: Path, cuts: Mapping[str, Path]) -> Iterator[None]:
    missing = dict(cuts)

    def save(root: Path, place: Place, *rest: Any) -> None:
        _save(root, place, *rest)
        if place.name in missing:
            shutil.copytree(folder, missing.pop(place.name), dirs_exist_ok=True)

    with mock.patch.object(checkpoint, "save", save):
        yield
    assert not missing, f"no checkpoint {', '.join(missing)} was saved"


def snapshot(method: Method) -> dict[str, torch.Tensor]:
    """Copies of the weights of a method's model and of the method's other modules."""
    return weights.snapshot(method.named())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """True if two sets of weights are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def compare(runs: list[Path]) -> str:
    """The tables of `python -m utils.report RUN RUN...`, from the saved predictions."""
    return compare_text(group([(run, build(run)) for run in runs]))


def quick(values: Iterable[Any], count: int = 1) -> list[Any]:
    """Values of a parametrised test: the first ones for the quick run, the others for the slow one."""
    listed = list(values)
    rest = (value if isinstance(value, tuple) else (value,) for value in listed[count:])
    return [*listed[:count], *(pytest.param(*value, marks=pytest.mark.slow) for value in rest)]


# One method of each kind: plain, penalty, path, memory, averages, gradients, updates, pseudo-samples, latents,
# rollouts, merging, no training, adapters, routing, prompts, subspaces.
KINDS_OF_METHODS = ("SEQ", "EWC", "DERpp", "LAMOL", "SDFT", "ICL", "PEFT", "ProgPrompt")


def one_of_each_kind(names: Iterable[str] = TESTED) -> list[Any]:
    """Methods for a parametrised test: one of each kind for the quick run, the others for the slow one."""
    chosen = KINDS_OF_METHODS if len(TESTED) == len(METHODS) else TESTED
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in names]
