"""The fuzzing of tests/data/test_fuzz_readers.py with ten times as many examples, others each time."""

import os

os.environ.setdefault("FUZZ_EXAMPLES", "400")

from data.test_fuzz_readers import (  # noqa: F401
    files,
    test_any_json_in_the_place_of_other_gives_an_answer_or_an_error_of_ours,
    test_damaged_bytes_give_an_answer_or_an_error_of_ours,
)
