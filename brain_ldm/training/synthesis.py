"""Images drawn from label maps with random contrast: SynthSeg's generative model.

Billot et al. 2023 (SynthSeg, Medical Image Analysis 86): deform the labels, draw each tissue from a
Gaussian of random mean and spread, multiply a bias field, scan at a random resolution, apply a
random gamma. A network trained on such images has never seen a real intensity. The ranges are ours;
where tissues lie in a T1 image follows the order of SynthSeg's T1 priors.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from brain_ldm.cohorts.labels import GROUPS, NAMES

CLASSES = list(GROUPS)  # background, csf, grey, white, ventricle
# A tissue looks alike on both sides and belongs to one class: it is one here, whatever its side.
TISSUE_OF = {n: name.removeprefix("left-").removeprefix("right-") for n, name in NAMES.items()}
TISSUES = ["background", *sorted({*TISSUE_OF.values()} - {"background"})]
_CLASS_BY_TISSUE = {TISSUE_OF[n]: place for place, name in enumerate(CLASSES) for n in GROUPS[name]}
CLASS_OF = torch.tensor([_CLASS_BY_TISSUE[tissue] for tissue in TISSUES])

# Where tissues lie between CSF (0), cortex (1) and cerebral white matter (2), in any contrast; the
# others lie where their class does.
LADDER = {"background": 0.0, "csf": 0.0, "grey": 1.0, "white": 2.0, "ventricle": 0.0}
ON_LADDER = {
    "accumbens": 1.3,
    "amygdala": 1.2,
    "brain-stem": 1.7,
    "caudate": 1.3,
    "cerebellum-cortex": 0.9,
    "cerebellum-white-matter": 1.7,
    "choroid-plexus": 0.6,
    "hippocampus": 1.2,
    "inferior-lateral-ventricle-2": 0.3,
    "lateral-ventricle-2": 0.3,
    "lesion": 1.0,
    "non-white-matter-hypointensities": 0.8,
    "pallidum": 1.85,
    "putamen": 1.3,
    "thalamus": 1.5,
    "ventral-DC": 1.7,
    "vessel": 0.3,
    "white-matter-hypointensities": 1.0,
}
# Ranges of what lies outside the brain in a T1 image, as parts of white matter's intensity.
OUTSIDE = {
    "artery": (0.2, 1.4),
    "bone-cancellous": (0.3, 1.2),
    "bone-cortical": (0.05, 0.35),
    "eyeball": (0.05, 0.35),
    "mucosa": (0.2, 0.9),
    "optic-chiasm": (0.6, 1.0),
    "optic-nerve": (0.5, 1.1),
    "other-tissue": (0.2, 1.1),
    "rectus-muscles": (0.4, 1.0),
    "skin": (0.4, 1.3),
    "spinal-cord": (0.3, 1.0),
    "vein": (0.1, 0.8),
}
# Scatter of a tissue about its place there. Cerebrospinal fluid is one fluid wherever it lies: thin
# ventricles, which have no voxel of fluid alone, can be told by it.
SCATTER, SCATTER_OF_FLUID = 0.15, 0.03
STRIPPED = 0.4  # probability that the image shows the brain alone
RIM_STRIPPED = 0.25  # of those: that CSF is taken off with the skull
SILENT_AIR = 0.5  # probability that air is zero and not noise
THICK_SLICES = 0.3  # probability of slices thicker than the image's voxels, along one axis
THICKEST = 6.0  # mm


def compact(labels: np.ndarray) -> np.ndarray:
    """Return FreeSurfer's label numbers as positions in `TISSUES`; unknown ones are background."""
    table = np.zeros(max(NAMES) + 2, np.uint8)
    for number, tissue in TISSUE_OF.items():
        table[number] = TISSUES.index(tissue)
    return table[np.where((labels < 0) | (labels > max(NAMES)), max(NAMES) + 1, labels)]


