"""Blocks of rows on several threads; NumPy releases the interpreter's lock in its loops."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

__all__ = ["default_threads", "in_threads"]


def in_threads(work: Callable[[int], None], starts: Sequence[int], threads: int) -> None:
    """Call a function with the start of each block.

    Args:
        work: Writes what becomes of a block; blocks do not depend on one another.
        starts: First rows of the blocks.
        threads: At least 1; no more are started than there are blocks.

    Raises:
        Exception: The first that a call raised; blocks that had not begun are left out.
    """
    count = min(threads, len(starts))
    if count < 2:
        for start in starts:
            work(start)
        return
    pool = ThreadPoolExecutor(count, thread_name_prefix="rows")
    try:
        for _ in pool.map(work, starts):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def default_threads() -> int:
    """Those of OMP_NUM_THREADS, which NumPy's products obey, or else the processors of this process."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
