"""Is it the backbone that forgets, or the head? (Zheng et al., "Learn or Recall?", ACL 2024)

After each task, and before the first, the features of every task, seen or not, are extracted from the model as it is,
and probes are fitted on training examples and scored on test ones.
*Observed* accuracy is what the model answers; *probing* accuracy is what its features would still allow a new head
to answer. Where the first falls and the second stays, the head has forgotten; where both fall, the backbone has.

In CIL there is one probe over the classes of all tasks, in TIL one for each task over its own classes. What the probes
answer goes to probing/<moment>/task_<j>.jsonl; a moment whose files are there is not probed again.

There are four probes. All of them use standardised features: z = (x - mean) / std, dimension by dimension, because a
few dimensions of a language model's hidden states are a hundred times as large as the others and would decide every
distance. Mean, std and the mean losses (CE: cross-entropy) below weight all classes equally, however many rows they
have. m_c is the mean of class c, s = 16.

    LinearProb           argmax_c w_c z + b_c     minimises mean CE of w z + b, + |W|^2 / 2N
    CosineLinearProb     argmax_c cos(w_c, z)     minimises mean CE of s cos(w, z)
    PrototypeProb        argmin_c |z - m_c|
    CosinePrototypeProb  argmax_c cos(m_c, z)

Zheng et al. (ACL 2024) probe raw features, with 20 epochs of Adam at 1e-3 for the first two.

Nothing is random: L-BFGS starts from a fixed point, so the same features give the same probe. The two fits stay with
scipy: LogisticRegression of scikit-learn finds the same linear probe in half of the time, but takes a second to import,
knows no cosine, and has another loss for two classes.
Shapes: N rows, D features, C classes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor

from models.Base import Method
from utils.config import Config
from utils.dataset import Example, Stream
from utils.distributed.collectives import gather, share
from utils.report.probing import PROBES, accuracies
from utils.seed import random_for
from utils.session import Session
from utils.storage.files import write_bytes, write_jsonl
from utils.storage.moment import Moment

SCALE = 16.0  # s: scale of the cosines in the loss
MOST_STEPS = 200  # of L-BFGS

Rows = NDArray[np.float32]
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


@dataclass(frozen=True)
class Probe:
    """A fitted probe: argmax_c of weight_c z + bias_c; for cosine probes the length of z does not matter."""

    classes: NDArray[np.int64]  # (C,) ids
    mean: NDArray[np.float64]  # (D,)
    std: NDArray[np.float64]  # (D,)
    weight: NDArray[np.float64]  # (C, D)
    bias: NDArray[np.float64]  # (C,)

    def predict(self, features: Rows) -> list[int]:
        """The class of each of N rows; the first of several with the same score."""
        z = (features.astype(np.float64) - self.mean) / self.std
        return self.classes[(z @ self.weight.T + self.bias).argmax(axis=1)].tolist()


def fit_probes(features: Rows, labels: Sequence[int], device: torch.device | None = None) -> dict[str, Probe]:
    """All four, by name.

    Args:
        features: (N, D).
        labels: N ids of classes; a class may have a single row.
        device: Where the minima are computed; None: the CPU.
    """
    x, (classes, y) = features.astype(np.float64), np.unique(labels, return_inverse=True)
    weights = equal_weights(y)
    mean = np.average(x, axis=0, weights=weights)
    std = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights))
    std[std <= 1e-6 * abs(mean)] = np.inf  # a dimension that is constant up to rounding carries no information
    z = (x - mean) / std
    means = class_means(z, y)
    device = device or torch.device("cpu")
    rows, targets, shares, starts = (torch.from_numpy(array).to(device) for array in (z, y, weights, means))
    found = {
        "LinearProb": linear(rows, targets, shares, len(classes)),
        "CosineLinearProb": (cosine_linear(rows, targets, shares, starts), None),
        "PrototypeProb": (means, -(means**2).sum(axis=1) / 2),  # |z - m|^2 / 2 = |z|^2 / 2 - (m z - |m|^2 / 2)
        "CosinePrototypeProb": (unit(means), None),
    }
    nothing = np.zeros(len(classes))
    return {
        name: Probe(classes, mean, std, weight, nothing if bias is None else bias)
        for name, (weight, bias) in found.items()
    }


def class_means(z: NDArray[np.float64], y: NDArray[np.int64]) -> NDArray[np.float64]:
    """(C, D): mean of the rows of each class.

    >>> class_means(np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]]), np.array([0, 0, 1])).tolist()
    [[2.0, 0.0], [0.0, 5.0]]
    """
    return np.stack([z[y == c].mean(axis=0) for c in range(y.max() + 1)])


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1; a row of zeros stays one."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length == 0, 1, length)


def linear(z: Tensor, y: Tensor, weights: Tensor, classes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Multinomial logistic regression on weighted rows: W (C, D) and b (C,)."""

    def loss(parameters: Tensor) -> Tensor:
        W, b = parameters[:, :-1], parameters[:, -1]
        return weighted_loss(z @ W.T + b, y, weights) + (W**2).sum() / (2 * len(z))

    found = minimum(loss, torch.zeros(classes, z.shape[1] + 1, dtype=z.dtype, device=z.device))
    return found[:, :-1], found[:, -1]


def cosine_linear(z: Tensor, y: Tensor, weights: Tensor, means: Tensor) -> NDArray[np.float64]:
    """Unit vectors (C, D) whose cosines separate the classes; the search starts at the class means."""
    directions = F.normalize(z, dim=1)

    def loss(W: Tensor) -> Tensor:
        return weighted_loss(SCALE * directions @ F.normalize(W, dim=1).T, y, weights)

    return unit(minimum(loss, F.normalize(means, dim=1)))


def equal_weights(y: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N,): weight of each row, such that all classes have the same weight and the mean weight is 1.

    >>> equal_weights(np.array([0, 0, 0, 1])).round(2).tolist()
    [0.67, 0.67, 0.67, 2.0]
    """
    counts = np.bincount(y)
    return len(y) / (len(counts) * counts[y])


def weighted_loss(logits: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the cross-entropies of N rows, () float."""
    return (weights * F.cross_entropy(logits, y, reduction="none")).mean()


def minimum(loss: Callable[[Tensor], Tensor], start: Tensor) -> NDArray[np.float64]:
    """The minimum of a function of one tensor, by L-BFGS from `start`."""
    from scipy.optimize import minimize  # half a second to import: not for a run without probes

    def value_and_gradient(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        point = torch.from_numpy(flat).to(start.device).view_as(start).requires_grad_()
        with torch.enable_grad():
            value = loss(point)
            (gradient,) = torch.autograd.grad(value, point)
        return value.item(), gradient.flatten().cpu().numpy()

    begin = start.flatten().cpu().numpy()
    found = minimize(value_and_gradient, begin, jac=True, method="L-BFGS-B", options={"maxiter": MOST_STEPS})
    return found.x.reshape(start.shape)


def stratified(labels: Sequence[int], most: int | None, rng: random.Random) -> list[int]:
    """Indices of at most `most` rows of each class, in order; None: all.

    >>> stratified([7, 7, 7, 8], 2, random.Random(0))
    [1, 2, 3]
    """
    places: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    if most is None:
        return list(range(len(labels)))
    return sorted(place for _, own in sorted(places.items()) for place in rng.sample(own, min(most, len(own))))
