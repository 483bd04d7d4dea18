"""Read W&B's offline file, for which wandb has no reader: a LevelDB log of protobuf records."""

from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

HEADER, BLOCK, FULL, LAST = 7, 32 * 1024, 1, 4


def records(path: Path) -> Iterator[Record]:
    """Yield the records of a `run-*.wandb` file in order."""
    data, place, whole = path.read_bytes(), HEADER, b""
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:  # a block's end, too short for a record's header
            place += BLOCK - place % BLOCK
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + HEADER : place + HEADER + size]
        place += HEADER + size
        if kind in (FULL, LAST):
            yield Record.FromString(whole)
            whole = b""
