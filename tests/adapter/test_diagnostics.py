"""Items that are one, what ends a run, and what is recorded of its health."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from querykey.adapter.fit import fit_adapter
from querykey.adapter.relevance import same_items
from querykey.adapter.settings import AdapterSettings


def rows(n, width=8, seed=0):
    return F.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_equal_and_near_equal_rows_share_an_id():
    x = rows(5)
    near = F.normalize(x[1:2] + 1e-4, dim=1)
    ids, first = same_items(torch.cat([x, x[3:4], near]))
    assert ids.tolist() == [0, 1, 2, 3, 4, 3, 1]
    assert first.tolist() == [0, 1, 2, 3, 4]


def test_a_collapse_stops_the_run_with_its_reason_and_the_start_comes_back():
    """A contrastive loss whose positives reach across all classes pulls everything onto one line."""
    x = rows(200, width=16)
    labels = torch.arange(200) % 2
    settings = AdapterSettings.from_parameters(
        dim=8, steps=200, batch_size=32, learning_rate=0.1, loss="contrastive", start="pca",
        loss_options={"positive_margin": 1.0, "negative_margin": 0.999},
    )  # fmt: skip
    with pytest.warns(UserWarning, match="the rows have collapsed: effective rank"):
        fitted = fit_adapter(x, settings, labels=labels)
    assert fitted.report["stopped"].startswith("the rows have collapsed")
    assert bool(torch.isfinite(fitted.fc(x)).all())


def test_every_record_has_diagnostics_and_with_labels_false_negatives():
    labels = torch.arange(120) % 4
    seen = fit_adapter(
        rows(120), AdapterSettings.from_parameters(dim=4, steps=25, batch_size=32), labels=labels
    ).history
    wanted = {"step", "validation", "loss",  "positive_score", "negative_score", "gradient_norm",
              "fill",
              "age_mean", "age_max", "effective_rank", "false_negatives_label"}  # fmt: skip
    assert all(wanted <= set(record) for record in seen)
    assert all(record["fill"] == 1.0 and record["false_negatives_label"] == 0.0 for record in seen)


@pytest.mark.parametrize(
    ("settings", "labels", "candidates"),
    [
        ({"batch_size": 32, "memory": "in_batch"}, True, 31),
        ({"batch_size": 32, "sampled": 0, "negatives": 0}, True, 31),
        ({"batch_size": 32, "sampled": 108, "negatives": 0}, True, 95),  # of five folds
        ({"batch_size": 32}, False, 107),
    ],
)
def test_diagnostics_count_the_rows_per_query(settings, labels, candidates):
    classes = torch.arange(120) % 4 if labels else None
    seen = fit_adapter(
        rows(120), AdapterSettings.from_parameters(dim=4, steps=25, **settings), labels=classes
    ).history
    assert [record["candidates"] for record in seen] == [candidates] * len(seen)


def test_a_small_memory_is_live_and_its_rows_grow_old():
    x, labels = rows(300), torch.arange(300) % 4
    settings = AdapterSettings.from_parameters(dim=4, steps=25, batch_size=32, capacity=96, prefill=False)
    seen = fit_adapter(x, settings, labels=labels).history
    assert seen[0]["fill"] == pytest.approx(1 / 3)
    assert seen[3]["fill"] == 1.0
    assert seen[3]["age_max"] == 2


def test_memory_mapped_rows_are_not_written_to(tmp_path):

    np.save(tmp_path / "x.npy", rows(100).numpy() * 3)
    before = (tmp_path / "x.npy").read_bytes()
    mapped = torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="c"))
    fit_adapter(mapped, AdapterSettings.from_parameters(dim=4, steps=10, batch_size=32, capacity=40))
    assert (tmp_path / "x.npy").read_bytes() == before
