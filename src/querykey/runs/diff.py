"""Differences of runs: settings, training data and environment, and final metrics."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from querykey.errors import ConfigError, MissingPathError
from querykey.io.atomic import raises_store_error
from querykey.io.records import dotted, read
from querykey.runs.adapt import RUN, Run
from querykey.runs.pretrain_folder import METRICS, RunFolder, is_pretraining
from querykey.runtime.folder import DESCRIPTION

__all__ = ["Differing", "Facts", "Kind", "common_kind", "differing", "facts_of", "transpose", "unique_names"]

Kind = Literal["adapter", "pretraining"]
LEAST = 2


@dataclass(frozen=True)
class Facts:
    """A run as names and plain values.

    Args:
        settings: The resolved settings, with dotted names.
        origin: Training data and environment.
        end: The final metrics, or those so far.
    """

    settings: dict[str, Any]
    origin: dict[str, Any]
    end: dict[str, Any]


@dataclass(frozen=True)
class Differing:
    """Values that differ between runs.

    Args:
        values: Name, then run, to its value. A run without a value is left out.
        same: Number of names with the same value in all runs.
    """

    values: dict[str, dict[str, Any]]
    same: int


def unique_names(folders: Sequence[str | Path], *, reserved: Sequence[str] = ()) -> dict[str, Path]:
    """Name runs by their folders, with as many parent folders as unique names need.

    Args:
        folders: At least two different folders.
        reserved: Names that no run may have.

    Returns:
        Name to folder, in order.

    Raises:
        ConfigError: If there are fewer than two, or one is given twice.

    Example:
        >>> list(unique_names(["a/moco", "b/moco", "a/simclr"]))
        ['a/moco', 'b/moco', 'simclr']
    """
    if len(folders) < LEAST:
        given = ", ".join(map(str, folders)) or "none"
        raise ConfigError(f"at least two runs are needed to compare them, and this is one: {given}")
    resolved = [Path(folder).resolve() for folder in folders]
    for place, path in enumerate(resolved):
        if path in resolved[:place]:
            raise ConfigError(f"{folders[place]} is given twice; give different runs")
    names = {}
    for folder, path in zip(folders, resolved, strict=True):
        others = [other.parts for other in resolved if other != path]
        taken, kept = {tuple(name.split("/")) for name in reserved}, 1
        while path.parts[-kept:] in taken or any(path.parts[-kept:] == parts[-kept:] for parts in others):
            kept += 1
        names["/".join(path.parts[-kept:])] = Path(folder)
    return names


def common_kind(runs: Mapping[str, Path]) -> Kind:
    """The kind of runs, which must be the same for all.

    Args:
        runs: Name to folder.

    Returns:
        "adapter" or "pretraining".

    Raises:
        MissingPathError: If a folder is no run.
        ConfigError: If they are not of one kind.
    """
    kinds = {folder: _kind(folder) for folder in runs.values()}
    first, *others = kinds.items()
    for folder, kind in others:
        if kind != first[1]:
            raise ConfigError(
                f"{first[0]} is {_article(first[1])} and {folder} {_article(kind)}, which have no "
                "measure in common; compare runs of one kind"
            )
    return first[1]


def facts_of(run: Run | RunFolder) -> Facts:
    """Settings, origin and final metrics of a run.

    Args:
        run: An adapter or a pretraining run.

    Returns:
        The facts.

    Raises:
        StoreError: If its records are damaged.
    """
    folder = run.folder if isinstance(run, Run) else run.path
    with raises_store_error(f"{folder}: the record of the run", "make the run again"):
        return _of_adapter(run) if isinstance(run, Run) else _of_pretraining(run)


def transpose(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Group the facts of runs by name.

    Args:
        facts: Run, then name, to its value.

    Returns:
        Name, in the order of first occurrence, then run.

    Example:
        >>> transpose({"a": {"dim": 64}, "b": {"dim": 32, "steps": 5}})
        {'dim': {'a': 64, 'b': 32}, 'steps': {'b': 5}}
    """
    names = dict.fromkeys(name for one in facts.values() for name in one)
    return {name: {run: one[name] for run, one in facts.items() if name in one} for name in names}


def differing(facts: Mapping[str, Mapping[str, Any]]) -> Differing:
    """Find the values that differ between runs.

    Args:
        facts: Run, then name, to its value.

    Returns:
        The names that differ, in the order of first occurrence, and the number of those that do not.

    Example:
        >>> differing({"a": {"dim": 64, "steps": 5}, "b": {"dim": 32, "steps": 5}})
        Differing(values={'dim': {'a': 64, 'b': 32}}, same=1)
    """
    values = transpose(facts)
    differ = {
        name: row
        for name, row in values.items()
        if len(row) < len(facts) or any(value != next(iter(row.values())) for value in row.values())
    }
    return Differing(differ, len(values) - len(differ))


def _kind(folder: Path) -> Kind:
    if is_pretraining(folder):
        return "pretraining"
    if (folder / DESCRIPTION).is_file():
        return "adapter"
    raise MissingPathError(
        f"{folder}: no run here; a run is an output folder of querykey adapt or querykey pretrain"
    )


def _article(kind: Kind) -> str:
    return "an adapter" if kind == "adapter" else "a pretraining"


def _of_adapter(run: Run) -> Facts:
    adapter, report = run.adapter, run.adapter.report_
    # a Run does not contain threads and versions
    file = run.folder / RUN
    machine = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    model = run.features.get("model", {"key": adapter.model_key_})
    origin = {
        "features": run.features.get("at", {}).get("spec"), "rows": run.features.get("rows"),
        "fingerprint": run.features.get("key"), "width": adapter.n_features_in_,
        "frozen model": model.get("spec"), "key of the model": model.get("key"),
        "threads": machine.get("threads"), **_versions(machine.get("versions", {})),
    }  # fmt: skip
    names = {
        "measure": "measure", "verdict": "verdict", "candidate": "candidate",
        "start": "score of the reference", "best": "score of the candidate", "steps_taken": "steps",
        "seconds": "seconds",
    }  # fmt: skip
    end = {title: report[name] for name, title in names.items() if name in report}
    return Facts(dotted(adapter.settings_.as_dict()), _given(origin), end)


def _of_pretraining(run: RunFolder) -> Facts:
    about = run.described
    origin = {
        "images": about["data"].get("name"), "trained on": about["data"].get("trained_on"),
        "fingerprint": run.fingerprint, "device": run.device, "threads": run.threads,
        "processes": run.processes, **_versions(run.versions),
    }  # fmt: skip
    records = read(run.path / METRICS) if (run.path / METRICS).is_file() else []
    steps = [record for record in records if record["kind"] == "step"]
    metrics = next((record for record in reversed(records) if record["kind"] == "look"), {})
    seconds = sum(record["seconds"] + record["view_seconds"] for record in steps)
    end: dict[str, Any] = {"steps": len(steps), "seconds of steps": seconds}
    if seconds:
        end["images/s"] = len(steps) * run.settings.batch_size / seconds
    names = {"knn": "kNN of the validation images", "effective_rank_h": "effective rank of h", "loss": "loss"}
    end |= {title: metrics[name] for name, title in names.items() if name in metrics}
    return Facts(dotted(run.settings.as_dict()), _given(origin), end)


def _versions(found: Mapping[str, str]) -> dict[str, str]:
    return {f"version of {name}": value for name, value in found.items()}


def _given(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}
