"""What can be known at the start is said at the start: no work is done in vain."""

import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from querykey import pretrain
from querykey.cli.main import app
from querykey.data.readers.open import read_source
from querykey.errors import MissingPathError, OutputError, RangeError, SourceError
from querykey.io.atomic import check_new
from querykey.losses.by_name import objective, takes_target, takes_temperature, view_objective


def run(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done.exit_code, done.stderr


@contextmanager
def written_by_another(out):
    code = f"""
        import sys
        from querykey.io.atomic import reserve
        with reserve({str(out)!r}):
            print("ready", flush=True)
            sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "ready\n"
        yield
        other.stdin.close()


@pytest.mark.parametrize(
    "command",
    [
        ("adapt", "nothing.npz"),
        ("embed", "nothing.csv", "--model", "st:none"),
        ("transform", "no-run", "nothing.npz"),
        ("pretrain", "--data", "nothing"),
        ("export", "no-run", "--to", "onnx"),
        ("evaluate", "no-run", "--on", "nothing.npz"),
        ("report", "no-run"),
    ],
    ids=lambda command: command[0],
)
def test_a_command_on_an_output_that_another_writes_ends_before_it_reads_anything(command, tmp_path):
    out = tmp_path / "out.npy"
    with written_by_another(out):
        code, said = run(*command, "--out", out)
    assert code == 2
    assert f"{out}: another process" in said
    code, said = run(*command, "--out", out)  # then it goes as far as to what is not there
    assert code == 2
    assert "another process" not in said


@pytest.mark.parametrize("out", ["n" * 256, "é" * 128, f"{'n' * 256}/run"])
def test_a_name_that_no_file_system_takes(out, tmp_path):
    with pytest.raises(OutputError, match=r"the name .* has 256 bytes, and at most 255 are allowed; give an"):
        check_new(tmp_path / out)
    assert list(tmp_path.iterdir()) == []


def test_the_longest_name_that_one_takes_is_written(tmp_path):
    out = tmp_path / ("n" * 251 + ".npz")
    rows = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    np.savez(tmp_path / "train.npz", X=rows, y=np.arange(60) % 2)
    code, said = run("adapt", tmp_path / "train.npz", "--labels", "y", "--dim", 2, "--set", "steps=0",
                     "--set", "batch_size=8", "--out", out)  # fmt: skip
    assert code == 0, said
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([out.name, "train.npz"])


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc")
@pytest.mark.parametrize("out", ["/proc/run", "/proc/deep/run", "/proc/self/run"])
def test_a_place_where_the_system_makes_nothing(out):
    with pytest.raises(
        OutputError, match=r"cannot be written: (nothing can be made|no permission to write) in /proc"
    ):
        check_new(out)
    with pytest.raises(OutputError, match="cannot be written"):
        pretrain("there is no such source", out=out)


def test_a_path_with_a_null_character(tmp_path):
    with pytest.raises(OutputError, match="it contains a null character; give another path"):
        check_new(f"{tmp_path}/a\0b")
    with pytest.raises(SourceError):
        read_source(f"{tmp_path}/a\0b")


def test_a_text_in_the_place_of_a_source():
    with pytest.raises(SourceError, match="is too long for a path"):
        read_source("how to sort a table by two columns " * 20)
    with pytest.raises(MissingPathError):
        read_source("how to sort a table")


@pytest.mark.parametrize(
    ("loss", "option"),
    [
        ("info_nce", {"temperature": 1e-40}),
        ("triplet", {"margin": -1.0}),
        ("score_distillation", {"target_temperature": 0.0}),
    ],
)
def test_an_option_of_a_loss_that_is_out_of_range(loss, option):
    """It was refused at the first step, after the closed forms."""
    with pytest.raises(RangeError, match=next(iter(option))):
        objective(loss, **{"temperature": 0.1} | option if takes_temperature(loss) else option)
    if not takes_target(loss):
        with pytest.raises(RangeError, match=next(iter(option))):
            view_objective(loss, option.pop("temperature", 0.1), **option)
