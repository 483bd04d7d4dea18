"""One command's work as n calls, in a SLURM array or by hand: `shard=i/n`."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brain_ldm.errors import InputError


def parse_shard(text: str) -> tuple[int, int]:
    """The number of this shard, from 0, and the number of shards.

    Raises:
        InputError: it is not as `0/4`.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    shard, shards = map(int, found.groups()) if found else (0, 0)
    if shard >= shards:
        raise InputError(f"shard is {text}: give i/n with i from 0 to n - 1, as 0/4")
    return shard, shards


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out of what a file stands for; it must be there."""
    # NFS locks for writing only what is open for writing.
    with path.open("r+" if os.access(path, os.W_OK) else "r") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
