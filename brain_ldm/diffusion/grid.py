"""Which timesteps a sampler visits.

The grid belongs to us and not to a scheduler: a sampler steps from each entry to the next one.
Libraries that subtract T // steps from the current timestep instead land beside their own grid
wherever the gaps are not all that wide (MONAI 1.6.1 and diffusers 0.38 do so in DDIM on linspace).
"""

from fractions import Fraction

import torch
from torch import Tensor

from brain_ldm.diffusion.config import Grid


def timesteps(grid: Grid, steps: int, total: int) -> Tensor:
    """Choose `steps` of the timesteps 0..total-1, spaced as Lin et al. name it.

    Gaps are computed as exact fractions, halves rounded to the even neighbour. For example
    `timesteps(Grid.leading, 50, 1000)` is 980, 960, ..., 0. Where `steps` equals `total` the three
    grids are one.

    Args:
        grid: leading (multiples of total // steps from 0), trailing (from total - 1 downwards by
            total / steps) or linspace (both ends included); table 2 of Lin et al. 2024,
            arXiv 2305.08891.
        steps: how many to choose.
        total: T, the number of timesteps the network was trained with.

    Returns:
        int64 (steps,), strictly falling.

    Raises:
        ValueError: `steps` is not within 1..total; or one step of several on a grid that ends at
            timestep 0, which would take pure noise for a nearly clean image.
    """
    if not 1 <= steps <= total:
        raise ValueError(f"steps must lie within 1..{total} (the schedule's length), got {steps}")
    if steps == 1 < total and grid is not Grid.trailing:
        raise ValueError(
            f"the {grid.name} grid needs at least 2 steps, since its last one is timestep 0; "
            "use the trailing grid for a single step"
        )
    if grid is Grid.leading:
        chosen = [k * (total // steps) for k in range(steps)]
    elif grid is Grid.trailing:
        chosen = [round(Fraction(k * total, steps)) - 1 for k in range(1, steps + 1)]
    else:
        chosen = [round(Fraction(k * (total - 1), max(steps - 1, 1))) for k in range(steps)]
    return torch.tensor(chosen[::-1], dtype=torch.int64)
