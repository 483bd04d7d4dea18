"""4-G-R-SSIM against a slow, literal version that visits one voxel at a time in 64 bits."""

import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from brain_ldm.errors import InputError
from brain_ldm.evaluation.gradient_similarity import gradient_ssim


def literal(a: np.ndarray, b: np.ndarray) -> float:
    """Mean of both orders for two volumes (X, Y, Z)."""
    return (literal_one_way(a, b) + literal_one_way(b, a)) / 2


def literal_one_way(reference: np.ndarray, other: np.ndarray) -> float:
    gx, gy = literal_gradient(reference), literal_gradient(other)
    high, low = 0.12 * gx.max(), 0.06 * gx.max()
    offsets = np.arange(-5, 6)
    window = np.exp(-(sum(o**2 for o in np.meshgrid(*[offsets] * 3))) / (2 * 1.5**2))
    window /= window.sum()
    values = {"preserved": [], "changed": [], "smooth": [], "texture": []}
    for i, j, k in itertools.product(*(range(5, n - 5) for n in gx.shape)):
        here = np.s_[i - 5 : i + 6, j - 5 : j + 6, k - 5 : k + 6]
        # One voxel on: the gradient's grid starts at the volume's second voxel.
        there = np.s_[i - 4 : i + 7, j - 4 : j + 7, k - 4 : k + 7]
        value = literal_ssim(reference[there], other[there], gx[here], gy[here], window)
        x, y = gx[i, j, k], gy[i, j, k]
        if x > high and y > high:
            values["preserved"].append(value)
        elif x > high or y > high:
            values["changed"].append(value)
        elif x < low and y <= high:
            values["smooth"].append(value)
        else:
            values["texture"].append(value)
    weight = dict.fromkeys(values, 0.25)
    empty = [kind for kind in values if not values[kind]]
    for kind in values:
        weight[kind] += 0.25 * len(empty) / (4 - len(empty))
    return max(0, sum(weight[kind] * np.mean(v) for kind, v in values.items() if v))


def literal_gradient(volume: np.ndarray) -> np.ndarray:
    kernel = np.zeros((3, 3, 3))
    kernel[2] = 0.05
    kernel[2, 1, 1] = 0.1
    kernel[0] = -kernel[2]
    kernels = [kernel, kernel.transpose(1, 0, 2), kernel.transpose(2, 1, 0)]
    gradient = np.empty([n - 2 for n in volume.shape])
    for i, j, k in np.ndindex(gradient.shape):
        cube = volume[i : i + 3, j : j + 3, k : k + 3]
        gradient[i, j, k] = sum(abs((kernel * cube).sum()) for kernel in kernels)
    return gradient


def literal_ssim(
    x: np.ndarray, y: np.ndarray, gx: np.ndarray, gy: np.ndarray, window: np.ndarray
) -> float:
    c1, c2 = 0.01**2, 0.03**2
    mean_x, mean_y = (window * x).sum(), (window * y).sum()
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    dx, dy = gx - (window * gx).sum(), gy - (window * gy).sum()
    sigma_x, sigma_y = (
        0 if np.ptp(g) < 1e-7 else np.sqrt((window * d**2).sum()) for g, d in ((gx, dx), (gy, dy))
    )
    contrast = (2 * sigma_x * sigma_y + c2) / (sigma_x**2 + sigma_y**2 + c2)
    if sigma_x == 0 or sigma_y == 0:
        structure = float(sigma_x == sigma_y)
    else:
        structure = ((window * dx * dy).sum() + c2 / 2) / (sigma_x * sigma_y + c2 / 2)
    return luminance * contrast * structure


def smooth(shape: tuple[int, ...], seed: int) -> np.ndarray:
    field = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return (field - field.min()) / np.ptp(field)


