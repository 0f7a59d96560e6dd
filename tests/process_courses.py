"""Short whole runs, measured, looked at and stopped, to be taken by one process and by several."""

import time

import numpy as np
import torch

from querykey.data.items import Source
from querykey.data.pixels.pixels import Damage, HeldPixels
from querykey.errors import DataError
from querykey.pretraining import autotune
from querykey.pretraining.images import train_val_split
from querykey.pretraining.run import build_run
from querykey.pretraining.settings.methods import given_settings
from querykey.pretraining.settings.resolve import resolve_settings
from querykey.pretraining.trainer import Callback, Trainer

STEPS, IMAGES, LOST = 4, 60, 7
TINY = {
    "backbone": "small_cnn:2", "head.dim": 6, "batch_size": 8, "batch_norm": "global", "views.size": 8,
    "views": "digits", "held_out": 6, "num_evals": 2, "precision": "float32", "layout": "contiguous",
    "optimizer.learning_rate": 0.02,
}  # fmt: skip
WAYS = {
    "memory-bank": {"method": "memory-bank", "steps": STEPS},
    "moco": {
        "method": "moco",
        "steps": STEPS,
        "batch_norm": "split",
        "batch_norm.groups": 4,
        "dictionary.capacity": 16,
    },
    "xbm": {
        "method": "xbm",
        "steps": STEPS,
        "dictionary.warm_up": 0.5,
        "dictionary.capacity": 20,
        "batch_size": 12,
    },
    "simclr, chunks": {"method": "simclr", "steps": STEPS, "batch_size": 10, "chunks": 2},
}


class Losing(HeldPixels):
    """One image is gone by the second time it is asked for."""

    def stream(self, batches):
        for found in super().stream(batches):
            kept = found.rows != LOST
            yield found._replace(images=found.images[kept], rows=found.rows[kept])

    @property
    def damaged(self):
        return ((LOST, "gone"),)


def _pixels(kind=HeldPixels, damaged=()):
    drawn = np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8), dtype=np.uint8)
    drawn[::2] //= 4
    source = Source("made", "image", drawn, [str(row) for row in range(IMAGES)], None, (), "")
    damage = Damage(source)
    for row in damaged:
        damage.add(row, "damaged")
    return kind(np.delete(drawn, damaged, axis=0) if damaged else drawn, 1, IMAGES, damage)


def run(processes, settings, *, stop=lambda: False, pixels=None):
    """A run of these settings: what was trained, and the metrics."""
    autotune.TRIALS = autotune.STEADY_TRIALS = 1
    pixels = pixels or _pixels()
    split_data = train_val_split(pixels.ids, pixels.ids % 2, held_out=6, seed=0)
    resolved = resolve_settings(
        given_settings(**TINY | settings), images=len(split_data.train), channels=1, side=8
    )
    tuned = autotune.autotune(
        resolved, pixels, split_data, device=torch.device("cpu"), started_at=time.monotonic(),
        processes=processes,
    )  # fmt: skip
    trained = build_run(
        tuned.settings, pixels, split_data, device=torch.device("cpu"), start=tuned.start, processes=processes
    )
    first = {f"untrained {key}": value for key, value in trained.untrained.state_dict().items()}
    seen, saved = {}, []

    class Kept(Callback):
        def on_evaluate(self, trainer, metrics):
            found = {f"look {trainer.step} {name}": torch.tensor(value) for name, value in metrics.items()}
            seen.update(found)

        def on_checkpoint(self, trainer, state):
            del state
            saved.append(trainer.step)

    done = Trainer(trained, [Kept()], stop=stop).fit()
    ended = {"done": torch.tensor(done), "saved": torch.tensor(saved), "steps": torch.tensor(trained.steps)}
    return first | seen | ended | trained.learner.tensors()


def says_other_images(processes):
    """Whether a run of this process is refused where the last one has lost an image beforehand."""
    pixels = _pixels(damaged=[LOST] if processes.rank == processes.world_size - 1 else [])
    try:
        run(processes, WAYS["memory-bank"], pixels=pixels)
    except DataError as error:
        return "images to train on, and not the same ones" in str(error)
    return False


def every_course(processes):
    """All of them, then a run that one process stops, one that loses an image, and one by the clock."""
    found = {f"{way}: {key}": value for way in WAYS for key, value in run(processes, WAYS[way]).items()}
    asked = iter(range(1, 100))
    stopped = run(
        processes, WAYS["moco"], stop=lambda: next(asked) >= 2 and processes.rank == processes.world_size - 1
    )
    lost = run(
        processes, WAYS["memory-bank"] | {"steps": 9, "dictionary.prefill": False}, pixels=_pixels(Losing)
    )
    # the clocks of the processes do not agree: the others would measure for longer
    autotune.STEADY_SECONDS = 0.01 if processes.rank == 0 else 100.0
    timed = run(processes, WAYS["simclr, chunks"] | {"steps": None, "minutes": 0.001, "layout": "auto"})
    found["other images"] = torch.tensor(says_other_images(processes))
    last = {"stopped": stopped, "lost": lost, "timed": timed}
    return found | {f"{way}: {key}": value for way, run_ in last.items() for key, value in run_.items()}
