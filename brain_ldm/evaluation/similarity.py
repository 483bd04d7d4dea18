"""How alike two volumes are: PSNR, SSIM and MS-SSIM of intensities in 0..1.

SSIM and MS-SSIM have a Gaussian window of 7 voxels and standard deviation 1.5, as MONAI's with that
kernel: the usual 11 is too wide for five scales of a 160×224×160 brain. Their values depend on the
window and on the number of scales, so both belong into any record of them. All three look at the
whole grid, empty background included, which raises each of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats

from brain_ldm.errors import InputError
from brain_ldm.evaluation.window import gaussian_means

WINDOW = 7
WINDOW_SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2
# Weights of the scales, finest first (Wang, Simoncelli & Bovik 2003).
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, peak 1. a, b: (B, 1, X, Y, Z). Returns (B,)."""
    return -10 * torch.log10((a - b).square().flatten(1).mean(1))


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Wang et al. 2004). a, b: (B, 1, X, Y, Z). Returns (B,)."""
    return _ssim_and_contrast(a, b)[0]


def ms_ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multi-scale structural similarity over as many scales as the grid allows.

    Contrast and structure at every scale and luminance at the coarsest, each to its power (Wang,
    Simoncelli & Bovik 2003); negative ones count as 0. a, b: (B, 1, X, Y, Z). Returns (B,).
    """
    *finer, coarsest = scale_weights(a.shape[2:])
    product = torch.ones(len(a), device=a.device)
    for weight in finer:
        product = product * _ssim_and_contrast(a, b)[1].relu() ** weight
        a, b = F.avg_pool3d(a, 2), F.avg_pool3d(b, 2)
    return product * _ssim_and_contrast(a, b)[0].relu() ** coarsest


def _ssim_and_contrast(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean over the windows that fit whole of SSIM, and of contrast × structure: (B,) each."""
    mean_a, mean_b, square_a, square_b, product = (
        gaussian_means(x, WINDOW, WINDOW_SIGMA) for x in (a, b, a * a, b * b, a * b)
    )
    products = mean_a * mean_b
    squares = mean_a.square() + mean_b.square()
    contrast = (2 * (product - products) + C2) / (square_a + square_b - squares + C2)
    similarity = (2 * products + C1) / (squares + C1) * contrast
    return similarity.flatten(1).mean(1), contrast.flatten(1).mean(1)


def scale_weights(shape: Sequence[int]) -> tuple[float, ...]:
    """Weights of the scales that a grid of this shape allows, summing to 1.

    Five scales from 112 voxels along the shortest axis, three at 40. InputError below one window.
    """
    shortest = min(shape)
    if shortest < WINDOW:
        raise InputError(
            f"grid {tuple(shape)}: SSIM needs at least {WINDOW} voxels along each axis"
        )
    # Each scale halves the volume; (scales - 1)² windows along an axis are MONAI's condition, kept
    # so that a grid has the scales that MONAI gives it.
    scales = max(s for s in range(1, 6) if shortest // max(2 ** (s - 1), (s - 1) ** 2) >= WINDOW)
    weights = SCALE_WEIGHTS[:scales]
    return tuple(weight / sum(weights) for weight in weights)


def random_pairs(n: int, count: int, seed: int) -> np.ndarray:
    """Draw `count` pairs of different rows out of n, or all if there are fewer: (pairs, 2).

    No pair is drawn twice.
    """
    total = n * (n - 1) // 2
    # Pairs in the order (0, 1), (0, 2), (1, 2), (0, 3), …: the second of a pair from its number.
    number = np.random.default_rng(seed).choice(total, min(count, total), replace=False)
    second = ((1 + np.sqrt(1 + 8 * number)) // 2).astype(int)
    return np.stack([number - second * (second - 1) // 2, second], axis=1)


def pair_mean(values: np.ndarray | None, pairs: np.ndarray, n: int) -> dict[str, Any]:
    """Return the mean over pairs of brains as `value`, its 95 % interval, `sd` and `n` of pairs.

    Pairs with a brain in common are not independent, which the variance of the mean counts
    (dyadic-robust: Fafchamps & Gubert 2007; Aronow, Samii & Assenova 2015). Few brains get no
    interval (three or fewer), or a wide one.

    Args:
        values: (pairs,), or None.
        pairs: (pairs, 2), rows of n brains.
        n: brains.
    """
    if values is None or not len(values):
        return {"value": None, "sd": None, "low": None, "high": None, "n": 0}
    count, mean = len(values), float(values.mean())
    rest = values - mean
    found = {"value": mean, "sd": None, "low": None, "high": None, "n": count}
    if count > 1:
        found["sd"] = float(values.std(ddof=1))
    # The residuals are about their own mean, which makes the sum below too small. By how much, if a
    # value is the sum of what its two brains bring, follows from who is paired with whom: (n - 2)
    # (n - 3) / n (n - 1) for all pairs of n brains.
    degree = np.bincount(pairs.ravel(), minlength=n).astype(float)
    square = (degree**2).sum()
    ends = degree[pairs]
    sums = ((degree - degree**2 / count) ** 2).sum()
    sums += 2 * count - 4 * ends.prod(1).sum() / count
    sums += (square**2 - (degree**4).sum()) / count**2
    kept = (sums - 2 * count + square / count) / square
    if kept > 1e-9:
        of_brain = np.bincount(pairs.ravel(), np.repeat(rest, 2), minlength=n)
        shared = ((of_brain**2).sum() - (rest**2).sum()) / kept
        # Not less than if no two pairs shared a brain.
        variance = max(shared, (rest**2).sum() * count / (count - 1)) / count**2
        half = stats.t.ppf(0.975, (degree > 0).sum() - 1) * float(np.sqrt(variance))
        found |= {"low": mean - half, "high": mean + half}
    return found
