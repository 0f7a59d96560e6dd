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
console.log(JSON.stringify(rows.map((row) => CALL)));
"""


def in_node(saved, rows, tmp_path, *, call="Array.from(adapter.transform(row))"):
    (tmp_path / "call.mjs").write_text(CODE.replace("CALL", call))
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


KEYS = "[[32, 8], [32, 1], [16, 8], [16, 1], [8, 8], [8, 1]]"


def sized(kind, folder):
    """An adapter of three sizes with codes, in which every parameter counts, saved in a folder."""
    X = np.random.default_rng(0).standard_normal((120, 32)).astype(np.float32)
    adapter = Adapter(dims=(32, 16, 8), bits=[8, 1], fc=kind, steps=0, batch_size=32).fit(X)
    layer = FCLayer(32, 32, kind=kind)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 4)
    adapter.fc_ = layer
    adapter.save(folder)
    return adapter


@pytest.mark.parametrize("kind", ["linear", "two_layer", "residual"])
def test_sizes_are_those_of_the_estimator_and_codes_the_same_bits(kind, tmp_path):
    adapter = sized(kind, tmp_path / "run")
    draw = np.random.default_rng(1)
    X = (draw.standard_normal((60, 32)) * 10.0 ** draw.uniform(-12, 12, (60, 1))).astype(np.float32)
    call = (
        f"{KEYS}.map(([dim, bits]) => {{ const code = adapter.quantize(row, {{ dim, bits }}); return "
        "[adapter.transform(row, { dim }), code, adapter.decode(code, { dim, bits })]"
        ".map((one) => Array.from(one)); })"
    )
    done = in_node(tmp_path / "run", X.tolist(), tmp_path, call=call)
    assert done.returncode == 0, done.stderr
    for place, (dim, bits) in enumerate(json.loads(KEYS)):
        rows, codes, decoded = zip(*(row[place] for row in json.loads(done.stdout)), strict=True)
        np.testing.assert_allclose(rows, adapter.transform(X, dim=dim), rtol=0, atol=1e-6)
        want = adapter.quantize(X, dim=dim, bits=bits)
        np.testing.assert_array_equal(codes, want)
        np.testing.assert_allclose(decoded, adapter.code(dim=dim, bits=bits).decode(want), rtol=0, atol=1e-6)


def test_a_size_or_a_code_that_there_is_not_is_refused(tmp_path):
    saved = ROOT / "tests/fixtures/adapter-0.1"
    wanted = ["{ dim: 12 }", "{ bits: 8 }"]
    each = "(one) => { try { adapter.quantize(row, one) } catch (error) { return error.message } }"
    call = f"[{', '.join(wanted)}].map({each})"
    done = in_node(saved, [[1.0] * 6], tmp_path, call=call)
    assert done.returncode == 0, done.stderr
    size, code = json.loads(done.stdout)[0]
    assert size == "the sizes are 3; got dim 12"
    assert code == "this adapter has no codes of 8 bits; fit it again with them"


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
