"""Processes that encode volumes and write them, so that the networks need not wait."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from types import TracebackType
from typing import Any

from brain_ldm.sampling.ranks import ranks_here
from brain_ldm.workers import begin_worker, cores

MOST = 8  # a GPU draws one or two full-size brains a second (docs/sampling.md)


def enough_writers(device: str) -> int:
    """How many processes keep up with a device: on a CPU one, as networks need the cores."""
    return 1 if device == "cpu" else max(1, min(MOST, cores() // ranks_here() - 1))


class Writers:
    """A pool of processes that takes jobs as long as it keeps up, and else lets the caller wait.

    Made before a GPU is touched: its processes are forks of this one. What a job raises is raised
    by the next `put`, or at the end of the `with` block at the latest.

    Args:
        processes: 0 for none: each job is done by this process while the caller waits.
    """

    def __init__(self, processes: int) -> None:
        self.room = 2 * processes  # one at work and one ready for each
        self.waiting: set[Future] = set()
        self.pool = None
        if processes:
            self.pool = ProcessPoolExecutor(
                processes, get_context("fork"), begin_worker, (os.getpid(),)
            )
            self.pool.submit(os.getpid).result()  # starts all of them

    def put(self, job: Callable, *arguments: Any) -> None:
        """Have `job(*arguments)` done; return once there is room for it.

        Raises:
            BrokenProcessPool: a process died.
        """
        if self.pool is None:
            job(*arguments)
            return
        self._settle(wait(self.waiting, timeout=0).done)
        while len(self.waiting) >= self.room:
            self._settle(wait(self.waiting, return_when=FIRST_COMPLETED).done)
        self.waiting.add(self.pool.submit(job, *arguments))

    def _settle(self, done: Iterable[Future]) -> None:
        for future in done:
            self.waiting.discard(future)
            future.result()

    def __enter__(self) -> "Writers":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._settle(wait(self.waiting).done)
        finally:
            if self.pool is not None:
                self.pool.shutdown(cancel_futures=True)
