"""The command line in this process, and small data for it."""

import re

import numpy as np
import pytest
from typer.testing import CliRunner

from querykey.cli.main import app


class Said:
    """What a command said, with its lines joined and its code."""

    def __init__(self, result):
        self.code = result.exit_code
        self.out = result.stdout
        self.err = result.stderr
        self.exception = result.exception

    @property
    def flat(self):
        """Standard output without the line breaks that the width of the terminal makes."""
        return re.sub(r"\s+", " ", self.out)


@pytest.fixture(scope="session")
def querykey():
    def run(*arguments):
        said = Said(CliRunner().invoke(app, [str(argument) for argument in arguments]))
        # a traceback is a bug: only SystemExit may come out
        assert said.exception is None or isinstance(said.exception, SystemExit), repr(said.exception)
        return said

    return run


def clusters(rows, seed, *, classes=6, width=12):
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(classes, width))
    labels = generator.integers(0, classes, rows)
    return (centres[labels] + 0.8 * generator.normal(size=(rows, width))).astype(np.float32), labels


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """train.npz and test.npz of one kind, and texts.csv."""
    folder = tmp_path_factory.mktemp("data")
    for name, rows, seed in (("train", 240, 1), ("test", 90, 2)):
        X, y = clusters(rows, seed)
        np.savez(folder / f"{name}.npz", X=X, y=y)
    words = {"fruit": ["apple", "pear", "plum", "fig"], "metal": ["iron", "zinc", "gold", "tin"]}
    lines = ["text,kind,question"]
    lines += [f"{a} and {b},{kind},which {a}" for kind, own in words.items() for a in own for b in own]
    (folder / "texts.csv").write_text("\n".join(lines) + "\n")
    return folder


FAST = ("--set", "steps=5", "--set", "batch_size=32", "--set", "n_iter_no_change=9")


@pytest.fixture(scope="session")
def labelled_run(querykey, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "labelled"
    said = querykey("adapt", data / "train.npz", "--out", out, "--dim", 4, "--labels", "y", *FAST)
    assert said.code == 0, said.err
    return out


@pytest.fixture(scope="session")
def text_features(querykey, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("stores") / "texts"
    said = querykey(
        "embed", data / "texts.csv", "--model", "cli.models:letters", "--out", out, "--column", "text",
        "--label-column", "kind",
    )  # fmt: skip
    assert said.code == 0, said.err
    return out


@pytest.fixture(scope="session")
def text_run(querykey, text_features):
    out = text_features.parent / "run"
    said = querykey("adapt", text_features, "--out", out, "--dim", 4, "--labels", "label", *FAST)
    assert said.code == 0, said.err
    return out


@pytest.fixture(autouse=True)
def _short_trials(monkeypatch):
    """What `doctor` tries takes a moment, not seconds."""
    monkeypatch.setattr("querykey.adapter.cost.TRIAL_SECONDS", 0.01)
    monkeypatch.setattr("querykey.pretraining.autotune.ESTIMATE_LIMIT", 0.1)
