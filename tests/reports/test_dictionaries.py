"""The report of the study of dictionaries: from records alone."""

from querykey.pretraining.settings.methods import METHODS
from querykey.pretraining.settings.settings import asked_settings
from querykey.reports.markdown.pretraining import pretraining_report
from querykey.studies.engine.measure_encoders import peak_memory
from querykey.studies.results_grid.pretraining import ARMS, DICTIONARY_ARMS, DICTIONARY_ASKED, TEN_MINUTES

PLAN = {
    "kind": "plan",
    "arms": [{"name": arm.name, "label": arm.label, "group": arm.group} for arm in DICTIONARY_ARMS],
    "asked": [vars(question) for question in DICTIONARY_ASKED],
}


def cell(method, seed=0, *, looks=(), pretext=0.5, **shares):
    values = {name.replace("_", " "): [round(1000 * share), 1000] for name, share in shares.items()}
    run = {
        "seconds": 600.0, "images_seen": 120_000, "peak_memory": 800_000_000, "looks": list(looks),
        "end": {"pretext": pretext},
    }  # fmt: skip
    settings = {"epochs": 2.5, "steps": 1200, "batch_size": 256}
    return {
        "kind": "cell", "method": method, "seed": seed, "values": values, "run": run, "settings": settings,
    }  # fmt: skip


def rows_of(report, head):
    lines = report.split(head)[1].splitlines()
    table = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    return {row[0]: row[1:] for row in table}


def test_every_arm_can_be_asked_for_and_every_question_is_about_an_arm():
    names = [arm.name for arm in (*ARMS, *DICTIONARY_ARMS)]
    assert len(set(names)) == len(names)
    for arm in DICTIONARY_ARMS:
        given = dict(arm.settings)
        assert asked_settings(given.pop("method"), None, given)
    for question in DICTIONARY_ASKED:
        assert {question.ours[0], question.theirs[0]} <= set(names)
    assert set(TEN_MINUTES) == set(METHODS)
    assert all(arm.seeds == 3 for arm in DICTIONARY_ARMS if arm.group != "methods")


def test_the_methods_stand_beside_untrained_and_xbm_apart():
    scores = {"kNN_h": 0.6, "linear_h": 0.65, "kNN_untrained": 0.36, "linear_untrained": 0.43}
    records = [PLAN, cell("xbm, methods", **scores), cell("moco, methods", **scores | {"kNN_h": 0.5})]
    rows = rows_of(pretraining_report(records), "one dictionary against another")
    assert [*rows] == ["10 minutes", "---", "untrained", "**moco**", "xbm (with labels)"]
    assert rows["untrained"][0] == "0.360 [0.331, 0.390]"
    assert rows["**moco**"][0].startswith("0.500 [")
    assert rows["**moco**"][2:] == ["512", "2.5", "800 MB"]


def test_questions_of_accuracy_and_of_the_pretext_task():
    records = [PLAN]
    for seed, apart in enumerate((0.10, 0.11, 0.12)):
        records.append(cell("moco", seed, pretext=0.4, kNN_h=0.5 + apart, linear_h=0.6))
        records.append(cell("not shuffled", seed, pretext=0.5 + apart, kNN_h=0.5, linear_h=0.6))
    report = pretraining_report(records)
    said = {row: cells[2] for row, cells in rows_of(report, "Questions about queues").items() if "?" in row}
    assert said["Is shuffling better than not?"] == "**yes**"
    assert said["Is the pretext task solved more often without shuffling?"] == "**yes**"
    assert said["Is momentum 0.99 better than 0?"] == "not measured yet"
    assert "1200 steps of 256 images" in report.replace("1,200", "1200")


def test_drift_by_age_and_step():
    looks = [
        {"step": 0},
        {"step": 50, "drift_1": 0.2, "drift_9": 0.8},
        {"step": 99, "drift_1": 0.1, "drift_9": 0.4},
    ]
    records = [PLAN]
    for seed in range(3):
        scores = {"R@1_z": 0.7, "R@1_h": 0.8, "untrained_R@1_h": 0.4}
        records.append(cell("xbm", seed, looks=looks, **scores))
        records.append(cell("no memory", seed, **scores | {"R@1_z": 0.6}))
    report = pretraining_report(records)
    assert "| Does a memory help at batch 16, in other alphabets? | 0.700 against 0.600 |" in report
    rows = rows_of(report, "How far a stored embedding")
    assert rows["steps taken"] == ["1 step old", "9 steps old"]
    assert rows["50"] == ["0.200", "0.800"]
    assert rows["99"] == ["0.100", "0.400"]


def test_nothing_is_reported_of_what_is_not_measured():
    assert pretraining_report([PLAN]) == ""
    assert "Omniglot" not in pretraining_report([PLAN, cell("moco", kNN_h=0.5, linear_h=0.6)])


def test_the_peak_is_of_what_ran_inside():
    with peak_memory() as before:
        pass
    with peak_memory() as peak:
        room = bytearray(200_000_000)
        room[::4096] = b"x" * len(room[::4096])
    del room
    assert peak.bytes is None or peak.bytes - before.bytes > 150_000_000
