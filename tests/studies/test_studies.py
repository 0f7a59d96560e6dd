"""Studies: every one is consistent and runs; a grid goes on as it was planned; a budget is shared out."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from querykey import Adapter
from querykey.adapter.settings import AdapterSettings
from querykey.config.old_names import PRETRAINING
from querykey.config.settings import current
from querykey.errors import ConfigError, DataError, OutputExistsError, SourceError
from querykey.features.features import Features, write_features
from querykey.io.points import point_of
from querykey.io.records import read
from querykey.io.study_folder import measures_of, open_study
from querykey.pretraining.settings.methods import given_settings
from querykey.pretraining.settings.resolve import resolve_settings
from querykey.reports.verdicts import answers, arms_rows
from querykey.runs.data import DataAt
from querykey.runs.pretrain import pretrain
from querykey.studies.catalogue import STUDIES
from querykey.studies.engine import measure_encoders, run
from querykey.studies.engine import run as running
from querykey.studies.engine.data import StudyFeatures, StudyImages, evenly_spaced
from querykey.studies.engine.measure_encoders import drift_ends
from querykey.studies.engine.run import images_within, run_study
from querykey.studies.engine.study import Arm

MEASURES = {
    "pretrained": {"kNN h", "linear h", "kNN z", "linear z", "pretext"},
    "retrieval": {"R@1 h", "R@1 z", "drift, first quarter", "drift, last quarter"},
    "few labels": {"linear h", "supervised"},
    "leak": {"own key in noise"},
    "adapter": {"retrieval"},
    "baseline": {"retrieval"},
    "probes": {
        f"{what} {rows}" for what in ("colour or gray", "rotation", "noise", "Sobel") for rows in "hz"
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Noise in colour, 16 pixels a side, four classes of 25."""
    folder, draw = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for label in "abcd":
        (folder / label).mkdir()
        for number in range(25):
            pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


@pytest.fixture
def images(folder):
    return StudyImages(train=DataAt(str(folder)))


@pytest.fixture
def features(tmp_path):
    """Rows of 40 numbers around ten centres, sorted by class."""
    draw = np.random.default_rng(0)
    labels = np.arange(300) // 30
    rows = 0.6 * draw.standard_normal((10, 40))[labels] + draw.standard_normal((300, 40))
    np.savez(tmp_path / "rows.npz", X=rows.astype(np.float32), y=labels)
    return StudyFeatures(train=DataAt(str(tmp_path / "rows.npz"), label_column="y"))


@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.name)
def test_a_study_is_about_arms_and_measures_that_it_has(study):
    arms = {arm.name: arm for arm in study.arms}
    assert len(arms) == len(study.arms)
    for asked in study.questions:
        for name, measure in (asked.ours, asked.theirs):
            assert measure in MEASURES[arms[name].kind] or point_of(measure) is not None
            assert arms[name].seeds >= 3
    for figure in study.figures:
        for arm in study.arms:
            assert figure.kind in ("curves", "sizes") or set(figure.measures) & MEASURES[arm.kind]
            if figure.kind == "heat map":
                assert None not in (arm.row, arm.column)
        drawn = [arm for arm in study.arms if arm.x is not None and arm.line]
        assert figure.kind != "lines" or len(drawn) > 2
    for arm in study.arms:
        if arm.kind == "leak":
            continue
        if study.needs == "features":
            given = {name: value for name, value in arm.settings.items() if name != "method"}
            assert arm.kind == "baseline" or AdapterSettings.from_parameters(**given)
            continue
        given = dict(arm.settings)
        asked = given_settings(**current(given | {"steps": 10}, PRETRAINING, warn=False))
        assert resolve_settings(asked, images=50_000, channels=3, side=32).steps == 10


