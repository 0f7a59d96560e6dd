"""`querykey doctor`: check data and machine, and suggest commands."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from querykey.cli.options import (
    Column,
    Delimiter,
    LabelColumn,
    PairColumn,
    Seed,
    Split,
    Threads,
    Unused,
    prepare,
)

if TYPE_CHECKING:
    from querykey.cli.doctor.machine import Machine
    from querykey.data.items import Source
    from querykey.encoders.norm.batchnorm import BatchNormKind
    from querykey.features.features import Features
    from querykey.pretraining.batchnorm_leak import Leakage, ProbedMethod
    from querykey.runs.data import DataAt

__all__ = ["doctor", "probe_batch_norm"]


def doctor(
    data: Annotated[str, typer.Argument(metavar="[SOURCE|FEATURES]", help="The data.")] = "",
    column: Column = None,
    label_column: LabelColumn = None,
    pair_column: PairColumn = None,
    split: Split = None,
    delimiter: Delimiter = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Estimate embed with it; see `querykey help sources`.")
    ] = None,
    device: Unused = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe-batch-norm",
            help="Test whether batch norm leaks pairs; takes a minute, needs no SOURCE.",
        ),
    ] = False,
    groups: Annotated[int, typer.Option(min=2, help="Groups of split batch norm in the probe.")] = 16,
) -> None:
    """Check data and machine, and suggest commands.

    Also estimates the time of a fit, of embedding or of pretraining from a short trial of it, and the
    memory of a fit, and warns about problems of the data.
    """
    prepare(device, threads, seed)
    if probe:
        probe_batch_norm(groups=groups, seed=seed)
        if not data:
            return
    from querykey.cli.console import line
    from querykey.cli.doctor.machine import measure_machine

    if not data:
        _show_machine(measure_machine())
        line("Give a SOURCE or FEATURES to check: querykey doctor photos/")
        return
    from querykey.runs.data import DataAt, Opened, open_data

    at = DataAt(data, column, label_column, pair_column, split, delimiter)
    found = open_data(at)
    machine = measure_machine()
    _show_machine(machine)
    if isinstance(found, Opened):
        _show_features(at, found.features, machine)
    else:
        _show_source(data, found, model, seed=seed)


def _show_machine(machine: "Machine") -> None:
    from querykey.cli.console import line, table

    memory = "unknown" if machine.memory is None else f"{machine.memory / 2**30:.1f} GiB free"
    there = [extra for extra, is_there in machine.extras.items() if is_there]
    missing = [extra for extra in machine.extras if extra not in there]
    rows = [
        ("processor", f"{machine.cores} cores, {machine.threads} threads, {machine.rate / 1e9:.0f} GFLOP/s"),
        ("bfloat16", _gain(machine.bf16_gain)),
        ("memory", memory),
        ("accelerator", machine.device or "none"),
        ("extras", ", ".join(there) or "none"),
    ]
    table(("machine", ""), rows, words=(0, 1))
    if missing:
        line(f"not installed: {', '.join(missing)} (pip install 'querykey[{','.join(missing)}]')")


def _gain(times: float) -> str:
    return f"{times:.1f} times the speed of float32" if times >= 1 else "slower than float32 here"


def _label_column(at: "DataAt") -> str:
    """The argument of `querykey adapt --labels` for these data."""
    from querykey.features.store import is_store
    from querykey.io.paths import expand_user

    if at.label_column is not None:
        return str(at.label_column)
    if at.spec.endswith((".npz", ".safetensors")):
        return "y"
    path = expand_user(at.spec)
    tables = sorted(path.rglob("*.parquet")) if path.is_dir() and not is_store(path) else [path]
    if not tables or tables[0].suffix != ".parquet":
        return "label"
    from pyarrow.parquet import read_schema

    from querykey.data.readers.columns import LABEL_COLUMNS

    # the readers choose the column if only one has such a name
    named = [name for name in read_schema(tables[0]).names if name.lower() in LABEL_COLUMNS]
    return named[0] if named else "label"


def _show_features(at: "DataAt", features: "Features", machine: "Machine") -> None:
    from querykey.cli.console import line, table
    from querykey.cli.doctor.costs import fit_cost
    from querykey.cli.doctor.diagnosis import USUAL_DIM, advise, diagnose, memory_of_fit, warnings_of

    found = diagnose(features)
    rows = [("rows", f"{found.rows:,}"), ("width", f"{found.dim}")]
    rows.append(("model", str(features.meta.get("model", {}).get("spec", "unknown"))))
    if found.classes:
        rows.append(("labels", f"{found.labelled:,} rows in {found.classes:,} classes"))
    if found.pairs:
        rows.append(("pairs", f"{found.pairs:,} of {found.queries:,} queries"))
    rows.append(("duplicates", f"{found.duplicates / max(1, found.rows):.1%}"))
    table((at.spec, ""), rows, words=(0, 1))
    for warning in warnings_of(found):
        line(f"warning: {warning}")
    label, dim = _label_column(at), min(USUAL_DIM, found.dim)
    command, reason = advise(found, at.spec, label_column=label)
    size = memory_of_fit(found, dim=dim)
    line(f"use:  {command}", whole=True)
    line(f"why:  {reason}.")
    cost = "unknown" if found.broken else fit_cost(features, found.task, dim=dim, label_column=label)
    line(f"cost: {cost}; {max(1, size >> 20):,} MiB beside the features")
    if machine.memory is not None and size > machine.memory:
        line("warning: that is more memory than is free; add --set memory.capacity=5000")


def _show_source(name: str, source: "Source", model: str | None, *, seed: int) -> None:
    from shlex import quote

    from querykey.cli.console import line, table
    from querykey.cli.doctor.costs import embed_cost, pretrain_cost
    from querykey.cli.doctor.machine import packaged_model

    rows = [("items", f"{len(source):,} {source.kind}s")]
    if source.labels is not None:
        rows.append(("labels", f"{len(source.label_names):,} classes"))
    if source.queries is not None:
        rows.append(("queries", f"{len(source.queries):,}"))
    if source.pairs is not None:
        rows.append(("pairs", f"{len(source.pairs):,}"))
    table((name, ""), rows, words=(0, 1))
    packaged = packaged_model(source.kind)
    named = {"image": "timm:NAME@WEIGHTS", "text": "st:NAME-OR-FOLDER"}.get(source.kind, "MODEL")
    if source.kind == "image":
        from querykey.pretraining.settings.memory_plan import describe_memory
        from querykey.pretraining.settings.settings import PretrainSettings

        usual = PretrainSettings()
        memory = describe_memory(usual, items=len(source), width=usual.head.dim)
        line(f"pretrain, {usual.batch_size} images per step: {memory}")
        line(f"pretrain: {pretrain_cost(source, device='cpu')}")
    line(
        f"use:  querykey embed {quote(name)} --model {model or packaged or named} --out FEATURES", whole=True
    )
    if model or packaged:
        line(f"cost: {embed_cost(source, model or packaged or '', device='cpu', seed=seed)}")
    else:
        line("cost: give --model to measure it")
    if packaged and model is None:
        line(f"      {packaged} is installed with its weights; any other --model {named} works too.")
    line("why:  adapt needs the features of a frozen model; embed computes and stores them.")
    line("then: querykey doctor FEATURES")


GROUP_SIZE = 4
CASES: tuple[tuple[str, "ProbedMethod", "BatchNormKind", bool], ...] = (
    ("moco, split, in order", "moco", "split", False),
    ("moco, split, shuffled", "moco", "split", True),
    ("moco, whole batch", "moco", "device", False),
    ("moco, layer norm", "moco", "layer", False),
    ("end-to-end, split, in order", "end-to-end", "split", False),
    ("end-to-end, split, shuffled", "end-to-end", "split", True),
)
"""Title, method, normalisation, and whether keys are shuffled."""
LEAK_FACTOR = 2.0
"""Multiple of chance above which batch norm is taken to solve the task."""


def probe_batch_norm(*, groups: int, seed: int) -> None:
    """Run the probe and print one row per case.

    Args:
        groups: Groups of split batch norm, at least 2, of 4 rows each.
        seed: Random seed.
    """
    from querykey.cli.console import line, progress, table
    from querykey.pretraining.batchnorm_leak import probe_leakage

    found: list[Leakage] = []
    with progress("probing batch norm") as shown:
        for _, method, kind, shuffle in CASES:
            # a whole batch leaks less than a group, and less if it is larger: use a small one, for longer
            is_split = kind == "split"
            count, steps = (groups, 150) if is_split else (max(2, groups // 2), 250)
            sizes: dict[str, Any] = {"groups": count, "group_size": GROUP_SIZE, "steps": steps}
            found.append(probe_leakage(method, kind=kind, shuffle=shuffle, seed=seed, **sizes))
            if shown is not None:
                shown(len(found), len(CASES))
    rows = [
        (words, f"{one.accuracy:.1%}", f"{one.low:.1%} to {one.high:.1%}", f"{one.chance:.1%}", _word(one))
        for (words, *_), one in zip(CASES, found, strict=True)
    ]
    title = f"pairs of noise without shared content, {groups} groups of {GROUP_SIZE} rows, seed {seed}"
    table(
        ("keys found by batch norm", "found", "95% interval", "chance", ""), rows, title=title, words=(0, 4)
    )
    for sentence in _verdict(found):
        line(sentence)


def _word(one: "Leakage") -> str:
    if not one.is_found:
        return "chance"
    return "leaks" if one.accuracy > LEAK_FACTOR * one.chance else "leaks a little"


def _verdict(found: list["Leakage"]) -> list[str]:
    """The result in sentences."""
    split, shuffled, full, _, end_to_end, end_to_end_shuffled = found
    sentences = [
        _sentence("Split batch norm in order", split, end_to_end),
        _sentence("Split batch norm with shuffling", shuffled, end_to_end_shuffled),
    ]
    if full.is_found:
        sentences.append(
            "Batch norm over the full batch leaks in MoCo too: the keys of a queue come from other batches, "
            "with other statistics. Use split batch norm with shuffling, or layer norm."
        )
    return sentences


def _sentence(subject: str, *found: "Leakage") -> str:
    words = {_word(one) for one in found}
    if "leaks" in words:
        return f"{subject} leaks which key is the positive: the pretext task is solved without the content."
    if "leaks a little" in words:
        return f"{subject} leaks a little: more and smaller groups leak less."
    return f"{subject} does not leak in this probe."
