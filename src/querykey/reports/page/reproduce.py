"""The command line that reproduces a run, from its run.json."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from querykey.io.records import dotted

__all__ = ["adapt_command", "pretrain_command", "study_command"]

LENGTHS = ("minutes", "epochs", "steps")
MEASURED = ("steps", "precision", "layout")
"""Settings that a pretraining run chose by timing; the command fixes them."""


def adapt_command(described: Mapping[str, Any]) -> str:
    """The command that fits the same adapter.

    Args:
        described: run.json of an adapter.

    Returns:
        `querykey adapt ...`, with the settings that differ from the defaults.

    Example:
        >>> print(adapt_command({"settings": {"dim": 8}, "features": {"at": {"spec": "F"}}, "threads": 2}))
        querykey adapt F --out NEW-FOLDER --dim 8 --threads 2
    """
    from querykey.runs.adapter_settings import parse_run

    default, given = parse_run({}).as_dict(), parse_run(described["settings"], warn=False).as_dict()
    at = described["features"].get("at") or {"spec": "FEATURES"}
    words = ["querykey", "adapt", at["spec"], "--out", "NEW-FOLDER"]
    words += _options(at, ("column", "pair_column", "split", "delimiter"))
    words += _options(given, ("dim", "labels", "side", "seed"), default)
    words += ["--pairs"] if given.get("pairs") else []
    named = {"dim", "labels", "side", "seed", "pairs"}
    flat, usual = dotted(given), dotted(default)
    changed = {name: value for name, value in flat.items() if name not in named and value != usual.get(name)}
    words += _settings(changed)
    return shlex.join([*words, "--threads", str(described["threads"])])


def pretrain_command(described: Mapping[str, Any]) -> str:
    """The command that pretrains the same encoder.

    Args:
        described: run.json of a pretraining.

    Returns:
        `querykey pretrain ...`, with the settings that were given, and those that were chosen by timing.
    """
    from querykey.pretraining.settings.methods import given_settings
    from querykey.pretraining.settings.settings import PretrainSettings

    given = PretrainSettings.from_dict(described["asked"]).as_dict()
    resolved = PretrainSettings.from_dict(described["settings"]).as_dict()
    usual, named = dotted(given_settings(given["method"]).as_dict()), {*LENGTHS, "method", "seed"}
    changed = {k: v for k, v in dotted(given).items() if k not in named and v != usual.get(k)}
    changed |= {name: resolved[name] for name in MEASURED}
    at = described["data"].get("at") or {"spec": "SOURCE"}
    words = ["querykey", "pretrain", "--data", at["spec"], "--out", "NEW-FOLDER", "--method", given["method"]]
    words += _options(at, ("column", "label_column", "split"))
    words += _settings(changed)
    words += ["--seed", str(given["seed"]), "--device", described["device"]]
    return shlex.join([*words, "--threads", str(described["threads"])])


def study_command(described: Mapping[str, Any], folder: str) -> str:
    """The command that runs the same study on the same data.

    Args:
        described: study.json.
        folder: Name of its folder.

    Returns:
        `querykey study ...`; with `--minutes` another machine may run another number of steps.

    Example:
        >>> train = {"spec": "photos", "split": "train"}
        >>> print(study_command({"name": "momentum", "data": {"train": train}}, "momentum"))
        querykey study momentum --data photos --out NEW-FOLDER --split train
    """
    if described.get("identity", "plan") != "plan":  # a study of docs/results.md, on the project's data sets
        return f"python scripts/studies.py results --only '*/{folder}'"
    data = described.get("data") or {}
    train, test = data.get("train") or data, data.get("test") or {}
    source = train.get("spec", "SOURCE")
    words = ["querykey", "study", described["name"], "--data", source, "--out", "NEW-FOLDER"]
    words += _options(train, ("column", "label_column", "split"))
    words += ["--test", test["spec"]] if test.get("spec") not in (None, train.get("spec")) else []
    words += ["--test-split", test["split"]] if test.get("split") else []
    words += _options(described.get("budget") or {}, ("minutes",))
    return shlex.join([*words, *(["--smoke"] if described.get("is_trial") else [])])


def _options(
    values: Mapping[str, Any], names: Sequence[str], usual: Mapping[str, Any] | None = None
) -> list[str]:
    words: list[str] = []
    for name in names:
        if values.get(name) is not None and values[name] != (usual or {}).get(name):
            words += [f"--{name.replace('_', '-')}", str(values[name])]
    return words


def _settings(values: Mapping[str, Any]) -> list[str]:
    # JSON's strings, numbers, lists and truth values are TOML's too; TOML has no null
    given = [f"{key}={json.dumps(value)}" for key, value in values.items() if value is not None]
    return [word for setting in given for word in ("--set", setting)]
