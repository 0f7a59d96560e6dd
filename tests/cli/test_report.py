"""`querykey report`: one page of runs and studies, the same bytes each time, and readable in a browser."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from report_samples import CELLS, matrix, study, write_study

from querykey import Adapter
from querykey.evaluation.table import tabulate
from querykey.reports.page.page import sections_of

MOST = 200_000
"""Bytes of a section."""


@pytest.fixture(scope="module")
def adapter(labelled_run, tmp_path_factory):
    """A run with what an evaluation writes in its folder; the table is the evaluation's own."""
    out = tmp_path_factory.mktemp("report") / "adapter <run>"
    shutil.copytree(labelled_run, out)
    hits = {"frozen": [0, 1, 0, 1] * 20, "whitened_pca": [0, 0, 1, 0] * 20, "adapter": [1, 1, 0, 1] * 20}
    table = tabulate(
        {name: {"R@1": torch.tensor(hit, dtype=torch.float64)} for name, hit in hits.items()},
        figures={"adapter": {"dim": 4.0}}, references=["frozen", "whitened_pca"],
        protocol={"asked": 80, "on": {"spec": "new data"}},
    )  # fmt: skip
    (out / "evaluation.json").write_text(json.dumps(table.as_dict()))
    return out


@pytest.fixture(scope="module")
def pretraining(querykey, tmp_path_factory):
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("pretrained")
    generator = np.random.default_rng(0)
    for label, colour in enumerate(generator.integers(0, 200, (3, 16, 16, 3))):
        (folder / "images" / "abc"[label]).mkdir(parents=True)
        for place in range(16):
            pixels = colour + generator.integers(0, 50, (16, 16, 3))
            image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / "abc"[label] / f"{place}.png")
    sets = ["steps=4", "batch_size=16", "num_evals=2", "dictionary.capacity=32", "held_out=12"]
    sets += ["precision=float32", "layout=contiguous", "backbone=small_cnn:8"]
    said = querykey(
        "pretrain", "--data", folder / "images", "--method", "moco", "--out", folder / "moco",
        *(word for one in sets for word in ("--set", one)),
    )  # fmt: skip
    assert said.code == 0, said.err
    said = querykey("embed", folder / "images", "--model", folder / "moco", "--out", folder / "h")
    assert said.code == 0, said.err
    return folder


@pytest.fixture(scope="module")
def sized(querykey, data, tmp_path_factory):
    """A run of several sizes with codes and search times; nothing is trained."""
    out = tmp_path_factory.mktemp("sized") / "sizes"
    made = querykey(
        "adapt", data / "train.npz", "--out", out, "--labels", "y", "--dims", "12,8", "--bits", "8",
        "--set", "steps=0", "--set", "batch_size=32",
    )  # fmt: skip
    assert made.code == 0, made.err
    timed = querykey("size", out, "--time", data / "test.npz", "--out", out / "search_times.json")
    assert timed.code == 0, timed.err
    return out


