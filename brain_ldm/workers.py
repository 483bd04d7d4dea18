"""The same job for many items, in several processes."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from threadpoolctl import threadpool_limits

from brain_ldm.progress import bar

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def each(
    job: Callable[[Item], Result],
    items: Sequence[Item],
    description: str,
    workers: int,
    died: Callable[[Item], Result] | None = None,
) -> Iterator[tuple[Item, Result]]:
    """Do `job` for each item and yield (item, result) as they come, under a bar of progress.

    Args:
        job: may be sent to another process. What it raises is raised here, and ends all.
        items: hashable.
        description: for the bar.
        workers: processes; 1 for this one alone.
        died: the result of an item whose process died, when it was tried once more and by itself;
            without it the whole work ends.

    Raises:
        BrokenProcessPool: a process died.
    """
    workers = min(workers, len(items))
    with bar() as progress:
        task = progress.add_task(description, total=len(items))
        if workers <= 1 and died is None:
            for item in items:
                yield item, job(item)
                progress.advance(task)
            return
        lost = []
        for item, result in _pooled(job, items, max(workers, 1), lost):
            yield item, result
            progress.advance(task)
        for item in lost:
            if died is None:
                raise BrokenProcessPool(f"{description}: a process died")
            again = []
            results = list(_pooled(job, [item], 1, again))
            yield item, results[0][1] if results else died(item)
            progress.advance(task)


def _pooled(
    job: Callable[[Item], Result], items: Sequence[Item], workers: int, lost: list[Item]
) -> Iterator[tuple[Item, Result]]:
    """Yield results as they come; append to `lost` what was at work when a process died."""
    remaining = deque(items)
    while remaining:
        waiting: dict[Future, Item] = {}
        with ProcessPoolExecutor(
            workers,
            multiprocessing.get_context("fork"),  # a parent that was killed is told by its number
            begin_worker,
            (os.getpid(),),
        ) as pool:
            try:
                while remaining or waiting:
                    while remaining and len(waiting) < 2 * workers:
                        # It leaves `remaining` once it is taken: a broken pool takes nothing.
                        waiting[pool.submit(job, remaining[0])] = remaining[0]
                        remaining.popleft()
                    future = next(as_completed(waiting))
                    result = future.result()
                    yield waiting.pop(future), result
            except BrokenProcessPool:
                lost += waiting.values()
            except BaseException:
                for process in multiprocessing.active_children():
                    process.terminate()  # what a job has started would go on for hours
                pool.shutdown(cancel_futures=True)
                raise


def begin_worker(parent: int) -> None:
    """Prepare a forked worker: one thread, and it ends with its parent."""
    threadpool_limits(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C for all
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # a job's own clean-up runs
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    # A pool's workers would wait for ever for a parent that was killed.
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(2)
    os._exit(1)
