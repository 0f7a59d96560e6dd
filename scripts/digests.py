"""Digests of what the library computes, to compare before and after a change that must not change numbers.

python scripts/digests.py --out before.json
python scripts/digests.py --out after.json --compare before.json
"""

import argparse
import hashlib
import json
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from querykey import Adapter, losses, pretrain
from querykey.lookup import PairRule, look_up

STEPS, IMAGES = 50, 120
METHODS = ("simclr", "moco", "moco-v2", "moco-v3", "memory-bank", "end-to-end", "xbm")
TINY = {
    "backbone": "small_cnn:4", "head.dim": 8, "batch_size": 16, "views.size": 8, "views": "digits",
    "held_out": 24, "precision": "float32", "layout": "contiguous", "steps": STEPS,
}  # fmt: skip
LOSSES = {
    "info_nce": partial(losses.info_nce, temperature=0.1),
    "nca": partial(losses.nca, temperature=0.1),
    "nt_logistic": partial(losses.nt_logistic, temperature=0.1),
    "contrastive": partial(losses.contrastive, positive_margin=0.9, negative_margin=0.1),
    "triplet": partial(losses.triplet, margin=0.2),
    "multi_similarity": losses.multi_similarity,
    "circle": losses.circle,
    "decoupled": partial(losses.decoupled, temperature=0.1),
    "debiased": partial(losses.debiased, temperature=0.2, tau_plus=0.1),
    "hard_negative": partial(losses.hard_negative, temperature=0.2, tau_plus=0.1, beta=1.0),
    "nce": partial(losses.nce, temperature=0.1, normaliser=40.0, noise_items=20),
    "score_distillation": partial(losses.score_distillation, temperature=0.1),
    "score_difference": losses.score_difference,
    "rank_loss": losses.rank_loss,
}
NEEDS_TARGET = ("score_distillation", "score_difference")


def digest(numbers: Iterable[Any]) -> str:
    """The first digits of the SHA-256 of some arrays."""
    made = hashlib.sha256()
    for one in numbers:
        made.update(np.ascontiguousarray(one).tobytes())
    return made.hexdigest()[:16]


def of_losses() -> dict[str, str]:
    """Every loss with its gradient, over a look-up with labels, ids and copies."""
    draw = torch.Generator().manual_seed(0)
    keys = F.normalize(torch.randn(48, 12, generator=draw), dim=1)
    made = {}
    for name, loss in LOSSES.items():
        queries = F.normalize(torch.randn(16, 12, generator=torch.Generator().manual_seed(1)), dim=1)
        queries.requires_grad_()
        numbers, rule = torch.arange(48), PairRule(positive="label")

        def looked_up(rows: torch.Tensor, numbers: Any = numbers, rule: Any = rule) -> Any:
            return look_up(
                rows, keys, query_ids=numbers[:16], key_ids=numbers, query_labels=numbers[:16] % 5,
                key_labels=numbers % 5, rule=rule,
            )  # fmt: skip

        target = [looked_up(queries.detach().roll(1, 0))] if name in NEEDS_TARGET else []
        cost = loss(looked_up(queries), *target)
        cost.sum().backward()
        made[f"loss {name}"] = digest([cost.detach().numpy(), queries.grad.numpy()])  # type: ignore[union-attr]
    return made


def of_fits() -> dict[str, str]:
    """The rows that a fit of each kind returns."""
    draw = np.random.default_rng(0)
    labels = draw.integers(12, size=360)
    rows = (draw.normal(size=(12, 24))[labels] + draw.normal(size=(360, 24))).astype(np.float32)
    queries = (rows + 0.5 * draw.normal(size=rows.shape)).astype(np.float32)
    fits = {
        "labels": lambda: Adapter(dim=12, random_state=0).fit(rows, labels),
        "new classes": lambda: Adapter(dim=12, classes="new", random_state=0).fit(rows, labels),
        "rows": lambda: Adapter(dim=12, random_state=0).fit(rows),
        "pairs": lambda: Adapter(dim=12, random_state=0).fit_pairs(queries, rows),
        "query side": lambda: Adapter(side="query", random_state=0).fit_pairs(queries, rows),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {f"fit {name}": digest([fit().transform(rows)]) for name, fit in fits.items()}


def of_methods() -> dict[str, str]:
    """Fifty steps of each method: the encoder after them."""
    drawn = np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8), dtype=np.uint8)
    drawn[::2] //= 4
    folder, made = Path(tempfile.mkdtemp()), dict[str, str]()
    for number, pixels in enumerate(drawn):
        place = folder / str(number % 2)
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number:03}.png")
    for method in METHODS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = pretrain(folder, method=method, **TINY)
        made[f"pretrain {method}"] = digest(_tensors(run))
    return made


def _tensors(run: Any) -> list[Any]:
    state: Mapping[str, torch.Tensor] = run.encoder.encoder.state_dict()
    return [state[name].numpy() for name in sorted(state)]


def main() -> int:
    """Write the digests, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--compare", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    made = of_losses() | of_fits() | of_methods()
    given.out.write_text(json.dumps(made, indent=1) + "\n")
    if given.compare is None:
        return 0
    before = json.loads(given.compare.read_text())
    changed = [name for name in {**before, **made} if before.get(name) != made.get(name)]
    print("changed:", ", ".join(changed) or "nothing", f"of {len(made)}")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
