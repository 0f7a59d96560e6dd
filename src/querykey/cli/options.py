"""Options that several commands have, and how they configure torch."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AdapterFolder",
    "Column",
    "Delimiter",
    "Device",
    "LabelColumn",
    "Out",
    "PairColumn",
    "RunFolder",
    "Seed",
    "Split",
    "Threads",
    "Unused",
    "UnusedSeed",
    "check_choice",
    "numbers",
    "prepare",
    "reserve_output",
    "reserved_outputs",
]

Device = Annotated[str, typer.Option(metavar="DEVICE", help="Device: cpu, cuda, cuda:1, mps.")]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads; default: all cores.")]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Random seed.")]
Unused = Annotated[str, typer.Option(hidden=True)]
"""`--device` of a command that computes on the processor alone; taken as other commands take it."""
UnusedSeed = Annotated[int, typer.Option(min=0, max=2**31 - 1, hidden=True)]
"""`--seed` of a command that draws nothing."""
Column = Annotated[str | None, typer.Option(metavar="NAME", help="The column with the items.")]
LabelColumn = Annotated[str | None, typer.Option(metavar="NAME", help="The column with the classes.")]
PairColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="A second column: the query of each row.")
]
Split = Annotated[str | None, typer.Option(metavar="NAME", help="The split to read, if there are several.")]
Delimiter = Annotated[
    str | None,
    typer.Option(metavar="CHAR", help="Of csv or tsv columns; detected by default. Also: tab, none."),
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="A new folder.")]
RunFolder = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="A folder that `querykey adapt` or `querykey pretrain` wrote.",
    ),
]
AdapterFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `querykey adapt` wrote.")]


def prepare(device: str, threads: int | None, seed: int, *, supports_torchrun: bool = False) -> str:
    """Set threads and seed, and check the device before the work starts.

    Args:
        device: As torch names it.
        threads: At least 1; None: the default of torch.
        seed: For torch's global generator, as used by a model with random weights.
        supports_torchrun: Whether the command can run in several processes, which are joined here.

    Returns:
        The device of this process.

    Raises:
        ConfigError: If there is no such device on this machine, or the command supports one process only.
    """
    from querykey.cli.torchrun import is_distributed, join

    if is_distributed() and not supports_torchrun:
        from querykey.errors import ConfigError

        raise ConfigError("this command is for one process; call it without torchrun")
    import torch

    from querykey.encoders.frozen.model import usable_device

    usable_device(device)
    if is_distributed():
        device = join(device)
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    return device


_RESERVED: ContextVar[ExitStack] = ContextVar("reserved")


@contextmanager
def reserved_outputs() -> Iterator[None]:
    """Keep what `reserve_output` reserves until a command ends.

    Yields:
        Nothing.
    """
    with ExitStack() as reserved:
        token = _RESERVED.set(reserved)
        try:
            yield
        finally:
            _RESERVED.reset(token)


def reserve_output(out: Path, *, resumable: bool = False) -> None:
    """Check an output before the work starts, and lock it until the command ends.

    Args:
        out: The path of the output.
        resumable: Whether an earlier call may have left a partial output.

    Raises:
        OutputExistsError: If it exists.
        OutputError: If it cannot be written, or another process is writing it.
    """
    from querykey.cli.torchrun import is_distributed
    from querykey.io.atomic import reserve

    is_main = True
    if is_distributed():  # a single process needs no torch here
        from querykey.distributed.process_group import current_process_group

        is_main = current_process_group().is_main_process
    if is_main:
        _RESERVED.get().enter_context(reserve(out, resumable=resumable))


def numbers(option: str, given: str | None) -> list[int] | None:
    """Parse comma-separated integers.

    Args:
        option: Name of the option.
        given: Its value; None if it is not given.

    Returns:
        The numbers, or None.

    Raises:
        ConfigError: If they are not integers.
    """
    from querykey.errors import ConfigError

    if given is None:
        return None
    try:
        return [int(one) for one in given.split(",")]
    except ValueError:
        raise ConfigError(f"{option} is whole numbers with commas between them, got {given!r}") from None


def check_choice(option: str, given: str, allowed: tuple[str, ...]) -> None:
    """Check the value of an option.

    Args:
        option: Name of the option.
        given: Its value.
        allowed: The allowed values.

    Raises:
        ConfigError: If the value is not allowed.
    """
    from querykey.errors import ConfigError

    if given not in allowed:
        raise ConfigError(f"{option} is {' or '.join(allowed)}, got {given!r}")
