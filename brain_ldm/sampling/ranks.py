"""Several processes that draw one set: shards, and within a shard the ranks of torchrun.

They agree by arithmetic and by the files that they find, and never talk to each other.
"""

import os

import torch

from brain_ldm.shards import parse_shard


def share_of(shard: str) -> tuple[int, int]:
    """Which of all batches this process draws, as (i, n): every n-th from the i-th on.

    torchrun's RANK and WORLD_SIZE, where they are set, divide the shard's batches once more.

    Args:
        shard: as `0/4`.

    Raises:
        InputError: it is anything else.
    """
    shard, shards = parse_shard(shard)
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    return shard + rank * shards, shards * ranks


def own_device(device: torch.device) -> torch.device:
    """The GPU of this rank among those of its node; a device of a given number stays."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def ranks_here() -> int:
    """How many ranks share this node's cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))
