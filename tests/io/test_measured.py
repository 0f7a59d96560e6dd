"""Choices that are measured on the machine."""

import pytest

from querykey.io import measured


@pytest.mark.parametrize(
    ("times", "expected"), [((0.8, 1.0), True), ((0.9, 1.0), False), ((2.0, 1.0), False)]
)
def test_the_shortest_calls_decide_and_the_first_one_does_not_count(times, expected, monkeypatch):
    now = 0.0
    monkeypatch.setattr(measured.time, "perf_counter", lambda: now)

    def call(seconds):
        taken = iter([0.01, *[3 * seconds] * (measured.TIMED_CALLS - 1), seconds])

        def run():
            nonlocal now
            now += next(taken)

        return run

    assert measured.is_clearly_faster(call(times[0]), call(times[1])) == expected
