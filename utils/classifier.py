"""How a method answers: by writing, or by heads that classify hidden states, one head per task.

Shapes: B rows, K positions of a row, D hidden size, C classes of the heads in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.config import Config
from utils.dataloader import IGNORE, Batch, Encoded, Encoder, collate
from utils.dataset import Example, Stream
from utils.errors import UserError
from utils.model import freeze
from utils.model.adapters import innermost
from utils.model.architecture import Backbone, Model
from utils.model.forward import answer_scores, labelled_states
from utils.model.generation import generate
from utils.model.head import Scores, as_scores
from utils.optimizer import Group
from utils.scoring import normalise
from utils.seed import seed_torch

MASKED = -1e4  # logit of an excluded class; finite, so that differences and divergences stay numbers


class AnswerKind(StrEnum):
    """Ways to answer: the values of the option `classifier`."""

    WRITTEN = "None"
    LINEAR = "Linear"
    COSINE = "CosineLinear"


class Classes:
    """The classes of a stream, numbered in the order of the tasks that bring them.

    Args:
        stream: With class ids (sentence-level) or tags (word-level).

    Raises:
        UserError: the stream does not say which classes its tasks bring.
    """

    def __init__(self, stream: Stream):
        self.stream = stream
        self.sizes: list[int] = stream.config.get("CUR_NUM_CLASS") or []
        if not self.sizes or len(self.sizes) != len(stream.tasks):
            raise UserError(f"classifier: stream {stream.name} does not state CUR_NUM_CLASS, its tasks' classes")
        self.ends = [sum(self.sizes[: k + 1]) for k in range(len(self.sizes))]
        self.starts = [0, *self.ends[:-1]]
        if not stream.is_word_level:
            self._check_labels()
        different = len({normalise(name) for name in self.names})
        if different != self.ends[-1]:
            raise UserError(f"classifier: {self.ends[-1]} classes of {stream.name} have {different} different names")

    @cached_property
    def names(self) -> list[str]:
        """What the answer is called, by class: a target of the stream, or a tag."""
        if self.stream.is_word_level:
            return self.stream.config.get("idx2label", [])
        named = {e.label: e.target.strip() for task in self.stream.tasks for s in (task.test, task.train) for e in s}
        return [named.get(label, f"class {label}") for label in range(self.ends[-1])]

    @cached_property
    def index(self) -> dict[str, int]:
        """Inverse of `names`."""
        return {name: label for label, name in enumerate(self.names)}

    def _check_labels(self) -> None:
        for k, task in enumerate(self.stream.tasks):
            own = range(self.starts[k], self.ends[k])
            for example in (*task.train, *task.dev, *task.test):
                if example.label not in own:
                    raise UserError(
                        f"classifier: task {k} of {self.stream.name} has the classes {own[0]} to {own[-1]} "
                        f"(CUR_NUM_CLASS), but an example of class {example.label}: {example.input[:40]!r}"
                    )


class CosineLinear(nn.Module):
    """scale cos(x, w_c) for each class c; no bias (Gidaris and Komodakis, CVPR 2018).

    Args:
        width: D.
        classes: C.
        scale: Logits are at most this; 1 as in "Learn or Recall?" (Zheng et al., ACL 2024).
    """

    def __init__(self, width: int, classes: int, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(classes, width).uniform_(-(width**-0.5), width**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., C)."""
        return self.scale * F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1))


class Heads(nn.ModuleList):
    """One head per task; all are there from the start.

    Args:
        kind: LINEAR or COSINE.
        width: D.
        classes: Of the stream.
        is_task_known: Only the classes of a row's own task are possible (TIL).
        scale: Of cosine heads.
        seed: For their first weights.
    """

    def __init__(self, kind: AnswerKind, width: int, classes: Classes, is_task_known: bool, scale: float, seed: int):
        def make(size: int) -> nn.Module:
            return nn.Linear(width, size) if kind == AnswerKind.LINEAR else CosineLinear(width, size, scale)

        seed_torch(seed, "heads")
        super().__init__([make(size) for size in classes.sizes])
        self.classes, self.is_task_known = classes, is_task_known

    def forward(self, states: Tensor, count: int, tasks: Sequence[int]) -> Tensor:
        """Logits (B, K, C) float32 of the classes of the first `count` tasks.

        Args:
            states: (B, K, D).
            count: How many heads are in use.
            tasks: The task of each row; where it is known, classes of other tasks are at MASKED.
        """
        logits = torch.cat([self.one(k, states) for k in range(count)], dim=-1)
        return self._of_tasks(logits, tasks) if self.is_task_known else logits

    def one(self, k: int, states: Tensor) -> Tensor:
        """Logits (B, K, classes of task k) float32 of one head; states may be of another type than its weights."""
        head = self[k]
        with torch.autocast(states.device.type, enabled=False):  # in bfloat16 cosines near each other would be equal
            logits: Tensor = head(states.to(head.get_parameter("weight").dtype))
        return logits.float()

    def _of_tasks(self, logits: Tensor, tasks: Sequence[int]) -> Tensor:
        ids = torch.arange(logits.shape[-1], device=logits.device)
        bounds = [[table[task] for task in tasks] for table in (self.classes.starts, self.classes.ends)]
        first, end = torch.tensor(bounds, device=logits.device)[..., None]
        return logits.masked_fill(~((ids >= first) & (ids < end))[:, None], MASKED)

    def known(self, labels: Tensor, count: int) -> Tensor:
        """Labels (B, K) in which classes of later tasks are 0: of words, the tag O."""
        return labels.where(labels < self.classes.ends[count - 1], 0)

    @torch.no_grad()
    def set_prototypes(self, index: int, means: Tensor) -> None:
        """Set the weights of a head to vectors of its classes, (C, D), without a bias."""
        head = self[index]
        head.get_parameter("weight").copy_(means)
        if isinstance(head, nn.Linear):
            head.bias.zero_()


