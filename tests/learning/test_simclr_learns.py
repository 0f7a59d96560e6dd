"""A pretraining learns what the images show: judged by kNN of h, as a loss says little of it."""

import torch

from querykey import pretrain
from querykey.pretraining import autotune


def test_neighbours_by_h_share_the_digit_more_often_than_before_training(monkeypatch):
    monkeypatch.setattr(autotune, "TRIALS", 1)
    monkeypatch.setattr(autotune, "STEADY_TRIALS", 1)
    torch.set_num_threads(1)
    run = pretrain(
        "sklearn:digits", backbone="small_cnn:8", batch_size=64, steps=60, precision="float32",
        layout="contiguous", held_out=179, num_evals=1, views={"preset": "digits", "crop_scale": (0.5, 1.0)},
    )  # fmt: skip
    start, end = run.report["start"], run.report["end"]
    assert end["knn_queries"] == 179
    assert end["knn"] > start["knn"] + 0.05
    assert end["pretext"] > 2 * start["pretext"]
    assert end["effective_rank_h"] > 5
