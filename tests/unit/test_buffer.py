"""The memory: what is kept, in which shares, and that it is restored."""

import json
import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from tests import tiny
from tests.tiny import make_config
from utils import buffer
from utils.buffer import Memory, herding
from utils.dataset import Example
from utils.run.checkpoint import pack, unpack


def task(index, size, classes=1):
    return [Example(f"q {index} {i}", "a", label=index * classes + i % classes, task=index) for i in range(size)]


def no_features(_):
    raise AssertionError("features are only for herding")


def filled(sizes, num_class=None, classes=1, seed=0, features=no_features, after=None, **options):
    """A memory after tasks of these sizes."""
    memory = Memory(make_config(is_replay=True, **options), num_class)
    for index, size in enumerate(sizes):
        memory.update(task(index, size, classes), random.Random(seed + index), features)
        if after is not None:
            after(memory, index)
    return memory


def per(memory, key):
    return Counter(key(row) for row in memory.rows())


def test_a_ratio_keeps_that_share_of_each_task():
    for percent in range(1, 101):
        memory = filled([100, 50], Replay_buffer_ratio=percent / 100)
        assert per(memory, lambda row: row.task) == Counter({0: percent, 1: max(1, percent * 50 // 100)}), percent


@pytest.mark.parametrize("options", [
    {"Replay_buffer_ratio": 0.3}, {"Replay_buffer_size": 13}, {"Replay_buffer_size": 13, "Replay_class_balanced": True},
    {"Replay_buffer_size": 13, "Replay_sampling_algorithm": "reservoir"},
    {"Replay_buffer_size": 13, "Replay_sampling_algorithm": "herding"},
])  # fmt: skip
def test_no_example_twice_and_all_marked_as_memory(options):
    def features(rows):
        return np.random.default_rng(len(rows)).normal(size=(len(rows), 3))

    def check(memory, index):
        rows = memory.rows()
        assert len(rows) == len(memory) == len(set(rows)) > 0
        assert {row.source for row in rows} == {"memory"}
        assert {row.task for row in rows} <= set(range(index + 1))
        assert len(rows) <= 13 or "Replay_buffer_ratio" in options

    filled([20, 9, 30, 2], classes=3, features=features, after=check, **options)


def test_examples_that_are_offered_twice_are_kept_once():
    memory = Memory(make_config(is_replay=True, Replay_buffer_ratio=1.0))
    memory.update(task(0, 5) * 2, random.Random(0), no_features)
    assert len(memory) == 5


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("size", [1, 7, 10, 23])
def test_a_fixed_size_is_shared_equally_among_all_groups_seen(balanced, size):
    def check(memory, index):
        counts = per(memory, lambda row: row.label if balanced else row.task)
        groups = (index + 1) * (3 if balanced else 1)
        numbers = [*counts.values(), *[0] * (groups - len(counts))]
        assert max(numbers) - min(numbers) <= 1
        assert sum(numbers) == size

    filled([30] * 5, classes=3, after=check, Replay_buffer_size=size, Replay_class_balanced=balanced)


def test_a_quota_from_the_start():
    def check(memory, index):
        assert set(per(memory, lambda row: row.label).values()) == {2}
        assert len(memory) == 2 * 3 * (index + 1) <= 20

    filled([12, 12, 12], num_class=9, classes=3, after=check, Replay_buffer_size=20, Replay_class_balanced=True,
           Replay_fix_budge_each_class=True)  # fmt: skip


def test_a_shrinking_quota_keeps_the_first_ones():
    kept = []
    filled(
        [30] * 4, after=lambda memory, _: kept.append([r for r in memory.rows() if r.task == 0]), Replay_buffer_size=12
    )
    assert [len(rows) for rows in kept] == [12, 6, 4, 3]
    assert all(later == earlier[: len(later)] for earlier, later in pairwise(kept))


@pytest.mark.parametrize("options", [{"Replay_buffer_ratio": 0.5}, {"Replay_buffer_size": 8}])
def test_a_class_that_comes_back_keeps_its_earlier_examples(options):
    memory = Memory(make_config(is_replay=True, Replay_class_balanced=True, **options))
    first = [Example(f"old {i}", "a", label=0, task=0) for i in range(4)]
    second = [Example(f"new {i}", "a", label=0, task=1) for i in range(4)]
    memory.update(first, random.Random(0), no_features)
    memory.update(second, random.Random(1), no_features)
    assert len(memory) == (4 if "Replay_buffer_ratio" in options else 8)
    assert {row.task for row in memory.rows()} == {0, 1}


def test_draws_depend_on_the_generator_alone():
    a, b, c = (filled([40, 40], Replay_buffer_ratio=0.25, seed=seed).rows() for seed in (1, 1, 2))
    assert a == b != c


def test_every_example_has_the_same_chance_in_a_reservoir():
    """Chi-square over 600 reservoirs of 5 out of 25 examples that came in three tasks."""
    counts = Counter()
    for seed in range(600):
        memory = filled([10, 5, 10], seed=10 * seed, Replay_buffer_size=5, Replay_sampling_algorithm="reservoir")
        assert len(memory) == 5
        counts.update(row.input for row in memory.rows())
    expected = 600 * 5 / 25
    chi_square = sum(
        (counts[row.input] - expected) ** 2 / expected for t, n in enumerate((10, 5, 10)) for row in task(t, n)
    )
    assert len(counts) == 25
    assert chi_square < 51.2  # 24 degrees of freedom, p = 0.001; without replacement it is smaller still


def test_random_choice_within_a_task_is_uniform():
    counts = Counter(
        row.input for seed in range(600) for row in filled([10], seed=seed, Replay_buffer_ratio=0.3).rows()
    )
    assert len(counts) == 10
    assert sum((n - 180) ** 2 / 180 for n in counts.values()) < 27.9  # 9 degrees of freedom, p = 0.001


def test_the_most_surprising_are_kept_and_a_smaller_quota_drops_the_least():
    memory = Memory(make_config(is_replay=True, Replay_buffer_size=4, Replay_sampling_algorithm="surprise"))
    for index, surprise in enumerate(([0.1, 0.9, 0.5, 0.7, 0.3], [2.0, 1.0, 3.0])):
        memory.surprise = surprise
        memory.load_state_dict(unpack(*pack(memory.state_dict())))
        memory.update(task(index, len(surprise)), random.Random(0), no_features)
        kept = ["q 0 1", "q 0 3"] + (["q 1 2", "q 1 0"] if index else ["q 0 2", "q 0 4"])
        assert [row.input for row in memory.rows()] == kept and memory.surprise == []


def brute_force_herding(points, count):
    unit = [p / np.linalg.norm(p) for p in points]
    mean, chosen = np.mean(unit, axis=0), []
    for _ in range(count):
        left = [i for i in range(len(points)) if i not in chosen]
        gaps = [np.linalg.norm(mean - np.mean([unit[j] for j in [*chosen, i]], axis=0)) for i in left]
        chosen.append(left[int(np.argmin(gaps))])
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_herding_equals_brute_force(seed):
    points = np.random.default_rng(seed).normal(size=(6, 3))
    for count in range(7):
        assert herding(points, count) == brute_force_herding(points, count)


def test_herding_survives_a_zero_vector():
    assert sorted(herding(np.array([[0.0, 0], [1, 0], [0, 1]]), 3)) == [0, 1, 2]


def test_herding_orders_the_memory():
    points = np.random.default_rng(1).normal(size=(10, 4))
    asked = []

    def features(rows):
        asked.append(len(rows))
        return points[: len(rows)]

    memory = filled([10], features=features, Replay_buffer_size=4, Replay_sampling_algorithm="herding")
    assert [row.input for row in memory.rows()] == [f"q 0 {i}" for i in brute_force_herding(points, 4)]
    assert asked == [10]


def test_samples_are_drawn_without_replacement():
    memory = filled([10], Replay_buffer_ratio=0.5)
    rows = memory.sample(4, random.Random(0))
    assert len(set(rows)) == 4
    assert set(memory.sample(99, random.Random(0))) == set(memory.rows())
    assert memory.sample(4, random.Random(0)) == rows != memory.sample(4, random.Random(1))


@pytest.mark.parametrize("options", [
    {"Replay_buffer_ratio": 0.5}, {"Replay_buffer_size": 7, "Replay_class_balanced": True},
    {"Replay_buffer_size": 7, "Replay_sampling_algorithm": "reservoir"},
])  # fmt: skip
def test_a_saved_memory_continues_identically(options):
    examples = [Example(f"q {i}", "a", i % 2, i % 2, (1, 2, i)) for i in range(20)]
    first = Memory(make_config(is_replay=True, **options))
    first.update(examples[:12], random.Random(1), no_features)
    second = Memory(make_config(is_replay=True, **options))
    plain, tensors = pack(first.state_dict())
    second.load_state_dict(unpack(json.loads(json.dumps(plain)), tensors))
    assert second.rows() == first.rows()
    for memory in (first, second):
        memory.update(examples[12:], random.Random(2), no_features)
    assert second.rows() == first.rows()
    assert second.state_dict() == first.state_dict()


def test_a_note_stays_as_long_as_its_example():
    memory = filled([20], Replay_sampling_algorithm="reservoir", Replay_buffer_size=5)
    memory.notes = {row.presentation: row.input for row in memory.rows()}
    before = set(memory.rows())
    memory.update(task(1, 4), random.Random(0), no_features)
    kept = before & set(memory.rows())
    assert 0 < len(kept) < 5
    assert memory.notes == {row.presentation: row.input for row in kept}
    other = filled([], Replay_sampling_algorithm="reservoir", Replay_buffer_size=5)
    other.load_state_dict(unpack(*pack(memory.state_dict())))
    assert other.notes == memory.notes
    assert [row.presentation for row in other.rows()] == [row.presentation for row in memory.rows()]


def step_by_step(plan, size, seed):
    """A memory that saw tasks of (examples, epochs), four examples a step, in shuffled epochs."""
    options = {"Replay_sampling_algorithm": "reservoir", "Replay_update": "step", "Replay_buffer_size": size}
    memory, rng = Memory(make_config(is_replay=True, **options)), random.Random(seed)
    for index, (count, epochs) in enumerate(plan):
        examples = task(index, count)
        for _ in range(epochs):
            rng.shuffle(examples)
            for start in range(0, count, 4):
                memory.update(examples[start : start + 4], rng, no_features)
    return memory


@pytest.mark.slow
def test_every_presentation_has_the_same_chance_over_several_epochs():
    """Shares of tasks over 40 memories are those of their presentations, within four standard deviations."""
    for plan, size in (([(60, 20)] * 4, 50), ([(120, 3), (24, 8)], 12), ([(12, 1), (12, 9), (12, 2)], 6)):
        presentations = [count * epochs for count, epochs in plan]
        memories = [step_by_step(plan, size, seed) for seed in range(40)]
        assert all(len(memory) == size and memory.seen == sum(presentations) for memory in memories)
        counts = Counter(row.task for memory in memories for row in memory.rows())
        for index, count in enumerate(presentations):
            share = count / sum(presentations)
            spread = (40 * size * share * (1 - share)) ** 0.5
            assert abs(counts[index] - 40 * size * share) < 4 * spread, (plan, index, counts)


def test_every_example_of_a_task_has_the_same_chance_over_several_epochs():
    counts = Counter(row.input for seed in range(300) for row in step_by_step([(12, 5)], 4, seed).rows())
    assert len(counts) == 12
    assert sum((n - 100) ** 2 / 100 for n in counts.values()) < 31.3  # 11 degrees of freedom, p = 0.001


def test_an_example_that_is_held_twice_has_two_notes():
    memory = step_by_step([(4, 50)], 6, 0)
    assert len(memory) == 6 > len(set(memory.rows()))
    assert len({row.presentation for row in memory.rows()}) == 6


def test_a_ratio_keeps_at_least_one_example_of_each_task():
    memory = filled([60, 5, 300])
    assert per(memory, lambda row: row.task) == Counter({0: 1, 1: 1, 2: 3})
    said = buffer.remarks(make_config(is_replay=True, Replay_buffer_ratio=0.05), tiny.micro_stream())
    assert [text.split(":")[0] for text in said] == ["task 0", "task 1", "task 2"] and "keeps one" in said[0]
    assert buffer.remarks(make_config(is_replay=True, Replay_buffer_ratio=0.5), tiny.micro_stream()) == []


def test_a_memory_that_is_too_small_for_the_stream_is_refused():
    quota = {"Replay_class_balanced": True, "Replay_fix_budge_each_class": True}
    for options, words in (
        ({"Replay_buffer_size": 2}, "each of 3 tasks, got 2"),
        ({"Replay_buffer_size": 8} | quota, "at least the 9 classes"),
        ({"Replay_buffer_size": 2, "Replay_sampling_algorithm": "reservoir"}, ""),
        ({"Replay_buffer_size": 9} | quota, ""),
        ({"Replay_buffer_ratio": 0.5}, ""),
    ):
        found = buffer.problems(make_config(is_replay=True, **options), tiny.micro_stream())
        assert words in "".join(found) and bool(found) == bool(words), (options, found)


@pytest.mark.parametrize(("size", "old"), [(8, 4), (9, 4), (2, 1), (40, 10)])
def test_half_of_a_fixed_quota_stays_with_the_old_examples_of_a_class(size, old):
    memory = Memory(make_config(is_replay=True, Replay_class_balanced=True, Replay_buffer_size=size))
    for index in range(2):
        rows = [Example(f"{index} {i}", "a", label=0, task=index) for i in range(10)]
        memory.update(rows, random.Random(index), no_features)
    assert per(memory, lambda row: row.task) == Counter({0: old, 1: min(size - old, 10)})