class WrittenAnswers:
    """Answers are written token by token, by the head of the language model."""

    heads: Heads | None = None
    newest: int | None = None  # the task learned last; None: none so far
    are_greedy = True  # the most likely text, which can be verified without generation

    def __init__(self, backbone: Backbone):
        self.backbone = backbone

    @property
    def needed_heads(self) -> Heads:
        """`heads`, in code that runs only with a classifier."""
        if self.heads is None:
            raise RuntimeError("there is no classifier")
        return self.heads

    def scores(
        self, model: Model, batch: Batch, index: int | None, prompt: Tensor | None = None
    ) -> tuple[Scores, Tensor]:
        """Scores (B, K, V) and their labels (B, K).

        Args:
            model: The language model.
            batch: Encoded examples.
            index: The task being learned; None: as in `predict`.
            prompt: Virtual tokens (P, D) in front of each text.
        """
        return answer_scores(model, batch, prompt)

    def predict(
        self, rows: Sequence[Encoded], task_id: int | None, max_new_tokens: int, prompt: Tensor | None = None
    ) -> list[str]:
        """Answers to encoded prompts; arguments as in `Method.predict`."""
        return generate(self.backbone, rows, max_new_tokens, prompt)

    def count(self, index: int | None) -> int:
        """How many heads are in use after task `index`."""
        return 0

    def learning(self, index: int, examples: Sequence[Example]) -> set[int]:
        """Tasks whose heads are trained in task `index`, whose examples and remembered ones are given."""
        return set()

    def groups(self, tasks: set[int], config: Config) -> list[Group]:
        """The parameters of the heads of these tasks."""
        return []

    def unused(self, model: Model) -> set[str]:
        """Names of the model's parameters that no answer depends on."""
        return set()

    def start_afresh(self) -> None:
        """Reset the heads to their first weights."""


class HeadAnswers(WrittenAnswers):
    """Answers are classes: a head per task classifies hidden states."""

    heads: Heads
    are_greedy = False

    def __init__(self, backbone: Backbone, config: Config, stream: Stream):
        super().__init__(backbone)
        self.config, self.stream = config, stream
        self.heads = self._make()

    def _make(self) -> Heads:
        """Heads with their first weights."""
        config, model = self.config, self.backbone.model
        width = innermost(model).config.get_text_config().hidden_size
        kind, is_task_known = answer_kind(config), config.il_mode == "TIL"
        heads = Heads(kind, width, Classes(self.stream), is_task_known, config.classifier_scale, config.seed)
        return heads.to(model.device)

    def scores(
        self, model: Model, batch: Batch, index: int | None, prompt: Tensor | None = None
    ) -> tuple[Scores, Tensor]:
        """Scores (B, K, C) of the classes known after task `index`, and the classes (B, K)."""
        states, labels = labelled_states(model, batch, prompt)
        count, tasks = self.count(index), [example.task for example in batch.examples]
        return as_scores(self.heads(states, count, tasks)), self.heads.known(labels, count)

    @torch.no_grad()
    def predict(
        self, rows: Sequence[Encoded], task_id: int | None, max_new_tokens: int, prompt: Tensor | None = None
    ) -> list[str]:
        """Names of the most likely classes, of each classified position."""
        examples = [Example("", "", task=task_id or 0)] * len(rows)
        batch = collate(rows, examples, self.backbone.pad_id).to(self.backbone.model.device)
        scores, labels = self.scores(self.backbone.model, batch, task_id, prompt)
        chosen = zip(scores.whole().argmax(dim=-1).tolist(), labels.tolist(), strict=True)
        names = self.heads.classes.names
        return [" ".join(names[c] for c, y in zip(*row, strict=True) if y != IGNORE) for row in chosen]

    def count(self, index: int | None) -> int:
        """How many heads are in use after task `index`; None: after the newest, or all before any task."""
        index = self.newest if index is None else index
        return len(self.heads) if index is None else min(index + 1, len(self.heads))

    def learning(self, index: int, examples: Sequence[Example]) -> set[int]:
        """In CIL all so far, which share one softmax; in TIL those of which there are examples."""
        if self.heads.is_task_known:
            return {example.task for example in examples}
        return set(range(self.count(index)))

    def groups(self, tasks: set[int], config: Config) -> list[Group]:
        """One group, with the rate of classifiers."""
        parameters = [w for k in sorted(tasks) for w in self.heads[k].parameters()]
        return [Group(parameters, config.classifier_lr, config.classifier_weight_decay)]

    def unused(self, model: Model) -> set[str]:
        """The head of the language model."""
        return freeze.writer(model)

    def start_afresh(self) -> None:
        """Reset the heads to their first weights."""
        self.heads.load_state_dict(self._make().state_dict())


