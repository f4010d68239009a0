import json
from pathlib import Path

import pytest

from utils.dataset import Stream
from utils.errors import UserError
from utils.preprocess import biography_qa, biography_synth
from utils.preprocess.shared.raw import file_sha256

ROOT = Path(__file__).parents[3]
REAL = ROOT / "../shared/data"
real = [pytest.mark.realdata, pytest.mark.skipif(not REAL.exists(), reason="raw data absent")]
DEV = {"dev_persons_first": 4, "dev_persons_each": 2}


def sizes(stream: Stream) -> list[tuple[int, int, int]]:
    return [(len(t.train), len(t.dev), len(t.test)) for t in stream.tasks]


def biography(raw_dir: Path | None = None, seed: int = 1, **options: object) -> Stream:
    options = options if raw_dir else {"preset": "demo"} | options
    return biography_qa.build(raw_dir, biography_qa.Options(**options), seed)


def persons(examples) -> list[str]:
    """Names of the persons asked about, in order."""
    dates = [e.input for e in examples if "birth date" in e.input]
    return [text.removeprefix("What is the birth date of ").removesuffix("?\nAnswer:") for text in dates]


def synth(folder: Path, **options: object) -> Path:
    biography_synth.write_raw(folder, biography_synth.Options(**options), 1, False)
    return folder


def test_stages_are_independent():
    lists = biography_synth.read_lists(biography_synth.PRESETS["demo"])
    few, many = (biography_synth.make_persons(lists, n, 1) for n in (5, 50))
    assert few == many[:5] and len({p.name for p in many}) == 50
    assert few != biography_synth.make_persons(lists, 5, 2)
    texts = [list(biography_synth.biographies(few, lists, biography_synth.Options(n_bio=n), 1)) for n in (2, 2, 5)]
    assert texts[0] == texts[1] and [len(group) for group in texts[2]] == [5] * 5


def test_a_person_is_consistent():
    lists = biography_synth.read_lists(biography_synth.PRESETS["demo"])
    offices = dict(lists.company)
    for person in biography_synth.make_persons(lists, 100, 3):
        assert offices[person.company_name] == person.company_city
        assert 1990 <= int(person.birthday[-4:]) < 2000 and 1 <= int(person.birthday.split()[1][:-1]) <= 28
    assert lists.count() == dict(zip(biography_synth.ATTRIBUTES, (3360, 12, 12, 12, 12, 12), strict=True))


@pytest.mark.parametrize("permute", [True, False])
@pytest.mark.parametrize("fullname", [True, False])
def test_biographies(permute, fullname):
    lists = biography_synth.read_lists(biography_synth.PRESETS["demo"])
    people = biography_synth.make_persons(lists, 20, 1)
    options = biography_synth.Options(permute=permute, fullname=fullname)
    for person, group in zip(people, biography_synth.biographies(people, lists, options, 1), strict=True):
        assert len(set(group)) == 12
        for text in group:
            assert text.startswith(f" {person.name}") and "{" not in text
            assert text.count(person.name) == (6 if fullname else 1)
            values = (
                person.birthday,
                person.birth_city,
                person.university,
                person.major,
                person.company_name,
            )
            assert all(f"{value}." in text for value in values)
        ends = [text.endswith(f"{person.company_city}.") for text in group]
        assert all(ends) if not permute else True


def test_every_template_begins_with_the_person_and_ends_with_the_value():
    lists = biography_synth.read_lists(biography_synth.PRESETS["paper"])
    for sentences in lists.templates.values():
        assert len(set(sentences)) == 12
        assert all(s.startswith("{P}") and s.endswith(" {V}.") and s.count("{") == 2 for s in sentences)


def test_impossible_persons_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"persons: expected at most 144 \(half of the 288 names\), got 145"):
        synth(tmp_path, preset="micro", persons=145)
    with pytest.raises(UserError, match=r"--n-bio: expected at most 3 .*, got 4"):
        synth(tmp_path, preset="micro", n_bio=4)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_raw_files(tmp_path):
    folder = synth(tmp_path, preset="micro") / "biography_qa"
    texts = json.loads((folder / "biography/multi2_permute_fullname.json").read_text(encoding="utf-8"))
    assert list(texts) == [f"{i}_{j}" for i in range(12) for j in range(2)]
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    assert meta["persons_first_task"] == 8 and meta["biographies"] == 24
    for name, digest in meta["sha256"].items():
        assert file_sha256(folder / name) == digest
    with pytest.raises(UserError, match=r"all.json has other content"):
        synth(tmp_path, preset="demo", persons=3)
    lines = biography_synth.write_raw(tmp_path, biography_synth.Options(preset="micro"), 1, False)
    assert len(lines) == 3 and all(line.endswith(": unchanged") for line in lines)
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 3  # no temporary files