@pytest.fixture(scope="module")
def folders(adapter, pretraining, text_run, sized, tmp_path_factory):
    studies = tmp_path_factory.mktemp("studies")
    return [
        write_study(studies / "momentum"), write_study(studies / "pairs", **matrix()), adapter, text_run,
        pretraining / "moco", sized,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def page(querykey, folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("page")
    said = querykey("report", *folders, "--out", out / "report.html", "--figures", out / "figures")
    assert said.code == 0, said.err
    assert said.out.startswith(f"{out / 'report.html'}: ")
    return out / "report.html"


def text_of(page):
    """What a reader reads, without style, scripts and drawings."""
    whole = re.sub(r"<(style|script|svg).*?</\1>", "", page.read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", whole))


def test_the_same_runs_give_the_same_bytes(querykey, folders, page):
    first, figures = page.read_bytes(), {f.name: f.read_bytes() for f in (page.parent / "figures").iterdir()}
    page.unlink()
    shutil.rmtree(page.parent / "figures")
    querykey("report", *folders, "--out", page, "--figures", page.parent / "figures")
    assert page.read_bytes() == first
    assert {f.name: f.read_bytes() for f in (page.parent / "figures").iterdir()} == figures
    assert len(first) < MOST * len(folders)
    assert {"momentum-1.svg", "pairs-1.svg", "adapter-run-1.svg", "moco-1.svg"} <= set(figures)


def test_nothing_is_loaded_from_anywhere(page):
    text = page.read_text()
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", text)
    assert "@import" not in text
    assert not re.search(r"url\((?!data:)", text)


def test_what_is_on_it(page, adapter):
    text = text_of(page)
    for words in (
        "Is slow better than fast?", "0.610 against 0.500", "Published: yes, by 3 points",
        "Not finished: 6 of 9", "Is the adapter better than the frozen features?",
        "Comparison with baselines",
        "whitened PCA", "Before and after", "What changed most", "The worst failures",
        "Top-k rows of the memory", "false negative", "Training", "Candidates of the loss",
        "querykey adapt", "Resolved settings", "apple and", "Map: adapted, PCA",
        "moco pretraining of small_cnn:8", "querykey pretrain", "Effective rank", "Drift of the stored keys",
        "Age of the keys", "log of the candidates", "querykey report",
    ):  # fmt: skip
        assert words in text or words in page.read_text(), words
    evaluation = json.loads((adapter / "evaluation.json").read_text())
    cell = evaluation["methods"]["adapter"]["metrics"]["R@1"]
    assert f"R@1 {cell['mean']:.3f} against " in text
    assert f"[{cell['against']['frozen']['low']:+.3f}, {cell['against']['frozen']['high']:+.3f}]" in text


def test_sizes_are_shown_with_the_recommended_point_and_the_search_time(page, sized):
    text, frontier = text_of(page), json.loads((sized / "adapter.json").read_text())["frontier"]
    (best,) = [point for point in frontier if point["recommended"]]
    stored = {32: "float", 8: "int8"}
    for point in frontier:
        mark = " recommended" if point is best else ""
        words = f"{point['dim']} {stored[point['bits']]} {point['bytes']} {point['quality']:.3f} "
        interval = f"[{point['low']:.3f}, {point['high']:.3f}]"
        assert f"{words}{interval}{mark}" in text
    assert "Recommended is the point of fewest bytes that keeps 98% of the quality" in text
    times = json.loads((sized / "search_times.json").read_text())["times"]
    assert f"exact 12 float 48 {times[0]['milliseconds']:.3f}" in text
    assert f"recommended: {best['low']:.4g}"[:15] in page.read_text()


def test_search_times_that_are_not_there_have_their_command(querykey, sized, data, tmp_path):
    shutil.copytree(sized, tmp_path / "run")
    (tmp_path / "run" / "search_times.json").unlink()
    assert querykey("report", tmp_path / "run", "--out", tmp_path / "report.html").code == 0
    command = f"querykey size {tmp_path / 'run'} --time FEATURES --out {tmp_path / 'run/search_times.json'}"
    assert command in text_of(tmp_path / "report.html")


def test_names_are_shown_literally_and_not_as_markup(page):
    whole = page.read_text()
    assert "adapter &lt;run&gt;" in whole
    assert "<run>" not in whole
    assert "colour &lt;&amp;&gt;" in whole


def test_a_pretraining_with_features_has_neighbours_too(querykey, pretraining, tmp_path):
    out = tmp_path / "report.html"
    said = querykey("report", pretraining / "moco", "--features", pretraining / "h", "--out", out)
    assert said.code == 0, said.err
    text = text_of(out)
    assert "Retrieval" in text
    assert "Map: h, PCA" in out.read_text()
    assert "What changed most" not in text


def test_features_that_are_given_are_the_ones_that_are_shown(querykey, labelled_run, data, tmp_path):
    out = tmp_path / "report.html"
    assert querykey("report", labelled_run, "--features", data / "test.npz", "--out", out).code == 0
    text = text_of(out)
    assert f"on {data / 'test.npz'}?" in text
    assert "90 queries" in text
    assert "was fitted on these rows, so it scores higher" not in text
    assert "Not measured yet. This command measures it" in text


def refused(querykey, *arguments):
    said = querykey("report", *arguments)
    assert (said.code, said.out) == (2, "")
    return said.err


def test_mistakes_are_one_message_and_leave_nothing(querykey, labelled_run, data, tmp_path, page):
    out = tmp_path / "report.html"
    assert refused(querykey, tmp_path / "none", "--out", out) == (
        f"error: there is nothing at {tmp_path / 'none'}; give the folder of a run or of a study\n"
    )
    assert "is neither a run nor a study; give a folder that querykey adapt" in refused(
        querykey, data, "--out", out
    )
    assert f"{page} exists already" in refused(querykey, labelled_run, "--out", page)
    assert "exists already" in refused(
        querykey, labelled_run, "--out", out, "--figures", page.parent / "figures"
    )
    two = refused(querykey, labelled_run, labelled_run, "--features", data / "test.npz", "--out", out)
    assert "features are for a report of one run; 2 are given" in two
    assert not [*tmp_path.iterdir()]


def test_moved_features_must_be_named(querykey, labelled_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(labelled_run, run)
    described = json.loads((run / "run.json").read_text())
    described["features"]["at"]["spec"] = str(tmp_path / "moved.npz")
    (run / "run.json").write_text(json.dumps(described))
    said = refused(querykey, run, "--out", tmp_path / "report.html")
    assert (
        f"its training features are missing or have changed (they were at {tmp_path / 'moved.npz'})" in said
    )
    assert "; give features" in said


def test_features_of_another_width_or_model_are_refused(
    querykey, labelled_run, text_run, text_features, data, tmp_path
):
    out, other = tmp_path / "report.html", tmp_path / "other"
    assert "rows are 32 wide; the run was fitted on 12" in refused(
        querykey, labelled_run, "--features", text_features, "--out", out
    )
    said = querykey(
        "embed", data / "texts.csv", "--model", "cli.models:other_letters", "--out", other, "--column", "text"
    )
    assert said.code == 0, said.err
    assert "and the run was fitted on features of cli.models:letters" in refused(
        querykey, text_run, "--features", other, "--out", out
    )


def test_an_adapter_that_was_saved_alone_needs_features(querykey, labelled_run, data, tmp_path):
    Adapter.load(labelled_run).save(tmp_path / "saved")
    words = "its training features are missing or have changed (the run does not record their location)"
    assert words in refused(querykey, tmp_path / "saved", "--out", tmp_path / "a.html")
    out = tmp_path / "b.html"
    assert querykey("report", tmp_path / "saved", "--features", data / "test.npz", "--out", out).code == 0
    assert "The folder has no report of its training." in text_of(out)


def test_a_pretraining_that_has_only_begun_is_shown(querykey, pretraining, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pretraining / "moco", run)
    for name in ("encoder.json", "encoder.safetensors"):
        (run / name).unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    steps = [line for line in lines if '"step": 4' not in line and '"step": 3' not in line]
    (run / "metrics.jsonl").write_text("".join(steps) + '{"kind": "st')
    assert querykey("report", run, "--out", tmp_path / "a.html").code == 0
    assert "Not finished: 2 of 4 steps are done." in text_of(tmp_path / "a.html")
    (run / "metrics.jsonl").unlink()
    assert querykey("report", run, "--out", tmp_path / "b.html").code == 0
    assert "Nothing is recorded yet." in text_of(tmp_path / "b.html")


@pytest.mark.parametrize("file", ["run.json", "metrics.jsonl"])
def test_damaged_files_are_named(querykey, labelled_run, tmp_path, file):
    run = tmp_path / "run"
    shutil.copytree(labelled_run, run)
    (run / file).write_text("nonsense\n")
    assert f"{run / file}" in refused(querykey, run, "--out", tmp_path / "report.html")
    study_folder = write_study(tmp_path / "study", described=study(), records=CELLS)
    (study_folder / "records.jsonl").write_text("nonsense\n")
    assert "records.jsonl: line 1 is no record" in refused(
        querykey, study_folder, "--out", tmp_path / "a.html"
    )


def test_a_report_of_studies_alone_loads_no_torch(folders):
    import subprocess

    code = (
        "import sys; from pathlib import Path; from querykey.reports.page import render, sections_of\n"
        f"render(sections_of([Path({str(folders[0])!r})]), command='c'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sections_have_names_of_their_own(adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "Adapter  RUN")
    sections = sections_of([adapter, tmp_path / "Adapter  RUN"])
    assert [section.name for section in sections] == ["adapter-run", "adapter-run-2"]


TOO_WIDE = """[...document.querySelectorAll("main *")].filter((one) =>
  !one.closest(".wide") && !one.closest("svg") && one.getBoundingClientRect().right > innerWidth + 1
).map((one) => one.className || one.tagName)"""

TOO_FAINT = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const parse = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (c) => {
    const parts = c.slice(0, 3).map((v) => v / 255);
    const [r, g, b] = parts.map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return parse(getComputedStyle(document.body).backgroundColor);
  };
  const faint = [];
  let seen = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
    if (element.closest("script, svg.drawing text[fill^='#']")) continue;
    const style = getComputedStyle(element);
    const colour = parse(element.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(colour), light(behind(element))].sort((x, y) => y - x);
    seen += 1;
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) faint.push([walker.currentNode.data.trim().slice(0, 40), ratio]);
  }
  return { faint, seen };
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


SHOWN = "[...document.querySelectorAll('svg.drawing')].filter(e => e.getClientRects().length)"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_in_a_browser(browser, page, width, scheme):
    browser.open(page, width=width, scheme=scheme)
    charts = browser.run("document.querySelectorAll('figure').length")
    assert charts >= 20
    kind = "narrow" if width == 390 else "broad"
    assert browser.run(f"{SHOWN}.map(e => e.classList[1])") == [kind] * charts
    assert browser.run(f"{SHOWN}.every(e => e.querySelector('[aria-label]'))")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(TOO_WIDE) == []
    # text keeps its size: a drawing is made for the width that it is shown at
    scales = browser.run(f"{SHOWN}.map(e => e.clientWidth / e.viewBox.baseVal.width)")
    assert min(scales) > 0.93
    assert max(scales) <= 1.01
    found = browser.run(TOO_FAINT)
    assert found["faint"] == []
    assert found["seen"] > 500
    back = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(15, 18, 22)") == (scheme == "dark")
    assert browser.errors == []


def test_on_paper_charts_are_drawn_on_white(browser, page):
    browser.open(page, width=800, scheme="dark", media="print")
    charts = browser.run("document.querySelectorAll('figure').length")
    assert browser.run(f"{SHOWN}.length") == charts
    assert browser.run("getComputedStyle(document.body).color") == "rgb(31, 35, 40)"
    assert browser.run(TOO_FAINT)["faint"] == []


def test_the_pointer_finds_the_numbers_of_a_mark(browser, page):
    browser.open(page)
    mark = f"{SHOWN}[0].querySelector('[aria-label]')"
    browser.run(f"{mark}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    x, y = browser.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({mark}.getBoundingClientRect())")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    said = browser.run("(t => t.hidden ? '' : t.textContent)(document.getElementById('tip'))")
    labels = browser.run(
        f"[...{SHOWN}[0].querySelectorAll('[aria-label]')].map(e => e.getAttribute('aria-label'))"
    )
    assert said in labels


def test_charts_follow_the_colours_of_the_page(browser, page):
    browser.open(page, scheme="light")
    ink = "getComputedStyle(document.querySelector('svg.drawing text[fill=\"var(--ink)\"]')).fill"
    assert browser.run(ink) == "rgb(31, 35, 40)"
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.call("Emulation.setEmulatedMedia", media="", features=dark)
    assert browser.run(ink) == "rgb(230, 233, 237)"
    assert browser.errors == []
