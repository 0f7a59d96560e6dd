"""Linear evaluation and kNN of frozen features: seconds of a former version by ours.

Features h and z, both 512 wide, of a ResNet-18 after a few steps of SimCLR on CIFAR-10, and 100 classes:
k-means of the pixels cuts each of CIFAR-10's into ten. Encoding is not counted. The former version is
imported from a checkout named by QUERYKEY_FORMER, in a process of its own; without one, scikit-learn's
logistic regression and a plain kNN of PyTorch take its place. QUERYKEY_ROWS lowers the number of training
rows. It needs CIFAR-10 as parquet.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from simclr import CIFAR, SETTINGS
from timing import Row
from torch import Tensor
from torch.nn import functional as F

from querykey.data.pixels.pixels import read_pixels
from querykey.data.readers.open import read_source
from querykey.pretraining.saved_encoder import encode_rows
from querykey.runs.evaluate_encoder import pixel_rows
from querykey.runs.pretrain import pretrain

ROWS, ASKED = int(os.environ.get("QUERYKEY_ROWS", "50000")), 10_000
STEPS, WIDTH, CLASSES, PARTS, ROUNDS = 40, 512, 10, 10, 8
K, TEMPERATURE = 200, 0.1
LEAST, MOST_APART = 8.0, 0.001
PENALTIES = 6
"""Of the path that scikit-learn takes, from 1 in whole decades; ours tries half decades until it is worse."""


def features() -> dict[str, Tensor]:
    """Rows h and z and the hundred classes, of training and test images."""
    source, test = read_source(CIFAR), read_source(CIFAR, split="test")
    resnet = {"backbone": "torchvision:resnet18", "backbone.stem": "plain", "head.dim": WIDTH}
    settings = SETTINGS | resnet | {"precision": "auto", "layout": "auto"}
    saved = pretrain(source, steps=STEPS, **settings).encoder
    made: dict[str, Tensor] = {}
    centres: dict[int, Tensor] = {}
    for name, images, count in (("train", source, ROWS), ("test", test, ASKED)):
        pixels = read_pixels(images, size=SETTINGS["views.size"])
        rows = pixels.ids[torch.randperm(len(pixels.ids), generator=_draw())[:count]]
        made[f"{name}_h"], made[f"{name}_z"] = encode_rows(saved.encoder, saved.prepare, pixels, rows)
        assert images.labels is not None
        coarse, raw = torch.from_numpy(images.labels)[rows], pixel_rows(pixels, rows)
        made[f"{name}_labels"] = _cut(raw, coarse, centres)
    return made


def _draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _cut(pixels: Tensor, coarse: Tensor, centres: dict[int, Tensor]) -> Tensor:
    """Ten classes of each; the centres are those of the first call."""
    fine = torch.empty_like(coarse)
    for one in range(CLASSES):
        members = (coarse == one).nonzero()[:, 0]
        rows = pixels[members]
        if one not in centres:
            means = rows[:PARTS].clone()
            for _ in range(ROUNDS):
                nearest = torch.cdist(rows, means).argmin(dim=1)
                parts = [rows[nearest == part] for part in range(PARTS)]
                means = torch.stack([part.mean(0) if len(part) else means[i] for i, part in enumerate(parts)])
            centres[one] = means
        fine[members] = PARTS * one + torch.cdist(rows, centres[one]).argmin(dim=1)
    return fine


MEASURED = """
import sys, time, json, torch
from querykey.evaluation.knn import knn_correct
try:
    from querykey.evaluation.linear_evaluation import linear_evaluation
except ImportError:
    from querykey.evaluation.linear_protocols import linear_evaluation
torch.set_num_threads(int(sys.argv[2]))
rows, found = torch.load(sys.argv[1]), {}
warm = [rows[name][:100] for name in ("train_h", "train_labels", "test_h", "test_labels")]
knn_correct(*warm, k=20)
began, cpu = time.perf_counter(), time.process_time()
for name in "hz":
    bank, known = rows["train_" + name], rows["train_labels"]
    asked, wanted = rows["test_" + name], rows["test_labels"]
    found["linear " + name] = linear_evaluation(bank, known, asked, wanted, seed=0).top_1
    found["kNN " + name] = float(knn_correct(bank, known, asked, wanted, k=200, temperature=0.1).mean())
