"""Images drawn from label maps with random contrast: SynthSeg's generative model.

Billot et al. 2023 (SynthSeg, Medical Image Analysis 86): deform the labels, draw each class from a
Gaussian of random mean and spread, blur to a random resolution, multiply a bias field, apply a
random gamma. A network trained on such images has never seen a real intensity. The ranges are ours.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from brain_ldm.cohorts.labels import GROUPS

CLASSES = list(GROUPS)  # background, csf, grey, white, ventricle
LABELS = sorted({label for labels in GROUPS.values() for label in labels})
# The class of each label's position in LABELS.
CLASS_OF = torch.tensor(
    [next(c for c, name in enumerate(CLASSES) if label in GROUPS[name]) for label in LABELS]
)


def compact(labels: np.ndarray) -> np.ndarray:
    """Return FreeSurfer's label numbers as positions in `LABELS`; unknown ones are background."""
    table = np.zeros(max(LABELS) + 1, np.uint8)
    table[LABELS] = np.arange(len(LABELS))
    return table[np.where(labels > max(LABELS), 0, labels)]


def synthesise(
    labels: Tensor, factor: int, t1_share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw one training pair from a label map.

    Args:
        labels: (X, Y, Z) uint8, positions in `LABELS`, `factor` times as fine as the image.
        factor: label voxels along an edge of an image voxel.
        t1_share: probability of the T1-like order of intensities.
        generator: of all random draws, on the CPU.

    Returns:
        image (1, x, y, z) in 0..1 and the share of each class in each voxel (K, x, y, z).
    """
    labels = deform(labels, generator).long()
    classes = CLASS_OF.to(labels.device)[labels]
    means, spreads = intensities(t1_share, generator)
    noise = torch.randn(labels.shape, generator=generator)
    image = (means.to(labels.device)[labels] + spreads.to(labels.device)[labels] * noise)[None]
    image = image * _bias(image.shape[1:], generator)
    image = F.avg_pool3d(_blur(image, float(torch.rand(1, generator=generator))), factor)
    image = image + 0.03 * torch.rand(1, generator=generator) * torch.randn(
        image.shape, generator=generator
    )
    low, high = image.amin(), image.amax()
    image = ((image - low) / (high - low)).pow(
        float(torch.empty(1).normal_(0, 0.2, generator=generator).exp())
    )
    shares = F.one_hot(classes, len(CLASSES)).movedim(-1, 0).float()
    return image, F.avg_pool3d(shares, factor)


def intensities(t1_share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw mean and standard deviation of each label's intensity, (len(LABELS),) each.

    Labels of one class share a mean up to a small difference of their own, as the nuclei of grey
    matter do.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=generator))

    if uniform(0, 1) < t1_share:
        csf = uniform(0.05, 0.3)
        grey = csf + uniform(0.15, 0.4)
        by_class = {"csf": csf, "grey": grey, "white": grey + uniform(0.08, 0.35)}
        by_class["ventricle"] = csf + uniform(-0.05, 0.05)
    else:
        by_class = {name: uniform(0, 1) for name in CLASSES}
    # A skull-stripped image is empty outside the brain; most draws are.
    by_class["background"] = uniform(0, 1) if uniform(0, 1) < 0.2 else 0.0
    own = 0.03 * torch.randn(len(LABELS), generator=generator)
    spreads = 0.08 * torch.rand(len(CLASSES), generator=generator)[CLASS_OF]
    means = torch.tensor([by_class[CLASSES[c]] for c in CLASS_OF]) + own
    if by_class["background"] == 0:
        empty = LABELS.index(0)
        means[empty] = spreads[empty] = 0
    return means, spreads


def deform(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return the label map after a random small affine map and a smooth displacement (nearest)."""
    matrix = torch.eye(3) + 0.06 * torch.randn(3, 3, generator=generator)
    shift = 0.03 * torch.randn(3, 1, generator=generator)
    theta = torch.cat([matrix, shift], dim=1)[None].to(labels.device)
    grid = F.affine_grid(theta, [1, 1, *labels.shape], align_corners=False)
    amplitude = 0.04 * float(torch.rand(1, generator=generator))
    knots = amplitude * torch.randn(1, 3, 5, 5, 5, generator=generator).to(labels.device)
    smooth = F.interpolate(knots, labels.shape, mode="trilinear", align_corners=True)
    grid = grid + smooth.movedim(1, -1)
    moved = F.grid_sample(labels[None, None].float(), grid, mode="nearest", align_corners=False)
    return moved[0, 0].round()


def _bias(shape: torch.Size, generator: torch.Generator) -> Tensor:
    strength = 0.3 * float(torch.rand(1, generator=generator))
    knots = strength * torch.randn(1, 1, 4, 4, 4, generator=generator)
    return F.interpolate(knots, shape, mode="trilinear", align_corners=True)[0].exp()


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Blur (1, X, Y, Z) by a Gaussian of `sigma` voxels, cut at two voxels, axis by axis."""
    offsets = torch.arange(-2, 3, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-0.5 * (offsets / max(sigma, 1e-3)).square())
    kernel = kernel / kernel.sum()
    image = image[None]
    for axis in range(3):
        size = [1, 1, 1]
        size[axis] = 5
        padding = [2 if a == axis else 0 for a in range(3)]
        image = F.conv3d(image, kernel.view(1, 1, *size), padding=padding)
    return image[0]
