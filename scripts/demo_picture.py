"""Draw the results of `querykey demo` as docs/figures/demo.svg, from the folder that it wrote.

Rows are the queries whose document moves up most and those whose document moves down most. All queries are counted
on the right, so that the picture does not show a selection only.

Usage: python scripts/demo_picture.py DEMO
"""

import math
import sys
from html import escape
from pathlib import Path

import torch
from torch import Tensor

from querykey import Features, read_features
from querykey.lookup.unit_length import unit_length
from querykey.runs.adapt import load_run

OUT = Path(__file__).resolve().parent.parent / "docs" / "figures" / "demo.svg"
SHOWN, LONGEST = 3, 48
WIDTH, ROW, TOP, LEFT, RIGHT = 760, 30, 84, 372, 560
STYLE = """svg{--ink:#1f2328;--soft:#59636e;--line:#d0d7de;--before:#8c959f;--up:#1a7f37;--down:#bc4c00;background:#fff}
@media (prefers-color-scheme:dark){svg{--ink:#e6edf3;--soft:#9198a1;--line:#3d444d;--before:#9198a1;--up:#3fb950;
--down:#f0883e;background:#0d1117}}
text{font:13px system-ui,'Segoe UI',Helvetica,Arial,sans-serif;fill:var(--ink)}.soft{fill:var(--soft)}
.title{font-size:15px;font-weight:600}.end{text-anchor:end}.middle{text-anchor:middle}.count{font-size:22px;font-weight:600}
.grid{stroke:var(--line)}.before{fill:var(--before)}.up{fill:var(--up)}.down{fill:var(--down)}
line.up{stroke:var(--up);stroke-width:3}line.down{stroke:var(--down);stroke-width:3}"""


def ranks(queries: Tensor, documents: Tensor, pairs: Tensor) -> list[int]:
    """The rank of each query's own document among all, from 1; ties count against it."""
    scores = queries[pairs[:, 0]] @ documents.T
    found: list[int] = (scores >= scores.gather(1, pairs[:, 1:2])).sum(dim=1).tolist()
    return found


def measured(demo: Path) -> tuple[Features, list[int], list[int]]:
    """The test features, and the rank of each query's document before and after."""
    test = read_features(demo / "features" / "test")
    adapter = load_run(demo / "adapter").adapter
    assert test.queries is not None
    assert test.pairs is not None
    pairs = test.pairs[:, :2]
    rows = [unit_length(each.vectors).float() for each in (test.queries, test)]
    adapted = [torch.as_tensor(adapter.transform(each.vectors)) for each in (test.queries, test)]
    return test, ranks(*rows, pairs), ranks(*adapted, pairs)


def x_of(rank: int, last: int) -> float:
    """The coordinate of a rank on the logarithmic axis."""
    return LEFT + (RIGHT - LEFT) * math.log(rank) / math.log(last)


def drawn(texts: list[str], before: list[int], after: list[int]) -> str:
    """The picture."""
    order = sorted(range(len(texts)), key=lambda row: math.log(after[row]) - math.log(before[row]))
    shown = [*order[:SHOWN], *order[: -SHOWN - 1 : -1]]
    last = max(max(before[row], after[row]) for row in shown)
    height = TOP + ROW * len(shown) + 44
    moved = [sum(a < b for b, a in zip(before, after, strict=True)),
             sum(a == b for b, a in zip(before, after, strict=True)),
             sum(a > b for b, a in zip(before, after, strict=True))]  # fmt: skip
    label = (
        f"Of {len(texts)} queries the adapter moves the right document up for {moved[0]}, "
        f"leaves it for {moved[1]} and moves it down for {moved[2]}"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        f' role="img" aria-label="{label}"><style>{STYLE}</style>',
        '<text x="16" y="28" class="title">Where the right document stands: frozen model, then adapter</text>',
        '<text x="16" y="50" class="soft">Queries of packages that were not fitted; helped most, then failed most</text>',
    ]
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500) if tick <= last]
    for tick in ticks:
        x = x_of(tick, last)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 12}" y2="{height - 40}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 22}" class="soft middle">{tick}</text>')
    for number, row in enumerate(shown):
        y = TOP + ROW * number + 6
        way = "up" if after[row] < before[row] else "down"
        text = texts[row] if len(texts[row]) <= LONGEST else texts[row][: LONGEST - 1].rstrip() + "…"
        start, end = x_of(before[row], last), x_of(after[row], last)
        parts.append(f'<text x="{LEFT - 14}" y="{y + 4}" class="end">{escape(text)}</text>')
        parts.append(f'<line class="{way}" x1="{start:.1f}" x2="{end:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="before" cx="{start:.1f}" cy="{y}" r="5"/>')
        parts.append(f'<circle class="{way}" cx="{end:.1f}" cy="{y}" r="6"/>')
    parts.append(
        f'<text x="{LEFT}" y="{height - 4}" class="soft">place among {len(texts)}; 1 is first</text>'
    )
    for number, (count, words, kind) in enumerate(
        zip(moved, ("move up", "stay", "move down"), ("up", "before", "down"), strict=True)
    ):
        y = TOP + 20 + number * 58
        parts.append(f'<text x="600" y="{y}" class="count {kind}">{count}</text>')
        parts.append(f'<text x="600" y="{y + 20}" class="soft">of {len(texts)} {words}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    features, ranks_before, ranks_after = measured(Path(sys.argv[1]))
    queries = features.queries
    assert queries is not None
    assert features.pairs is not None
    OUT.write_text(
        drawn([queries.previews[int(row)] for row in features.pairs[:, 0]], ranks_before, ranks_after)
    )
