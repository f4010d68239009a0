r"""SuperNI, Long Sequence and Standard CL (scenario CIT): the benchmarks of 15, 15 and 4 tasks in the files of SAPT.

    SuperNI          15 tasks of Natural Instructions: summaries, dialogue, extraction, classes; ROUGE-L with stemmer
    Long Sequence    15 tasks of classes, answered as text; exact match without punctuation
    Standard CL      four of the Long Sequence tasks

Each split is a file in the format of Natural Instructions. Data: "Super-NaturalInstructions" (Wang et al., EMNLP 2022);
"Progressive Prompts" (Razdaibiedina et al., ICLR 2023); prepared by the authors of O-LoRA (Wang et al., Findings of
EMNLP 2023) and SAPT (Zhao et al., ACL 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from utils.dataset import SPLITS, Stream, TaskData
from utils.errors import UserError
from utils.preprocess.shared.instructions import (
    InstructionOptions,
    Render,
    Rows,
    examples,
    facts,
    finish,
    read_instructions,
    superni_prompt,
)
from utils.preprocess.shared.option_types import Names
from utils.preprocess.shared.raw import DATASET_DIR, Origin, file_sha256, read_raw_json
from utils.preprocess.shared.records import remarks

ORIGIN = Origin(
    "github.com/circle-hit/SAPT, CL_Benchmark", "none stated; texts under the terms of their sources", "about 70 MB"
)
FOLDERS = ("cl_benchmark", "CL_Benchmark", ".")  # inside the folder of raw data
NO_LABEL = "-"  # in the place of an answer that nobody gave (MNLI)


class Kind(NamedTuple):
    """How O-LoRA's prompt names a task of Long Sequence."""

    task: str
    dataset: str


SUPERNI_TASKS = (
    "task1572_samsum_summary",
    "task363_sst2_polarity_classification",
    "task1290_xsum_summarization",
    "task181_outcome_extraction",
    "task002_quoref_answer_generation",
    "task1510_evalution_relation_extraction",
    "task639_multi_woz_user_utterance_generation",
    "task1729_personachat_generate_next",
    "task073_commonsenseqa_answer_generation",
    "task1590_diplomacy_text_generation",
    "task748_glucose_reverse_cause_event_detection",
    "task511_reddit_tifu_long_text_summarization",
    "task591_sciq_answer_generation",
    "task1687_sentiment140_classification",
    "task875_emotion_classification",
)
LONG_TASKS = {
    "mnli": Kind("NLI", "MNLI"),
    "cb": Kind("NLI", "CB"),
    "wic": Kind("WiC", "WiC"),
    "copa": Kind("COPA", "COPA"),
    "qqp": Kind("QQP", "QQP"),
    "boolq": Kind("BoolQA", "BoolQA"),
    "rte": Kind("NLI", "RTE"),
    "imdb": Kind("SC", "IMDB"),
    "yelp": Kind("SC", "yelp"),
    "amazon": Kind("SC", "amazon"),
    "sst2": Kind("SC", "SST-2"),
    "dbpedia": Kind("TC", "dbpedia"),
    "agnews": Kind("TC", "agnews"),
    "multirc": Kind("MultiRC", "MultiRC"),
    "yahoo": Kind("TC", "yahoo"),
}
CHOOSE = "Choose one from the option."
INSTRUCTIONS = {  # of O-LoRA; COPA has none
    "NLI": f'What is the logical relationship between the "sentence 1" and the "sentence 2"? {CHOOSE}',
    "QQP": f'Whether the "first sentence" and the "second sentence" have the same meaning? {CHOOSE}',
    "SC": f"What is the sentiment of the following paragraph? {CHOOSE}",
    "TC": f"What is the topic of the following paragraph? {CHOOSE}",
    "BoolQA": f"According to the following passage, is the question true or false? {CHOOSE}",
    "MultiRC": f"According to the following passage and question, is the candidate answer true or false? {CHOOSE}",
    "WiC": f"Given a word and two sentences, whether the word is used with the same sense in both sentence? {CHOOSE}",
}
SUPERNI_ORDERS = {
    "1": SUPERNI_TASKS,
    "2": (
        "748",
        "073",
        "1590",
        "639",
        "1572",
        "1687",
        "591",
        "363",
        "1510",
        "1729",
        "181",
        "511",
        "002",
        "1290",
        "875",
    ),
}
LONG_ORDERS = {  # numbers of ProgPrompt and O-LoRA; SAPT and GainLoRA number these lists differently
    "4": "mnli cb wic copa qqp boolq rte imdb yelp amazon sst2 dbpedia agnews multirc yahoo",
    "5": "multirc boolq wic mnli cb copa qqp rte imdb sst2 dbpedia agnews yelp amazon yahoo",
    "6": "yelp amazon mnli cb copa qqp rte imdb sst2 dbpedia agnews yahoo multirc boolq wic",
}
STANDARD_ORDERS = {
    "1": "dbpedia amazon yahoo agnews",
    "2": "dbpedia amazon agnews yahoo",
    "3": "yahoo amazon agnews dbpedia",
}


