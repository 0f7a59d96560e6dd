"""Small images and small settings for the tests of pretraining."""

import numpy as np
from PIL import Image

from querykey.records import read

TINY = {
    "backbone": "small_cnn:4", "batch_size": 32, "head_dim": 16, "precision": "float32",
    "layout": "contiguous", "held_out": 40, "looks": 2, "views": "digits", "view_size": 8,
}  # fmt: skip
"""On `sklearn:digits`, with nothing left to measure but the time of a step."""
DIGITS = "sklearn:digits"
SECONDS = {"seconds", "view_seconds"}


def put_stripes(folder, *, count=12, classes=("across", "down"), channels=1, side=16, seed=0):
    """A folder a class: stripes across or down at any phase, under noise; a third class is noise alone."""
    draw = np.random.default_rng(seed)
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            wave = 255.0 * ((np.arange(side) + draw.integers(4)) % 4 < 2)
            image = np.tile(wave, (side, 1))
            image = {0: image.T, 1: image}.get(place, np.full((side, side), 128.0))
            image = image[..., None] + draw.normal(0, 40, (side, side, channels))
            pixels = image.clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(folder / name / f"{number}.png")
    return folder


def metrics(folder):
    """The records of a run without what a clock says."""
    return [
        {name: value for name, value in record.items() if name not in SECONDS}
        for record in read(folder / "metrics.jsonl")
    ]


def after(steps):
    """A `stop` that says so once it was asked so many times."""
    asked = iter(range(1, 10**6))
    return lambda: next(asked) >= steps
