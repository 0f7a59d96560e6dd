"""Records survive a kill: at most the last line is lost, and nothing is there twice."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from querykey.errors import MissingPathError, OutputError, StoreError
from querykey.io.records import Records, installed_versions, read, versions


def test_records_come_back_in_order_with_plain_numbers(tmp_path):
    records = Records(tmp_path / "deep" / "metrics.jsonl")
    records.append("step", step=1, loss=torch.tensor(0.5), fill=np.float64(0.25), path=tmp_path)
    records.append(
        "score", name="recall@1", interval=(0.1, 0.2), counts=np.array([1, 2]), nested={"a": [True]}
    )
    assert read(records.path) == [
        {"kind": "step", "step": 1, "loss": 0.5, "fill": 0.25, "path": str(tmp_path)},
        {
            "kind": "score",
            "name": "recall@1",
            "interval": [0.1, 0.2],
            "counts": [1, 2],
            "nested": {"a": [True]},
        },
    ]


def test_values_without_json_become_null(tmp_path):
    records = Records(tmp_path / "r.jsonl")
    records.append("step", loss=float("nan"), norm=np.inf)
    assert records.path.read_text() == '{"kind": "step", "loss": null, "norm": null}\n'


def test_what_no_record_can_hold_is_refused_before_anything_is_written(tmp_path):
    records = Records(tmp_path / "r.jsonl")
    with pytest.raises(TypeError, match="a record cannot contain a object"):
        records.append("step", what=object())
    assert not records.path.exists()


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_cut_by_a_kill_is_left_out_and_then_written_over(tmp_path, cut):
    path = tmp_path / "r.jsonl"
    for step in (1, 2, 3):
        Records(path).append("step", step=step)
    os.truncate(path, path.stat().st_size - cut)
    assert [record["step"] for record in read(path)] == [1, 2]
    Records(path).append("step", step=3)
    Records(path).append("step", step=4)
    assert [record["step"] for record in read(path)] == [1, 2, 3, 4]
    assert path.read_text().count("\n") == 4


def test_a_run_that_repeats_its_last_steps_leaves_each_once(tmp_path):
    path = tmp_path / "r.jsonl"
    first, second = Records(path), Records(path)
    for step in (1, 2, 3):
        first.append("step", step=step)
    for step in (2, 3, 4):
        second.append("step", step=step)
    second.append("step", step=4)
    assert [record["step"] for record in read(path)] == [1, 2, 3, 4]


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"kind": "a"}\n{"kind": \n{"kind": "c"}\n')
    with pytest.raises(StoreError, match=r"r\.jsonl: line 2 is no record; the file was damaged or edited"):
        read(path)


@pytest.mark.parametrize("line", ["[1]", "3", '{"step": 1}'])
def test_a_line_that_is_no_record_is_an_error(tmp_path, line):
    path = tmp_path / "r.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(StoreError, match="line 1 is no record"):
        read(path)


def test_no_file_is_an_error_to_read_and_no_records_to_go_on_from(tmp_path):
    with pytest.raises(MissingPathError, match="no such file of records"):
        read(tmp_path / "none.jsonl")
    assert Records(tmp_path / "none.jsonl").read() == []


def test_a_full_disk_is_one_error_and_the_next_append_mends(tmp_path, monkeypatch):
    records = Records(tmp_path / "r.jsonl")
    records.append("step", step=1)
    write = os.write

    def full(file, content):
        write(file, content[:4])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match="cannot write a record: No space left on device"):
        records.append("step", step=2)
    monkeypatch.setattr(os, "write", write)
    records.append("step", step=2)
    assert [record["step"] for record in read(records.path)] == [1, 2]


def test_loads_without_torch():
    code = "import sys, querykey.io.records; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_packages_that_are_not_installed_have_no_version():
    assert set(versions("no-such-package")) == {"python", "querykey", "torch", "numpy"}
    assert set(installed_versions("no-such-package", "numpy")) == {"numpy"}
