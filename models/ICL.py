"""In-context learning: nothing is trained; each prompt begins with examples of the tasks so far."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from pydantic import Field

from models.Base import GENERATING, WRITING, Method, Setting, Task
from utils.config import Config, Int, OptionGroup, search
from utils.dataloader import Encoded
from utils.dataset import Example, Stream
from utils.distributed.modes import ALL
from utils.optimizer import Group
from utils.seed import random_for


class ICLOptions(OptionGroup):
    """ICL."""

    ICL_n_shot: Int = Field(
        1, ge=1, description="Demonstrations in front of a question.", json_schema_extra=search(1, 2, 4)
    )
    ICL_same_instance: bool = Field(False, description="One demonstration asks for the same fact in other words.")
    ICL_same_concept: bool = Field(False, description="All demonstrations are about the concept of the question.")


class ICL(Method):
    """Few-shot prompting (Brown et al., NeurIPS 2020) as a baseline of continual learning (Zheng et al., 2024).

    The prompt of a question x is n demonstrations and x itself; the answer is the first line that the model writes:

        prompt(x_1) y_1 <newline> ... prompt(x_n) y_n <newline> prompt(x)

    (x_i, y_i) are training examples of the tasks seen so far, drawn for each question without replacement, with a seed:

        random          from all of them
        same concept    from those about the concept of x
        same instance   one asks what x asks in other words, the others are random; in random order

    Before the first task there are none: the base model alone.

    Only `same instance` may give the answer away: elsewhere neither x nor what asks the same fact in other words is
    ever drawn, by text or id. (The published same-concept draw does not exclude the second.) A training question
    has no other wording among the training examples, so under `same instance` it gets random ones only.

    The limit on tokens (`max_seq_length`, else the stream's own, which was made for one question) holds for the whole
    prompt: whole demonstrations are left out until it fits, the first ones first.
    """

    Options = ICLOptions
    options: ICLOptions
    trains: ClassVar = False
    heads = GENERATING
    backbones = WRITING
    parallel = ALL
    excludes: ClassVar = {
        Setting(option): "nothing is trained"
        for option in ("is_replay", "freeze_parts", "PEFT_type", "keep_optimizer_state", "recovery", "drift")
    }
    state: ClassVar = ("seen",)

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.seen = 0  # tasks
        self.pool = Pool(())
        self.warned = False

    @classmethod
    def problems(cls, config: Config, options: ICLOptions, stream: Stream) -> list[str]:
        train, test = ([e for task in stream.tasks for e in getattr(task, split)] for split in ("train", "test"))
        problems = [
            f"{name}: needs examples with concept and instance, and {stream.name} has none"
            for name in ("ICL_same_instance", "ICL_same_concept")
            if getattr(options, name) and not all(e.ids for e in (*train, *test))
        ]
        if options.ICL_same_instance and options.ICL_same_concept:
            problems.append("ICL_same_instance, ICL_same_concept: expected one of them, got both")
        if any(e.messages for e in (*train, *test)):
            problems.append(f"method ICL: {stream.name} has chats, which are no lines of question and answer")
        if any("\n" in e.target.strip() for e in (*train, *test)):
            problems.append(f"method ICL: {stream.name} has answers of several lines; ICL answers with one")
        return problems

    def setup(self) -> None:
        self.model.requires_grad_(False)

    def before_task(self, task: Task) -> None:
        self.seen = task.index + 1
        self._fill()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._fill()

    def _fill(self) -> None:
        self.pool = Pool([e for task in self.stream.tasks[: self.seen] for e in task.train])

    def train_examples(self, task: Task) -> Sequence[Example]:
        return ()

    def trainable(self, task: Task) -> list[Group]:
        return []

    def render(self, example: Example, template: Callable[[Example], tuple[str, str]]) -> tuple[str, str]:
        prompt, answer = template(example)
        lines = ["".join(template(shown)) + "\n" for shown in self.demonstrations(example)]
        return "".join(self._fitting(lines, prompt, self.max_length(example.task))) + prompt, answer

    def _fitting(self, lines: list[str], prompt: str, limit: int | None) -> list[str]:
        """The last demonstrations that fit before the prompt; once it is said that some do not."""
        count = len(lines)
        while lines and limit is not None and self._tokens("".join(lines) + prompt) > limit:
            lines = lines[1:]
        if len(lines) < count and not self.warned:
            self.warned = True
            self.session.log.warning(
                f"a prompt with {count} demonstrations has more than {limit} tokens: it gets {len(lines)}, and each "
                "other one as many as fit (max_seq_length)"
            )
        return lines

    def _tokens(self, text: str) -> int:
        return len(self.encoder.bos) + len(self.encoder.tokenizer(text, add_special_tokens=False)["input_ids"])

    def demonstrations(self, x: Example) -> list[Example]:
        """Demonstrations for x: `ICL_n_shot` examples, or as many as there are."""
        rng = random_for(self.config.seed, "demonstrations", x.input, x.ids)
        count, pool = self.options.ICL_n_shot, self.pool
        if self.options.ICL_same_concept:
            return pool.draw(x, count, rng, pool.concepts.get(x.ids[0], []) if x.ids else [])
        twins = pool.facts.get(x.ids, []) if x.ids and self.options.ICL_same_instance else []
        twins = [example for example in twins if example.input != x.input][:1]
        drawn = twins + pool.draw(x, count - len(twins), rng, pool.examples)
        return rng.sample(drawn, len(drawn))

    def predict(self, rows: Sequence[Encoded], task_id: int | None, max_new_tokens: int) -> list[str]:
        return [first_line(text) for text in super().predict(rows, task_id, max_new_tokens)]


class Pool:
    """Examples that may be demonstrations."""

    def __init__(self, examples: Sequence[Example]):
        self.examples = list(examples)
        self.inputs = Counter(e.input for e in examples)
        self.facts: dict[tuple[int, int, int], list[Example]] = {}
        self.concepts: dict[int, list[Example]] = {}
        for example in self.examples:
            if example.ids:
                self.facts.setdefault(example.ids, []).append(example)
                self.concepts.setdefault(example.ids[0], []).append(example)

    def draw(self, x: Example, count: int, rng: random.Random, source: Sequence[Example]) -> list[Example]:
        """Draw examples from `source` that neither are x nor ask for the same fact, without replacement."""
        facts = self.facts.get(x.ids, []) if x.ids else []
        barred = self.inputs[x.input] + len(facts)  # at least as many as can be drawn in vain
        drawn = rng.sample(source, min(len(source), count + barred))
        return [e for e in drawn if e.input != x.input and (not x.ids or e.ids != x.ids)][:count]


def first_line(text: str) -> str:
    r"""An answer ends where the next demonstration would begin.

    >>> first_line("Paris\nQuestion: What")
    'Paris'
    """
    return text.split("\n")[0].strip()
