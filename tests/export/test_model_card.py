"""An export says what it is, in the Hub's form, with the figures of its fit."""

import json

import pytest

from querykey.adapter.checkpoint import read_saved
from querykey.encoders.heads import FCLayer
from querykey.export import Origin, export_safetensors
from querykey.export.model_card import front_matter, limits, results_section

REPORT = {
    "measure": "log p(own class)", "verdict": "better", "reference": "pca", "start": -0.5, "best": -0.25,
    "difference": {"mean": 0.25, "low": 0.125, "high": 0.375, "queries": 1797},
    "checked": {
        "R@1": {"ours": 0.9, "reference": 0.8, "mean": 0.1, "low": 0.05, "high": 0.15, "queries": 900}
    },
}  # fmt: skip


@pytest.mark.parametrize("library", ["sentence-transformers", "onnx", "querykey"])
def test_the_front_matter_is_what_the_hub_reads(library):
    yaml = pytest.importorskip("yaml")
    text = front_matter(library, model="st:org/name", data_key="123e4")
    assert text.startswith("---\n")
    assert text.endswith("\n---")
    said = yaml.safe_load(text.strip("-"))
    assert said["library_name"] == library
    assert said["base_model"] == "org/name"
    assert said["querykey"] == {"data_fingerprint": "123e4"}
    assert "querykey" in said["tags"]


@pytest.mark.parametrize("model", ["", "st:/home/me/model", "st:./model", "st:.."])
def test_a_path_is_no_base_model(model):
    assert "base_model" not in front_matter("onnx", model=model, data_key="")


def test_what_was_measured_stands_with_its_intervals():
    text = results_section(REPORT)
    assert "Verdict of the fit: better." in text
    assert "| log p(own class) | -0.2500 | -0.5000 | +0.2500 [+0.1250, +0.3750] | 1,797 |" in text
    assert "| R@1 | 0.9000 | 0.8000 | +0.1000 [+0.0500, +0.1500] | 900 |" in text


def test_why_nothing_was_checked_is_said():
    assert "- new classes: not validated" in results_section(
        REPORT | {"checked": {"new classes": "not validated"}}
    )


def test_a_report_of_version_0_1_names_its_measure():
    from architecture.source import ROOT

    text = results_section(read_saved(ROOT / "tests/fixtures/adapter-0.1").report)
    assert "| Recall@1 | 0.8340 | 0.8340 |" in text


def test_an_export_carries_its_card(tmp_path):
    origin = Origin("query", "ab12", "st:org/name", data_key="f00d", report=json.loads(json.dumps(REPORT)))
    export_safetensors(FCLayer(4, 4, kind="residual"), tmp_path / "out", origin=origin)
    text = (tmp_path / "out" / "README.md").read_text()
    for part in (
        "library_name: querykey",
        "base_model: org/name",
        "f00d",
        "+0.1000 [+0.0500",
        limits("query"),
    ):
        assert part in text


def test_a_layer_without_a_fit_says_so(tmp_path):
    export_safetensors(FCLayer(4, 4, kind="residual"), tmp_path / "out")
    assert "nothing measured is known" in (tmp_path / "out" / "README.md").read_text()
