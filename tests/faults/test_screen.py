"""What stands on the screen: true, complete, whole at 80 columns, escaped, and there without a terminal."""

import re
import time
import warnings

import numpy as np
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from querykey.cli import console
from querykey.cli.console import escaped, line, progress
from querykey.cli.errors import _data_warnings_as_notes
from querykey.cli.main import COMMANDS, app
from querykey.config.settings import describe_keys
from querykey.errors import DataWarning
from querykey.runs.pretrain_settings import PretrainFile

ALONE = {"device": {"export", "doctor"}, "seed": {"export"}}
"""Options that are taken and change nothing: hidden."""


def querykey(*words):
    done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return done.stdout


def test_terminal_controls_are_shown_escaped():
    assert escaped("a\x1b[31mb\x9b\r\u202e\udcff\tc\nd") == "a\\x1b[31mb\\x9b\\r\\u202e\\udcff\tc\nd"


def test_names_of_files_in_a_note_are_shown_escaped(capsys):
    with _data_warnings_as_notes():
        warnings.warn("left out: a\x1b[31m.png", DataWarning, stacklevel=1)
    assert capsys.readouterr().err == "note: left out: a\\x1b[31m.png\n"


def test_without_a_terminal_a_line_says_how_far_the_work_is(capsys, monkeypatch):
    monkeypatch.setattr(console, "QUIET_SECONDS", 0.01)
    with progress("embedding x") as tick:
        tick(1000, 2000)
        time.sleep(0.05)
    assert set(capsys.readouterr().err.splitlines()) == {"embedding x: 1,000 of 2,000"}
    with progress("evaluating x"):  # nothing reports
        time.sleep(0.05)
    assert set(capsys.readouterr().err.splitlines()) == {"evaluating x: 0 s"}


def test_a_long_line_is_indented_as_it_begins(capsys):
    line("  " + "word " * 30)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2
    assert all(re.fullmatch("  (word )+word", part) and len(part) <= 80 for part in shown)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained_within_80_columns(command):
    help_text = querykey(command, "--help")
    assert max(map(len, help_text.splitlines())) <= 80
    for parameter in get_command(app).get_command(None, command).params:
        names, hidden = set(parameter.opts), getattr(parameter, "hidden", False)
        assert hidden == (command in ALONE.get(parameter.name, ()))
        if not hidden:
            assert parameter.help
            assert all(name in help_text for name in names if name.startswith("-"))


@pytest.mark.parametrize("topic", ["sources", "settings", "pretraining"])
def test_every_topic_is_a_table_of_80_columns(topic):
    lines = querykey("help", topic).splitlines()
    assert max(map(len, lines)) <= 80
    if topic != "sources":
        table = lines[lines.index("") + 1 :]
        start = table[0].index(table[0].split()[1])
        assert all(one[start - 1] == " " and one[start] != " " for one in table)


def test_settings_that_are_lists_are_said_to_be_lists():
    said = dict(one.split(maxsplit=1) for one in describe_keys(PretrainFile).splitlines() if one[0] != " ")
    assert said["views.crop_scale"] == "[number, number]"
    assert said["views.mean"] == "[number, ...]"
    assert said["method"].startswith("simclr | ")


@pytest.mark.parametrize("command", ["transform", "search", "size"])
def test_commands_for_adapters_name_no_pretraining(command):
    assert "pretrain" not in querykey(command, "--help")


def test_queries_of_a_table_are_transformed_by_their_column(tmp_path):
    """Sources that `search` and `evaluate` take, `transform` takes with the same options."""
    texts = [f"{one} {other}" for one in "abcd" for other in "efgh"]
    table, features, run = tmp_path / "t.csv", tmp_path / "f", tmp_path / "run"
    table.write_text("text,question\n" + "".join(f"{text},{text[0]}\n" for text in texts))
    columns = ("--column", "text", "--pair-column", "question")
    querykey("embed", table, "--model", "cli.models:letters", "--out", features, *columns)
    querykey("adapt", features, "--out", run, "--dim", 2, "--set", "candidates=closed_form")
    querykey("transform", run, table, "--queries", *columns, "--out", tmp_path / "q.npy")
    assert np.load(tmp_path / "q.npy").shape == (4, 2)
