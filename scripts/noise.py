"""How often a fit says "better" of data that hold nothing: small fits on labels and on pairs drawn at random.

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
"""Few enough rows for one set of queries to select and to judge, and enough for two."""


def fitted(kind: str, seed: int, candidates: str = "all") -> tuple[str, str]:
    """Fit one adapter to noise.

    Args:
        kind: "labels": classes that have nothing to do with the rows. "pairs": queries and documents that
            have nothing to do with one another.
        seed: Of the noise and of the fit.
        candidates: "all", or "closed_form" for a fit that trains nothing and takes a tenth of the time.

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
            asked = draw.normal(size=(count, WIDTH)) * np.linspace(0.3, 1.5, WIDTH)
            side = "query" if seed % 2 else "both"
            adapter = Adapter(dim=WIDTH, side=side, candidates=candidates, random_state=seed)
            adapter.fit_pairs(asked, rows)
    return adapter.report_["verdict"], adapter.report_["candidate"]


def counted(kind: str, seeds: Sequence[int], *, jobs: int = 1, candidates: str = "all") -> Counter[str]:
    """The verdicts of as many fits.

    Args:
        kind: As for `fitted`.
        seeds: One a fit.
        jobs: Processes.
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
