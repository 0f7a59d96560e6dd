"""Small frozen models and sources, for the tests of what runs and keeps them."""

import hashlib

import numpy as np
import torch
from PIL import Image
from torch import nn

from querykey.data.items import Items, Source
from querykey.encoders.frozen.encoder import FrozenEncoder
from querykey.encoders.frozen.fingerprint import combined_digest, state_digest
from querykey.encoders.frozen.model import TorchModel
from querykey.encoders.frozen.preprocessing import ImagePreprocessing
from querykey.errors import DamagedItemError

CPU = torch.device("cpu")


class LetterModel(nn.Module):
    """Texts to counts of letters to features; counts its forwards and notes their batches."""

    def __init__(self, dim=6, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(26, dim)
        self.batches = []

    def forward(self, texts):
        self.batches.append(list(texts))
        counts = torch.tensor([[text.count(chr(97 + place)) for place in range(26)] for text in texts])
        return self.linear(counts.float())

    @property
    def seen(self):
        return [text for batch in self.batches for text in batch]


class ShakyModel(nn.Module):
    """Batch norm and dropout: in train mode every forward is another one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    def forward(self, images):
        return self.layers(images)


def text_encoder(module=None, dtype="float32"):
    module = LetterModel() if module is None else module
    model = TorchModel(
        module, kind="text", prepare=lambda text: text, blank=lambda: "blank",
        identity=combined_digest({"weights": state_digest(module)}), device=CPU,
    )  # fmt: skip
    encoder = FrozenEncoder(model, spec="toy:letters", dtype=dtype)
    if isinstance(module, LetterModel):
        module.batches.clear()
    return encoder


def image_encoder(module=None, size=16):
    module = ShakyModel() if module is None else module
    model = TorchModel(
        module, kind="image", prepare=ImagePreprocessing(size, size),
        blank=lambda: Image.new("RGB", (size, size)),
        identity=combined_digest({"weights": state_digest(module)}), device=CPU,
    )  # fmt: skip
    return FrozenEncoder(model, spec="toy:shaky")


def images(count, size=20, seed=0):
    generator = np.random.default_rng(seed)
    return [
        Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(count)
    ]


class SomeDamaged(Items):
    """Images of which some cannot be read."""

    def __init__(self, whole, damaged):
        self.whole = whole
        self.damaged = set(damaged)

    def __len__(self):
        return len(self.whole)

    def _read(self, row):
        if row in self.damaged:
            raise DamagedItemError(f"{row}.png is empty (0 bytes)")
        return self.whole[row]


def text_source(texts, labels=None, name="texts.csv", **more):
    return Source(
        name=name, kind="text", items=texts, ids=[f"t{place}" for place in range(len(texts))],
        labels=None if labels is None else np.array(labels), label_names=() if labels is None else ("a", "b"),
        fingerprint=hashlib.sha256("\0".join(texts).encode()).hexdigest(), **more,
    )  # fmt: skip


def image_source(items, labels=None):
    return Source(
        name="photos", kind="image", items=items, ids=[f"{place}.png" for place in range(len(items))],
        labels=None if labels is None else np.array(labels), label_names=() if labels is None else ("a", "b"),
        fingerprint="f" * 64,
    )  # fmt: skip


WORDS = [
    "zebra",
    "",
    "a much longer text than the others",
    "cat",
    "dog dog",
    "ox",
    "quick brown fox",
    "b",
    "yak",
]
