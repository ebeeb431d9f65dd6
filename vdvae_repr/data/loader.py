"""Reading ahead: worker threads call a function on coming items while the caller works on earlier ones.

Threads serve, not processes: decoding, resizing and drawing release Python's lock, sources need not be
pickled, and nothing is forked beside a CUDA context.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from vdvae_repr.config import whole_number

Item = TypeVar("Item")
Result = TypeVar("Result")


def default_workers() -> int:
    """Return the number of cores that this process may use, less one, and at least 1.

    Under torchrun the cores are divided among the processes of one machine.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)


def check_workers(num_workers: int | None) -> int:
    """Return the number of workers asked for, `default_workers()` for None.

    Raises:
        ConfigError: no whole number, or one below 1.
    """
    if num_workers is None:
        return default_workers()
    return whole_number("num_workers", num_workers, 1)


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int
) -> Generator[Result]:
    """Yield `function(item)` for each item, in order, while up to `ahead` coming items are being worked on.

    Items are drawn from `items` only as far as they are worked on, so that memory does not grow with their
    number. An exception of an item is raised in its turn. Close the generator to stop early.

    Example:
        >>> list(map_ahead(abs, [-1, 2, -3], workers=2, ahead=2))
        [1, 2, 3]
    """
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[Result]] = deque()
    coming = iter(items)
    try:
        waiting.extend(pool.submit(function, item) for item in islice(coming, ahead))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(coming, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
