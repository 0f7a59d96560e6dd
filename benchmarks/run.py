"""Measure speed and memory beside the peers; print a table and write results.json beside this file.

Usage: python benchmarks/run.py [NAME ...], of the names in BENCHMARKS
"""

import json
import os
import platform
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timing import Row

from querykey.io.measured import processor

BENCHMARKS = (
    "start_up", "numpy_runtime", "nearest", "knn", "losses", "adapter_step", "whole_fit", "roofline", "sizes",
    "embed", "cost_against_n", "views", "gradient_cache", "simclr", "evaluate", "methods", "processes",
)  # fmt: skip
RESULTS = Path(__file__).with_name("results.json")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
"""Flags of processors that decide which kernels of matrix products there are."""
PACKAGES = ("torch", "numpy", "faiss-cpu", "pytorch-metric-learning", "lightly")


def machine() -> dict[str, Any]:
    """What it was measured on, and how busy that was."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    flags = set(processor().split())
    return {
        "processor": names[0] if names else platform.processor(),
        "instructions": " ".join(name for name in INSTRUCTIONS if name in flags),
        "processors": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in PACKAGES},
    }


def installed(package: str) -> str:
    """The version of a package; most benchmarks need one peer alone."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def kind(about: dict[str, Any]) -> str:
    """What results are kept by: those of one kind of processor say little of another."""
    return f"{about['processor']}: {about['instructions']}"


def show(rows: list[Row], about: dict[str, Any]) -> None:
    """The table."""
    table = Table(title=f"{kind(about)}; {about['torch_threads']} threads, load {about['load_at_start']}")
    for column in ("what", "ratio", "target", "met", "made of"):
        table.add_column(column, justify="right" if column == "ratio" else "left", overflow="fold")
    for row in rows:
        met = {True: "yes", False: "no", None: ""}[row.is_met]
        table.add_row(row.what, f"{row.ratio:.2f}", row.target, met, json.dumps(row.figures))
    Console(width=150).print(table)


def main(names: list[str]) -> None:
    """Run the named benchmarks, or all; what was not run, here or on other processors, keeps its result."""
    if unknown := sorted(set(names) - set(BENCHMARKS)):
        sys.exit(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    written = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names or BENCHMARKS:
        about = machine()
        rows: list[Row] = import_module(name).measure()
        show(rows, about)
        written.setdefault(kind(about), {})[name] = {
            "machine": about,
            "rows": [row._asdict() for row in rows],
        }
        ordered = {
            one: {name: found[name] for name in BENCHMARKS if name in found}
            for one, found in sorted(written.items())
        }
        RESULTS.write_text(json.dumps(ordered, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