def tissue(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Smooth inside .4..1, with sharp edges between its levels."""
    field = smooth(shape, seed)
    return 0.4 + 0.1 * field + 0.25 * (field > 0.4) + 0.25 * (field > 0.6)


def head(shape: tuple[int, ...], seed: int, radius: float) -> np.ndarray:
    """Tissue in a ball around the first voxel, and 0 elsewhere."""
    distance = np.sqrt(sum(i**2 for i in np.ogrid[tuple(slice(0, n) for n in shape)]))
    return tissue(shape, seed) * (distance < radius)


def ramp(shape: tuple[int, ...], slope: float) -> np.ndarray:
    return np.broadcast_to(slope * np.arange(shape[0])[:, None, None], shape).copy()


def slabs(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Noise in slabs of 4 voxels, and noise in the slabs between them: edges that avoid another."""
    here = (np.arange(shape[0]) // 4 % 2 == 0)[:, None, None]
    noise = np.random.default_rng(0).random((2, *shape))
    return np.where(here, noise[0], 0.5), np.where(here, 0.5, noise[1])


def tensors(*volumes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(volumes)[:, None]).float()


def score(a: np.ndarray, b: np.ndarray) -> float:
    return gradient_ssim(tensors(a), tensors(b)).item()


CONTRASTS = {
    "noise": lambda s: np.random.default_rng(0).random((2, *s)),
    "faint noise": lambda s: 0.5 + 0.01 * np.random.default_rng(0).random((2, *s)),
    "smooth": lambda s: (smooth(s, 1), smooth(s, 2)),
    "tissue": lambda s: (tissue(s, 3), tissue(s, 4)),
    "tissue and a noisy copy": lambda s: (
        tissue(s, 3),
        tissue(s, 3) + 0.02 * np.random.default_rng(0).random(s),
    ),
    "two heads of one size": lambda s: (head(s, 5, 13), head(s, 6, 13)),
    "a small head and a large": lambda s: (head(s, 5, 9), head(s, 6, 15)),
    "a head and nothing": lambda s: (head(s, 5, 13), np.zeros(s)),
    "edges where the other has none": slabs,
    "two ramps": lambda s: (ramp(s, 0.013), ramp(s, 0.057)),
    "an even ramp and an uneven": lambda s: (
        ramp(s, 0.013),
        ramp(s, 0.013) + 0.0003 * np.random.default_rng(0).random(s),
    ),
    "a ramp and tissue": lambda s: (ramp(s, 0.013), tissue(s, 3)),
}


@pytest.mark.parametrize("shape", [(16, 15, 14), (19, 18, 20)])
@pytest.mark.parametrize("contrast", CONTRASTS)
def test_agrees_with_the_definition_read_voxel_by_voxel(contrast, shape):
    a, b = CONTRASTS[contrast](shape)
    assert score(a, b) == pytest.approx(literal(a, b), abs=1e-5)


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_a_volume_is_like_itself(contrast):
    for volume in CONTRASTS[contrast]((16, 15, 14)):
        assert score(volume, volume) == pytest.approx(1, abs=1e-5)


def test_independent_noise_is_unlike():
    """Not 0: without correlation, structure is still C3 / (σ² + C3), .03 to .09 for such noise."""
    uniform = np.random.default_rng(0).random((2, 30, 30, 30))
    assert 0 <= score(*uniform) < 0.15
    assert 0 <= score(*np.round(uniform)) < 0.08


def test_order_does_not_matter_and_a_batch_is_its_pairs():
    shape = (19, 18, 20)
    a = tensors(*(head(shape, seed, 14) for seed in range(4)))
    b = tensors(*(tissue(shape, seed) for seed in range(4, 8)))
    together = gradient_ssim(a, b)
    assert together.shape == (4,)
    assert together.tolist() == gradient_ssim(b, a).tolist()
    one_by_one = [gradient_ssim(a[i : i + 1], b[i : i + 1]).item() for i in range(4)]
    assert together.tolist() == pytest.approx(one_by_one, abs=1e-6)
    assert len({round(value, 3) for value in one_by_one}) == 4


def test_blurred_edges_cost_more_than_brightness():
    volume = 0.8 * tissue((24, 25, 26), seed=0)
    assert score(volume, volume + 0.1) > 0.95
    assert score(volume, gaussian_filter(volume, 1)) < 0.8


def test_a_grid_below_window_and_gradient_is_refused():
    volumes = torch.rand(2, 1, 13, 13, 13)
    assert gradient_ssim(volumes, volumes).tolist() == pytest.approx([1, 1], abs=1e-5)
    with pytest.raises(InputError, match=r"grid \(40, 12, 40\).* at least 13 voxels"):
        gradient_ssim(torch.rand(1, 1, 40, 12, 40), torch.rand(1, 1, 40, 12, 40))
