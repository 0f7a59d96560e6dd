"""The fuzzing of tests/data with ten times as many examples, others each time."""

import os

os.environ.setdefault("FUZZ_EXAMPLES", "400")

from data.test_fuzz_readers import (  # noqa: F401
    files,
    test_damaged_bytes_give_a_result_or_a_querykey_error,
    test_replaced_json_values_give_a_result_or_a_querykey_error,
)
from data.test_fuzz_sources import (  # noqa: F401
    test_a_damaged_image_is_read_or_damaged,
    test_a_damaged_table_is_read_or_refused,
    test_any_jsonl_is_read_whole_or_refused,
    test_every_file_of_a_folder_of_images_is_an_item_or_left_out,
    test_every_row_of_a_table_is_an_item_or_the_table_is_refused,
)
