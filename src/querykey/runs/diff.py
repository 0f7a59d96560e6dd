"""Runs beside each other: which settings differ, what they were trained on, what each said at its end."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from querykey.adapter.checkpoint import DESCRIPTION
from querykey.errors import ConfigError, MissingPathError
from querykey.io.atomic import raises_store_error
from querykey.io.records import dotted, read
from querykey.runs.adapt import RUN, Run
from querykey.runs.pretrain_folder import METRICS, RunFolder, is_pretraining

__all__ = ["Differing", "Facts", "Kind", "by_name", "differing", "facts_of", "kind_of", "named"]

Kind = Literal["adapter", "pretraining"]
LEAST = 2


@dataclass(frozen=True)
class Facts:
    """What a run is, as flat names to plain values.

    Args:
        settings: As resolved; what is inside of another setting has a dotted name.
        origin: What it was trained on and with.
        end: What it said of itself at its end, or so far.
    """

    settings: dict[str, Any]
    origin: dict[str, Any]
    end: dict[str, Any]


@dataclass(frozen=True)
class Differing:
    """What is not the same for all runs.

    Args:
        values: Name, then run, to its value. A run that has nothing of that name is left out.
        same: How many names have one value in all runs.
    """

    values: dict[str, dict[str, Any]]
    same: int


def named(folders: Sequence[str | Path], *, reserved: Sequence[str] = ()) -> dict[str, Path]:
    """Name runs by their folders, with as many parents as it takes to tell them apart.

    Args:
        folders: At least two, each another.
        reserved: Names that no run may have.

    Returns:
        Name to folder, in order.

    Raises:
        ConfigError: If there are fewer than two, or one comes twice.

    Example:
        >>> list(named(["a/moco", "b/moco", "a/simclr"]))
        ['a/moco', 'b/moco', 'simclr']
    """
    if len(folders) < LEAST:
        given = ", ".join(map(str, folders)) or "none"
        raise ConfigError(f"at least two runs are needed to compare them, and this is one: {given}")
    whole = [Path(folder).resolve() for folder in folders]
    for place, path in enumerate(whole):
        if path in whole[:place]:
            raise ConfigError(f"{folders[place]} is given twice; a run differs in nothing from itself")
    names = {}
    for folder, path in zip(folders, whole, strict=True):
        others = [other.parts for other in whole if other != path]
        taken, kept = {tuple(name.split("/")) for name in reserved}, 1
        while path.parts[-kept:] in taken or any(path.parts[-kept:] == parts[-kept:] for parts in others):
            kept += 1
        names["/".join(path.parts[-kept:])] = Path(folder)
    return names


def kind_of(runs: Mapping[str, Path]) -> Kind:
    """What runs are; all must be the same.

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
    """What a run is.

    Args:
        run: An adapter or a pretraining.

    Returns:
        Settings, origin and end.

    Raises:
        StoreError: If what it says of itself is damaged.
    """
    folder = run.folder if isinstance(run, Run) else run.path
    with raises_store_error(f"{folder}: what the run says of itself", "make the run again"):
        return _of_adapter(run) if isinstance(run, Run) else _of_pretraining(run)


def by_name(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Turn facts of runs into what each run says under a name.

    Args:
        facts: Run, then name, to its value.

    Returns:
        Name, in the order they first come, then run.

    Example:
        >>> by_name({"a": {"dim": 64}, "b": {"dim": 32, "steps": 5}})
        {'dim': {'a': 64, 'b': 32}, 'steps': {'b': 5}}
    """
    names = dict.fromkeys(name for one in facts.values() for name in one)
    return {name: {run: one[name] for run, one in facts.items() if name in one} for name in names}


def differing(facts: Mapping[str, Mapping[str, Any]]) -> Differing:
    """What is not the same for all runs.

    Args:
        facts: Run, then name, to its value.

    Returns:
        The names that differ, in the order they first come, and how many do not.

    Example:
        >>> differing({"a": {"dim": 64, "steps": 5}, "b": {"dim": 32, "steps": 5}})
        Differing(values={'dim': {'a': 64, 'b': 32}}, same=1)
    """
    values = by_name(facts)
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
        f"{folder}: no run here; a run is a folder that querykey adapt or querykey pretrain wrote"
    )


def _article(kind: Kind) -> str:
    return "an adapter" if kind == "adapter" else "a pretraining"


def _of_adapter(run: Run) -> Facts:
    adapter, report = run.adapter, run.adapter.report_
    # read again: a Run does not hold with what it was fitted
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
    end = {words: report[name] for name, words in names.items() if name in report}
    return Facts(dotted(adapter.settings_.as_dict()), _known(origin), end)


def _of_pretraining(run: RunFolder) -> Facts:
    about = run.described
    origin = {
        "images": about["data"].get("name"), "trained on": about["data"].get("trained_on"),
        "fingerprint": run.fingerprint, "device": run.device, "threads": run.threads,
        "processes": run.processes, **_versions(run.versions),
    }  # fmt: skip
    records = read(run.path / METRICS) if (run.path / METRICS).is_file() else []
    steps = [record for record in records if record["kind"] == "step"]
    seen = next((record for record in reversed(records) if record["kind"] == "look"), {})
    seconds = sum(record["seconds"] + record["view_seconds"] for record in steps)
    end: dict[str, Any] = {"steps": len(steps), "seconds of steps": seconds}
    if seconds:
        end["images/s"] = len(steps) * run.settings.batch_size / seconds
    names = {"knn": "kNN of the held-out part", "effective_rank_h": "effective rank of h", "loss": "loss"}
    end |= {words: seen[name] for name, words in names.items() if name in seen}
    return Facts(dotted(run.settings.as_dict()), _known(origin), end)


def _versions(found: Mapping[str, str]) -> dict[str, str]:
    return {f"version of {name}": value for name, value in found.items()}


def _known(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}
