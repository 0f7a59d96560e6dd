"""NT-Xent forward and backward from 2 x 256 to 2 x 32,768 views: time and memory beside lightly's.

Both are given the same rows of a projection head, which they scale to length 1 themselves. Operations are
counted as those of three whole matrix products, 6 n^2 d for n rows, though streaming does fewer: their
rate by that of the machine's own large product says how much is left to win. The memory is that of a
process of its own that does nothing else: anonymous pages above what it held before, rows not counted.
What would need more than 6 GB is left out.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from cost_against_n import HighestMemory, anonymous_mb
from lightly.loss import NTXentLoss
from timing import Row, in_turns, median_ratio
from torch import Tensor
from torch.nn import functional as F

from querykey.lookup import Lookup, PairRule, look_up
from querykey.lookup.lookup import look_up_own_key
from querykey.losses import info_nce, is_chunked, nt_xent, score_distillation
from querykey.losses.streaming import Form

IMAGES = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
WIDTH, TEMPERATURE, SIDE = 128, 0.1, 2048
BYTES_A_SCORE = {"dense": 26, "lightly": 18}
MOST_BYTES = 6e9
FASTER, LEAST_MEMORY, MOST_MB, LEAST_RATE, MOST_GROWTH = 10.0, 0.25, 400.0, 0.4, 2.2


def views(images: int) -> list[Tensor]:
    """Rows of two views that agree a little, with gradient."""
    draw = torch.Generator().manual_seed(0)
    base, *noise = (torch.randn(images, WIDTH, generator=draw) for _ in range(3))
    return [(base + some).requires_grad_() for some in noise]


def losses(rows: list[Tensor]) -> dict[str, Callable[[], Tensor]]:
    """Each computes a mean."""
    return {
        "chunked": lambda: nt_xent(*rows, temperature=TEMPERATURE, form="chunked").mean(),
        "dense": lambda: nt_xent(*rows, temperature=TEMPERATURE, form="dense").mean(),
        "lightly": partial(NTXentLoss(temperature=TEMPERATURE), *rows),
    }


def fits(name: str, images: int) -> bool:
    """Whether a contender's matrices do."""
    return BYTES_A_SCORE.get(name, 0) * (2 * images) ** 2 <= MOST_BYTES


