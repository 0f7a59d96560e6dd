"""Options that many commands share, and what they do to the machine."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
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
    "check_choice",
    "numbers",
    "prepare",
    "reserve_output",
    "reserved_outputs",
]

Device = Annotated[str, typer.Option(metavar="DEVICE", help="Where to compute: cpu, cuda, cuda:1, mps.")]
Threads = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Processor threads; all cores if not said.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Random seed.")]
Column = Annotated[str | None, typer.Option(metavar="NAME", help="The column that holds the items.")]
LabelColumn = Annotated[str | None, typer.Option(metavar="NAME", help="The column that holds the classes.")]
PairColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="A second column: the query of each row.")
]
Split = Annotated[str | None, typer.Option(metavar="NAME", help="The part to read, where there are several.")]
Delimiter = Annotated[
    str | None,
    typer.Option(metavar="CHAR", help="Between csv or tsv columns; found if not said. Also: tab, none."),
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="A new folder.")]
RunFolder = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="Output folder of `querykey adapt`; evaluate and export also take one of `pretrain`.",
    ),
]


def prepare(device: str, threads: int | None, seed: int, *, supports_torchrun: bool = False) -> str:
    """Set threads and seed, and see that the device is there before anything long begins.

    Args:
        device: As torch names it.
        threads: At least 1; None leaves torch its own choice.
        seed: For what draws from torch's own generator, such as a model with random weights.
        supports_torchrun: Whether the command can be shared out over many processes; they meet here.

    Returns:
        The device of this process.

    Raises:
        ConfigError: If there is no such device on this machine, or many processes do what is for one.
    """
    from querykey.cli.torchrun import is_one_of_many, join

    if is_one_of_many() and not supports_torchrun:
        from querykey.errors import ConfigError

        raise ConfigError("this command is for one process; call it without torchrun")
    import torch

    from querykey.encoders.frozen.model import usable_device

    usable_device(device)
    if is_one_of_many():
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
    """Check an output and lock it until the command ends, so that no work is done in vain.

    Args:
        out: Where the output goes.
        resumable: Whether an earlier call may have left work on it.

    Raises:
        OutputExistsError: If something is there already.
        OutputError: If it cannot be written, or another process is writing it.
    """
    from querykey.cli.torchrun import is_one_of_many
    from querykey.io.atomic import reserve

    is_main = True
    if is_one_of_many():  # alone it needs no torch
        from querykey.distributed.process_group import current_process_group

        is_main = current_process_group().is_main_process
    if is_main:
        _RESERVED.get().enter_context(reserve(out, resumable=resumable))


def numbers(option: str, given: str | None) -> list[int] | None:
    """Whole numbers that are written with commas between them.

    Args:
        option: As it is typed.
        given: Its value; None where it is not there.

    Returns:
        The numbers, or None.

    Raises:
        ConfigError: If they are no whole numbers.
    """
    from querykey.errors import ConfigError

    if given is None:
        return None
    try:
        return [int(one) for one in given.split(",")]
    except ValueError:
        raise ConfigError(f"{option} is whole numbers with commas between them, got {given!r}") from None


def check_choice(option: str, given: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that an option does not know.

    Args:
        option: As it is typed.
        given: Its value.
        allowed: All that it may be.

    Raises:
        ConfigError: If it is none of them.
    """
    from querykey.errors import ConfigError

    if given not in allowed:
        raise ConfigError(f"{option} is {' or '.join(allowed)}, got {given!r}")
