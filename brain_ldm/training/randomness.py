"""Random draws that depend on (seed, step, sample) alone.

Not on a rank's or a worker's running generator: so a batch may be cut anywhere, over any number of
devices, and each sample still meets the noise that it would have met elsewhere.
"""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor


def generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator whose state is a hash of `key`, e.g. (seed, step, sample)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def draws(seed: int, step: int, samples: Tensor) -> list[torch.Generator]:
    """Return one generator for each row number in `samples` (B,)."""
    return [generator(seed, step, sample) for sample in samples.tolist()]


def stack(generators: list[torch.Generator], draw: Callable[[torch.Generator], Tensor]) -> Tensor:
    """Return `draw(generator)` of each generator, stacked to a batch."""
    return torch.stack([draw(g) for g in generators])


def normal(generators: list[torch.Generator], like: Tensor) -> Tensor:
    """Return standard normal noise shaped as `like` (B, ...), a generator a row."""
    noise = stack(
        generators, lambda g: torch.randn(like.shape[1:], generator=g, dtype=torch.float32)
    )
    if like.device.type == "cuda":
        noise = noise.pin_memory()  # so that the copy does not wait for the device
    return noise.to(like.device, like.dtype, non_blocking=True)


def uniform(generators: list[torch.Generator], like: Tensor, count: int) -> Tensor:
    """Return (B, count) numbers, uniform in 0..1, on `like`'s device."""
    return stack(generators, lambda g: torch.rand(count, generator=g, dtype=torch.float32)).to(
        like.device
    )
