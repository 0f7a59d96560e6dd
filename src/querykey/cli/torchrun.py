"""Many processes of one command, as torchrun starts them: they meet, and one speaks for all."""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path

from querykey.errors import ConfigError

__all__ = ["is_one_of_many", "is_parting", "join", "rank_zero_output", "tell"]

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others: some read images, or write a checkpoint, while the others wait.
One that has died is noticed at once, by the connection that it held."""
ASKING = timedelta(seconds=5)


def is_one_of_many() -> bool:
    """Whether torchrun started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def join(device: str) -> str:
    """Meet the other processes, in torch.distributed's default group.

    Args:
        device: As torch names it; "cuda" becomes the one of this process's number on its machine.

    Returns:
        The device of this process.

    Raises:
        ConfigError: If all are told to take one and the same accelerator, or they do not meet.
    """
    import torch
    from torch import distributed

    kind = torch.device(device)
    if kind.type == "cuda":
        if kind.index is not None:
            raise ConfigError(f"under torchrun give --device cuda: each process takes its own; got {device}")
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group("nccl" if kind.type == "cuda" else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the processes that torchrun started do not meet: {error}") from error
    return device


@contextmanager
def rank_zero_output() -> Iterator[None]:
    """Let the first of many processes alone write to the terminal; the others say why they end, if they must.

    Yields:
        Nothing.
    """
    if not is_one_of_many():
        yield
        return
    if os.environ["RANK"] == "0":
        yield
    else:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield


def is_parting(error: BaseException) -> bool:
    """Whether an error only says that another process is gone.

    Args:
        error: Of a call of torch.distributed, or any other.
    """
    if not is_one_of_many():
        return False
    from torch import distributed

    words = str(error).lower()
    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in words or "connection" in words or "peer" in words)
    )


def tell(message: str) -> None:
    """Write why a process ends to standard error; what several of them end by, once.

    Args:
        message: One line.
    """
    if not is_one_of_many():
        sys.stderr.write(f"{message}\n")
        return
    if _is_new(message):
        rank, own = os.environ["RANK"], sys.__stderr__  # the other one leads nowhere
        assert own is not None
        own.write(f"{message}\n" if rank == "0" else f"process {rank}: {message}\n")
        own.flush()


def _is_new(message: str) -> bool:
    from torch import distributed

    try:
        store = distributed.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=ASKING
        )
        return store.add(f"querykey/told/{hashlib.sha256(message.encode()).hexdigest()}", 1) == 1
    except (RuntimeError, ValueError, KeyError):  # nobody left to ask
        return True
