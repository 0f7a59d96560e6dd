"""The JavaScript module gives the estimator's rows from the same folder."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from architecture.source import ROOT

from querykey import Adapter
from querykey.encoders.heads import FCLayer

NODE = shutil.which("node")
MODULE = ROOT / "examples" / "browser" / "querykey.js"
pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")
CODE = """
import { readFile } from "node:fs/promises";
const { load } = await import(process.argv[2]);
const read = async (path) => { const file = await readFile(path); return Uint8Array.from(file).buffer; };
const adapter = await load(process.argv[3], read);
const rows = JSON.parse(await readFile(process.argv[4], "utf8"));
console.log(JSON.stringify(rows.map((row) => Array.from(adapter.transform(row)))));
"""


def in_node(saved, rows, tmp_path):
    (tmp_path / "call.mjs").write_text(CODE)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return subprocess.run(
        [NODE, tmp_path / "call.mjs", MODULE, saved, tmp_path / "rows.json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "dim"), [("linear", 5), ("residual", 12), ("two_layer", 5)])
def test_rows_are_those_of_the_estimator(kind, dim, tmp_path):
    X = np.random.default_rng(0).standard_normal((150, 12)).astype(np.float32)
    adapter = Adapter(dim=dim, fc=kind, steps=0).fit(X, np.arange(150) % 2)
    layer = FCLayer(12, dim, kind=kind)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 2)
    adapter.fc_ = layer
    adapter.save(tmp_path / "run")
    done = in_node(tmp_path / "run", X.tolist(), tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), adapter.transform(X), rtol=0, atol=1e-6)


def test_a_folder_of_version_0_1_is_read(tmp_path):
    saved = ROOT / "tests/fixtures/adapter-0.1"
    done = in_node(saved, np.eye(6).tolist(), tmp_path)
    assert done.returncode == 0, done.stderr
    want = Adapter.load(saved).transform(np.eye(6, dtype=np.float32))
    np.testing.assert_allclose(json.loads(done.stdout), want, rtol=0, atol=1e-6)


def test_what_is_damaged_or_does_not_fit_is_refused(tmp_path):
    saved = shutil.copytree(ROOT / "tests/fixtures/adapter-0.1", tmp_path / "saved")
    assert "a row of 6 numbers is needed, got 5" in in_node(saved, [[1.0] * 5], tmp_path).stderr
    weights = saved / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "its checksum differs from adapter.json" in in_node(saved, [[1.0] * 6], tmp_path).stderr


def test_it_has_no_dependencies():
    text = MODULE.read_text()
    assert "require(" not in text
    code = [line for line in text.splitlines() if not line.startswith("//")]
    assert not [line for line in code if line.startswith("import ")]