def test_blocks_of_persons():
    stream = biography(preset="demo", num_task=6)
    assert stream.name == "biography_demo_task6" and sizes(stream) == [(1200, 240, 1200)] + [(240, 240, 240)] * 5
    first, second = stream.tasks[:2]
    assert not set(persons(first.train)) & set(persons(first.test))
    assert second.train == second.test and first.dev == first.train[-240:]
    dev = {name for task in stream.tasks for name in persons(task.dev)}
    assert len(dev) == 240 and not dev & {name for task in stream.tasks for name in persons(task.test)}
    everyone = persons(first.train) + persons(first.test) + [n for t in stream.tasks[1:] for n in persons(t.train)]
    lists = biography_synth.read_lists(biography_synth.PRESETS["demo"])
    assert everyone == [p.name for p in biography_synth.make_persons(lists, 600, 1)]
    assert [first.train[i].target for i in range(6)] == [
        *(" November 28, 1998", " Topeka, KS", " Ravenna Valley University", " Biology", " Halcyon Motors"),
        " Toledo, OH",
    ]
    assert stream.chance(3) == pytest.approx((1 / 3360 + 5 / 12) / 6)
    keys = ("NUM_TASK", "NUM_PERSON", "NUM_PERSON_FIRST_TASK", "NUM_PERSON_EACH_TASK", "DEV_IS_TEST")
    assert [stream.config[key] for key in keys] == [6, 600, 400, 40, False]
    assert stream.config["DEV_IS_TRAINED"] == [False] + [True] * 5


def test_two_tasks_are_the_first_two_of_six():
    assert biography(num_task=2).tasks == biography(num_task=6).tasks[:2]


def test_generated_files_and_generated_persons_give_the_same_stream(tmp_path):
    raw = biography(synth(tmp_path, preset="micro"), num_person=12, num_person_first_task=8, num_task=3, **DEV)
    made = biography(preset="micro", num_task=3)
    assert [(t.train, t.test) for t in raw.tasks] == [(t.train, t.test) for t in made.tasks]
    assert raw.config["SOURCE"]["options"]["preset"] is None and "seed" not in raw.config["SOURCE"]["options"]
    assert raw.tasks[0] == made.tasks[0] and not made.dev_is_test
    assert raw.tasks[1].dev == raw.tasks[1].test and raw.dev_is_test  # the file has no other persons


def test_dev_persons_of_a_raw_file_are_the_next_ones(tmp_path):
    numbers = {"num_person": 10, "num_person_first_task": 6, "dev_persons_first": 1}
    raw = synth(tmp_path, preset="micro", persons=14)
    lists = biography_synth.read_lists(biography_synth.PRESETS["micro"])
    names = [p.name for p in biography_synth.make_persons(lists, 14, 1)]
    whole, part = biography(raw, dev_persons_each=4, **numbers), biography(raw, dev_persons_each=2, **numbers)
    assert [persons(t.dev) for t in whole.tasks] == [names[4:5], names[10:14]]
    assert persons(part.tasks[1].dev) == names[8:10] and set(part.tasks[1].dev) <= set(part.tasks[1].train)


def test_without_raw_files_the_demo_is_made_and_that_is_printed_unless_a_folder_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    demo = biography()
    assert not capsys.readouterr().out
    made = biography_qa.build(None, biography_qa.Options(), 1)
    assert made == demo and made.name == "biography_demo_task2"
    assert capsys.readouterr().out.startswith("dataset/biography_qa/qa/all.json is absent")
    with pytest.raises(UserError, match=r"here/biography_qa/qa/all.json is missing"):
        biography(Path("here"))
    synth(tmp_path / "dataset", preset="micro")
    options = biography_qa.Options(num_person=12, num_person_first_task=8, **DEV)
    made = biography_qa.build(None, options, 1)
    assert made.config["SOURCE"]["options"]["preset"] is None and made.name == "biography_qa_task2"


@pytest.mark.parametrize(("num_task", "first", "each"), [(2, 10, 2), (3, 5, 1)])
def test_a_raw_file_with_fewer_persons_keeps_the_published_proportion_and_says_so(tmp_path, num_task, first, each):
    stream = biography(synth(tmp_path, preset="micro"), num_task=num_task)
    keys = ("NUM_PERSON", "NUM_PERSON_FIRST_TASK", "NUM_PERSON_EACH_TASK")
    assert [stream.config[key] for key in keys] == [first + (num_task - 1) * each, first, each]
    (note,) = stream.config["SOURCE"]["notes"]
    assert f"has 12 persons of the {100_000 + 20_000 * (num_task - 1)} published" in note
    assert "notes" not in biography(tmp_path, num_person=12, num_person_first_task=8, **DEV).config["SOURCE"]


