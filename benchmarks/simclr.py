"""SimCLR end to end, from encoded PNG to optimiser step: ours beside lightly's transform, loss and head.

The same network (torchvision's ResNet-18 as it is, without its classifier), the same batch, views of 32
pixels with the same parameters, SGD with the same rate. lightly's views are made by two worker processes, as
its documentation has it. The turns alternate, so a busy machine slows both; the first steps of each turn are
not counted. After equal steps from the same weights, kNN of h says whether speed was bought with quality.

It needs CIFAR-10 as parquet; without it, it measures on random images and leaves the kNN out.
"""

import io
import os
import statistics
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from PIL import Image
from timing import Row, median_ratio
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from querykey.data.items import Source
from querykey.data.pixels.pixels import read_pixels
from querykey.data.readers.open import read_source
from querykey.encoders.backbones import make_backbone
from querykey.evaluation.intervals import paired_difference
from querykey.evaluation.knn import knn_correct
from querykey.pretraining.run import TrainingRun
from querykey.pretraining.trainer import Progress
from querykey.runs.pretrain import pretrain

CIFAR = Path(os.environ.get("QUERYKEY_DATA", "../shared/data")) / "cifar10"
BATCH, SIDE, RATE, TEMPERATURE = 256, 32, 0.06, 0.5
STEPS, UNCOUNTED, TURNS, BARE_TURNS = 8, 2, 3, 4
QUALITY_STEPS, BANK, ASKED = 60, 10_000, 4_000
LEAST_FLOAT32, LEAST_BFLOAT16, LEAST_OF_BARE = 1.4, 2.0, 0.9
MOST_RESNET, MOST_SMALL = 0.10, 0.40
SETTINGS: dict[str, Any] = {
    "views": "small_images", "views.size": SIDE, "optimizer": "sgd", "optimizer.learning_rate": RATE,
    "optimizer.weight_decay": 5e-4, "loss.temperature": TEMPERATURE, "num_evals": 0, "batch_size": BATCH,
    "held_out": 0, "head.hidden": 512, "views.crop_scale": (0.08, 1.0), "precision": "float32",
}  # fmt: skip


class Encoded(Dataset[Any]):
    """Images as files hold them, decoded when asked for; lightly's side."""

    def __init__(self, source: Source, transform: Any) -> None:
        self.files = []
        for row in range(len(source)):
            file = io.BytesIO()
            source.items[row].save(file, "PNG", compress_level=1)
            self.files.append(file.getvalue())
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Any:
        with Image.open(io.BytesIO(self.files[row])) as image:
            return self.transform(image.convert("RGB"))


class Bare:
    """The step alone, on random tensors, without views: what a processor can do with this network.

    Args:
        precision: Of autocast.
        layout: Memory format of weights and images.
    """

    def __init__(self, precision: torch.dtype, layout: torch.memory_format) -> None:
        backbone = make_backbone("torchvision:resnet18", channels=3, image_size=SIDE, stem="plain", seed=0)
        head = SimCLRProjectionHead(backbone.dim, 512, 128)
        self.network = nn.Sequential(backbone, head).train().to(memory_format=layout)
        self.precision, self.loss = precision, NTXentLoss(temperature=TEMPERATURE)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
        draw = torch.Generator().manual_seed(0)
        self.views = torch.randn(2 * BATCH, 3, SIDE, SIDE, generator=draw).to(memory_format=layout)

    def step(self) -> float:
        """Seconds of a step."""
        began = time.perf_counter()
        self.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=self.precision, enabled=self.precision != torch.float32):
            z = self.network(self.views)
        z_1, z_2 = z.float().chunk(2)
        self.loss(z_1, z_2).backward()
        self.optimizer.step()
        return time.perf_counter() - began


