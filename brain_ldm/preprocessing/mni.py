"""Bringing a scan to MNI space: where it lies, its voxels there, and how well it fits."""

import os
import uuid
from functools import lru_cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from brain_ldm.cohorts.grid import VoxelGrid, paper_grid
from brain_ldm.cohorts.registration import BRIGHT, normalise_locally, register_rigid, to_itk

# mm: voxels in which a scan is compared with the template, and sigma of the smoothing before.
COMPARED, SIGMA = 4, 4.0
CLOSING = 6  # mm that sulci and cisterns are closed over
# Full width at half maximum of a Gaussian in standard deviations.
FULL_WIDTH = 2.3548
REACH = 12  # voxels; beyond them a voxel has no part in a cubic spline


def register_to_template(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Where each point of MNI space lies in a T1w scan, rigidly.

    For whole heads and brains alike, in any orientation of storage and any voxel size. A head may
    lie anywhere, turned by up to 60 degrees from where `affine` has it upright.

    Args:
        voxels: (X, Y, Z), finite.
        affine: (4, 4) voxel to world in mm.

    Returns:
        (4, 4) matrix from MNI to the scan's world (RAS, mm): a rotation and a shift.
    """
    template, brain, template_affine = _template()
    matrix, _ = register_rigid(template, template_affine, voxels, affine, mask=brain)
    return matrix


def template_correlation(image: np.ndarray, grid: VoxelGrid) -> float:
    """How well an image in MNI space fits the template: Pearson's r inside the brain.

    Both are first averaged to 4 mm, normalised locally (so that a bias field costs little, and a
    brain's outline alone gives little) and smoothed by a Gaussian with a sigma of 4 mm. Whole heads
    in place gave .57 to .78, pitched by 20 degrees .32 to .49, and back to front .25 to .38.

    Args:
        image: (X, Y, Z) on `grid`, T1w.
        grid: a paper grid, 1, 2 or 4 mm.

    Returns:
        -1..1; 0 for an image that is constant in the brain.
    """
    coarse = _blocks(image, COMPARED // round(grid.resolution))
    brain = _brain(COMPARED)
    if np.ptp(coarse[brain]) == 0:
        return 0.0
    return float(np.corrcoef(_comparable(coarse)[brain], _comparable_template()[brain])[0, 1])


def resample(
    voxels: np.ndarray, affine: np.ndarray, matrix: np.ndarray, resolution: int
) -> np.ndarray:
    """A scan on the paper's grid in MNI space.

    Sampled at 1 mm by a cubic B-spline, after smoothing along those axes whose voxels are finer;
    coarser voxels are means of 1 mm ones.

    Args:
        voxels: (X, Y, Z), finite.
        affine: (4, 4) voxel to world in mm.
        matrix: (4, 4) from MNI to the scan's world.
        resolution: 1, 2 or 4 mm.

    Returns:
        float32 on `paper_grid(resolution)`, within the scan's range; its minimum outside it.

    Raises:
        InputError: if the resolution is another.
    """
    grid, fine = paper_grid(resolution), paper_grid(1)
    low, high = float(voxels.min()), float(voxels.max())
    pull = np.linalg.inv(affine) @ matrix @ fine.affine
    # Only what the field of view reaches: a neck below it costs as much as a head.
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in fine.shape])).reshape(3, -1)
    corners = pull[:3, :3] @ corners + pull[:3, 3:]
    start = np.clip(np.floor(corners.min(axis=1)).astype(int) - REACH, 0, voxels.shape)
    stop = np.clip(np.ceil(corners.max(axis=1)).astype(int) + REACH + 1, 0, voxels.shape)
    if (start >= stop).any():
        return np.full(grid.shape, low, dtype=np.float32)
    scan = voxels[tuple(map(slice, start, stop))].astype(np.float32)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    sigma = np.sqrt(np.maximum(1 - spacing**2, 0)) / FULL_WIDTH / spacing
    scan = ndimage.gaussian_filter(scan, sigma, mode="nearest")
    image = ndimage.affine_transform(
        scan, pull[:3, :3], pull[:3, 3] - start, fine.shape, order=3, cval=low
    )
    np.clip(image, low, high, out=image)
    return _blocks(image, resolution)


def brain_mask(grid: VoxelGrid) -> np.ndarray:
    """The template's brain, filled: bool (X, Y, Z) on a paper grid; do not write into it."""
    return _brain(round(grid.resolution))


def write_transform(path: Path, matrix: np.ndarray) -> None:
    """Write a matrix from MNI to a scan's world as an ITK text transform, whole or not at all.

    ITK, ANTs and SimpleITK bring the scan to MNI space with it, the template being the reference.

    Args:
        path: ending in .txt or .tfm.
        matrix: (4, 4), RAS, mm.

    Raises:
        OSError: what was read back differs.
    """
    itk = to_itk(matrix)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(itk[:3, :3].ravel().tolist())
    transform.SetTranslation(itk[:3, 3].tolist())
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}_{path.name}")
    try:
        sitk.WriteTransform(transform, os.fspath(temporary))
        if not np.allclose(read_transform(temporary), matrix, rtol=0, atol=1e-9):
            raise OSError(f"{path}: reading back gave another matrix; is the disk full?")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_transform(path: Path) -> np.ndarray:
    """The (4, 4) matrix from MNI to the scan's world (RAS, mm) that `write_transform` wrote."""
    transform = sitk.AffineTransform(sitk.ReadTransform(os.fspath(path)))
    itk = np.eye(4)
    itk[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    itk[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    return to_itk(itk)


@lru_cache(maxsize=1)
def _template() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The skull-stripped MNI152 T1 (X, Y, Z), its filled brain (bool) and (4, 4) affine; 1 mm."""
    from nilearn import datasets

    image = datasets.load_mni152_template(resolution=1)
    # The template's brain reaches to the edge of its field of view.
    pad = CLOSING + 2
    voxels = np.pad(image.get_fdata(dtype=np.float32), pad)
    affine = image.affine.copy()
    affine[:3, 3] -= pad
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(voxels > 0, iterations=CLOSING))
    return voxels, brain, affine


@lru_cache(maxsize=3)
def _brain(resolution: int) -> np.ndarray:
    _, brain, affine = _template()
    return resample(brain.astype(np.float32), affine, np.eye(4), resolution) > 0.5


@lru_cache(maxsize=1)
def _comparable_template() -> np.ndarray:
    voxels, _, affine = _template()
    return _comparable(resample(voxels, affine, np.eye(4), COMPARED))


def _comparable(image: np.ndarray) -> np.ndarray:
    """An image on the 4 mm grid, normalised within the brain and smoothed; 0 outside it."""
    brain = _brain(COMPARED)
    cut = np.minimum(image, np.percentile(image[brain], BRIGHT))
    normal = normalise_locally(cut, brain.astype(np.float32), COMPARED)
    return ndimage.gaussian_filter(np.where(brain, normal, 0), SIGMA / COMPARED)


def _blocks(image: np.ndarray, k: int) -> np.ndarray:
    """Means of blocks of k³ voxels; float32."""
    x, y, z = (n // k for n in image.shape)
    return image.reshape(x, k, y, k, z, k).mean(axis=(1, 3, 5), dtype=np.float32)