class SuperNIOptions(InstructionOptions):
    """Tasks, prompts and answers."""

    order: Names = Field(("1",), description="Published order, 1 or 2; or names of tasks, such as task748,task073.")


class _LabelledOptions(InstructionOptions):
    """Tasks, prompts and answers."""

    drop_unlabelled: bool = Field(
        False, description="Leave out questions without a label: the published test file of mnli has 131."
    )


class LongSequenceOptions(_LabelledOptions):
    """Tasks, prompts and answers."""

    order: Names = Field(("4",), description="Published order, 4, 5 or 6; or names of tasks, such as mnli,cb.")


class StandardCLOptions(_LabelledOptions):
    """Tasks, prompts and answers."""

    order: Names = Field(("1",), description="Published order, 1, 2 or 3; or names of tasks, such as dbpedia,amazon.")


@dataclass(frozen=True)
class Benchmark:
    """One of the three benchmarks."""

    name: str  # start of the stream's name
    folder: str
    tasks: Sequence[str]  # folders of tasks
    orders: Mapping[str, Sequence[str]]  # the first is the default
    Options: type[InstructionOptions]
    metric: str

    def build(self, raw_dir: Path | None, options: Any, seed: int) -> Stream:
        """Read the tasks; every split keeps the order of its file.

        Args:
            raw_dir: Folder with cl_benchmark/<benchmark>/<task>/{train,test}.json, or one of the folders inside it;
                None: dataset/.
            options: See Options.
            seed: For drawn answers, and for examples that move to dev.

        Raises:
            UserError: a file is missing or wrong, or the order names no tasks of the benchmark.
        """
        names, suffix = self._order(options.order)
        root = find(raw_dir or DATASET_DIR, self.folder, self.tasks)
        self._check_files(root, names)
        files: dict[str, str] = {}
        notes: list[str] = []
        tasks = tuple(self._task(root / name, k, options, seed, files, notes) for k, name in enumerate(names))
        source = {
            "files": files,
            "options": options.model_dump(mode="json") | {"order": list(options.order), "seed": seed},
            "notes": notes + remarks(tasks),
        }
        stated = facts(tasks, [self.metric] * len(tasks), options) | {"CHANCE": list(map(_chance, tasks))}
        settings = stated | {"ORDER": ",".join(options.order), "SOURCE": source}
        return Stream(f"{self.name}_task{len(names)}{suffix}", tasks, settings)

    def _order(self, given: Sequence[str]) -> tuple[list[str], str]:
        """Names of tasks, and what the stream's name says of their order."""
        if len(given) == 1 and given[0] in self.orders:
            is_first = given[0] == next(iter(self.orders))
            return [self._full(name) for name in self.orders[given[0]]], "" if is_first else f"_order{given[0]}"
        names = [self._full(name) for name in given]
        if len(set(names)) < len(names):
            raise UserError(f"--order: expected different tasks, got {','.join(given)}")
        return names, "_own"

    def _full(self, name: str) -> str:
        found = [task for task in self.tasks if task == name or task.startswith((f"{name}_", f"task{name}_"))]
        if not found:
            orders, tasks = ", ".join(self.orders), ", ".join(self.tasks)
            raise UserError(f"--order: expected one of the orders {orders}, or tasks of {tasks}, got {name!r}")
        return found[0]

    def _check_files(self, root: Path, names: Sequence[str]) -> None:
        missing = [path for name in names for path in _paths(root / name, ("train", "test")) if not path.is_file()]
        if not missing:
            return
        there = [task for task in self.tasks if all(p.is_file() for p in _paths(root / task, ("train", "test")))]
        more = f" and {len(missing) - 1} more files of the {len(names)} tasks" if missing[1:] else ""
        part = f", or use the tasks that are complete: --order {','.join(there)}" if there else ""
        raise UserError(
            f"{missing[0]}{more} missing, which {ORIGIN.place} has (licence: {ORIGIN.licence}; {ORIGIN.size}): put "
            f"them there, or name their folder with --raw-dir (see dataset/README.md){part}"
        )

    def _task(self, folder: Path, k: int, options: Any, seed: int, files: dict[str, str], notes: list[str]) -> TaskData:
        render = _render(folder, options)
        rows: dict[str, Rows] = {}
        for split, path in zip(SPLITS, _paths(folder, SPLITS), strict=True):
            if path.is_file():
                rows[split] = examples(read_instructions(path, ORIGIN), render, k)
                files[f"{self.folder}/{folder.name}/{path.name}"] = file_sha256(path)
        _handle_unlabelled(rows, folder.name, getattr(options, "drop_unlabelled", False), notes)
        return finish(folder.name, rows, options, seed)


