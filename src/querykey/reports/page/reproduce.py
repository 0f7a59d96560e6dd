"""The command line that reproduces a run, from its run.json."""

import json
import shlex
import warnings
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

    default, given = parse_run({}).model_dump(mode="json"), described["settings"]
    at = described["features"].get("at") or {"spec": "FEATURES"}
    words = ["querykey", "adapt", at["spec"], "--out", "NEW-FOLDER"]
    words += _options(at, ("column", "pair_column", "split"))
    words += _options(given, ("dim", "labels", "side", "seed"), default)
    words += ["--pairs"] if given.get("pairs") else []
    named = {"dim", "labels", "side", "seed", "pairs"}
    flat, usual = dotted(given), dotted(default)
    words += _settings(
        {k: v for k, v in flat.items() if k not in named and v is not None and v != usual.get(k)}
    )
    return shlex.join([*words, "--threads", str(described["threads"])])


def pretrain_command(described: Mapping[str, Any]) -> str:
    """The command that pretrains the same encoder.

    Args:
        described: run.json of a pretraining.

    Returns:
        `querykey pretrain ...`, with the settings that were given, and those that were chosen by timing.
    """
    from querykey.pretraining.settings.settings import PretrainSettings

    asked, resolved = described["asked"], described["settings"]
    usual, named = dotted(PretrainSettings.of(asked["method"]).as_dict()), (*LENGTHS, "method", "seed")
    given = {k: v for k, v in dotted(asked).items() if v != usual.get(k) and k not in named}
    given |= {name: resolved[name] for name in MEASURED}
    at = described["data"].get("at") or {"spec": "SOURCE"}
    words = ["querykey", "pretrain", "--data", at["spec"], "--out", "NEW-FOLDER", "--method", asked["method"]]
    words += _options(at, ("column", "label_column", "split"))
    names = _dotted()
    words += _settings({names.get(k, k): v for k, v in given.items() if v is not None})
    words += ["--seed", str(asked["seed"]), "--device", described["device"]]
    return shlex.join([*words, "--threads", str(described["threads"])])


def study_command(described: Mapping[str, Any]) -> str:
    """The command that runs the same study on the same data.

    Args:
        described: study.json.

    Returns:
        `querykey study ...`; with `--minutes` another machine may run another number of steps.

    Example:
        >>> train = {"spec": "photos", "split": "train"}
        >>> print(study_command({"name": "momentum", "data": {"train": train}}))
        querykey study momentum --data photos --out NEW-FOLDER --split train
    """
    data = described.get("data") or {}
    train, test = data.get("train") or data, data.get("test") or {}
    words = [
        "querykey",
        "study",
        described["name"],
        "--data",
        train.get("spec", "SOURCE"),
        "--out",
        "NEW-FOLDER",
    ]
    words += _options(train, ("column", "label_column", "split"))
    words += ["--test", test["spec"]] if test.get("spec") not in (None, train.get("spec")) else []
    words += ["--test-split", test["split"]] if test.get("split") else []
    words += _options(described.get("budget") or {}, ("minutes",))
    return shlex.join([*words, *(["--smoke"] if described.get("is_trial") else [])])


def _dotted() -> dict[str, str]:
    """Setting to its dotted key in a run file, found by reading a run file with each key."""
    from pydantic import BaseModel

    from querykey.runs.pretrain_settings import PretrainRun

    names: dict[str, str] = {}
    for table, field in PretrainRun.model_fields.items():
        model = field.default
        if not isinstance(model, BaseModel):
            continue
        for key in type(model).model_fields:
            # the value does not matter, only the setting it arrives in
            inside: dict[str, Any] = {key: 0}
            whole: dict[str, Any] = {table: type(model).model_construct(**inside)}
            run = PretrainRun.model_construct(**whole)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                (given,) = run.as_settings().items()
            names[next(iter(dotted(dict([given]))))] = f"{table}.{key}"
    return names


def _options(
    values: Mapping[str, Any], names: Sequence[str], usual: Mapping[str, Any] | None = None
) -> list[str]:
    words: list[str] = []
    for name in names:
        if values.get(name) is not None and values[name] != (usual or {}).get(name):
            words += [f"--{name.replace('_', '-')}", str(values[name])]
    return words


def _settings(values: Mapping[str, Any]) -> list[str]:
    # JSON's strings, numbers, lists and truth values are TOML's too
    return [word for key, value in values.items() for word in ("--set", f"{key}={json.dumps(value)}")]