def megabytes(name: str, images: int) -> float:
    """The highest memory of one contender in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, name, str(images), str(torch.get_num_threads())],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return float(json.loads(done.stdout)["mb"])


def serve(name: str, images: int) -> None:
    """Report the highest memory of one loss, after a small one has loaded what either needs."""
    losses(views(16))[name]().backward()
    rows = views(images)
    run, before = losses(rows)[name], anonymous_mb()
    with HighestMemory() as highest:
        run().backward()
    print(json.dumps({"mb": highest.mb - before}))


def beside_lightly(images: int) -> list[Row]:
    """One size of the table."""
    square, out = torch.randn(SIDE, SIDE), torch.empty(SIDE, SIDE)
    named = {name: loss for name, loss in losses(views(images)).items() if fits(name, images)}
    runs: dict[str, Callable[[], Any]]
    runs = {name: partial(lambda loss: loss().backward(), loss) for name, loss in named.items()}
    runs["product"] = lambda: torch.mm(square, square, out=out)
    seconds = in_turns(runs, 7 if images <= 1024 else 3 if images <= 8192 else 1)
    memory = {name: megabytes(name, images) for name in named}
    ours = "chunked" if is_chunked(2 * images, 2 * images, of_views=True) else "dense"
    counted = 6 * (2 * images) ** 2 * WIDTH / (2 * SIDE**3)
    figures = {f"{name}_s": round(statistics.median(taken), 4) for name, taken in seconds.items()}
    figures |= {f"{name}_mb": round(mb, 1) for name, mb in memory.items()}
    of = f"NT-Xent, 2 x {images:,} views ({ours})"
    rate = counted * median_ratio(seconds["product"], seconds[ours])
    rows = [Row(f"{of}: rate by the machine's own product", rate, "", None, figures)]
    for peer in ("dense", "lightly"):
        if peer in named and peer != ours:
            faster = median_ratio(seconds[peer], seconds[ours])
            rows.append(Row(f"{of}: {peer} seconds by ours", faster, "", None, {}))
            rows.append(Row(f"{of}: our MB by {peer}", memory[ours] / memory[peer], "", None, {}))
    return rows


def with_targets(rows: list[Row]) -> list[Row]:
    """What was asked for, of two sizes and of the growth of memory."""
    found = {row.what.replace(" (chunked)", ""): row for row in rows}
    rates = {n: found[f"NT-Xent, 2 x {n:,} views: rate by the machine's own product"] for n in IMAGES[-2:]}
    mb = {images: row.figures["chunked_mb"] for images, row in rates.items()}
    faster = found["NT-Xent, 2 x 4,096 views: lightly seconds by ours"]
    memory = found["NT-Xent, 2 x 4,096 views: our MB by lightly"]
    rate = rates[16384]
    growth = mb[32768] / mb[16384]
    return [
        faster._replace(target=f"at least {FASTER:g}", is_met=faster.ratio >= FASTER),
        memory._replace(target=f"at most {LEAST_MEMORY:g}", is_met=memory.ratio <= LEAST_MEMORY),
        rate._replace(target=f"at least {LEAST_RATE:g}", is_met=rate.ratio >= LEAST_RATE),
        Row("NT-Xent, 2 x 16,384 views: MB beyond the rows", mb[16384], f"at most {MOST_MB:g}",
            mb[16384] <= MOST_MB, {}),
        Row("NT-Xent, MB of 2 x 32,768 views by those of 2 x 16,384", growth, f"at most {MOST_GROWTH:g}",
            growth <= MOST_GROWTH, {}),
        *(row for row in rows if row not in (faster, memory, rate)),
    ]  # fmt: skip


def other_look_ups() -> dict[str, Callable[[Form], Tensor]]:
    """Of other methods, around the size from which on they are chunked: a mean, in a form."""
    draw = torch.Generator().manual_seed(0)

    def unit(rows: int) -> Tensor:
        return F.normalize(torch.randn(rows, WIDTH, generator=draw), dim=1)

    def queue(held: int) -> Callable[[Form], Tensor]:
        queries, keys, rows = unit(256).requires_grad_(), unit(256), unit(held)
        made = partial(
            look_up_own_key, queries, keys, ids=torch.arange(256), stored_vectors=rows,
            stored_ids=torch.arange(held),
        )  # fmt: skip
        return lambda form: info_nce(made(), temperature=TEMPERATURE, form=form).mean()

    def pairs(images: int) -> Callable[[Form], Tensor]:
        sides, ids = [unit(images).requires_grad_() for _ in range(2)], torch.arange(images)
        rule = PairRule(same_id="positive")
        made = partial(look_up, *sides, query_ids=ids, key_ids=ids, rule=rule)
        return lambda form: info_nce(made(), temperature=TEMPERATURE, form=form).mean()

    def frozen(held: int) -> Callable[[Form], Tensor]:
        wide, wide_keys, queries, keys = unit(128), unit(held), unit(128).requires_grad_(), unit(held)
        keys.requires_grad_()

        def made(rows: Tensor, among: Tensor) -> Lookup:
            ids, key_ids = torch.arange(128), torch.arange(held)
            return look_up(rows, among, rule=PairRule(), query_ids=ids, key_ids=key_ids)

        return lambda form: score_distillation(
            made(queries, keys), made(wide, wide_keys), temperature=TEMPERATURE, form=form
        ).mean()

    return {
        "InfoNCE, 256 x 4,352 (queue)": queue(4096),
        "InfoNCE, 256 x 16,640 (queue)": queue(16384),
        "InfoNCE, 256 x 65,792 (queue)": queue(65536),
        "InfoNCE, 1,024 x 1,024 (pairs)": pairs(1024),
        "InfoNCE, 2,048 x 2,048 (pairs)": pairs(2048),
        "InfoNCE, 4,096 x 4,096 (pairs)": pairs(4096),
        "score distillation, 128 x 50,000": frozen(50_000),
    }


def dense_by_chunked() -> list[Row]:
    """Which form is faster."""
    rows = []
    for name, loss in other_look_ups().items():
        forms: tuple[Form, ...] = ("dense", "chunked")
        runs: dict[str, Callable[[], Any]]
        runs = {form: partial(lambda loss, form: loss(form).backward(), loss, form) for form in forms}
        seconds = in_turns(runs, 5)
        figures = {f"{form}_s": round(statistics.median(taken), 4) for form, taken in seconds.items()}
        ratio = median_ratio(seconds["dense"], seconds["chunked"])
        rows.append(Row(f"{name}: dense seconds by chunked", ratio, "", None, figures))
    return rows


def measure() -> list[Row]:
    """The table of losses."""
    return with_targets([row for images in IMAGES for row in beside_lightly(images)]) + dense_by_chunked()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        torch.set_num_threads(int(sys.argv[3]))
        serve(sys.argv[1], int(sys.argv[2]))
    else:
        for row in measure():
            print(row)
