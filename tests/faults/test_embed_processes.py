"""Two processes embed what one embeds, and go on where they were stopped."""

import sys

import pytest
import torch
from process_toys import commanded
from typer.testing import CliRunner

from querykey import read_features
from querykey.cli.main import app

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo of POSIX")
ROWS = 1200
"""Three shards of 512: the first and the third are those of the main process."""


def test_two_processes_that_were_stopped_end_with_the_features_of_one(tmp_path):
    table, out = tmp_path / "t.csv", tmp_path / "many"
    words = ["halt" if row == ROWS - 1 else f"word {chr(97 + row % 26)} {row}" for row in range(ROWS)]
    table.write_text("\n".join(["text", *words]) + "\n")
    command = ["embed", table, "--model", "cli.models:stopping", "--threads", 1, "--out"]
    alone = CliRunner().invoke(app, [*map(str, command), str(tmp_path / "alone")])
    assert alone.exit_code == 0, alone.output
    codes, _ = commanded([*command, out], 2, tmp_path / "stopped", {"STOP_AT": "halt"})
    assert codes[0] == 9
    assert codes[1] != 0
    assert not out.exists()
    assert (tmp_path / "many.querykey").is_dir()
    codes, said = commanded([*command, out], 2, tmp_path / "resumed", {})
    assert codes == [0, 0], said
    assert "resum" in said
    assert torch.equal(read_features(out).vectors, read_features(tmp_path / "alone").vectors)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "alone",
        "many",
        "resumed",
        "stopped",
        "t.csv",
    ]
