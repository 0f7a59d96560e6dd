"""A probe finds what the rows hold of a change, and nothing where they hold nothing."""

import numpy as np
import pytest
import torch
from PIL import Image

from querykey.data.augment.views import RGB_DEVIATION, RGB_MEAN
from querykey.data.pixels.pixels import read_pixels
from querykey.data.readers.open import read_source
from querykey.encoders.projection import ViewEncoder
from querykey.pretraining.saved_encoder import SavedEncoder
from querykey.pretraining.settings.methods import given_settings
from querykey.pretraining.settings.resolve import resolve_settings
from querykey.studies.engine.measure_encoders import TRANSFORMATIONS, probe


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Smooth images in colour, bright above and dark below: to train on, and to ask for."""
    draw, made = np.random.default_rng(0), []
    for part, count in (("train", 300), ("test", 120)):
        folder = tmp_path_factory.mktemp(part)
        for number in range(count):
            colour = draw.uniform(0.2, 0.8, 3)
            image = np.linspace(1.0, 0.2, 16)[:, None, None] * colour * np.ones((16, 16, 3))
            Image.fromarray((255 * image).astype(np.uint8)).save(folder / f"{number:03}.png")
        made.append(read_pixels(read_source(folder), size=16))
    return made


def described(images):
    """What tells each change: how far the channels are apart, where it is bright, how rough it is."""
    deviation, mean = (torch.tensor(x)[:, None, None] for x in (RGB_DEVIATION, RGB_MEAN))
    pixels = images * deviation + mean
    apart = (pixels.amax(dim=1) - pixels.amin(dim=1)).mean(dim=(1, 2))
    gray = pixels.mean(dim=1)
    slopes = [
        gray[:, :8].mean((1, 2)) - gray[:, 8:].mean((1, 2)),
        gray[:, :, :8].mean((1, 2)) - gray[:, :, 8:].mean((1, 2)),
    ]
    rough = gray.diff(dim=2).diff(dim=2).abs().mean((1, 2))
    return torch.stack([apart, *slopes, rough, gray.mean((1, 2)), gray.amin((1, 2))], dim=1)


class Describing(ViewEncoder):
    """h holds what tells each change, z nothing; in train mode it holds nothing either."""

    def __init__(self):
        torch.nn.Module.__init__(self)

    def forward(self, images):
        nothing = torch.zeros(len(images), 3)
        return (nothing if self.training else described(images)), nothing


def saved():
    settings = resolve_settings(given_settings("simclr", image_size=16), images=300, channels=3, side=16)
    return SavedEncoder(Describing(), settings, 3)


def test_probes_find_what_rows_contain(sides):
    found = probe(saved(), *sides, seed=0)
    assert {name.rpartition(" ")[0] for name in found} == set(TRANSFORMATIONS)
    for name, chance in zip(TRANSFORMATIONS, (0.5, 0.25, 0.5, 0.5), strict=True):
        right = {rows: float(found[f"{name} {rows}"].mean()) for rows in "hz"}
        assert right["h"] > 0.9, name
        assert right["z"] < chance + 0.2, name
        assert len(found[f"{name} h"]) == 120
