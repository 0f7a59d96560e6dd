"""What one command takes, every command takes: gray images for an encoder of colours, and the other way."""

import pytest
import torch
from pretraining_toys import put_stripes

from querykey import embed, load_encoder, pretrain, read_source
from querykey.evaluation.knn import knn_correct
from querykey.runs.compare import compare_runs
from querykey.runs.data import DataAt
from querykey.runs.evaluate_encoder import KNN_TEMPERATURE, evaluate_encoder

SETTINGS = {
    "backbone": "small_cnn:4", "batch_size": 8, "head": "none", "precision": "float32",
    "layout": "contiguous", "held_out": 4, "num_evals": 0, "views.size": 8, "steps": 1,
}  # fmt: skip
CHANNELS = {"gray": 1, "colour": 3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Images of both kinds, a pretraining on each."""
    folder = tmp_path_factory.mktemp("images")
    for name, channels in CHANNELS.items():
        for part, seed in (("train", 0), ("test", 1)):
            put_stripes(folder / name / part, count=8, channels=channels, side=12, seed=seed)
        pretrain(folder / name / "train", out=folder / f"{name} run", **SETTINGS)
    return folder


@pytest.mark.parametrize(("trained", "given"), [("gray", "colour"), ("colour", "gray")])
def test_images_of_any_channels_are_evaluated_as_they_are_embedded(trained, given, runs, tmp_path):
    train, test = (read_source(runs / given / part) for part in ("train", "test"))
    encoder = load_encoder(runs / f"{trained} run")
    bank = embed(train, encoder, tmp_path / "train", batch_size=8)
    queries = embed(test, encoder, tmp_path / "test", batch_size=8)
    labels = [torch.as_tensor(side.labels) for side in (bank, queries)]
    correct = knn_correct(
        bank.vectors, labels[0], queries.vectors, labels[1], k=len(bank), temperature=KNN_TEMPERATURE
    )
    at = {part: DataAt(str(runs / given / part)) for part in ("train", "test")}
    found = evaluate_encoder(runs / f"{trained} run", at["test"], train=at["train"])
    assert found.per_query["h"]["kNN"].equal(correct)


def test_runs_of_other_channels_are_compared_on_the_same_images(runs):
    at = {part: DataAt(str(runs / "colour" / part)) for part in ("train", "test")}
    found = compare_runs([runs / "gray run", runs / "colour run"], on=at["test"], train=at["train"])
    assert set(found.table.cells) == {"gray run", "colour run"}
