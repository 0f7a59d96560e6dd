"""A study's section: verdicts by the rule, figures of what is there, and no reading of what is damaged."""

import json

import pytest
from report_samples import CELLS, cell, matrix, study, write_study

from querykey.errors import StoreError
from querykey.reports.charts.spec import Bars, HeatMap, Lines
from querykey.reports.page.blocks import Charts
from querykey.reports.page.page import figures_of, sections_of
from querykey.reports.page.study import study_section


def charts_of(blocks):
    return [chart for block in blocks if isinstance(block, Charts) for chart in block.charts]


def diagnose(section):
    return {answer.ask: answer.word for answer in section.answers}


def tables_of(section):
    return [block for block in section.blocks if block.kind == "table"]


def test_verdicts_are_of_what_is_measured(tmp_path):
    section = study_section(write_study(tmp_path / "s"))
    assert diagnose(section) == {
        "Is slow better than fast?": "yes", "Is still better than fast?": "not measured yet",
    }  # fmt: skip
    because = section.answers[0].because
    assert because.startswith("0.610 against 0.500: +0.110 [+0.0")
    assert because.endswith("3 seeds")
    assert section.summary == ["Not finished: 6 of 9 cells are measured."]
    assert any(
        "Still missing: label of still (0 of 3 seeds)." in getattr(block, "text", "")
        for block in section.blocks
    )


@pytest.mark.parametrize(
    ("ours", "word"), [([0.4, 0.41, 0.39], "no"), ([0.5, 0.52, 0.47], "can't tell"), ([0.9], "can't tell")]
)
def test_the_rule(tmp_path, ours, word):
    records = [*CELLS[:3], *(cell("slow", seed, knn) for seed, knn in enumerate(ours))]
    section = study_section(write_study(tmp_path / "s", records=records))
    assert section.answers[0].word == word
    assert ("one seed" in section.answers[0].because) == (len(ours) == 1)


def test_the_last_record_of_a_cell_counts_and_strange_arms_do_not(tmp_path):
    records = [cell("slow", 0, 0.1), *CELLS, cell("slow", 2, 0.61), cell("left over", 0, 0.99)]
    section = study_section(write_study(tmp_path / "s", records=records))
    rows = {row[0]: row[1:] for row in tables_of(section)[0].rows}
    assert rows["label of slow"] == ["0.610 (0.600 to 0.620)", "1.500 (1.500 to 1.500)", "3"]
    assert "label of still" not in rows


def test_the_published_numbers_stand_beside_the_own(tmp_path):
    rows = {row[0]: row[1:] for row in tables_of(study_section(write_study(tmp_path / "s")))[1].rows}
    assert rows["slow"] == ["59.0", "0.610 (0.600 to 0.620)"]
    assert rows["label of fast"] == ["55.2", "0.500 (0.490 to 0.510)"]
    assert rows["0"] == ["fails", ""]


def test_lines_and_bars_are_means_with_whiskers_from_lowest_to_highest(tmp_path):
    lines, bars, *_ = charts_of(study_section(write_study(tmp_path / "s")).blocks)
    assert isinstance(lines, Lines)
    (line,) = lines.lines
    assert list(line.x) == [0.9, 0.99]
    assert line.y == pytest.approx([0.50, 0.61])
    assert (list(line.low), list(line.high)) == ([0.49, 0.60], [0.51, 0.62])
    assert isinstance(bars, Bars)
    assert list(bars.labels) == ["label of slow", "label of fast"]
    assert bars.groups["gap"][1] == (1.5, 1.5, 1.5)


def test_bars_of_h_and_z_stand_beside_each_other_where_several_things_are_asked(tmp_path):
    asked = ("noise h", "noise z", "rotation h", "rotation z")
    described = study()
    axes = {"x": "x", "y": "y"}
    described["figures"] = [
        {"kind": "bars", "title": "Pairs", "measures": list(asked), **axes},
        {"kind": "bars", "title": "One thing", "measures": ["noise h", "noise z"], **axes},
        {"kind": "bars", "title": "A half", "measures": list(asked[:3]), **axes},
    ]
    records = [
        one | {"values": {measure: place + 1.0 + (one["method"] == "fast") / 2
                          for place, measure in enumerate(asked)}}
        for one in CELLS
    ]  # fmt: skip
    section = study_section(write_study(tmp_path / "s", described=described, records=records))
    pairs, one_thing, half = charts_of(section.blocks)[:3]
    arms = ["label of slow", "label of fast"]
    assert list(pairs.labels) == [f"{what}, {arm}" for what in ("noise", "rotation") for arm in arms]
    means = {name: [three[0] for three in bars] for name, bars in pairs.groups.items()}
    assert means == {"h": [1.0, 1.5, 3.0, 3.5], "z": [2.0, 2.5, 4.0, 4.5]}
    assert (list(one_thing.labels), list(one_thing.groups)) == (arms, list(asked[:2]))
    assert (list(half.labels), list(half.groups)) == (arms, list(asked[:3]))


