"""The report of pretraining: from records alone, verdicts by the rule, nothing that is not measured."""

import math

import pytest

from querykey.reports.markdown.pretraining import pretraining_report
from querykey.reports.verdicts import over_seeds, wilson
from querykey.studies.results_grid.pretraining import ARMS, ASKED, cells_of

PLAN = {
    "kind": "plan",
    "arms": [{"name": arm.name, "label": arm.label, "group": arm.group} for arm in ARMS],
    "asked": [vars(question) for question in ASKED],
}
RUN = {"seconds": 120.0, "images_seen": 1000, "views_share_of_step": 0.13, "steps_taken": 4}


def cell(method, seed, **shares):
    values = {name.replace("_", " "): [round(1000 * share), 1000] for name, share in shares.items()}
    settings = {"epochs": 1.5, "steps": 1000}
    return {
        "kind": "cell",
        "method": method,
        "seed": seed,
        "values": values,
        "run": RUN,
        "settings": settings,
    }


def questions(report):
    lines = report.split("### Questions")[1].splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith(("| Is ", "| With "))]
    return {row[0].removeprefix("| "): row[3] for row in rows}


def test_every_question_is_about_an_arm_that_is_measured():
    names = {arm.name for arm in ARMS}
    assert len(names) == len(ARMS)
    for question in ASKED:
        assert {question.ours[0], question.theirs[0]} <= names
    answered = {question.ours[0] for question in ASKED} | {question.theirs[0] for question in ASKED}
    assert answered >= {arm.name for arm in ARMS if arm.group in ("questions", "few labels")}


def test_a_verdict_is_the_interval_over_seeds():
    records = [PLAN]
    for seed, (better, alike) in enumerate([(0.60, 0.50), (0.62, 0.56), (0.61, 0.52)]):
        records.append(cell("simclr", seed, linear_h=better, linear_z=0.5, kNN_h=0.5, kNN_z=0.4))
        records.append(cell("head none", seed, linear_h=0.7, linear_z=0.5, kNN_h=0.5, kNN_z=0.4))
        records.append(cell("head linear", seed, linear_h=alike + 0.08, linear_z=0.5, kNN_h=0.5, kNN_z=0.4))
    said = questions(pretraining_report(records))
    assert said["Is h better than g(h)?"] == "**yes**"
    assert said["Is an MLP head better than none?"] == "**no**"
    assert said["Is an MLP head better than a linear one?"] == "**can't tell**"
    assert said["Is normalised z better than unnormalised?"] == "not measured yet"


def test_two_seeds_say_nothing():
    records = [PLAN, *(cell("simclr", s, linear_h=0.6, linear_z=0.5, kNN_h=0.5, kNN_z=0.4) for s in (0, 1))]
    assert questions(pretraining_report(records))["Is h better than g(h)?"] == "not measured yet"


def test_the_same_records_give_the_same_bytes_and_the_newest_of_a_cell_counts():
    old = cell("10 minutes", 0, kNN_h=0.1, linear_h=0.1, kNN_z=0.1, linear_z=0.1, kNN_untrained=0.3,
               linear_untrained=0.4)  # fmt: skip
    new = cell("10 minutes", 0, kNN_h=0.6, linear_h=0.7, kNN_z=0.5, linear_z=0.6, kNN_untrained=0.3,
               linear_untrained=0.4)  # fmt: skip
    pixels = cell("pixels", 0, kNN_pixels=0.31, linear_pixels=0.41)
    report = pretraining_report([PLAN, old, new, pixels])
    assert report == pretraining_report([PLAN, new, pixels])
    assert "| **10 minutes** | 0.600 [" in report
    assert report.index("raw pixels") < report.index("untrained |") < report.index("**10 minutes**")


def test_nothing_measured_says_nothing():
    assert pretraining_report([]) == pretraining_report([PLAN]) == ""


def test_intervals_by_hand():
    """Wilson's for 0 of n is [0, z^2 / (n + z^2)]; of the t distribution with 2 degrees 4.303 s / sqrt(3)."""
    low, high = wilson(0, 100)
    assert low == pytest.approx(0.0, abs=1e-12)
    assert high == pytest.approx(1.959964**2 / (100 + 1.959964**2))
    spread = over_seeds([0.1, 0.2, 0.3])
    assert spread.high - spread.mean == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)
    assert math.isinf(over_seeds([0.1]).high)


def test_a_cell_of_data_that_are_not_there_says_what_to_give(tmp_path):
    from querykey.errors import MissingPathError

    with pytest.raises(
        MissingPathError, match=r"cifar10 is not there; .* give the folder of the data with --data"
    ):
        cells_of(ARMS[:1], tmp_path)
