"""Draw the packages of querykey and their imports: docs/architecture.svg.

python scripts/architecture.py            # write the picture
python scripts/architecture.py --check    # fail if it is not that of today's imports
"""

import argparse
import sys
import tomllib
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"
EVERYWHERE = {"types", "errors"}
"""Imported by nearly all packages: arrows to them would hide the others."""
JOBS = {
    "cli": "commands", "studies": "the papers' ablations", "reports": "HTML and Markdown",
    "runs": "folders: train, evaluate, search", "adapter": "train a layer on frozen rows",
    "pretraining": "train an encoder", "features": "stores of frozen rows",
    "diagnostics": "collapse, drift, fill", "evaluation": "retrieval, kNN, linear",
    "losses": "Lookup to loss",
    "data": "readers, augmentation", "export": "ONNX, safetensors", "dictionaries": "queue, bank, memory",
    "encoders": "backbones, heads, frozen", "lookup": "queries, keys, pairs", "distributed": "process group",
    "config": "TOML to settings", "io": "atomic writes, records", "optim": "optimizers, schedules",
    "runtime": "adapters in NumPy", "types": "array types", "errors": "QuerykeyError",
}  # fmt: skip
WIDTH, BOX_WIDTH, BOX_HEIGHT, ROW, MARGIN = 1000, 190, 44, 92, 16

Edges = Mapping[str, frozenset[str]]


def layers() -> list[list[str]]:
    """The layers that import-linter holds, from the top; packages of a line are independent.

    Returns:
        Names of packages, a list a layer.
    """
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    return [[name.strip() for name in line.split("|")] for line in lines]


def imports() -> Edges:
    """Which package imports which.

    Returns:
        By package, those that one of its modules imports.
    """
    graph = grimp.build_graph("querykey", cache_dir=None)
    packages = {name for layer in layers() for name in layer}
    found: dict[str, set[str]] = {name: set() for name in packages}
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            ends = [[*name.split("."), ""][1] for name in (module, imported)]
            if ends[0] != ends[1] and packages.issuperset(ends):
                found[ends[0]].add(ends[1])
    return {name: frozenset(found[name]) for name in sorted(found)}


def reduced(edges: Edges) -> Edges:
    """Without the imports that follow from others: of a -> b -> c and a -> c, the last.

    Args:
        edges: Without cycles.

    Returns:
        The transitive reduction.
    """

    def reach(name: str) -> set[str]:
        return {name}.union(*(reach(other) for other in edges[name]))

    return {
        name: frozenset(
            one for one in others if not any(one in reach(other) for other in others if other != one)
        )
        for name, others in edges.items()
    }


def places() -> dict[str, tuple[float, float]]:
    """The left upper corner of each package's box."""
    found = {}
    for row, layer in enumerate(layers()):
        gap = (WIDTH - len(layer) * BOX_WIDTH) / (len(layer) + 1)
        for column, name in enumerate(layer):
            found[name] = (gap + column * (BOX_WIDTH + gap), MARGIN + row * ROW)
    return found


def arrows(edges: Edges, at: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    """Curves from the lower side of a box to the upper side of another, their ends spread along the sides."""
    pairs = [(name, other) for name in at for other in at if other in edges[name]]
    for name, other in pairs:
        ends = []
        for box, others in (
            (name, [b for a, b in pairs if a == name]), (other, [a for a, b in pairs if b == other])
        ):  # fmt: skip
            order = sorted(others, key=lambda one: (at[one][0], at[one][1]))
            place = order.index(other if box == name else name) + 1
            ends.append(at[box][0] + BOX_WIDTH * place / (len(order) + 1))
        x, y, to_x, to_y = ends[0], at[name][1] + BOX_HEIGHT, ends[1], at[other][1]
        bend = (to_y - y) / 2
        yield (
            f'<path d="M{x:.0f} {y:.0f}C{x:.0f} {y + bend:.0f} {to_x:.0f} {to_y - bend:.0f} '
            f'{to_x:.0f} {to_y - 2:.0f}"><title>{name} imports {other}</title></path>'
        )


def draw() -> str:
    """The picture.

    Returns:
        An SVG, the same for the same imports.
    """
    at = places()
    shown = {name: others - EVERYWHERE for name, others in imports().items()}
    height = MARGIN * 2 + ROW * (len(layers()) - 1) + BOX_HEIGHT
    boxes = [
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5"/>'
        f'<text x="{x + BOX_WIDTH / 2:.0f}" y="{y + 18:.0f}" class="name">{name}</text>'
        f'<text x="{x + BOX_WIDTH / 2:.0f}" y="{y + 35:.0f}">{escape(JOBS[name])}</text>'
        for name, (x, y) in at.items()
    ]
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
            f'height="{height}" role="img" aria-label="The packages of querykey and what they import">'
        ),
        "<style>svg{--ink:#1f2328;--soft:#59636e;--box:#f3f5f7;--line:#0067a5;background:#fff}",
        (
            "@media (prefers-color-scheme:dark){svg{--ink:#e6edf3;--soft:#9198a1;--box:#21262d;"
            "--line:#6cb6ff;background:#0d1117}}"
        ),
        "text{font:11.5px system-ui,'Segoe UI',Helvetica,Arial,sans-serif}",
        "text{fill:var(--soft);text-anchor:middle}",
        ".name{font-size:14px;font-weight:600;fill:var(--ink)}",
        "rect{fill:var(--box);stroke:var(--soft)}",
        "path{fill:none;stroke:var(--line);stroke-width:1.4;opacity:.75;marker-end:url(#to)}",
        "#to path{fill:var(--line);stroke:none;opacity:1;marker-end:none}</style>",
        (
            '<defs><marker id="to" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0 0 10 5 0 10z"/></marker></defs>'
        ),
        *arrows(reduced(shown), at),
        *boxes,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the picture, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if it is old")
    picture = draw()
    if parser.parse_args().check:
        if PICTURE.read_text() == picture:
            return 0
        print(
            f"{PICTURE} is not that of today's imports; run python scripts/architecture.py", file=sys.stderr
        )
        return 1
    PICTURE.write_text(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
