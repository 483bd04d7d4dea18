"""How alike the edges of two volumes are: 4-G-R-SSIM of intensities in 0..1, data range 1.

The paper's Table 1 reports it beside MS-SSIM and does not define it. This is our reading of its
references, at a single scale: SSIM whose contrast and structure are those of gradients (Chen et
al. 2006), with Rouse & Hemami's (2008) values where a window is flat, pooled over four kinds of
places (Li & Bovik 2010). Nothing but the paper's .39 of real against real can tell another
reading from ours, so compare values of ours with each other.
"""

from collections.abc import Sequence

import torch

from brain_ldm.errors import InputError
from brain_ldm.evaluation.window import gaussian_means

WINDOW = 11
WINDOW_SIGMA = 1.5
MARGIN = WINDOW // 2
C1, C2 = 0.01**2, 0.03**2
C3 = C2 / 2
# Of the reference's largest gradient: an edge is above the first, a smooth place below the second.
EDGE, SMOOTH = 0.12, 0.06
# Of a window's mean square, in 32 bits: a smaller variance is rounding and counts as 0.
ROUNDING = 1e-6


def gradient_ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Four-component gradient SSIM with r* (4-G-R-SSIM) in 3-D, mean of both orders of a pair.

    a, b: (B, 1, X, Y, Z). Returns (B,) in 0..1, 1 for two equal volumes.

    Luminance is compared on intensities, contrast and structure on gradient magnitudes, in a
    Gaussian window of 11 voxels with standard deviation 1.5, with K1 = .01, K2 = .03 and
    C3 = C2 / 2. Structure is 0 where just one of the gradients is flat in the window. The other
    rules of r* hold by themselves: structure is 1 where both are flat, and no denominator is 0.

    The 3³ gradient and the window are computed only where they fit whole, so 6 voxels at each
    face are not scored. The largest gradient, from which edges are told, is of the whole grid.
    InputError if an axis has less than 13 voxels.
    """
    check_grid(a.shape[2:])
    gradient_a, gradient_b = _gradient(a), _gradient(b)
    similarity = _luminance(a, b) * _contrast_and_structure(gradient_a, gradient_b)
    # Which places are edges depends on which of the two is the reference, the map does not.
    one_way = _pooled(similarity, gradient_a, gradient_b)
    return (one_way + _pooled(similarity, gradient_b, gradient_a)) / 2


def check_grid(shape: Sequence[int]) -> None:
    """Refuse a grid of this shape if the window and the gradient do not fit. Raises InputError."""
    if min(shape) < WINDOW + 2:
        raise InputError(
            f"grid {tuple(shape)}: 4-G-R-SSIM needs at least {WINDOW + 2} voxels along each axis"
        )


def _gradient(volume: torch.Tensor) -> torch.Tensor:
    """|Gx| + |Gy| + |Gz|, each the difference of two opposite faces of a 3³ cube, not padded.

    A face has weights .05 and .1 at its centre, which is .05 (box + centre): the box is separable.
    The difference comes first, so the gradient of a flat place is 0 to the last bit.
    """
    total = torch.zeros_like(_cropped(volume, 1))
    for axis in (2, 3, 4):
        box = volume.narrow(axis, 2, volume.shape[axis] - 2)
        box = box - volume.narrow(axis, 0, volume.shape[axis] - 2)
        centre = box
        for across in (other for other in (2, 3, 4) if other != axis):
            length = volume.shape[across] - 2
            low, middle, high = (box.narrow(across, start, length) for start in range(3))
            box = (low + middle).add_(high)
            centre = centre.narrow(across, 1, length)
        total.add_((box + centre).abs_(), alpha=0.05)
    return total


def _luminance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """SSIM's luminance of intensities, where the window fits the gradient's grid."""
    mean_a, mean_b = (_windowed(_cropped(volume, 1)) for volume in (a, b))
    return (2 * mean_a * mean_b + C1) / (mean_a.square() + mean_b.square() + C1)


def _contrast_and_structure(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """SSIM's contrast × structure of two gradient maps, structure 0 where just one is flat."""
    mean_a, mean_b = _windowed(a), _windowed(b)
    variance_a, variance_b = _variance(a, mean_a), _variance(b, mean_b)
    covariance = _windowed(a * b) - mean_a * mean_b
    deviations = (variance_a * variance_b).sqrt_()
    contrast = (2 * deviations + C2) / (variance_a + variance_b + C2)
    structure = (covariance + C3) / (deviations + C3)
    flat_a, flat_b = variance_a == 0, variance_b == 0
    return contrast * structure.masked_fill_(flat_a ^ flat_b, 0)


def _variance(x: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    mean_square = _windowed(x.square())
    variance = mean_square - mean.square()
    return variance.masked_fill_(variance <= ROUNDING * mean_square, 0)


def _windowed(x: torch.Tensor) -> torch.Tensor:
    return gaussian_means(x, WINDOW, WINDOW_SIGMA)


def _pooled(similarity: torch.Tensor, reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Mean over the kinds of places that exist of the mean similarity there, at least 0: (B,).

    The kinds are edges in both, edges in one, smooth places and texture, a quarter each; one that
    has no voxel leaves its share to the others. reference, other: gradients before the window.
    """
    peak = reference.amax(dim=(1, 2, 3, 4), keepdim=True)
    reference, other = _cropped(reference, MARGIN), _cropped(other, MARGIN)
    edge, edge_of_other = reference > EDGE * peak, other > EDGE * peak
    both, either = edge & edge_of_other, edge | edge_of_other
    smooth = (reference < SMOOTH * peak) & ~either
    kinds = [both, either & ~both, smooth, ~(either | smooth)]
    counts = torch.stack([kind.sum(dim=(1, 2, 3, 4)) for kind in kinds])
    sums = torch.stack([(similarity * kind).sum(dim=(1, 2, 3, 4)) for kind in kinds])
    return ((sums / counts.clamp(min=1)).sum(0) / (counts > 0).sum(0)).relu()


def _cropped(x: torch.Tensor, margin: int) -> torch.Tensor:
    inside = slice(margin, -margin)
    return x[:, :, inside, inside, inside]