print(json.dumps([time.perf_counter() - began, time.process_time() - cpu, found]))
"""
"""The same words for both versions: modules were renamed, the functions were not."""


def version(source: str, rows: Path) -> tuple[float, float, dict[str, float]]:
    """(seconds, seconds of the processor, scores) of the version of querykey in a folder of sources."""
    import json

    environment = os.environ | {"PYTHONPATH": source}
    words = [sys.executable, "-c", MEASURED, str(rows), str(torch.get_num_threads())]
    done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
    seconds, processor, scores = json.loads(done.stdout.splitlines()[-1])
    return seconds, processor, scores


def plain(rows: dict[str, Tensor]) -> tuple[float, float, dict[str, float]]:
    """The same of scikit-learn's logistic regression with a held-out fifth, and of a plain kNN."""
    from sklearn.linear_model import LogisticRegression

    found: dict[str, float] = {}
    began, cpu = time.perf_counter(), time.process_time()
    labels, wanted = rows["train_labels"], rows["test_labels"]
    order = torch.randperm(len(labels), generator=_draw())
    held_out, fitting = order[: len(order) // 5], order[len(order) // 5 :]
    for name in "hz":
        bank, asked = rows[f"train_{name}"], rows[f"test_{name}"]
        mean, std = bank.mean(0), bank.std(0).clamp(min=1e-6)
        bank, asked = (bank - mean) / std, (asked - mean) / std
        best = (0.0, 1.0)
        for step in range(PENALTIES):
            strength = 10.0**step / len(fitting)
            model = LogisticRegression(C=strength, max_iter=500, tol=1e-4)
            model.fit(bank[fitting].numpy(), labels[fitting].numpy())
            right = float((model.predict(bank[held_out].numpy()) == labels[held_out].numpy()).mean())
            best = max(best, (right, strength))
        model = LogisticRegression(C=best[1], max_iter=500, tol=1e-4).fit(bank.numpy(), labels.numpy())
        found[f"linear {name}"] = float((model.predict(asked.numpy()) == wanted.numpy()).mean())
        found[f"kNN {name}"] = float(np.mean(_plain_knn(rows, name)))
    return time.perf_counter() - began, time.process_time() - cpu, found


def _plain_knn(rows: dict[str, Tensor], name: str) -> list[float]:
    bank = F.normalize(rows[f"train_{name}"], dim=1).T.contiguous()
    right = list[float]()
    for at in torch.split(torch.arange(len(rows["test_labels"])), 500):
        scores, index = (F.normalize(rows[f"test_{name}"][at], dim=1) @ bank).topk(K, dim=1)
        votes = torch.zeros(len(at), PARTS * CLASSES)
        votes.scatter_add_(1, rows["train_labels"][index], (scores / TEMPERATURE).exp())
        right += (votes.argmax(dim=1) == rows["test_labels"][at]).float().tolist()
    return right


def measure() -> list[Row]:
    """Seconds of the former version by ours, and how far the scores are apart."""
    if not CIFAR.exists():
        return [Row("evaluate: CIFAR-10 is not there", float("nan"), "", None, {})]
    rows = features()
    former = os.environ.get("QUERYKEY_FORMER")
    with TemporaryDirectory() as folder:
        path = Path(folder, "rows.pt")
        torch.save(rows, path)
        ours = version(str(Path(__file__).parents[1] / "src"), path)
        theirs = version(str(Path(former, "src")), path) if former else plain(rows)
    peer = "a former version" if former else "scikit-learn and a plain kNN"
    ratio, apart = theirs[0] / ours[0], max(abs(ours[2][name] - theirs[2][name]) for name in ours[2])
    seconds = {"ours_s": round(ours[0], 1), "peer_s": round(theirs[0], 1)}
    processor = {"ours_cpu_s": round(ours[1], 1), "peer_cpu_s": round(theirs[1], 1)}
    scores = {f"{name} {of}": round(found[name], 4) for of, (_, _, found) in
              (("ours", ours), ("peer", theirs)) for name in found}  # fmt: skip
    return [
        Row(f"evaluate h and z of {ROWS:,} x {WIDTH}, {PARTS * CLASSES} classes: seconds of {peer} by ours",
            ratio, f"at least {LEAST:g}" if former else "", ratio >= LEAST if former else None,
            seconds | processor),
        Row("the same: largest difference of a score", apart, f"at most {MOST_APART:g}" if former else "",
            apart <= MOST_APART if former else None, scores),
    ]  # fmt: skip


if __name__ == "__main__":
    for row in measure():
        print(row)