def test_curves_on_the_way_have_the_candidates_beside_the_loss(tmp_path):
    charts = charts_of(study_section(write_study(tmp_path / "s")).blocks)
    loss, candidates, knn = charts[2:]
    assert (loss.y, candidates.y) == ("loss", "candidates per query")
    assert list(loss.lines[0].x) == [10, 20], "before the first step there is no loss"
    assert list(knn.lines[0].y) == pytest.approx([0.3, 0.45, 0.55])


def test_a_heat_map_has_row_means_apart_and_room_for_what_is_missing(tmp_path):
    (chart,) = charts_of(study_section(write_study(tmp_path / "s", **matrix())).blocks)
    assert isinstance(chart, HeatMap)
    assert list(chart.columns) == ["crop", "colour <&>", "blur", "mean"]
    assert chart.values[0] == pytest.approx([0.1, 0.2, 0.3, 0.2])
    assert chart.values[2][2] is None
    assert chart.values[2][3] == pytest.approx(0.75)
    assert chart.apart == 1


def test_verdicts_of_adapters_are_over_their_queries(tmp_path):
    """Fits that are alike to the last digit are not sure for that: three queries of a hundred differ."""

    def fitted(name, seed, better):
        queries = [1 if query < 50 + better else 0 for query in range(100)]
        return cell(name, seed, sum(queries) / 100) | {"queries": {"kNN h": queries}}

    few = [fitted("fast", seed, 0) for seed in range(3)] + [fitted("slow", seed, 3) for seed in range(3)]
    section = study_section(write_study(tmp_path / "few", records=few))
    assert section.answers[0].word == "can't tell"
    assert section.answers[0].because.startswith("0.530 against 0.500: +0.030 [+0.000, +0.0")
    assert section.answers[0].because.endswith("100 queries, 3 seeds")
    many = [fitted("fast", seed, 0) for seed in range(3)] + [fitted("slow", seed, 20) for seed in range(3)]
    assert study_section(write_study(tmp_path / "many", records=many)).answers[0].word == "yes"
    one = [fitted("fast", 0, 0), fitted("slow", 0, 20)]
    answer = study_section(write_study(tmp_path / "one", records=one)).answers[0]
    assert (answer.word, answer.because) == ("can't tell", "0.700 against 0.500: +0.200, one seed")
    others = [*few[:3], *(cell("slow", seed, 0.5) | {"queries": {"kNN h": [1] * 99}} for seed in range(3))]
    with pytest.raises(StoreError, match="numbers of different queries"):
        study_section(write_study(tmp_path / "others", records=others))


def test_a_figure_is_of_its_group_and_one_line_needs_no_name(tmp_path):
    described = study()
    for arm, group in zip(described["arms"], ("a", "a", "b"), strict=True):
        arm["group"] = group
    axes = {"x": "x", "y": "y", "group": "a"}
    described["figures"] = [
        {"kind": "bars", "title": "Some", "measures": ["kNN h"], **axes},
        {"kind": "lines", "title": "Two measures", "measures": ["kNN h", "gap"], **axes},
    ]
    records = [*CELLS, *(cell("still", seed, 0.5) for seed in range(3))]
    section = study_section(write_study(tmp_path / "s", described=described, records=records))
    bars, lines = charts_of(section.blocks)[:2]
    assert list(bars.labels) == ["label of slow", "label of fast"]
    assert [line.name for line in lines.lines] == ["kNN h", "gap"]
    assert lines.lines[0].x == [0.9, 0.99]


def test_curves_are_of_the_oldest_rows_and_the_mean_of_seeds(tmp_path):
    def seen(*drifts):
        ages = ((1, 64), (2, 64), (2, 128))
        return [{"step": 0}] + [
            {"step": 10 * place, f"drift_{near}": 9.0, f"drift_{far}": drift}
            for place, ((near, far), drift) in enumerate(zip(ages, drifts, strict=True), start=1)
        ]

    figures = [{"kind": "curves", "title": "Drift", "measures": ["drift_"], "x": "steps", "y": "distance"}]
    looked = [seen(0.2, 0.4, 0.6), seen(0.4, 0.6, 0.8)]
    records = [cell("slow", seed, 0.6, looks=looks) for seed, looks in enumerate(looked)]
    records.append(cell("fast", 0, 0.5))
    section = study_section(write_study(tmp_path / "s", described=study(figures=figures), records=records))
    (chart,) = (one for one in charts_of(section.blocks) if one.title == "Drift")
    (line,) = chart.lines
    assert (line.name, line.x) == ("label of slow", [10.0, 20.0, 30.0])
    assert line.y == pytest.approx([0.3, 0.5, 0.7])
    assert all("drift_" not in block.head for block in tables_of(section))


