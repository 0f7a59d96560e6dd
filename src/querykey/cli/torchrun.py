"""Commands under torchrun: several processes form a group, and the main process writes the output."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path

from querykey.errors import ConfigError

__all__ = ["is_distributed", "is_peer_failure", "join", "rank_zero_output", "write_once"]

TIMEOUT = timedelta(minutes=10)
"""Maximum time that a process waits for the others, which may read images or write a checkpoint.
A dead process is noticed at once, by its closed connection."""
STORE_TIMEOUT = timedelta(seconds=5)


def is_distributed() -> bool:
    """Whether torchrun started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def join(device: str) -> str:
    """Join the default process group of torch.distributed.

    Args:
        device: As torch names it; "cuda" becomes the device of this process's local rank.

    Returns:
        The device of this process.

    Raises:
        ConfigError: If the device has an index, or the group cannot be formed.
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
        distributed.init_process_group("nccl" if kind.type == "cuda" else "gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the processes that torchrun started cannot connect: {error}") from error
    return device


@contextmanager
def rank_zero_output() -> Iterator[None]:
    """Let only rank 0 write to the terminal; the other ranks may still report an error by `write_once`.

    Yields:
        Nothing.
    """
    if not is_distributed():
        yield
        return
    if os.environ["RANK"] == "0":
        yield
    else:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error is the loss of another process.

    Args:
        error: Any error, such as one of torch.distributed.
    """
    if not is_distributed():
        return False
    from torch import distributed

    message = str(error).lower()
    is_connection = any(word in message for word in ("gloo", "connection", "peer"))
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and is_connection)


def write_once(message: str) -> None:
    """Write a message to standard error; if several processes have the same message, once.

    Args:
        message: One line.
    """
    if not is_distributed():
        sys.stderr.write(f"{message}\n")
        return
    if _is_new(message):
        rank, stderr = os.environ["RANK"], sys.__stderr__  # sys.stderr is redirected
        assert stderr is not None
        stderr.write(f"{message}\n" if rank == "0" else f"process {rank}: {message}\n")
        stderr.flush()


def _is_new(message: str) -> bool:
    from hashlib import sha256

    from torch import distributed

    try:
        store = distributed.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=STORE_TIMEOUT
        )
        return store.add(f"querykey/messages/{sha256(message.encode()).hexdigest()}", 1) == 1
    except (RuntimeError, ValueError, KeyError):  # the store has ended
        return True
