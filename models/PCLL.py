"""PCLL: Zhao et al., "Prompt Conditioned VAE: Enhancing Generative Replay for Lifelong Learning ...", EMNLP 2022."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from models.Base import Setting, Task
from models.common.pseudo_samples import answer_all, sample_texts
from models.common.vae import Gaussian, cyclic, gaussian_kl, shifted
from models.LAMOL_KD import LAMOL_KD
from utils.config import Config, Count, Float, Int, OptionGroup, search
from utils.dataloader import IGNORE, Batch, collate
from utils.dataset import Example, Stream
from utils.model.architecture import Model
from utils.model.forward import answer_scores, token_states
from utils.model.head import Scores
from utils.model.weights import Weights, eval_mode
from utils.seed import seed_for, seed_torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # seconds to import: not for --help

LATENT = ("PCLL_weight_kl", "PCLL_alpha_z", "PCLL_latent_size", "PCLL_cycles")  # options of the autoencoder


class PCLLOptions(OptionGroup):
    """PCLL."""

    LAMOL_gamma: Float = Field(
        0.2,
        ge=0,
        description="Pseudo-samples, as a share of the new task's examples.",
        json_schema_extra=search(0.05, 0.2),
    )
    LAMOL_topk: Int = Field(20, ge=1, description="Pseudo-samples are drawn from the k best tokens.")
    LAMOL_top_up: Int = Field(20, ge=0, description="Most rounds in which unusable pseudo-samples are replaced.")
    PCLL_prompt: str = Field(
        "In the {task} task:", pattern=r"\{task\}", description='p; {task} becomes "0-th" ... or "current".'
    )
    PCLL_cue: str = Field(" Answer:", min_length=1, description="Text between question and answer.")
    PCLL_KD_weight: Float = Field(
        0.5,
        ge=0,
        le=1,
        description="k, share of distillation on pseudo rows.",
        json_schema_extra=search(0.25, 0.5, 0.75),
    )
    PCLL_KD_temperature: Float = Field(1.0, gt=0, description="tau, temperature of the distillation.")
    PCLL_weight_vae_loss: Float = Field(1.0, ge=0, description="w_vae; 0: samples without a latent.")
    PCLL_weight_lm_loss: Float = Field(0.5, gt=0, description="w_lm, weight of L_lm.")
    PCLL_weight_gen_loss: Float = Field(0.5, ge=0, description="w_gen, weight of writing whole examples, in L_lm.")
    PCLL_weight_kl: Float = Field(0.01, ge=0, description="c, weight of the divergence inside L_vae.")
    PCLL_alpha_z: Float = Field(0.1, gt=0, description="alpha, scale of the latent in the embeddings.")
    PCLL_latent_size: Count = Field(128, description="Numbers in a latent z.")
    PCLL_cycles: Count = Field(4, description="Cycles of beta in a task; in each it rises for 90 % of the steps.")


class PCLL(LAMOL_KD):
    """Generates pseudo-samples with a variational autoencoder whose prior is conditioned on the task's prompt p::

        L_vae = CE(x | p, z) + c beta KL(q(z | p, x) || prior(z | p))
        L_lm  = CE(y | p, x) + w_gen CE(x, y | p)
        L     = w_vae L_vae + w_lm L_lm                                                            (new rows)
        pseudo rows: the same, with each CE replaced by (1 - k) CE + k KD_tau to the model before the task

    q and prior are normal distributions, computed by attention pooling from a separate encoder, initialised as a copy
    of the backbone; alpha W z is added to the embedding of every token. beta rises from 0 to 1 in cycles. For an
    earlier task z is drawn from its prior, x from the model, y is answered greedily; repetitions are dropped and
    replaced.

    Each CE is a mean over tokens, KL a mean over texts. The weights are those of the published code: autoencoder,
    answers and whole examples 1 : 0.5 : 0.25.

    Deviations: new and pseudo rows share one step (published: one step each). Pooling leaves padding out exactly.
    Prompts of answers do not name the task, except in TIL: in a test that would reveal it.
    """

    Options = PCLLOptions
    options: PCLLOptions  # type: ignore[assignment]  # `loss`, which reads those of LAMOL_KD, is overridden here
    backbones = frozenset({"decoder"})  # z is added to the tokens that are written, behind those that are read
    excludes: ClassVar = LAMOL_KD.excludes | {
        Setting("PEFT_type"): "its encoder is a trainable copy of the whole backbone",
        Setting("padding_free"): "latents are added to whole rows",
    }
    state: ClassVar[tuple[str, ...]] = (*LAMOL_KD.state, "step", "steps")
    sampling = ("LAMOL_topk", "LAMOL_top_up", "PCLL_KD_weight", "PCLL_KD_temperature")
    step, steps = 0, 1  # of the task
    draw = 0.0  # decides the noise of the step in progress
    by_task = True

    @classmethod
    def problems(cls, config: Config, options: Any, stream: Stream) -> list[str]:
        problems = cls.stream_problems(config, stream)
        if options.LAMOL_gamma and not options.PCLL_weight_vae_loss and not options.PCLL_weight_gen_loss:
            problems.append("LAMOL_gamma: needs PCLL_weight_vae_loss or PCLL_weight_gen_loss, else nothing is written")
        if not options.PCLL_weight_vae_loss:
            problems += cls.unused(options, LATENT, "PCLL_weight_vae_loss 0")
        if not options.LAMOL_gamma:
            problems += cls.unused(options, cls.sampling, "LAMOL_gamma 0")
        return problems

    def setup(self) -> None:
        options, width = self.options, self.model.get_input_embeddings().get_parameter("weight").shape[1]
        self.teacher: Weights = {}
        self._seen: set[tuple[str, str]] = set()  # samples of the task that is being written
        if options.PCLL_weight_vae_loss:
            seed_torch(self.config.seed, "vae")
            self.reader = cast("PreTrainedModel", copy.deepcopy(self.model.base_model))
            self.extra["encoder"] = self.reader
            self.extra["prior"] = Gaussian(width, options.PCLL_latent_size)
            self.extra["posterior"] = Gaussian(width, options.PCLL_latent_size)
            self.extra["W"] = nn.Linear(options.PCLL_latent_size, width, bias=False)
            self.extra.to(self.model.device, self.model.dtype)

    @property
    def weights(self) -> dict[str, float]:
        options, lm = self.options, self.options.PCLL_weight_lm_loss
        return {"answer": lm, "lm": lm * options.PCLL_weight_gen_loss, "vae": options.PCLL_weight_vae_loss}

    def render(self, example: Example, template: Callable[[Example], tuple[str, str]]) -> tuple[str, str]:
        """Prompt and answer as text, in the views "answer" (y), "vae" (x) and "lm" (x and y)."""
        named = example.view != "answer" or self.config.il_mode == "TIL"
        which = f"{example.task}-th" if named else "current"
        prompt, cue = self.options.PCLL_prompt.replace("{task}", which), self.options.PCLL_cue
        question, answer = f" {example.input.strip()}", f" {example.target.strip()}"
        if example.view == "answer":
            return prompt + question + cue, answer
        return prompt, question if example.view == "vae" else question + cue + answer

    def before_task(self, task: Task) -> None:
        super().before_task(task)
        self.step, self.steps = 0, task.epochs * math.ceil(len(self.train_examples(task)) / self.config.batch_size)

    def batch(self, examples: Sequence[Example], task: Task, rng: random.Random) -> Sequence[Example]:
        self.draw = rng.random()
        return super().batch(examples, task, rng)

    def after_step(self, task: Task) -> None:
        super().after_step(task)
        self.step += 1

    def loss(self, model: Model, batch: Batch, task: Task) -> dict[str, Tensor]:
        scores, labels, kl = self.conditioned(model, batch)
        terms = self.learn(scores, labels, batch, "task")
        if self.teacher:
            k, tau = self.options.PCLL_KD_weight, self.options.PCLL_KD_temperature
            hard = self.learn(scores, labels, batch, "pseudo")
            soft = self.distil(scores, labels, batch, "pseudo", self.teacher, tau)
            terms |= {name: (1 - k) * hard[name] + k * soft[name] for name in hard}
        if self.weights["vae"]:
            weight = self.weights["vae"] * self.options.PCLL_weight_kl
            weight *= cyclic(self.step, self.steps, self.options.PCLL_cycles)
            terms["kl"] = weight * kl
        return terms

    def scores(self, model: Model, batch: Batch, index: int | None) -> tuple[Scores, Tensor]:
        return self.conditioned(model, batch)[:2]

    def conditioned(self, model: Model, batch: Batch) -> tuple[Scores, Tensor, Tensor]:
        """Scores and labels of `answer_scores`, with latents in rows of the view "vae"; and their KL, see `_mean`."""
        if not self.weights["vae"]:
            return *answer_scores(model, batch), torch.zeros(())
        rows = batch.rows(view="vae")
        part = batch.only(rows or [0])  # without such rows: for the graph alone
        hidden = token_states(self.reader, part)
        prior = self.extra["prior"](hidden, part.attention_mask * (part.labels == IGNORE))  # causal: p can't see x
        mean, log_variance = posterior = self.extra["posterior"](hidden, part.attention_mask)
        z = mean + (log_variance / 2).exp() * self._noise(part.examples).to(mean)
        added = self.options.PCLL_alpha_z * self.shift(z)
        kl = self._mean(gaussian_kl(posterior, prior), part)
        if not rows:  # no effect, but in the graph
            added, kl = added * 0, kl * 0
        at = torch.tensor(rows or [0], device=added.device)
        shift = added.new_zeros(len(batch.examples), added.shape[1]).index_copy(0, at, added)
        with shifted(model, shift):
            scores, labels = answer_scores(model, batch)
        return scores, labels, kl

    def shift(self, z: Tensor) -> Tensor:
        """What latents (B, Z) add to the embedding of every token: (B, D)."""
        matrix = self.extra["W"]
        shift: Tensor = matrix(z.to(matrix.get_parameter("weight").dtype))
        return shift

    @staticmethod
    def _mean(kl: Tensor, batch: Batch) -> Tensor:
        """KL of rows (B) -> (): a mean over the new texts of the step, plus one over its pseudo-samples."""
        counts = [batch.tokens.get(f"rows {row.source} vae", 1.0) for row in batch.examples]
        return (kl / kl.new_tensor(counts)).sum()

    def _noise(self, examples: Sequence[Example]) -> Tensor:
        """(N, Z): drawn per row, so that it does not depend on micro-batches or processes."""
        seeds = [seed_for(self.draw, example.source, example.task, example.input) for example in examples]
        size = self.options.PCLL_latent_size
        return torch.stack([torch.randn(size, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def write(self, task: Task, old: int, attempt: int, count: int) -> list[tuple[str, str] | None]:
        """Samples of one earlier task, none of which it has written before; None for each that is unusable."""
        if attempt == 0:
            self._seen = set()
        ask = Example("", "", task=old, view="lm")
        (row,) = self.encoder([ask], None)
        prompt = collate([row._replace(answer=())], [ask], self.backbone.pad_id).to(self.model.device)
        texts = sample_texts(
            self.backbone, row.prompt, count, self.longest, self.options.LAMOL_topk,
            self.config.seed, "pseudo", task.index, old, attempt, condition=lambda n: self.from_prior(prompt, n),
        )  # fmt: skip
        questions = [question_of(text, self.backbone.tokenizer.eos_token, self.options.PCLL_cue) for text in texts]
        rows = [Example(question or "", "", task=old) for question in questions]
        answers = answer_all(
            lambda chunk: self.predict(chunk, old if self.config.il_mode == "TIL" else None, task.max_new_tokens),
            self.encoder.for_prediction(rows, task.max_length),
            self.config.evaluate_batch_size,
        )
        return [self._new(pair) for pair in zip(questions, answers, strict=True)]

    def _new(self, pair: tuple[str | None, str]) -> tuple[str, str] | None:
        question, answer = pair
        if not question or not answer or (question, answer) in self._seen:
            return None
        self._seen.add((question, answer))
        return question, answer

    @contextmanager
    @torch.no_grad()
    def from_prior(self, prompt: Batch, count: int) -> Iterator[None]:
        """Draw that many latents of the task that a prompt names; the model follows them inside the `with`."""
        if not self.weights["vae"]:
            yield
            return
        with eval_mode(self.extra):
            hidden = token_states(self.reader, prompt)
            mean, log_variance = self.extra["prior"](hidden, prompt.attention_mask)
            z = mean + (log_variance / 2).exp() * torch.randn(count, mean.shape[1]).to(mean)
            with shifted(self.model, self.options.PCLL_alpha_z * self.shift(z)):
                yield


def question_of(text: str, eos: str, cue: str) -> str | None:
    """What was written before the cue or the end; None if neither came, or nothing before it.

    >>> [question_of(text, "<eos>", "? Answer:") for text in (" a cat? Answer: meow<eos>", " a cat<eos>", " a")]
    ['a cat', 'a cat', None]
    """
    written, end, _ = text.partition(eos)
    question, found, _ = written.partition(cue)
    return question.strip() or None if end or found else None
