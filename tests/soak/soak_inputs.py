"""All containers, types of labels, tables and images in all states; both with and without training."""

import pytest
from ambient import STATES
from faults.test_inputs import SOURCES, check, check_source, written  # noqa: F401
from input_cases import CONTAINERS, LABELS
from pairwise import every

FACTORS = {"container": CONTAINERS, "labels": LABELS, "state": STATES}
CASES = [(*case, (0, 5)[(number + number // len(STATES)) % 2]) for number, case in enumerate(every(FACTORS))]
"""Neighbours differ in their steps, in the state and in the labels."""


@pytest.mark.parametrize(("container", "labels", "state", "steps"), CASES)
def test_all_containers_types_of_labels_and_states_give_one_fit(container, labels, state, steps):
    check(container, labels, state, steps)


@pytest.mark.parametrize(
    ("name", "state", "steps"), every({"source": SOURCES, "state": STATES, "steps": (0, 5)})
)
def test_all_tables_and_folders_of_images_are_the_same_in_all_states(name, state, steps, written, tmp_path):  # noqa: F811
    check_source(written(name, steps), state, tmp_path / "f", steps)
