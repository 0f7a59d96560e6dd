"""Two views of each image from uint8: our whole batches beside torchvision v2, an image at a time."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from timing import Row, in_turns, median_ratio
from torch import Tensor
from torchvision.transforms import v2

from querykey.data.augment.views import Views, view_preset

REPEATS = 3


@dataclass(frozen=True)
class Case:
    """Images of one size, and how many times torchvision's views a second are asked for."""

    side: int
    size: int
    images: int
    blur: bool
    least: float


CASES = (
    Case(side=32, size=32, images=256, blur=False, least=15),
    Case(side=64, size=64, images=128, blur=True, least=5),
    Case(side=256, size=224, images=24, blur=True, least=3),
)


def library_views(views: Views) -> v2.Compose:
    """The same changes as torchvision's own."""
    kernel = 2 * views.blur_radius + 1
    steps = [
        v2.RandomResizedCrop(views.size, scale=views.crop_scale, ratio=views.crop_ratio, antialias=True),
        v2.RandomHorizontalFlip(views.flip),
        v2.RandomApply([v2.ColorJitter(*views.jitter)], p=views.jitter_probability),
        v2.RandomGrayscale(views.grayscale),
        v2.RandomApply([v2.GaussianBlur(kernel, views.blur_sigma)], p=views.blur),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(views.mean, views.deviation),
    ]
    return v2.Compose(steps if views.blur else steps[:4] + steps[5:])


def contenders(case: Case) -> dict[str, Callable[[], list[Tensor]]]:
    """Each makes two views of the same images."""
    views = view_preset("simclr" if case.blur else "small_images", size=case.size, channels=3, strength=1.0)
    shape = (case.images, 3, case.side, case.side)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ids, library = torch.arange(case.images), library_views(views)
    calls = iter(range(1_000_000))

    def ours() -> list[Tensor]:
        epoch = next(calls)
        return [views(images, ids, seed=0, epoch=epoch, view=view) for view in (0, 1)]

    def theirs() -> list[Tensor]:
        return [torch.stack([library(image) for image in images]) for _ in (0, 1)]

    return {"ours": ours, "torchvision": theirs}


def measure() -> list[Row]:
    """How many times torchvision's views a second ours are, on the same threads."""
    rows = []
    for case in CASES:
        seconds = in_turns(contenders(case), REPEATS)
        ratio = median_ratio(seconds["torchvision"], seconds["ours"])
        figures = {
            f"{name}_views_per_s": round(2 * case.images / statistics.median(taken))
            for name, taken in seconds.items()
        }
        what = f"views of {case.size} px{' with blur' if case.blur else ''}, by torchvision's a second"
        rows.append(Row(what, ratio, f"at least {case.least:g}", ratio >= case.least, figures))
    return rows


if __name__ == "__main__":
    for row in measure():
        print(row)