def answer_kind(config: Config) -> AnswerKind:
    """How a run answers."""
    return AnswerKind(str(config.classifier))


def make_answers(config: Config, stream: Stream, backbone: Backbone) -> WrittenAnswers:
    """How a method on this backbone answers."""
    if answer_kind(config) == AnswerKind.WRITTEN:
        return WrittenAnswers(backbone)
    return HeadAnswers(backbone, config, stream)


class ClassEncoder:
    """Encodes prompts without answers, in place of `Encoder` where a classifier answers.

    A text is classified at its last token or, with "cls_token", its first; a word at its first sub-word. An over-long
    text is cut as a prompt is. In training an over-long sentence keeps its first words, and the others get no label; in
    evaluation a sentence is whole, as every word counts.

    Args:
        plain: Encodes prompts.
        classes: Of the stream.
        extract: "last_token" or "cls_token".
    """

    def __init__(self, plain: Encoder, classes: Classes, extract: str):
        self.plain, self.classes, self.extract, self.cut_side = plain, classes, extract, plain.cut_side
        self.is_word_level = classes.stream.is_word_level
        self._words: dict[str, list[int]] = {}

    @property
    def tokenizer(self) -> Any:
        """The backbone's."""
        return self.plain.tokenizer

    @property
    def bos(self) -> list[int]:
        """Token ids that the tokenizer puts in front of a text."""
        return self.plain.bos

    def __call__(self, examples: Sequence[Example], max_length: int | None) -> list[Encoded]:
        """Encode examples with their classes; at most `max_length` tokens each."""
        encoded = self._prompts(examples, max_length)
        return [
            Encoded(ids, (), (), tuple(zip(places, self._labels(example), strict=False)))
            for (ids, places), example in zip(encoded, examples, strict=True)
        ]

    def for_prediction(self, examples: Sequence[Example], max_length: int | None) -> list[Encoded]:
        """The same with class 0 at every position; sentences that are classified word by word are not cut."""
        encoded = self._prompts(examples, None if self.is_word_level else max_length)
        return [Encoded(ids, (), (), tuple((place, 0) for place in places)) for ids, places in encoded]

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of each example, before anything is cut."""
        return [len(ids) for ids, _ in self._prompts(examples, None)]

    def forget(self, most: int = 0) -> None:
        """Drop the cached token ids if they take more than `most` bytes."""
        self.plain.forget(most)
        self._words.clear()

    def _prompts(self, examples: Sequence[Example], max_length: int | None) -> list[tuple[list[int], list[int]]]:
        """Token ids of each example, and the positions that are classified."""
        if self.is_word_level:
            return [self._sentence(example.input.split(" "), max_length) for example in examples]
        rows = [list(row.prompt) for row in self.plain.for_prediction(examples, max_length)]
        return [(ids, [0 if self.extract == "cls_token" else len(ids) - 1]) for ids in rows]

    def _sentence(self, words: list[str], max_length: int | None) -> tuple[list[int], list[int]]:
        ids, end = list(self.plain.bos), self.plain.end
        places: list[int] = []
        for i, word in enumerate(words):
            pieces = self._pieces(" " + word if i else word)
            if max_length is not None and len(ids) + len(pieces) + len(end) > max_length and places:
                break
            places.append(len(ids))
            ids += pieces
        return [*ids, *end], places

    def _pieces(self, word: str) -> list[int]:
        if word not in self._words:
            ids = self.tokenizer(word, add_special_tokens=False)["input_ids"]
            unknown = self.tokenizer.unk_token_id
            self._words[word] = ids or [self.tokenizer.pad_token_id if unknown is None else unknown]
        return self._words[word]

    def _labels(self, example: Example) -> list[int]:
        """Its class, or those of its words; 0, the tag O, for tags that the stream does not name."""
        if self.is_word_level:
            return [self.classes.index.get(tag, 0) for tag in example.target.split(" ")]
        if example.label is None:
            raise ValueError(f"an example without a class: {example.input[:40]!r}")
        return [example.label]