@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.name)
def test_every_study_runs_to_its_verdicts(study, images, features, tmp_path):
    data = images if study.needs == "images" else features
    claimed = {name for asked in study.questions for name, _ in (asked.ours, asked.theirs)}
    # what is not asked about differs from what is by a number alone
    study = replace(study, arms=tuple(a for a in study.arms if a.name in claimed or a == study.arms[-1]))
    done = run_study(study, data, tmp_path / "study", is_trial=True)
    records = read(done.folder / "records.jsonl")
    fitting = [arm for arm in study.arms if arm.settings.get("dim", 0) <= 40 and arm.needs != "documents"]
    asked = {arm.name for arm in (study.arms if study.needs == "images" else fitting)}
    assert {record["method"] for record in records} == asked
    described = json.loads((done.folder / "study.json").read_text())
    kinds = {arm.name: arm.kind for arm in study.arms}
    for record in records:  # what no question and no figure is about takes no time
        could = {"kNN h", "linear h", "kNN z", "linear z"} & set(measures_of(described))
        assert kinds[record["method"]] != "pretrained" or set(record["values"]) == could
    stored = open_study(done.folder)
    measures, rows = arms_rows(stored)
    assert measures
    assert all(any(row[1:-1]) and row[-1] == "1" for row in rows)
    verdicts = answers(stored)
    there = [one.ask for one in study.questions if {one.ours[0], one.theirs[0]} <= asked]
    assert [one[0] for one in verdicts] == there != []
    assert {one[1] for one in verdicts} == {"can't tell"}  # of one seed


def test_an_interrupted_study_is_resumed_as_planned(images, tmp_path, monkeypatch):
    study, out = STUDIES["momentum"], tmp_path / "study"
    took = []

    def measured(cell):
        took.append((cell.method, cell.seed))
        if len(took) == 4:
            raise KeyboardInterrupt
        return {"values": {"kNN h": [len(took), 10]}, "run": {}, "seconds": 1.0}

    monkeypatch.setattr(running, "measure_cell", measured)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, images, out, seeds=2)
    planned = (out / "study.json").read_bytes()
    run_study(study, images, out, seeds=9, minutes=1.0)  # what was planned first stays
    names = [arm.name for arm in study.arms]
    assert took == [*[(n, 0) for n in names[:4]], *[(n, 0) for n in names[3:]], *[(n, 1) for n in names]]
    assert (out / "study.json").read_bytes() == planned
    assert len(read(out / "records.jsonl")) == 10
    run_study(study, images, out)
    assert len(took) == 11


def test_a_folder_is_of_one_study_on_one_set_of_images(images, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "measure_cell", lambda _: {"values": {}, "run": {}, "seconds": 0.0})
    run_study(STUDIES["momentum"], images, tmp_path / "study")
    with pytest.raises(ConfigError, match="holds the study momentum, not losses"):
        run_study(STUDIES["losses"], images, tmp_path / "study")
    with pytest.raises(ConfigError, match="the data are not the same"):
        run_study(STUDIES["momentum"], images, tmp_path / "study", is_trial=True)
    with pytest.raises(OutputExistsError):
        run_study(STUDIES["momentum"], images, folder)
    assert not (folder / "study.json").exists()


def test_every_arm_sees_equal_images(images, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "measure_cell", lambda _: {"values": {}, "run": {}, "seconds": 0.0})
    done = run_study(STUDIES["batch-and-epochs"], images, tmp_path / "study")
    for arm in done.described["arms"]:
        seen = arm["settings"]["steps"] * arm["settings"]["batch_size"]
        assert seen == arm["images"] * STUDIES["batch-and-epochs"].images


def test_what_is_kept_of_a_study_names_its_data_as_they_were_named(folder, tmp_path, monkeypatch):
    """So a study can be shown to others: no path of this machine is in it."""
    monkeypatch.setattr(running, "measure_cell", lambda _: {"values": {}, "run": {}, "seconds": 0.0})
    monkeypatch.chdir(folder.parent)
    data = StudyImages(train=DataAt(folder.name), test=DataAt(f"{folder.name}/../{folder.name}"))
    done = run_study(STUDIES["momentum"], data, tmp_path / "study")
    kept = (done.folder / "study.json").read_text()
    assert str(folder.parent) not in kept
    assert done.described["data"]["train"]["spec"] == folder.name


def test_a_fifth_is_held_out_where_no_test_images_are_named(images, folder):
    training = images.training()
    known, asked = images.labelled(size=16)
    assert (len(training), len(known.labels), len(asked.labels)) == (80, 80, 20)
    assert list(StudyImages(train=DataAt(str(folder))).training().ids) == list(training.ids)
    whole = {str(one) for one in folder.glob("*/*.png")}
    assert len({str(folder / name) for name in training.ids} & whole) == 80
    assert images.describe()["fingerprint"] != replace(images, max_rows=10).describe()["fingerprint"]