def synthesise(
    labels: Tensor, factor: int, resolution: float, t1_share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw one training pair from a label map.

    Args:
        labels: (X, Y, Z) uint8, positions in `TISSUES`, `factor` times as fine as the image.
        factor: label voxels along an edge of an image voxel.
        resolution: edge of an image voxel in mm.
        t1_share: probability of a T1-like contrast.
        generator: of all random draws.

    Returns:
        image (x, y, z) in 0..1 and the share of each class in each voxel (K, x, y, z).
    """
    means, spreads = intensities(t1_share, generator)
    table = torch.cat([means[:, None], spreads[:, None] ** 2, F.one_hot(CLASS_OF)], dim=1)
    image, variance, *parts = pool(deform(labels, generator), table, factor)
    shares = torch.stack(parts)
    # The noise of label voxels, as it is in the mean of those of an image voxel.
    image = image + (variance / factor**3).sqrt() * _normal(image.shape, generator)
    bias = _between(0.3 * _uniform(generator) * _normal((4, 4, 4), generator), image.shape)
    image = scan(image * bias.exp(), resolution, generator)
    noise = 0.04 * _uniform(generator) ** 2 * _normal(image.shape, generator)
    if _uniform(generator) < SILENT_AIR:
        noise = noise * (shares[0] < 1)
    image = (image + noise).abs()
    if _uniform(generator) < STRIPPED:
        image = image * brain_mask(shares, generator)
    # Whoever prepares images cuts off what is brightest.
    brightest = torch.quantile(image.flatten()[::5], 1 - 0.01 * _uniform(generator) ** 2)
    gamma = float((0.2 * _normal((), generator)).exp())
    return (image / brightest).clamp(0, 1) ** gamma, shares


def intensities(t1_share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw mean and standard deviation of each tissue's intensity, (len(TISSUES),) each."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * _uniform(generator)

    like_t1 = _uniform(generator) < t1_share
    if like_t1:
        csf = uniform(0.05, 0.3)
        grey = csf + uniform(0.15, 0.4)
        white = grey + uniform(0.08, 0.35)
    else:
        csf, grey, white = (uniform(0.05, 1) for _ in range(3))
    means, spreads = [], []
    for tissue, place in zip(TISSUES, CLASS_OF.tolist(), strict=True):
        if tissue == "background":  # air
            means.append(uniform(0, 0.08))
            spreads.append(uniform(0, 0.04))
        elif CLASSES[place] == "background":
            means.append(white * uniform(*OUTSIDE[tissue]) if like_t1 else uniform(0, 1.2))
            spreads.append(uniform(0, 0.3))
        else:
            step = ON_LADDER.get(tissue, LADDER[CLASSES[place]])
            scatter = SCATTER if step else SCATTER_OF_FLUID
            step += scatter * float(_normal((), generator))
            means.append(float(np.interp(step, [0, 1, 2], [csf, grey, white])))
            spreads.append(uniform(0, 0.08))
    return torch.tensor(means), torch.tensor(spreads)


def deform(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return the label map flipped or not, after a small affine map and a smooth displacement."""
    shape = labels.shape
    affine = torch.matrix_exp(0.06 * _normal((3, 3), generator))
    if _uniform(generator) < 0.5:
        affine[:, 0] *= -1
    shift = 0.02 * shape[0] * _normal((3,), generator)
    knots = int(torch.randint(4, 10, (1,), generator=generator))
    # In proportion to the distance of the knots, so that space never folds.
    warp = 0.1 * _uniform(generator) * shape[0] / (knots - 1)
    axes = [torch.arange(size) - (size - 1) / 2 for size in shape]
    flat = torch.zeros((), dtype=torch.int32)
    for row, move, size in zip(affine, shift, shape, strict=True):
        x, y, z = (weight * axis for weight, axis in zip(row, axes, strict=True))
        at = _between(warp * _normal((knots,) * 3, generator), shape)
        at += (x + move + (size - 1) / 2)[:, None, None]
        at += y[:, None] + z
        flat = flat * size + at.round_().clamp_(0, size - 1).to(torch.int32)
    return labels.flatten().index_select(0, flat.flatten()).view(shape)


def pool(labels: Tensor, table: Tensor, factor: int) -> Tensor:
    """Return the mean of `table` (tissues, C) over blocks of factor³ label voxels, (C, x, y, z)."""
    values = table.float().T.index_select(1, labels.flatten().to(torch.int32))
    return F.avg_pool3d(values.view(-1, *labels.shape), factor)


def scan(image: Tensor, resolution: float, generator: torch.Generator) -> Tensor:
    """Return (x, y, z) as scanned: a little blurred, and some in thick slices along one axis."""
    sigma = 0.6 * _uniform(generator)
    thick = int(torch.randint(3, (1,), generator=generator))
    slices = _uniform(generator) < THICK_SLICES
    most = max(THICKEST / resolution, 1.0) if slices else 1.0
    spacing = 1 + (most - 1) * _uniform(generator)  # voxels
    for axis, size in enumerate(image.shape):
        along = spacing if axis == thick else 1.0
        image = (image.movedim(axis, -1) @ _sampling(size, sigma, along).T).movedim(-1, axis)
    return image


def brain_mask(shares: Tensor, generator: torch.Generator) -> Tensor:
    """Return 1 where a skull stripper of random taste leaves the image (x, y, z), elsewhere 0."""
    inside = 1 - shares[CLASSES.index("background")]
    if _uniform(generator) < RIM_STRIPPED:
        inside = inside - shares[CLASSES.index("csf")]
    return (inside > 0.2 + 0.6 * _uniform(generator)).float()


def _sampling(size: int, sigma: float, spacing: float) -> Tensor:
    """Take slices that far apart, each a Gaussian mean; go back to all voxels linearly (n, n)."""
    voxels = torch.arange(size, dtype=torch.float32)
    slices = torch.arange(0, size - 1 + spacing, spacing)
    # A slice's profile is as wide at half height as slices are apart.
    width = max(sigma, 0.42 * (spacing - 1), 1e-3)
    take = (-0.5 * ((voxels - slices[:, None]) / width).square()).softmax(dim=1)
    back = (1 - (voxels[:, None] - slices).abs() / spacing).clamp_min(0)
    return back @ take


def _between(knots: Tensor, shape: torch.Size) -> Tensor:
    """Values (X, Y, Z) that are linear between knots (a, b, c) that span the volume."""
    for axis, size in enumerate(shape):
        count = knots.shape[axis]
        at = torch.linspace(0, count - 1, size)
        weights = (1 - (at[:, None] - torch.arange(count)).abs()).clamp_min(0)
        knots = (knots.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return knots


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand(1, generator=generator))


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)