def test_pairs_of_one_half_stand_in_both(tmp_path):
    given = matrix()
    names = ["crop", "colour <&>", "blur"]
    half = [
        arm for arm in given["described"]["arms"] if names.index(arm["row"]) <= names.index(arm["column"])
    ]
    folder = write_study(
        tmp_path / "s", described=given["described"] | {"arms": half}, records=given["records"]
    )
    (chart,) = charts_of(study_section(folder).blocks)
    assert [row[:3] for row in chart.values] == [[0.1, 0.2, 0.3], [0.2, 0.5, 0.6], [0.3, 0.6, None]]
    assert chart.values[1][3] == pytest.approx(1.3 / 3)


def test_a_study_that_has_only_begun_is_shown(tmp_path):
    section = study_section(write_study(tmp_path / "s", records=[]))
    assert charts_of(section.blocks) == []
    assert section.summary == ["Not finished: 0 of 9 cells are measured."]
    (tmp_path / "s" / "records.jsonl").unlink()
    assert diagnose(study_section(tmp_path / "s"))["Is slow better than fast?"] == "not measured yet"


def test_two_studies_of_one_name_have_figures_of_their_own(tmp_path):
    sections = sections_of([write_study(tmp_path / "a"), write_study(tmp_path / "b")])
    assert [section.name for section in sections] == ["momentum", "momentum-2"]
    assert {"momentum-1.svg", "momentum-2-1.svg"} <= set(figures_of(sections))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda s: "{", "is damaged"),
        (lambda s: "[]", "this is not a study"),
        (lambda s: json.dumps(s | {"format": "other"}), "this is not a study"),
        (lambda s: json.dumps(s | {"version": 2}), "written as version 2; this querykey reads 1"),
        (lambda s: json.dumps({k: v for k, v in s.items() if k != "arms"}), "is damaged"),
        (lambda s: json.dumps(s | {"figures": [{"kind": "pie", "measures": []}]}), "unknown kind .* 'pie'"),
        (lambda s: json.dumps(s | {"asked": [{"ask": "?"}]}), "is damaged"),
    ],
)  # fmt: skip
def test_a_damaged_study_is_refused_with_its_name(tmp_path, damage, words):
    folder = write_study(tmp_path / "s")
    (folder / "study.json").write_text(damage(study()))
    with pytest.raises(StoreError, match=words):
        study_section(folder)


def test_a_damaged_record_is_refused_and_a_half_written_last_one_left_out(tmp_path):
    folder = write_study(tmp_path / "s")
    whole = (folder / "records.jsonl").read_text()
    (folder / "records.jsonl").write_text(whole + '{"kind": "ce')
    assert diagnose(study_section(folder))["Is slow better than fast?"] == "yes"
    (folder / "records.jsonl").write_text("nonsense\n" + whole)
    with pytest.raises(StoreError, match="line 1 is no record"):
        study_section(folder)
    (folder / "records.jsonl").write_text('{"kind": "cell", "method": "slow", "seed": 0}\n')
    with pytest.raises(StoreError, match="is damaged"):
        study_section(folder)


def test_the_page_of_a_trial_starts_with_a_notice(tmp_path):
    section = study_section(write_study(tmp_path / "s", described=study(is_trial=True)))
    assert section.summary == [
        "A trial run: a few steps on a few rows, to test that everything works. Its numbers mean nothing."
    ]


def test_a_study_of_the_engine_can_be_shown_and_repeated(tmp_path):
    """What `querykey study` says of its data, beside what this file's samples say."""
    train = {"spec": "my photos", "column": None, "label_column": "kind", "split": "train"}
    data = {"name": "photos", "train": train, "test": train | {"split": "test"}, "fingerprint": "abc"}
    budget = {"minutes": 20.0, "words": "20 minutes: 300 steps a cell"}
    section = study_section(write_study(tmp_path / "s", described=study(data=data, budget=budget)))
    (code,) = [block.text for block in section.blocks if block.kind == "code"]
    assert code == (
        "querykey study momentum --data 'my photos' --out NEW-FOLDER --label-column kind --split train "
        "--test-split test --minutes 20.0"
    )