def find(raw_dir: Path, folder: str, tasks: Sequence[str]) -> Path:
    """The folder that holds folders of tasks, somewhere in the folder of raw data or that folder itself."""
    places = [raw_dir / name / folder for name in FOLDERS]
    return next((p for p in (*places, raw_dir) if any((p / task).is_dir() for task in tasks)), places[0])


def _paths(folder: Path, splits: Sequence[str]) -> list[Path]:
    return [folder / f"{split}.json" for split in splits]


def _chance(task: TaskData) -> float | None:
    """Expected score of guessing among the answers in training; None where answers are texts."""
    return 1 / len({example.target for example in task.train}) if task.name in LONG_TASKS else None


def _handle_unlabelled(rows: dict[str, Rows], name: str, drop: bool, notes: list[str]) -> None:
    """Report the questions without a label, and leave them out if asked."""
    for split, found in rows.items():
        labelled = tuple(row for row in found if row.target.strip() != NO_LABEL)
        if len(labelled) < len(found):
            done = "left out" if drop else "score 0; leave them out with --drop-unlabelled"
            notes.append(
                f"{name}: {len(found) - len(labelled)} of {len(found)} {split} questions have no label: {done}"
            )
            rows[split] = labelled if drop else found


def _render(folder: Path, options: InstructionOptions) -> Render:
    if folder.name not in LONG_TASKS:
        return superni_prompt(folder.name, options)
    return _long_prompt if options.prompt == "sapt" else _olora_prompt(folder, LONG_TASKS[folder.name])


def _long_prompt(definition: str, text: str) -> str:
    head = f"{definition}\n" if definition else ""
    return f"{head}{text}\nOutput: "


def _olora_prompt(folder: Path, kind: Kind) -> Render:
    prefix = f"Task:{kind.task}\nDataset:{kind.dataset}\n"
    if kind.task in INSTRUCTIONS:
        prefix += f"{INSTRUCTIONS[kind.task]}\nOption: {', '.join(_labels(folder))} \n"
    return lambda _, text: f"{prefix}{text}\nAnswer:"


def _labels(folder: Path) -> list[str]:
    """The answers in training, in the order of labels.json if it holds the same: that of qqp does not."""
    answers = {output for x in read_instructions(folder / "train.json", ORIGIN).instances for output in x.outputs}
    path = folder / "labels.json"
    listed = read_raw_json(path, ORIGIN) if path.is_file() else []
    is_same = isinstance(listed, list) and all(isinstance(x, str) for x in listed) and set(listed) == answers
    return listed if is_same else sorted(answers)


SUPERNI = Benchmark("superni", "SuperNI", SUPERNI_TASKS, SUPERNI_ORDERS, SuperNIOptions, "rouge_l_stemmed")
LONG_SEQUENCE = Benchmark(
    "long_sequence",
    "Long_Sequence",
    tuple(LONG_TASKS),
    {number: names.split() for number, names in LONG_ORDERS.items()},
    LongSequenceOptions,
    "exact_match_bare",
)
STANDARD_CL = Benchmark(
    "standard_cl",
    "Long_Sequence",
    ("dbpedia", "amazon", "yahoo", "agnews"),
    {number: names.split() for number, names in STANDARD_ORDERS.items()},
    StandardCLOptions,
    "exact_match_bare",
)
