"""All containers with all types of labels in all states, 0 and 5 steps."""

import pytest
from ambient import STATES
from faults.test_inputs import check
from input_cases import CONTAINERS, LABELS
from pairwise import every

FACTORS = {"container": CONTAINERS, "labels": LABELS, "state": STATES, "steps": (0, 5)}


@pytest.mark.parametrize(("container", "labels", "state", "steps"), every(FACTORS))
def test_all_containers_types_of_labels_and_states_give_one_fit(container, labels, state, steps):
    check(container, labels, state, steps)
