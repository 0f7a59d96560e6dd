"""Nested dataclasses as settings: tables, dotted keys, bare words, faults and old names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from querykey.config.ranges import PositiveInt, Probability
from querykey.config.settings import (
    Options,
    as_tables,
    changed,
    check,
    current,
    flat,
    make,
    require_valid,
    rows,
    tables_of,
)
from querykey.errors import ConfigError, RangeError

KINDS = {"round": {"radius": float}, "square": {"side": float, "corner": Literal["sharp", "soft"]}}


@dataclass(frozen=True, kw_only=True)
class Shape:
    kind: str = "round"
    colour: str = "red"
    options: Mapping[str, Any] = field(default_factory=dict, metadata={"options": Options(lambda: KINDS)})


@dataclass(frozen=True, kw_only=True)
class Pen:
    width: PositiveInt = 1
    pressure: Probability | None = None


@dataclass(frozen=True, kw_only=True)
class Drawing:
    title: str | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    shape: Shape = Shape()
    pen: Pen = Pen()


def test_tables_dotted_keys_and_bare_words_are_the_same():
    whole = {"shape": {"kind": "square", "side": 2.0}, "pen": {"width": 3}}
    assert tables_of(Drawing, {"shape": "square", "shape.side": 2.0, "pen.width": 3}) == whole
    assert tables_of(Drawing, {"shape.side": 2.0, "shape": "square", "pen": {"width": 3}}) == whole
    with pytest.raises(ConfigError, match=r"title\.first: title is 'x', so it has no first"):
        tables_of(Drawing, {"title": "x", "title.first": 1})
    with pytest.raises(ConfigError, match="pen: must be a table, got 'thick'"):
        make(Drawing, {"pen": "thick"})


def test_options_stand_in_the_table_of_their_kind():
    made = make(Drawing, {"shape": {"kind": "square", "side": 2, "colour": "blue"}})
    assert made.shape == Shape(kind="square", colour="blue", options={"side": 2.0})
    assert as_tables(made)["shape"] == {"kind": "square", "colour": "blue", "side": 2.0}
    assert make(Drawing, as_tables(made)) == made
    assert flat(as_tables(made))["shape.side"] == 2.0


def test_what_is_changed_is_another_object_and_keeps_the_rest():
    before = make(Drawing, {"shape": {"kind": "square", "side": 2.0}})
    after = changed(before, {"shape.corner": "soft", "pen.width": 4})
    assert after.shape.options == {"side": 2.0, "corner": "soft"}
    assert (after.pen.width, before.pen.width, before.shape.options) == (4, 1, {"side": 2.0})


def test_every_fault_has_its_key_and_what_is_right():
    wrong = {
        "titel": "x", "scale": [1.0], "pen": {"width": 0, "presure": 1}, "shape": {"kind": "sqare"},
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        check(Drawing, wrong, name="run.toml")
    first, *faults = str(caught.value).splitlines()
    assert first == "run.toml: cannot be run"
    assert [fault.partition(":")[0].strip() for fault in faults] == [
        "scale", "shape.kind", "pen.width", "pen.presure", "titel",
    ]  # fmt: skip
    assert faults[1].endswith("no such kind 'sqare'; did you mean square?")
    assert faults[3].endswith("no such key; did you mean pressure?")
    with pytest.raises(
        ConfigError, match=r"shape\.side: no such key of this kind; set shape\.kind to square"
    ):
        check(Drawing, {"shape": {"kind": "round", "side": 2.0}}, name="it")


def test_numbers_outside_their_range_are_range_errors():
    with pytest.raises(RangeError, match=r"pen\.pressure: must be at most 1\.0, got 1\.5"):
        make(Drawing, {"pen.pressure": 1.5})
    with pytest.raises(RangeError, match=r"pen\.width"):
        require_valid(changed(Drawing(), {"pen.width": 0}))


def test_a_key_of_a_later_version_is_left_out_of_a_file_only():
    assert make(Drawing, {"ink": "black", "title": "x"}, ignore_unknown=True) == Drawing(title="x")
    with pytest.raises(ConfigError, match="ink: no such key"):
        make(Drawing, {"ink": "black"})


def test_old_names_warn_and_todays_win():
    names = {"pen_width": "pen.width", "pen_options": "pen"}
    with pytest.warns(FutureWarning, match=r"the setting pen_width is named pen\.width now"):
        assert current({"pen_width": 3, "title": "x"}, names) == {"pen.width": 3, "title": "x"}
    both = current({"pen_width": 3, "pen": {"width": 4}, "pen_options": {"pressure": 1}}, names, warn=False)
    assert both == {"pen.width": 4, "pen.pressure": 1}


def test_every_key_is_listed():
    assert dict(rows(Drawing)) == {
        "title": "text", "scale": "[number, number]", "shape.kind": "round | square", "shape.colour": "text",
        "shape.radius": "number  (round)", "shape.side": "number  (square)",
        "shape.corner": "sharp | soft  (square)", "pen.width": "whole number", "pen.pressure": "number",
    }  # fmt: skip