def test_images_that_no_study_can_take_are_refused(tmp_path):
    (tmp_path / "words.csv").write_text("text\n" + "several words\n" * 20)
    with pytest.raises(SourceError, match="needs images"):
        StudyImages(train=DataAt(str(tmp_path / "words.csv"))).describe()
    one = tmp_path / "plain"
    one.mkdir()
    for number in range(20):
        Image.new("RGB", (8, 8)).save(one / f"{number}.png")
    with pytest.raises(DataError, match="no labels"):
        run_study(STUDIES["momentum"], StudyImages(train=DataAt(str(one))), tmp_path / "study")
    gray = StudyImages(train=DataAt("sklearn:digits"))
    with pytest.raises(ConfigError, match="one channel"):
        run_study(STUDIES["colour-strength"], gray, tmp_path / "study", is_trial=True)
    assert not (tmp_path / "study").exists()


def test_the_time_is_divided_over_the_grid(images, monkeypatch):
    monkeypatch.setattr(run, "_step_seconds", lambda *_: (256, 0.5, 1.5))
    monkeypatch.setattr(run, "measure_cell", lambda _: {"seconds": 60.0})
    arms = [Arm(name="a", label="a", seeds=3), Arm(name="b", label="b", seeds=1, images=3.0)]
    found = images_within(arms, images, seconds=1000.0, jobs=2)
    # 2,000 s of work less 4 times 60 s and the evaluations, for (3 + 3) times as many steps of half a second
    assert found.images == int((2000 - 4 * (60 + 1.5 * run.LOOKS)) / (6 * 0.5) * 256)
    with pytest.raises(ConfigError, match="3 are the least: raise the minutes"):
        images_within(arms, images, seconds=120.0, jobs=2)


def test_a_budget_is_of_this_machine(images):
    arm = Arm(name="a", label="a", seeds=1, settings={"backbone": "small_cnn:4", "batch_size": 16})
    found = images_within([arm], images, seconds=3600.0, jobs=1)
    assert found.step_seconds > 0
    assert found.scoring_seconds > 0
    assert found.images * found.step_seconds / 16 + found.scoring_seconds == pytest.approx(3600, rel=0.02)


def test_an_adapter_study_fits_as_the_estimator_does(features, tmp_path):
    study = STUDIES["adapter"]
    chosen = [arm for arm in study.arms if arm.name in ("frozen", "adapter, 16", "PCA, 16")]
    chosen = [
        replace(arm, settings=arm.settings | {"steps": 30}) if arm.kind == "adapter" else arm
        for arm in chosen
    ]
    done = run_study(replace(study, arms=tuple(chosen)), features, tmp_path / "study", seeds=1)
    records = read(done.folder / "records.jsonl")
    found = {record["method"]: record["values"]["retrieval"] for record in records}
    queries = {record["method"]: record["queries"]["retrieval"] for record in records}
    task = features.task()
    assert (len(task.train), len(task.test)) == (240, 60)
    adapter = Adapter(dim=16, steps=30, random_state=0).fit(task.train, task.train_labels)
    rows = {"frozen": F.normalize(task.test, dim=1), "adapter, 16": adapter.transform(task.test)}
    for name, made in rows.items():
        scores = (made @ made.T).fill_diagonal_(-2.0)
        right = task.test_labels[scores.argmax(1)] == task.test_labels
        assert found[name] == [float(right.sum()), 60]
        assert queries[name] == right.int().tolist()
    assert found["frozen"][0] < found["adapter, 16"][0]