def test_an_explicit_preset_beats_raw_files(tmp_path):
    assert biography(synth(tmp_path, preset="micro"), preset="demo").tasks == biography().tasks


@pytest.mark.parametrize("ratio", [0.5, 0.25, None])
def test_modes(ratio):
    options = {"preset": "micro", "num_task": 3, "train_ratio_first_task": ratio, "dev_persons_first": 2}
    train = 8 if ratio is None else round(8 * ratio)
    whole = biography(**options)
    assert sizes(whole) == [(6 * train, 12, 12), (12, 12, 12), (12, 12, 12)] and not whole.dev_is_test
    lists = biography_synth.read_lists(biography_synth.PRESETS["micro"])
    names = [p.name for p in biography_synth.make_persons(lists, 12, 1)]
    start = 0 if ratio is None else train
    assert persons(whole.tasks[0].test) == names[start : start + 2]
    skipped, only = biography(**options, skip_first_task=True), biography(**options, only_first_task=True)
    assert skipped.name == "biography_micro_task2" and sizes(skipped) == sizes(whole)[1:]
    assert [t.train[0].input for t in skipped.tasks] == [t.train[0].input for t in whole.tasks[1:]]
    ending = "" if ratio is None else f"_ratio{ratio:.2f}"
    assert only.name == f"biography_micro_indomain_task1{ending}" and only.tasks == whole.tasks[:1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_task": 1}, "--num-task: expected at least 2, got 1"),
        ({"skip_first_task": True, "only_first_task": True}, "give one of them"),
        (
            {"num_person": 400},
            r"--num-person 400: expected --num-person-first-task \(400\) and a multiple of 1",
        ),
        ({"num_task": 4, "num_person": 440}, "and a multiple of 3"),
        ({"train_ratio_first_task": 0.001}, "one held out, got 0 and 400 of 400"),
        ({"dev_persons_first": 201}, "--dev-persons-first: expected at most 200 persons, got 201"),
        ({"dev_persons_each": 41}, "--dev-persons-each: expected at most 40 persons, got 41"),
        ({"num_person": 300_000, "num_person_first_task": 2}, "persons: expected at most 204800"),
    ],
)
def test_numbers_that_do_not_go_together(options, text):
    with pytest.raises(UserError, match=text):
        biography(**options)


def test_wrong_raw_persons(tmp_path):
    path = tmp_path / "biography_qa/qa/all.json"
    synth(tmp_path, preset="micro")
    with pytest.raises(UserError, match="got 12 persons, expected 30; give --num-person"):
        biography(tmp_path, num_person=30, num_person_first_task=20)
    with pytest.raises(UserError, match="got 12 persons, expected 600000; give --num-person"):
        biography(tmp_path, num_task=26)  # too few for a person in each task
    raw = json.loads(path.read_text(encoding="utf-8"))
    del raw["3"]["major"]
    path.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(UserError, match=r"all.json, person 3: expected birthday, .* each with the texts prompt and"):
        biography(tmp_path, num_person=4, num_person_first_task=2)


def test_a_raw_file_from_windows_gives_the_same_stream(tmp_path):
    path, numbers = tmp_path / "biography_qa/qa/all.json", {"num_person": 12, "num_person_first_task": 8} | DEV
    tasks = biography(synth(tmp_path, preset="micro"), **numbers).tasks
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert biography(tmp_path, **numbers).tasks == tasks


def test_dev_is_a_fortieth_of_large_blocks():
    assert sizes(biography(preset="small", num_person=10_400, num_person_first_task=10_000)) == [
        (30_000, 1_500, 1_500),
        (2_400, 60, 60),
    ]


@pytest.mark.parametrize("raw_dir", [pytest.param(REAL, marks=real)])
def test_real_biography_qa(raw_dir):
    stream = biography(raw_dir, num_person=6000, num_person_first_task=3000)
    assert sizes(stream) == [(9000, 450, 450), (18000, 450, 450)]
    assert sizes(biography(raw_dir)) == [(15000, 750, 750), (6000, 150, 150)]  # 6000 persons of the 120,000 published
    first = stream.tasks[0].train
    assert first[0].input == "What is the birth date of Lucy Damian Moscicki?\nAnswer:"
    assert [e.target for e in first[:6]] == [
        *(" May 28, 1952", " Elk Grove, CA", " Kansas State University", " EMT and Paramedic", " HP"),
        " Palo Alto, CA",
    ]
    assert stream.chance(0) == pytest.approx((1 / 200 + 1 / 300 + 1 / 100 + 1 / 263 + 1 / 154) / 6, rel=0.01)
