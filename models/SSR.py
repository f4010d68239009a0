"""SSR: rehearsal of examples that the base model writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from models.Base import GENERATING, WRITING, Method, Setting, Task
from models.common.measuring import measuring
from models.common.pseudo_samples import Pair, answer_all
from models.common.rollouts import Rollout, Sampling, sample
from utils.config import Config, Count, Float, OptionGroup, search
from utils.dataloader import Encoded
from utils.dataset import Example, Stream
from utils.distributed.modes import ALL
from utils.model.weights import Weights, borrowed, snapshot
from utils.seed import random_for, seed_for

QUESTION, ANSWER = "Input:", "Output:"


class SSROptions(OptionGroup):
    """SSR."""

    SSR_demonstrations: Count = Field(20, description="Training examples of each task that the base model imitates.")
    SSR_shots: Count = Field(2, description="k, demonstrations in a prompt; each ordered choice of k makes one.")
    SSR_draws: Count = Field(3, description="Texts written after each prompt.")
    SSR_keep: Count = Field(200, description="Examples kept of each task.", json_schema_extra=search(50, 200))
    SSR_clusters: Count = Field(20, description="Clusters from which they are taken in proportion.")
    SSR_refine: bool = Field(
        True, description="The newest model answers the kept questions again; False: the written answers stay."
    )
    SSR_new_tokens: Count = Field(
        512, description="Most tokens of a written text; at most half of the model's positions."
    )
    SSR_temperature: Float = Field(0.9, gt=0, description="Temperature at which texts are written.")
    SSR_top_p: Float = Field(0.6, gt=0, le=1, description="Texts are drawn from the likeliest tokens of this share.")
    SSR_repetition_penalty: Float = Field(1.2, ge=1, description="Divides the scores of tokens already in the text.")


class SSR(Method):
    """Rehearses examples of earlier tasks that the base model writes and the newest model answers.

    Huang et al., "Mitigating Catastrophic Forgetting in Large Language Models with Self-Synthesized Rehearsal", ACL
    2024 (arXiv 2403.01244). After task t, with theta_0 the weights before the stream and d_1 ... d_k training examples,

        (x, y') ~ p(. | d_1 ... d_k; theta_0)        for all ordered choices of k among 20 examples, three times each
        clusters of the states h(x) by k-means; of each its share of 200, those nearest to the centroid, are kept
        y = argmax p(. | x; theta_t)

    and the (x, y) of all earlier tasks join the examples of later ones. A text is cut before each "Input:"; a piece is
    an example if it has one "Output:" between two parts and its end was reached. Copies of demonstrations and repeated
    questions are dropped. The demonstrations are real data, of which each task needs some; only what is written is
    kept. Published for Llama-2 and Alpaca with 7B: LoRA of rank 8 on queries and values, lr 2e-4, cosine, 3 epochs.

    It needs a base that imitates demonstrations: the log has the share of well-formed examples, with a warning if there
    are none, as nothing of the task is then rehearsed. Nothing is written after the last task.

    Deviations: questions are clustered by the model's own states, divided by their length, not by SimCSE's; a prompt
    has no instruction besides what the stream puts into its inputs; limits are in tokens, those of the stream.
    """

    Options = SSROptions
    options: SSROptions
    heads = GENERATING
    backbones = WRITING
    scenarios = frozenset({"CIT", "IIL", "CIL", "TIL"})
    parallel = ALL
    excludes: ClassVar = {Setting("is_replay"): "written examples take the place of memory"}
    state: ClassVar[tuple[str, ...]] = ("base", "written")

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.base: Weights = {}
        self.written: Sequence[tuple[str, str, int]] = ()  # question, answer, task

    @classmethod
    def problems(cls, config: Config, options: SSROptions, stream: Stream) -> list[str]:
        found, k = [], options.SSR_shots
        if options.SSR_demonstrations < k:
            found.append(f"SSR_demonstrations: expected at least SSR_shots, {k}; got {options.SSR_demonstrations}")
        if any(example.messages for task in stream.tasks for example in task.train):
            found.append(f"method SSR writes questions and answers; {stream.name} holds chats")
        small = [str(i) for i, task in enumerate(stream.tasks[:-1]) if len(task.train) < k]
        if small:
            found.append(f"SSR_shots: {stream.name} has fewer than {k} training examples in task {', '.join(small)}")
        return found

    def render(self, example: Example, template: Callable[[Example], tuple[str, str]]) -> tuple[str, str]:
        return (example.input, example.target) if example.view == "written" else template(example)

    def before_task(self, task: Task) -> None:
        super().before_task(task)
        if task.index == 0:
            self.base = snapshot(self.learning(task))

    def train_examples(self, task: Task) -> Sequence[Example]:
        return [*task.train, *(Example(x, y, task=j, source="pseudo") for x, y, j in self.written)]

    def after_task(self, task: Task) -> None:
        super().after_task(task)
        if task.index == len(self.stream.tasks) - 1:
            return
        with measuring(self):
            kept = self.chosen(self.write(task), task)
            if self.options.SSR_refine and kept:
                kept = self.refined(kept, task)
        if not kept:
            self.session.log.warning(
                f"task {task.index}: the base model does not imitate demonstrations; none of its examples is rehearsed"
            )
        self.written = [*self.written, *((x, y, task.index) for x, y in kept)]

    def write(self, task: Task) -> list[Pair]:
        """Distinct examples that the base model writes after demonstrations."""
        rng, options = random_for(self.config.seed, "demonstrations", task.index), self.options
        pairs = [(row.input.strip(), row.target.strip()) for row in task.train]
        shown = rng.sample(pairs, min(options.SSR_demonstrations, len(pairs)))
        texts = self.imitations([demonstrated(chosen) for chosen in permutations(shown, options.SSR_shots)], task)
        found = [pair for text in texts for pair in parsed(text.text, text.ended)]
        new = [(x, y) for x, y in dict(reversed(found)).items() if (x, y) not in shown]
        lengths = self.encoder.lengths([Example(x, y, task=task.index) for x, y in new])
        new = [pair for pair, n in zip(new, lengths, strict=True) if task.max_length is None or n <= task.max_length]
        counts = {"texts": len(texts), "well_formed": len(found), "distinct": len(new)}
        text = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
        self.session.log.info(f"task {task.index}: examples by the base model: {text}")
        self.session.log.event("pseudo", task=task.index, of=task.index, **counts)
        return new

    def imitations(self, prompts: Sequence[str], task: Task) -> list[Rollout]:
        """What the base model writes after each of these prompts, `SSR_draws` times."""
        room, longest = self.backbone.positions, self.options.SSR_new_tokens
        longest = longest if room is None else min(longest, room // 2)
        rows = self.encoder.for_prediction([Example(text, "", view="written") for text in prompts], None)
        fitting = [row for row in rows if room is None or len(row.prompt) + longest <= room]
        if len(fitting) < len(rows):
            self.session.log.warning(
                f"task {task.index}: {len(rows) - len(fitting)} of {len(rows)} prompts leave no room for {longest} "
                f"more tokens in {room} positions (SSR_new_tokens, SSR_shots)"
            )
        if not fitting:
            return []
        options = self.options
        how = Sampling(
            options.SSR_draws,
            options.SSR_temperature,
            options.SSR_top_p,
            repetition_penalty=options.SSR_repetition_penalty,
        )
        with borrowed(self.named(), self.base):
            drawn = sample(self.backbone, fitting, longest, how, self.config.seed, "written", task.index)
        return [text for texts in drawn for text in texts]

    def chosen(self, pairs: list[Pair], task: Task) -> list[Pair]:
        """The typical ones of each cluster of questions."""
        if len(pairs) <= self.options.SSR_keep:
            return pairs
        states = self.features([Example(x, y, task=task.index) for x, y in pairs], task.max_length)
        states /= np.linalg.norm(states, axis=1, keepdims=True).clip(min=1e-12)
        seed = seed_for(self.config.seed, "clusters", task.index) % 2**32
        return [pairs[i] for i in typical(states, self.options.SSR_clusters, self.options.SSR_keep, seed)]

    def refined(self, pairs: list[Pair], task: Task) -> list[Pair]:
        """The questions with the answers of the model as it is now; those without an answer are dropped."""
        rows = self.encoder.for_prediction([Example(x, y, task=task.index) for x, y in pairs], task.max_length)
        known = task.index if self.config.il_mode == "TIL" else None

        def predict(some: Sequence[Encoded]) -> list[str]:
            return self.predict(some, known, task.max_new_tokens)

        answers = answer_all(predict, rows, self.config.evaluate_batch_size)
        return [(x, answer) for (x, _), answer in zip(pairs, answers, strict=True) if answer]


def demonstrated(pairs: Sequence[Pair]) -> str:
    """The prompt with these demonstrations.

    >>> demonstrated([("2 + 2", "4"), ("3 + 1", "4")])
    'Input: 2 + 2\\nOutput: 4\\n\\nInput: 3 + 1\\nOutput: 4\\n\\nInput:'
    """
    return "".join(f"{QUESTION} {x}\n{ANSWER} {y}\n\n" for x, y in pairs) + QUESTION


def parsed(text: str, ended: bool) -> list[Pair]:
    """The well-formed examples of a text; its last piece counts if the text has ended.

    >>> text = "1 + 1\\nOutput: 2\\n\\nInput: 5\\nInput: 2\\nOutput: 3\\nOutput: 6\\nInput: 4 + 1\\nOutput: 5"
    >>> parsed(text, True), parsed(text, False)
    ([('1 + 1', '2'), ('4 + 1', '5')], [('1 + 1', '2')])
    """
    pieces = text.split(QUESTION)
    parts = [[part.strip() for part in piece.split(ANSWER)] for piece in (pieces if ended else pieces[:-1])]
    return [(two[0], two[1]) for two in parts if len(two) == 2 and all(two)]


def typical(states: NDArray[np.float32], clusters: int, keep: int, seed: int) -> list[int]:
    """Of the n_c of N rows of states (N, D) in each cluster the keep n_c / N that are nearest to its centroid."""
    from sklearn.cluster import KMeans

    means = KMeans(min(clusters, len(states)), n_init=1, random_state=seed).fit(states)
    distances = np.linalg.norm(states - means.cluster_centers_[means.labels_], axis=1)
    chosen: list[int] = []
    for cluster in range(means.n_clusters):
        inside = np.flatnonzero(means.labels_ == cluster)
        nearest = inside[np.argsort(distances[inside], kind="stable")]
        chosen += nearest[: round(keep * len(inside) / len(states))].tolist()
    return sorted(chosen)