def test_what_needs_labels_is_left_out_of_documents_and_the_other_way_round(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "measure_cell", lambda _: {"values": {}, "run": {}, "seconds": 0.0})
    vectors = torch.randn(30, 70, generator=torch.Generator().manual_seed(0))
    numbers = [str(number) for number in range(30)]
    rows = Features(vectors, numbers, None, (), numbers, "")
    asking = replace(rows, vectors=vectors[:5], ids=numbers[:5], previews=numbers[:5])
    pairs = torch.tensor([[query, 2 * query, 1] for query in range(5)])
    write_features(replace(rows, queries=asking, pairs=pairs), tmp_path / "documents")
    np.savez(tmp_path / "labels.npz", X=vectors.numpy(), y=np.arange(30) // 5)
    found = {}
    for name, at in {
        "documents": DataAt(str(tmp_path / "documents")),
        "labels": DataAt(str(tmp_path / "labels.npz"), label_column="y"),
    }.items():
        done = run_study(STUDIES["adapter"], StudyFeatures(train=at), tmp_path / f"study of {name}")
        found[name] = {arm["name"] for arm in done.described["arms"]}
        asked = {one[side][0] for one in done.described["asked"] for side in ("ours", "theirs")}
        assert asked <= found[name]
    assert {"PCA, 64", "adapter, 16", "orthogonal start"} <= found["documents"] & found["labels"]
    assert {"loss nca", "memory of projections", "LDA"} <= found["labels"] - found["documents"]
    assert {"the paper's L1, 64", "the paper's L1, 32 neighbours"} <= found["documents"] - found["labels"]
    assert not any(name.endswith(", 128") for name in found["documents"])  # of rows 70 wide


def test_cells_that_are_asked_for_other_things_share_a_run(images, tmp_path, monkeypatch):
    few = [replace(arm, epochs=1) for arm in STUDIES["few-labels"].arms[:2]]
    study, taken = replace(STUDIES["few-labels"], arms=tuple(few), questions=()), []

    def counted(*given, **settings):
        taken.append(settings["seed"])
        return pretrain(*given, **settings)

    monkeypatch.setattr(measure_encoders, "pretrain", counted)
    together = read(run_study(study, images, tmp_path / "a", is_trial=True).folder / "records.jsonl")
    assert taken == [0]
    alone = replace(study, arms=study.arms[1:])
    measure_encoders._run.cache_clear()
    (second,) = read(run_study(alone, images, tmp_path / "b", is_trial=True).folder / "records.jsonl")
    assert second["values"] == together[1]["values"]
    assert second["labels"] > together[0]["labels"]


def test_rows_of_a_trial_are_of_all_classes(features):
    task = replace(features, max_rows=20).task()
    assert len(task.train) == len(task.test) == 20
    assert len(task.train_labels.unique()) >= 8  # of 10
    sorted_by_class = replace(features, test=features.train, max_rows=20).task()
    assert sorted_by_class.test_labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert evenly_spaced(7, 100).tolist() == list(range(7))


def test_features_without_queries_are_refused(tmp_path):
    np.save(tmp_path / "rows.npy", np.ones((30, 4), np.float32))
    with pytest.raises(DataError, match="neither labels nor queries"):
        run_study(
            STUDIES["adapter"], StudyFeatures(train=DataAt(str(tmp_path / "rows.npy"))), tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_a_budget_is_nothing_for_adapters(features, tmp_path):
    with pytest.raises(ConfigError, match="leave out the minutes"):
        run_study(STUDIES["adapter"], features, tmp_path / "out", minutes=5.0)
    assert not (tmp_path / "out").exists()


def test_a_memory_is_as_large_as_its_share_of_the_images(images, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "measure_cell", lambda _: {"values": {}, "run": {}, "seconds": 0.0})
    plan = run_study(STUDIES["memory-ratio"], images, tmp_path / "study").described["arms"]
    found = {arm["memory_ratio"]: arm["settings"] for arm in plan}
    assert [found[share]["capacity"] for share in (0.05, 0.25, 1.0)] == [
        16,
        20,
        80,
    ]  # of 80; a batch at least
    assert {share: one.get("memory_weight") for share, one in found.items() if one.get("memory_weight")} == {}
    assert found[0.0]["memory_weight"] == 0.0


def test_drift_is_that_of_the_oldest_rows_early_and_late():
    looks = [{"step": 0}, *({"step": n, "drift_1": 9.0, f"drift_{10 + n}": float(n)} for n in range(1, 9))]
    assert drift_ends(looks) == {"drift, first quarter": 1.5, "drift, last quarter": 7.5}
    assert drift_ends(looks[:1]) == {}
