"""biography_synth: invented persons with biographies and questions, from lists shipped with this project.

The shape is that of the biographies of "Physics of Language Models: Part 3.1" (Allen-Zhu and Li, 2023): six
attributes per person, drawn uniformly and independently, except that the company decides its city. Each stage
(names, attributes, templates) has a separate random generator, so that more biographies do not change the
persons, and more persons do not change the first ones.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from utils import config
from utils.errors import UserError
from utils.preprocess.shared.raw import Draft, json_rows
from utils.storage.files import read_json

LISTS_FILE = Path(__file__).parents[2] / "dataset/biography_synth/lists.json"
ATTRIBUTES = ("birthday", "birth_city", "university", "major", "company_name", "company_city")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
DAYS = 28  # every month has them

Question = tuple[str, str]  # prompt, answer


class Preset(NamedTuple):
    """A size: how many persons, and how much of the lists."""

    persons: int  # persons of the raw files
    first: int  # persons of task 0, the pretrained ones
    each: int  # persons of each later task
    names: tuple[int, int, int]  # first, middle, last
    values: tuple[int, int, int, int]  # cities, universities, majors, companies
    templates: int  # sentences for each attribute
    years: tuple[int, int]  # half-open
    n_bio: int  # biographies of each person
    dev_share: float  # of a task's persons, or all if there are fewer


PRESETS = {
    "micro": Preset(12, 8, 2, (6, 6, 8), (4, 4, 4, 4), 3, (1990, 1994), 2, 1.0),
    "demo": Preset(480, 400, 40, (64, 64, 100), (12, 12, 12, 12), 12, (1990, 2000), 12, 1.0),
    "small": Preset(20_000, 10_000, 2_000, (64, 64, 100), (48, 48, 32, 40), 12, (1950, 2000), 5, 0.025),
    "paper": Preset(200_000, 100_000, 20_000, (64, 64, 100), (48, 48, 32, 40), 12, (1900, 2100), 5, 0.025),
}


class Options(config.OptionGroup):
    """Contents of the raw files."""

    preset: Literal["micro", "demo", "small", "paper"] = Field("demo", description="Size of lists and counts.")
    persons: int | None = Field(None, ge=1, description="Number of persons; none: as the preset says.")
    n_bio: int | None = Field(None, ge=1, description="Biographies of each person; none: as the preset says.")
    permute: bool = Field(True, description="Shuffle the sentences of each biography.")
    fullname: bool = Field(True, description="Name the person in every sentence; false: in the first.")


@dataclass(frozen=True, slots=True)
class Lists:
    """The values that persons are drawn from."""

    first: tuple[str, ...]
    middle: tuple[str, ...]
    last: tuple[str, ...]
    city: tuple[str, ...]
    university: tuple[str, ...]
    major: tuple[str, ...]
    company: tuple[tuple[str, str], ...]  # name, city of the head office
    templates: dict[str, tuple[str, ...]]  # attribute -> sentences with {P} and {V}
    questions: dict[str, str]  # attribute -> question with {P}
    years: tuple[int, int]

    def count(self) -> dict[str, int]:
        """Number of different values that each attribute can take."""
        offices = len({city for _, city in self.company})
        birthdays = (self.years[1] - self.years[0]) * len(MONTHS) * DAYS
        lists = (self.city, self.university, self.major, self.company)
        counts = (birthdays, *map(len, lists), offices)
        return dict(zip(ATTRIBUTES, counts, strict=True))


@dataclass(frozen=True, slots=True)
class Person:
    """A name and the values of ATTRIBUTES, in that order."""

    name: str
    birthday: str
    birth_city: str
    university: str
    major: str
    company_name: str
    company_city: str


def read_lists(preset: Preset, path: Path = LISTS_FILE) -> Lists:
    """The first entries of each list, as many as the preset takes."""
    raw = read_json(path)
    keys = ("first", "middle", "last", "city", "university", "major")
    counts = (*preset.names, *preset.values[:3])
    first, middle, last, city, university, major = (tuple(raw[k][:n]) for k, n in zip(keys, counts, strict=True))
    companies = tuple((c["name"], c["city"]) for c in raw["company"][: preset.values[3]])
    templates = {a: tuple(raw["templates"][a][: preset.templates]) for a in ATTRIBUTES}
    questions = {a: raw["qa"][a] for a in ATTRIBUTES}
    return Lists(first, middle, last, city, university, major, companies, templates, questions, preset.years)


def make_persons(lists: Lists, count: int, seed: int) -> list[Person]:
    """Draw persons; the person id is the position in the list.

    Raises:
        UserError: more than half of all names would be used up.
    """
    names, rng = _names(lists, count, seed), random.Random(f"{seed}:attributes")
    return [Person(name, *_attributes(rng, lists)) for name in names]


def ask(person: Person, lists: Lists) -> list[Question]:
    """The six questions about a person, in the order of ATTRIBUTES; an answer begins with a space."""
    prompts = (lists.questions[a].replace("{P}", person.name) + "\nAnswer:" for a in ATTRIBUTES)
    return [(prompt, f" {value}") for prompt, value in zip(prompts, astuple(person)[1:], strict=True)]


def biographies(persons: Iterable[Person], lists: Lists, options: Options, seed: int) -> Iterator[list[str]]:
    """The biographies of each person: different sentences for each attribute, different orders.

    Raises:
        UserError: there are fewer sentences than biographies.
    """
    n_bio, rng = options.n_bio or PRESETS[options.preset].n_bio, random.Random(f"{seed}:templates")
    known = min(map(len, lists.templates.values()))
    if n_bio > known:
        raise UserError(f"--n-bio: expected at most {known} (sentences for each attribute), got {n_bio}")
    for person in persons:
        chosen = {a: _sample(rng, lists.templates[a], n_bio) for a in ATTRIBUTES}
        orders = _orders(rng, n_bio) if options.permute else [ATTRIBUTES] * n_bio
        yield [_biography(person, {a: chosen[a][i] for a in order}, options.fullname) for i, order in enumerate(orders)]


def write_raw(out_dir: Path, options: Options, seed: int, force: bool) -> list[str]:
    """Write qa/all.json, biography/<kind>.json and meta.json under out_dir/biography_qa.

    Returns one line per file: written or unchanged.

    Rows are written as they are made: the biographies of 200,000 persons take more than a gigabyte.

    Raises:
        UserError: files with other content exist and `force` is not set.
    """
    preset, folder = PRESETS[options.preset], out_dir / "biography_qa"
    lists = read_lists(preset)
    persons = make_persons(lists, options.persons or preset.persons, seed)
    kind = _kind(options, preset)
    files = {
        "qa/all.json": _qa_rows(persons, lists),
        f"biography/{kind}.json": _biography_rows(biographies(persons, lists, options, seed)),
    }
    with contextlib.ExitStack() as stack:
        drafts = {name: stack.enter_context(Draft(folder / name)).write(rows) for name, rows in files.items()}
        settings = {"persons": len(persons), "n_bio": options.n_bio or preset.n_bio, "seed": seed}
        meta = {
            "settings": options.model_dump() | settings,
            "persons_first_task": min(preset.first, len(persons)),
            "biographies": len(persons) * settings["n_bio"],
            "sha256": {name: draft.sha256 for name, draft in drafts.items()},
        }
        draft = stack.enter_context(Draft(folder / "meta.json"))
        drafts["meta.json"] = draft.write([json.dumps(meta, indent=1)])
        different = [draft.path for draft in drafts.values() if draft.is_different()]
        if different and not force:
            raise UserError(f"{different[0]} has other content; replace it with --force, or give another --out-dir")
        return [f"{draft.path}: {draft.keep()}" for draft in drafts.values()]


def _kind(options: Options, preset: Preset) -> str:
    n_bio = options.n_bio or preset.n_bio
    parts = [f"multi{n_bio}" if n_bio > 1 else "single"]
    parts += [name for name in ("permute", "fullname") if getattr(options, name)]
    return "_".join(parts)


def _qa_rows(persons: list[Person], lists: Lists) -> Iterator[str]:
    rows = (
        {a: {"prompt": p, "answer": v} for a, (p, v) in zip(ATTRIBUTES, ask(person, lists), strict=True)}
        for person in persons
    )
    return json_rows((str(i), row) for i, row in enumerate(rows))


def _biography_rows(texts: Iterator[list[str]]) -> Iterator[str]:
    rows = ((f"{i}_{j}", text) for i, group in enumerate(texts) for j, text in enumerate(group))
    return json_rows((key, {"biography": text}) for key, text in rows)


# Only Random.random() is used: only its numbers are guaranteed to be the same in every Python version.


def _pick(rng: random.Random, values: tuple[Any, ...]) -> Any:
    return values[int(rng.random() * len(values))]


def _sample(rng: random.Random, values: tuple[Any, ...], count: int) -> list[Any]:
    """Different entries in random order (the first steps of a Fisher-Yates shuffle)."""
    pool = list(values)
    for i in range(count):
        j = i + int(rng.random() * (len(pool) - i))
        pool[i], pool[j] = pool[j], pool[i]
    return pool[:count]


def _names(lists: Lists, count: int, seed: int) -> Iterator[str]:
    total = len(lists.first) * len(lists.middle) * len(lists.last)
    if 2 * count > total:
        raise UserError(f"persons: expected at most {total // 2} (half of the {total} names), got {count}")
    rng = random.Random(f"{seed}:names")
    drawn: set[str] = set()
    while len(drawn) < count:
        name = " ".join(_pick(rng, values) for values in (lists.first, lists.middle, lists.last))
        if name not in drawn:
            drawn.add(name)
            yield name


def _attributes(rng: random.Random, lists: Lists) -> tuple[str, ...]:
    month, day = _pick(rng, MONTHS), 1 + int(rng.random() * DAYS)
    year = lists.years[0] + int(rng.random() * (lists.years[1] - lists.years[0]))
    places = _pick(rng, lists.city), _pick(rng, lists.university), _pick(rng, lists.major)
    return (f"{month} {day}, {year}", *places, *_pick(rng, lists.company))


def _orders(rng: random.Random, count: int) -> list[tuple[str, ...]]:
    """Different orders of the attributes."""
    orders: dict[tuple[str, ...], None] = {}
    while len(orders) < count:
        orders.setdefault(tuple(_sample(rng, ATTRIBUTES, len(ATTRIBUTES))))
    return list(orders)


def _biography(person: Person, templates: dict[str, str], fullname: bool) -> str:
    """One biography, with the leading space that the pretraining text begins with."""
    sentences = []
    for position, (attribute, template) in enumerate(templates.items()):
        if position > 0 and not fullname:
            template = template.replace("{P}'s", "Their").replace("{P}", "They")
        sentences.append(template.replace("{P}", person.name).replace("{V}", getattr(person, attribute)))
    return " " + " ".join(sentences)
