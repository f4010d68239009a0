"""LAMOL: Sun, Ho and Lee, "LAMOL: LAnguage MOdeling for Lifelong Language Learning", ICLR 2020."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from models.Base import GENERATING, WRITING, Method, Setting, Task
from models.common.losses import answer_loss, distillation
from models.common.measuring import measuring
from models.common.pseudo_samples import make_room, parse, sample_texts, tell, top_up
from utils.buffer import split_evenly
from utils.config import Config, Float, Int, OptionGroup, search
from utils.dataloader import Batch
from utils.dataset import Example, Stream
from utils.distributed.modes import ALL
from utils.model.architecture import Model
from utils.model.head import Scores
from utils.model.weights import Weights
from utils.prompt import strips

ANS, GEN = "__ans__", "__gen__"


class LAMOLOptions(OptionGroup):
    """LAMOL."""

    LAMOL_lambda: Float = Field(
        0.25,
        ge=0,
        description="Weight of l_G, the loss of writing whole examples.",
        json_schema_extra=search(0.1, 0.25, 0.5),
    )
    LAMOL_gamma: Float = Field(
        0.2,
        ge=0,
        description="Pseudo-samples, as a share of the new task's examples.",
        json_schema_extra=search(0.05, 0.2),
    )
    LAMOL_topk: Int = Field(20, ge=1, description="Sample pseudo-samples from the k most likely tokens.")
    LAMOL_top_up: Int = Field(5, ge=0, description="Maximum number of rounds that replace malformed pseudo-samples.")
    LAMOL_use_task_specific_gen_token: bool = Field(False, description="Use a separate GEN token for each task.")
    LAMOL_use_eos_as_gen_token: bool = Field(False, description="Use the end-of-sequence token as GEN.")
    LAMOL_use_ans_token: bool = Field(True, description="Put the token ANS between question and answer.")
    LAMOL_ans_split_token: str | None = Field(
        None,
        min_length=1,
        description="Text that ends each question, in place of ANS; appended where missing.",
    )


class LAMOL(Method):
    """Trains one model to answer and to generate examples; before a task it generates pseudo-samples of earlier ones.

    An example with question x and answer y has two losses, real and pseudo-samples alike::

        L = l_A + lambda l_G        l_A: CE of y after "x ANS"        l_G: CE of "x ANS y" after GEN

    Before task t > 0 the model samples floor(gamma N_t) texts after GEN (top-k, eval mode), which join the N_t examples
    of the task. GEN is one token for all tasks, one per task (then each earlier task gets its share), or EOS.

    Deviations: malformed texts, among them those that do not end, are replaced in up to `LAMOL_top_up` rounds (0: as
    published); repetitions stay, as published. Special tokens weigh as much as others (published: 5 times). Examples
    longer than `max_seq_length` are left out of l_G, or the model would learn to write half questions.
    """

    Options: ClassVar[type[OptionGroup]] = LAMOLOptions
    options: LAMOLOptions
    heads = GENERATING
    backbones = WRITING
    scenarios = frozenset({"CIT", "IIL", "CIL", "TIL"})
    parallel = ALL
    excludes: ClassVar = {Setting("is_replay"): "pseudo-samples take the place of memory"}
    state: ClassVar[tuple[str, ...]] = ("pseudo", "longest")
    sampling: ClassVar[tuple[str, ...]] = ("LAMOL_topk", "LAMOL_top_up")  # options about pseudo-samples alone

    pseudo: Sequence[tuple[str, str, int]] = ()  # question, answer, task; of the task being learned
    longest = 0  # tokens of the longest text of an earlier task

    @classmethod
    def problems(cls, config: Config, options: LAMOLOptions, stream: Stream) -> list[str]:
        problems = []
        if options.LAMOL_use_task_specific_gen_token and options.LAMOL_use_eos_as_gen_token:
            problems.append("LAMOL_use_task_specific_gen_token: has no effect with LAMOL_use_eos_as_gen_token")
        if options.LAMOL_use_ans_token == (options.LAMOL_ans_split_token is not None):
            problems.append("LAMOL_ans_split_token: needed without LAMOL_use_ans_token, and only then")
        if options.LAMOL_gamma and not options.LAMOL_lambda:
            problems.append("LAMOL_gamma: needs a LAMOL_lambda above 0, else the model never learns to write")
        if config.PEFT_type and (options.LAMOL_use_ans_token or not options.LAMOL_use_eos_as_gen_token):
            problems.append(
                "PEFT_type: new tokens would not be trained, the base is frozen; set LAMOL_use_eos_as_gen_token: True, "
                "LAMOL_use_ans_token: False and LAMOL_ans_split_token"
            )
        if not options.LAMOL_gamma:
            problems += cls.unused(options, cls.sampling, "LAMOL_gamma 0")
        return [*problems, *cls.stream_problems(config, stream)]

    @classmethod
    def unused(cls, options: OptionGroup, names: Sequence[str], setting: str) -> list[str]:
        """The options among these that were set although the setting leaves them without effect."""
        return [f"{name}: has no effect with {setting}" for name in names if options.is_changed(name)]

    @classmethod
    def stream_problems(cls, config: Config, stream: Stream) -> list[str]:
        """Problems of what is to be learned."""
        problems = []
        if config.prompt_type not in ("auto", "none"):
            problems.append(f"prompt_type: has no effect with {cls.__name__}, which has its own format")
        if not strips(config.strip, stream):
            problems.append(f"strip: {cls.__name__} removes white space around questions and answers; set strip: True")
        if any(example.messages for task in stream.tasks for example in (*task.train, *task.test)):
            problems.append(f"method {cls.__name__} learns questions and answers; {stream.name} holds chats")
        return problems

    def setup(self) -> None:
        tokenizer, options = self.backbone.tokenizer, self.options
        separator = options.LAMOL_ans_split_token
        self.separator = ANS if options.LAMOL_use_ans_token or separator is None else separator
        tasks = range(len(self.stream.tasks))
        special = dict.fromkeys([self.gen(task) for task in tasks] + [ANS] * options.LAMOL_use_ans_token)
        tokenizer.add_tokens([token for token in special if token != tokenizer.eos_token], special_tokens=True)
        make_room(self.model, len(tokenizer))

    @property
    def weights(self) -> dict[str, float]:
        """Of the terms, by view."""
        return {"answer": 1.0, "lm": self.options.LAMOL_lambda}

    @property
    def by_task(self) -> bool:
        """True if samples of a given task can be requested."""
        return self.options.LAMOL_use_task_specific_gen_token

    def gen(self, task: int) -> str:
        """The token after which the model writes examples of a task."""
        if self.options.LAMOL_use_eos_as_gen_token:
            return self.backbone.tokenizer.eos_token
        return f"__{task}__" if self.options.LAMOL_use_task_specific_gen_token else GEN

    def render(self, example: Example, template: Callable[[Example], tuple[str, str]]) -> tuple[str, str]:
        """Prompt and answer as text: "x ANS" and "y", or of the whole example GEN and "x ANS y"."""
        question, answer = example.input.strip(), " " + example.target.strip()
        if self.options.LAMOL_use_ans_token:
            question += ANS
        elif not question.endswith(self.separator):
            question += " " + self.separator
        return (self.gen(example.task), question + answer) if example.view == "lm" else (question, answer)

    def before_task(self, task: Task) -> None:
        left_out = len(task.train) - len(self.others(task.train, task)) if self.weights["lm"] else 0
        if left_out:
            self.session.log.warning(
                f"task {task.index}: {left_out} of {len(task.train)} examples have more than {task.max_length} tokens; "
                "the model does not learn to write them (max_seq_length)"
            )
        self.pseudo = self.write_pseudo(task) if task.index and self.options.LAMOL_gamma else []

    def train_examples(self, task: Task) -> Sequence[Example]:
        return [*task.train, *(Example(x, y, task=j, source="pseudo") for x, y, j in self.pseudo)]

    def batch(self, examples: Sequence[Example], task: Task, rng: random.Random) -> Sequence[Example]:
        others = [view for view, weight in self.weights.items() if weight and view != "answer"]
        return [*examples, *(row for view in others for row in self.others(examples, task, view))]

    def others(self, examples: Sequence[Example], task: Task, view: str = "lm") -> list[Example]:
        """The examples in another view, with the question in the loss too; without those that are too long for it."""
        rows = [replace(example, view=view) for example in examples]
        limit = task.max_length or math.inf
        return [row for row, length in zip(rows, self.encoder.lengths(rows), strict=True) if length <= limit]

    def loss(self, model: Model, batch: Batch, task: Task) -> dict[str, Tensor]:
        return self.learn(*self.scores(model, batch, task.index), batch)

    def learn(self, scores: Scores, labels: Tensor, batch: Batch, source: str | None = None) -> dict[str, Tensor]:
        """l_A and lambda l_G of the rows from one source; None: of all rows."""
        return self.terms(batch, source, lambda rows, tokens: answer_loss(scores[rows], labels[rows], tokens))

    def distil(
        self,
        scores: Scores,
        labels: Tensor,
        batch: Batch,
        source: str,
        teacher: Weights,
        tau: float,
        view: str | None = None,
    ) -> dict[str, Tensor]:
        """KD(A) and lambda KD(G) of the rows from one source, or of one view; for the variants with a teacher."""
        chosen = batch.rows(source, view) or [0]  # a micro-batch without such rows: terms of 0
        part = batch.only(chosen)
        wanted = self.teacher_scores(teacher, part)
        student, labels = scores[chosen][:, -wanted.shape[1] :], labels[chosen][:, -wanted.shape[1] :]
        return self.terms(
            part, source, lambda rows, tokens: distillation(student[rows], wanted[rows], labels[rows], tokens, tau)
        )

    def terms(self, batch: Batch, source: str | None, term: Callable[[list[int], float], Tensor]) -> dict[str, Tensor]:
        """One term for each view, times its weight: of the answers, and lambda times the same of the whole examples.

        Args:
            batch: Rows of all views.
            source: Whose rows; None: all.
            term: (rows, labelled tokens of the step among such rows) -> () float.
        """
        terms = {}
        for view, weight in self.weights.items():
            name = f"{source} {view}" if source else view
            if weight:
                terms[name] = weight * term(batch.rows(source, view), batch.tokens.get(name, 1.0))
        return terms

    def after_task(self, task: Task) -> None:
        super().after_task(task)
        self.longest = max([self.longest, *self.encoder.lengths(self.others(task.train, task))])
        self.pseudo = []

    def write_pseudo(self, task: Task) -> list[tuple[str, str, int]]:
        """Samples of the earlier tasks, floor(gamma N_t) in all; task -1 where all tasks share one GEN token."""
        total = math.floor(self.options.LAMOL_gamma * len(task.train) + 1e-9)  # 0.29 * 100 is 28.999999999999996
        shares = split_evenly(total, list(range(task.index)) if self.by_task else [-1])
        pseudo = []
        with measuring(self):
            for old, requested in shares.items():
                kept, written = top_up(
                    partial(self.write, task, old),
                    requested if self.longest else 0,
                    self.options.LAMOL_top_up,
                )
                pseudo += [(*pair, old) for pair in kept]
                tell(self.session.log, task.index, old, requested, written, kept)
        return pseudo

    def write(self, task: Task, old: int, attempt: int, count: int) -> list[tuple[str, str] | None]:
        """Samples of one earlier task; None for each that is malformed."""
        (row,) = self.encoder([Example("", "", task=old, view="lm")], None)
        seed = (self.config.seed, "pseudo", task.index, old, attempt)
        options, prompt = self.options, self.soft_prompt(None)
        texts = sample_texts(
            self.backbone, row.prompt, count, self.longest, options.LAMOL_topk, *seed, soft_prompt=prompt
        )
        eos, keep = self.backbone.tokenizer.eos_token, not self.options.LAMOL_use_ans_token
        return [parse(text, eos, self.separator, keep) for text in texts]
