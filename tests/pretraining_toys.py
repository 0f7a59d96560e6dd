"""Small images and small settings for the tests of pretraining."""

import numpy as np
from PIL import Image

from querykey.io.records import read

TINY = {
    "backbone": "small_cnn:4", "batch_size": 32, "head.dim": 16, "precision": "float32",
    "layout": "contiguous", "held_out": 40, "num_evals": 2, "views": "digits", "views.size": 8,
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


METHODS = ("simclr", "moco", "moco-v2", "moco-v3", "memory-bank", "end-to-end", "xbm")
_OF_METHODS = {
    "simclr": ("loss.learned_temperature=true",),
    "memory-bank": ("dictionary.contrast=nce", "dictionary.negatives=20", "dictionary.proximal=0.1"),
    "xbm": ("dictionary.warm_up=0.5", "dictionary.align=kalman", "dictionary.capacity=40"),
}


def small_run(images, out, method, *, steps, **settings):
    """Arguments of `querykey` for a run of a second that keeps its state after each step."""
    settings = {"precision": "float32", "layout": "contiguous"} | settings
    chosen = (
        "backbone=small_cnn:4", "batch_size=16", "head.dim=16", "held_out=6", "num_evals=3", "views.size=12",
        f"steps={steps}", *(f"{name}={value}" for name, value in settings.items()),
        *_OF_METHODS.get(method, ()),
    )  # fmt: skip
    arguments = ("pretrain", "--data", images, "--out", out, "--method", method, "--threads", 1)
    return *arguments, "--save-every", 0, *(part for one in chosen for part in ("--set", one))
