"""Images a second of every method of pretraining beside SimCLR: same network, batch and views, in turns.

A forward pass is one unit and backward two: SimCLR spends 6 an image, MoCo 4, a memory bank and XBM 3. What
is left to a faster method after views, look-up and optimiser is what this measures, on noise: what is in an
image costs nothing.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from timing import Row, in_turns, median_ratio

from querykey.data.items import Source
from querykey.pretraining.run import TrainingRun
from querykey.pretraining.settings.methods import METHODS
from querykey.runs.pretrain import pretrain

NETWORKS: dict[str, dict[str, Any]] = {
    "small_cnn": {"batch_size": 256},
    "ResNet-18, small stem": {"batch_size": 64, "backbone": "torchvision:resnet18", "backbone.stem": "small"},
}
"""With settings; images of 32 x 32 pixels, views of 24."""
COMPARED = {"small_cnn": tuple(METHODS), "ResNet-18, small stem": ("simclr", "moco")}
IMAGES, STEPS, TURNS, LEAST = 4096, 4, 5, 1.3
COMMON: dict[str, Any] = {
    "precision": "float32",
    "layout": "channels_last",
    "views": "small_images",
    "num_evals": 0,
    "steps": 10_000,
}


def measure() -> list[Row]:
    """A row a method and network."""
    source, rows = some_images(), []
    for network, settings in NETWORKS.items():
        steps: dict[str, Callable[[], None]]
        steps = {method: stepper(source, method, settings) for method in COMPARED[network]}
        taken = in_turns(steps, TURNS)
        images = STEPS * settings["batch_size"]
        for method, seconds in taken.items():
            if method == "simclr":
                continue
            ratio = median_ratio(taken["simclr"], seconds)
            is_asked = method == "moco"
            rows.append(
                Row(
                    f"{method}, {network}: images a second by SimCLR's",
                    ratio,
                    f"at least {LEAST:g}" if is_asked else "",
                    ratio >= LEAST if is_asked else None,
                    {
                        "images_per_s": round(images / min(seconds)),
                        "simclr_images_per_s": round(images / min(taken["simclr"])),
                    },
                )
            )
    return rows


def stepper(source: Source, method: str, settings: dict[str, Any]) -> Callable[[], None]:
    """Takes some steps of a run each time it is called, views included."""
    kept: list[TrainingRun] = []
    pretrain(source, method=method, on_fit_start=kept.append, stop=lambda: True, **COMMON | settings)
    (run,) = kept
    run.learner.fill_()
    place = 1

    def steps() -> None:
        nonlocal place
        for pair in run.images.walk(place, place + STEPS):
            run.learner.training_step(place, pair)
            place += 1

    return steps


def some_images() -> Source:
    """Noise with labels, in memory."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    images, ids = [Image.fromarray(one) for one in pixels], [str(row) for row in range(IMAGES)]
    names = tuple(str(label) for label in range(10))
    return Source("noise", "image", images, ids, draw.integers(0, 10, IMAGES), names, "noise")
