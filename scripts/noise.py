"""Count how often a fit to noise gets the verdict "better": small fits on random labels and random pairs.

python scripts/noise.py                    # 400 fits of each, seeds 0 to 399
python scripts/noise.py --fits 40 --kinds labels --jobs 2 --candidates closed_form
"""

import argparse
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import torch

from querykey import Adapter

ROWS, WIDTH, CLASSES = (150, 240), 16, 8
"""Rows for which the same queries serve selection and evaluation, and for which two halves do."""


def fitted(kind: str, seed: int, candidates: str = "all") -> tuple[str, str]:
    """Fit one adapter to noise.

    Args:
        kind: "labels": random classes. "pairs": queries and documents that are independent.
        seed: Random seed of the noise and of the fit.
        candidates: "all", or "closed_form" for a fit without training, in a tenth of the time.

    Returns:
        (verdict, name of the candidate that was returned).
    """
    torch.set_num_threads(1)
    draw, count = np.random.default_rng([seed, kind == "pairs"]), ROWS[seed // 2 % 2]
    rows = draw.normal(size=(count, WIDTH)) * np.linspace(0.3, 1.5, WIDTH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if kind == "labels":
            adapter = Adapter(dim=WIDTH, candidates=candidates, random_state=seed).fit(
                rows, draw.integers(CLASSES, size=count)
            )
        else:
            queries = draw.normal(size=(count, WIDTH)) * np.linspace(0.3, 1.5, WIDTH)
            side = "query" if seed % 2 else "both"
            adapter = Adapter(dim=WIDTH, side=side, candidates=candidates, random_state=seed)
            adapter.fit_pairs(queries, rows)
    return adapter.report_["verdict"], adapter.report_["candidate"]


def counted(kind: str, seeds: Sequence[int], *, jobs: int = 1, candidates: str = "all") -> Counter[str]:
    """Count the verdicts of some fits.

    Args:
        kind: As for `fitted`.
        seeds: One per fit.
        jobs: Number of processes.
        candidates: As for `fitted`.

    Returns:
        How often each verdict was given.
    """
    fit = partial(fitted, kind, candidates=candidates)
    if jobs == 1:
        return Counter(verdict for verdict, _ in map(fit, seeds))
    with ProcessPoolExecutor(jobs) as pool:
        return Counter(verdict for verdict, _ in pool.map(fit, seeds, chunksize=4))


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fits", type=int, default=400, help="of each kind")
    parser.add_argument("--kinds", nargs="+", default=["labels", "pairs"], choices=["labels", "pairs"])
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--candidates", default="all", choices=["all", "closed_form"])
    given = parser.parse_args()
    for kind in given.kinds:
        found = counted(kind, range(given.fits), jobs=given.jobs, candidates=given.candidates)
        share = found["better"] / given.fits
        print(f"{kind}: {dict(found)}; better in {share:.1%} of {given.fits} fits", flush=True)


if __name__ == "__main__":
    main()
