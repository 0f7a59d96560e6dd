"""Several processes stop together and go on exactly; one that dies ends them all."""

import pytest
import torch
from pretraining_toys import put_stripes
from process_toys import together

COUNT = 2


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(put_stripes(tmp_path_factory.mktemp("images"), count=22))


def test_a_run_that_was_stopped_ends_with_the_same_bits(images, tmp_path):
    (tmp_path / "runs").mkdir()
    found = together(
        "resuming_process_toys:stopped_and_whole", COUNT, tmp_path / "meeting", str(tmp_path / "runs"), images
    )
    for one in found:
        for name, value in one.items():
            assert torch.equal(value, one[name.replace("stopped", "whole")]), name


def test_one_that_dies_ends_the_others(images, tmp_path):
    with pytest.raises(AssertionError, match="no one answered"):
        together("resuming_process_toys:one_dies", COUNT, tmp_path / "meeting", str(tmp_path), images)
    seconds, error = (tmp_path / "fault-0").read_text().split("\n", 1)
    assert float(seconds) < 60
    assert "onnection" in error or "gloo" in error
