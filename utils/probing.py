"""Is it the backbone that forgets, or the head? (Zheng et al., "Learn or Recall?", ACL 2024)

After each task, and before the first, the features of every task, seen or not, are extracted from the model as it is,
and probes (utils/model/probes.py) are fitted on training examples and scored on test ones.
*Observed* accuracy is what the model answers; *probing* accuracy is what its features would still allow a new head
to answer. Where the first falls and the second stays, the head has forgotten; where both fall, the backbone has.

In CIL there is one probe over the classes of all tasks, in TIL one for each task over its own classes. What the probes
answer goes to probing/<moment>/task_<j>.jsonl; a moment whose files are there is not probed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from safetensors.numpy import save

from models.Base import Method
from utils.config import Config
from utils.dataset import Example, Stream
from utils.distributed.collectives import gather, share
from utils.model.probes import Rows, fit_probes, stratified
from utils.report.probing import PROBES, accuracies
from utils.seed import random_for
from utils.session import Session
from utils.storage.files import write_bytes, write_jsonl
from utils.storage.moment import Moment

Answers = dict[str, list[int]]  # by probe: a class for each test example


def problems(config: Config, stream: Stream) -> list[str]:
    """Why `is_probing` cannot be used; empty if it can, or is not set."""
    if not config.is_probing:
        return []
    if config.il_mode not in ("CIL", "TIL"):
        return [f"is_probing: probes separate classes, so il_mode must be CIL or TIL; got {config.il_mode}"]
    if stream.is_word_level:
        return [f"is_probing: {stream.name} is word-level, and features of single words can't be probed; leave it out"]
    if any(example.label is None for task in stream.tasks for example in (*task.train, *task.test)):
        return [f"is_probing: {stream.name} has examples without a class (label_idx_cil); leave it out"]
    return []


def probe(method: Method, session: Session, folder: Path, moment: Moment, seen: int) -> None:
    """Extract, fit, ask and write down one moment.

    Args:
        method: Its model is probed as it is.
        session: Options, processes, log.
        folder: The run's.
        moment: When.
        seen: How many tasks have been learned.
    """
    tasks = range(len(method.stream.tasks))
    files = [moment.probing(folder, j) for j in tasks]
    if not all(file.exists() for file in files):
        chosen = [_chosen(method.stream.tasks[j].train, j, session.config) for j in tasks]
        train, test = [], []
        bar = session.log.progress(f"{moment.folder}: features", len(tasks), unit="tasks")
        for j in tasks:
            train.append(extract(method, chosen[j], j))
            test.append(extract(method, method.stream.tasks[j].test, j))
            bar.update()
        bar.close()
        if session.accelerator.is_main_process:
            if session.config.save_features:
                asked = [task.test for task in method.stream.tasks]
                _save(folder / "features" / moment.folder, chosen, train, asked, test)
            labels = [labels_of(examples) for examples in chosen]
            answers = ask(train, labels, test, session.config.il_mode == "CIL", session.accelerator.device)
            for j, file in enumerate(files):
                write_jsonl(file, _rows(method.stream.tasks[j].test, answers[j]))
        session.accelerator.wait_for_everyone()
    _announce(session, folder, moment, len(tasks), seen)


def extract(method: Method, examples: Sequence[Example], task: int) -> Rows:
    """(N, D) features of N examples of a task, on every process; each process does its share."""
    lengths = method.encoder.lengths(examples)
    order = sorted(range(len(examples)), key=lengths.__getitem__)  # rows of a batch are of similar length
    mine = [examples[order[k]] for k in share(len(order))]
    with method.reading_as(task):
        found = gather(list(method.features(mine, method.max_length(task))) if mine else [], len(order))
    rows = np.empty((len(order), len(found[0])), np.float32)
    rows[order] = found
    return rows


def ask(
    train: list[Rows], labels: list[list[int]], test: list[Rows], together: bool, device: torch.device | None = None
) -> list[Answers]:
    """What the probes say about the test rows of each task.

    Args:
        train: (N, D) for each task.
        labels: Classes of these rows.
        test: (M, D) for each task.
        together: One probe over the classes of all tasks; else one for each task.
        device: Where probes are fitted.
    """
    if together:
        probes = fit_probes(np.concatenate(train), [label for own in labels for label in own], device)
        by_task = [probes] * len(test)
    else:
        by_task = [fit_probes(rows, own, device) for rows, own in zip(train, labels, strict=True)]
    pairs = zip(by_task, test, strict=True)
    return [{name: probe.predict(rows) for name, probe in probes.items()} for probes, rows in pairs]


def labels_of(examples: Sequence[Example]) -> list[int]:
    """The class of each example; the checks before the run have made sure that all have one."""
    return [example.label for example in examples if example.label is not None]


def _chosen(examples: Sequence[Example], task: int, config: Config) -> list[Example]:
    """Those that probes are fitted on: the same at every moment."""
    rng = random_for(config.seed, "probing", task)
    places = stratified(labels_of(examples), config.probing_rows_per_class, rng)
    return [examples[place] for place in places]


def _rows(examples: Sequence[Example], answers: Answers) -> list[dict[str, int]]:
    rows = enumerate(labels_of(examples))
    return [{"index": i, "label": label, **{name: answers[name][i] for name in PROBES}} for i, label in rows]


def _save(
    folder: Path,
    chosen: Sequence[Sequence[Example]],
    train: list[Rows],
    asked: Sequence[Sequence[Example]],
    test: list[Rows],
) -> None:
    """One file for each task: train, train_labels, test, test_labels."""
    for j in range(len(train)):
        arrays = {"train": train[j], "test": test[j]}
        for split, examples in (("train", chosen[j]), ("test", asked[j])):
            arrays[f"{split}_labels"] = np.array(labels_of(examples), np.int64)
        write_bytes(folder / f"task_{j}.safetensors", save(arrays))


def _announce(session: Session, folder: Path, moment: Moment, tasks: int, seen: int) -> None:
    found = accuracies(folder, moment, tasks)
    known = {name: [score for score in scores if score is not None] for name, scores in found.items()}
    means = {f"{name}_Acc_Task_All": fmean(scores) for name, scores in known.items()}
    means |= {f"{name}_Acc_Task_Seen": fmean(scores[:seen]) for name, scores in known.items() if seen}
    words = [f"{title} {100 * means[f'{name}_Acc_Task_All']:.1f}" for name, title in PROBES.items()]
    session.log.info(f"{moment.folder}: probing accuracy on all tasks: {', '.join(words)}")
    session.log.event("probing", moment=moment.folder, **means)