class Lightly:
    """lightly's SimCLR, as in its examples."""

    def __init__(self, source: Source) -> None:
        transform = SimCLRTransform(input_size=SIDE, cj_strength=0.5, gaussian_blur=0.0, min_scale=0.08)
        self.loader = DataLoader(
            Encoded(source, transform), batch_size=BATCH, shuffle=True, drop_last=True, num_workers=2,
            persistent_workers=True, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        self.backbone = make_backbone(
            "torchvision:resnet18", channels=3, image_size=SIDE, stem="plain", seed=0
        )
        self.head = SimCLRProjectionHead(self.backbone.dim, 512, 128)
        self.loss = NTXentLoss(temperature=TEMPERATURE)
        trained = [*self.backbone.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.SGD(trained, lr=RATE, momentum=0.9, weight_decay=5e-4)
        self.batches: Iterator[Any] = iter(())

    def steps(self, count: int) -> list[float]:
        """Seconds of each of some steps."""
        taken = []
        for _ in range(count):
            began = time.perf_counter()
            batch = next(self.batches, None)
            if batch is None:
                self.batches = iter(self.loader)
                batch = next(self.batches)
            view_1, view_2 = batch
            z_1, z_2 = self.head(self.backbone(view_1)), self.head(self.backbone(view_2))
            loss = self.loss(z_1, z_2)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            taken.append(time.perf_counter() - began)
        return taken


def ours(source: Source, steps: int, **settings: Any) -> tuple[list[float], Any]:
    """Seconds of each step of a run, and the run."""
    ends: list[float] = []

    def on_fit_start(run: TrainingRun) -> None:  # noqa: ARG001
        ends.append(time.perf_counter())

    def on_step_end(progress: Progress) -> None:  # noqa: ARG001
        ends.append(time.perf_counter())

    run = pretrain(
        source, steps=steps, on_fit_start=on_fit_start, on_step_end=on_step_end, **SETTINGS | settings
    )
    return [after - before for before, after in pairwise(ends)], run


def measure() -> list[Row]:
    """Images a second, share of decoding and views, and kNN after equal steps."""
    is_real = CIFAR.exists()
    source = read_source(CIFAR) if is_real else _random_images()
    resnet = {"backbone": "torchvision:resnet18", "backbone.stem": "plain", "layout": "channels_last"}
    lightly = Lightly(source)
    contenders = {"float32": resnet}
    if _has_bfloat16():
        contenders["bfloat16"] = resnet | {"precision": "bfloat16"}
    peer, mine = list[float](), {name: list[float]() for name in contenders}
    for _ in range(TURNS):
        peer.append(_rate(lightly.steps(STEPS)[UNCOUNTED:]))
        for name, settings in contenders.items():
            mine[name].append(_rate(ours(source, STEPS, **settings)[0][UNCOUNTED:]))
    rows = []
    for name, least in (("float32", LEAST_FLOAT32), ("bfloat16", LEAST_BFLOAT16)):
        if name in mine:
            ratio = median_ratio(mine[name], peer)
            rates = {"ours_images_per_s": statistics.median(mine[name])}
            rates["lightly_images_per_s"] = statistics.median(peer)
            rows.append(Row(f"SimCLR end to end, ResNet-18, {name}, by lightly's images a second", ratio,
                            f"at least {least:g}", ratio >= least, rates))  # fmt: skip
    for name, settings, most in (("ResNet-18", resnet, MOST_RESNET), ("small_cnn", {}, MOST_SMALL)):
        report = ours(source, 3 * STEPS, **settings)[1].report
        share = report["views_share_of_step"]
        rows.append(Row(f"decoding and views, share of a step of {name}", share, f"at most {most:g}",
                        share <= most, {"steps": report["steps_taken"]}))  # fmt: skip
    rows += _beside_bare(source)
    return rows + (_quality(source, lightly, resnet) if is_real else [])


def _beside_bare(source: Source) -> list[Row]:
    """Images a second of ours, precision and layout measured by it, by the best of the bare steps."""
    precisions = (torch.float32, torch.bfloat16) if _has_bfloat16() else (torch.float32,)
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    bare = {
        f"bare {str(precision).removeprefix('torch.')} {name}": Bare(precision, layout)
        for precision in precisions
        for name, layout in layouts.items()
    }
    rates = {name: _rate([one.step() for _ in range(STEPS)][UNCOUNTED:]) for name, one in bare.items()}
    best = max(rates, key=lambda name: rates[name])
    choose = {"precision": "auto", "layout": "auto"}
    resnet = {"backbone": "torchvision:resnet18", "backbone.stem": "plain"}
    mine, theirs = list[float](), list[float]()
    for _ in range(BARE_TURNS):  # the steps of a turn are next to each other: the speed of a machine drifts
        theirs.append(_rate([bare[best].step() for _ in range(STEPS)][UNCOUNTED:]))
        taken, run = ours(source, STEPS, **resnet, **choose)
        mine.append(_rate(taken[UNCOUNTED:]))
    ratio, settings = median_ratio(mine, theirs), run.settings
    chosen = {
        "ours": statistics.median(mine), best: statistics.median(theirs),
        "precision": settings.precision, "layout": settings.layout,
    }  # fmt: skip
    return [Row("SimCLR end to end, images a second by the best bare step's", ratio,
                f"at least {LEAST_OF_BARE:g}", ratio >= LEAST_OF_BARE, rates | chosen)]  # fmt: skip


def _quality(source: Source, lightly: Lightly, resnet: dict[str, Any]) -> list[Row]:
    """KNN of h after equal steps."""
    lightly.steps(max(0, QUALITY_STEPS - TURNS * STEPS))
    run = ours(source, QUALITY_STEPS, **resnet)[1]
    test = read_source(CIFAR, split="test")
    right = {}
    for name, backbone in (("ours", run.encoder.encoder.backbone), ("lightly", lightly.backbone)):
        bank, known = _features(backbone, run.encoder, source, BANK)
        asked, labels = _features(backbone, run.encoder, test, ASKED)
        right[name] = knn_correct(bank, known, asked, labels, k=200, temperature=0.1)
    apart = paired_difference(right["ours"], right["lightly"])
    figures = {name: round(float(values.mean()), 4) for name, values in right.items()}
    return [Row(f"kNN after {QUALITY_STEPS} equal steps, ours minus lightly's", apart.mean,
                "not below by more than the interval", apart.high >= 0,
                figures | {"low": round(apart.low, 4), "high": round(apart.high, 4)})]  # fmt: skip


def _features(backbone: nn.Module, saved: Any, source: Source, count: int) -> tuple[Tensor, Tensor]:
    pixels = read_pixels(source, size=SIDE)
    rows = pixels.ids[:count]
    backbone.eval()
    with torch.no_grad():
        parts = [backbone(saved.prepare(*pixels.batch(some))) for some in torch.split(rows, 500)]
    assert source.labels is not None
    return torch.cat(parts), torch.from_numpy(source.labels)[rows]


def _rate(seconds: list[float]) -> float:
    return round(BATCH * len(seconds) / sum(seconds), 1)


def _has_bfloat16() -> bool:
    flags = Path("/proc/cpuinfo")
    return flags.exists() and "avx512_bf16" in flags.read_text()


def _random_images() -> Source:
    pixels = np.random.default_rng(0).integers(0, 256, (4096, SIDE, SIDE, 3), dtype=np.uint8)
    images = [Image.fromarray(image) for image in pixels]
    ids = [str(row) for row in range(len(images))]
    return Source("random images", "image", images, ids, None, (), "random")


if __name__ == "__main__":
    for row in measure():
        print(row)
