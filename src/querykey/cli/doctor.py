"""`querykey doctor`: looks at data and machine, and says what to use and why."""

from typing import TYPE_CHECKING, Annotated

import typer

from querykey.cli.options import Column, Device, LabelColumn, PairColumn, Seed, Split, Threads, prepare

if TYPE_CHECKING:
    from querykey.cli.machine import Machine
    from querykey.data.features import Features
    from querykey.data.items import Source
    from querykey.run_data import DataAt

__all__ = ["doctor"]


def doctor(
    data: Annotated[str, typer.Argument(metavar="[SOURCE|FEATURES]", help="What to look at.")] = "",
    column: Column = None,
    label_column: LabelColumn = None,
    pair_column: PairColumn = None,
    split: Split = None,
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe-batch-norm",
            help="See whether batch norm gives pairs away, and what helps; takes a minute, no SOURCE.",
        ),
    ] = False,
    groups: Annotated[int, typer.Option(min=2, help="Of split batch norm, in the probe.")] = 16,
) -> None:
    """Look at data and machine; say what to type, and why.

    And what it will cost, and what may go wrong.
    """
    prepare(device, threads, seed)
    if probe:
        from querykey.cli.doctor_probe import probe_batch_norm

        probe_batch_norm(groups=groups, seed=seed)
        if not data:
            return
    from querykey.cli.machine import look_at_machine
    from querykey.cli.show import line
    from querykey.run_data import DataAt, Opened, open_data

    at = DataAt(data, column, label_column, pair_column, split)
    found = open_data(at) if data else None
    machine = look_at_machine()
    _show_machine(machine)
    if found is None:
        line("Give a SOURCE or FEATURES to look at: querykey doctor photos/")
    elif isinstance(found, Opened):
        _show_features(at, found.features, machine)
    else:
        _show_source(data, found)


def _show_machine(machine: "Machine") -> None:
    from querykey.cli.show import line, table

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
    """What `querykey adapt --labels` has to be given for these data."""
    if at.label_column is not None:
        return str(at.label_column)
    if at.spec.endswith((".npz", ".safetensors")):
        return "y"
    return "label"


def _show_features(at: "DataAt", features: "Features", machine: "Machine") -> None:
    from querykey.cli.diagnosis import advise, cost_of_fit, diagnose, warnings_of
    from querykey.cli.show import line, table

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
    command, reason = advise(found, at.spec, label_column=_label_column(at))
    size, seconds = cost_of_fit(found, machine, dim=min(64, found.dim))
    line(f"use:  {command}", whole=True)
    line(f"why:  {reason}.")
    line(f"cost: about {max(1, round(seconds))} s and {max(1, size >> 20):,} MiB beside the features")
    if machine.memory is not None and size > machine.memory:
        line("warning: that is more memory than is free; add --set memory.capacity=5000")


def _show_source(name: str, source: "Source") -> None:
    from shlex import quote

    from querykey.cli.show import line, table

    rows = [("items", f"{len(source):,} {source.kind}s")]
    if source.labels is not None:
        rows.append(("labels", f"{len(source.label_names):,} classes"))
    if source.queries is not None:
        rows.append(("queries", f"{len(source.queries):,}"))
    if source.pairs is not None:
        rows.append(("pairs", f"{len(source.pairs):,}"))
    table((name, ""), rows, words=(0, 1))
    model = {"image": "timm:NAME@WEIGHTS", "text": "st:NAME-OR-FOLDER"}.get(source.kind, "MODEL")
    if source.kind == "image":
        from querykey.training.dictionary_plan import describe_memory
        from querykey.training.pretrain_settings import PretrainSettings

        usual = PretrainSettings()
        told = describe_memory(usual, items=len(source), width=usual.head_dim)
        line(f"pretrain, {usual.batch_size} images a step: {told}")
    line(f"use:  querykey embed {quote(name)} --model {model} --out FEATURES", whole=True)
    line("why:  adapt works on the features of a frozen model; embed makes them once and keeps them.")
    line("then: querykey doctor FEATURES")
