"""One raw scan to MNI space: the steps of `preprocess` in their order."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brain_ldm.cohorts.grid import paper_grid
from brain_ldm.cohorts.template import averaged
from brain_ldm.preprocessing.config import Extraction, PreprocessConfig, Registration
from brain_ldm.preprocessing.intensity import correct_bias, scale_intensity
from brain_ldm.preprocessing.mni import (
    brain_mask,
    register_to_template,
    resample,
    template_correlation,
)
from brain_ldm.preprocessing.scan import Scan, Unusable, read_scan

LEAST_COVERED = 0.97  # part of the template's brain that a scan must reach


@dataclass(frozen=True)
class Prepared:
    """A scan in MNI space.

    Attributes:
        image: float32 (X, Y, Z) in 0..1 on the paper's field of view.
        matrix: (4, 4) from MNI world to the scan's, in mm; rigid.
        correlation: with the template (`mni.template_correlation`).
    """

    image: np.ndarray
    matrix: np.ndarray
    correlation: float


def prepare(scan: Scan, config: PreprocessConfig) -> Prepared:
    """Read a scan and bring it to MNI space.

    Raises:
        Unusable: the scan cannot be used, and why.
    """
    voxels, affine = read_scan(scan)
    if config.bias_correction:
        voxels = correct_bias(voxels, affine)
    if config.registration is Registration.unires:
        from brain_ldm.preprocessing.unires import recovered_transform, run_unires

        with tempfile.TemporaryDirectory() as work:
            moved, moved_affine = run_unires(voxels, affine, Path(work), config.device)
        to_output = register_to_template(moved, moved_affine)  # its atlas is not our template
        matrix = recovered_transform(moved, moved_affine, voxels, affine) @ to_output
        fine = resample(moved, moved_affine, to_output, 1)
    else:
        matrix = register_to_template(voxels, affine)
        fine = resample(voxels, affine, matrix, 1)
    reached = covered(voxels.shape, affine, matrix)
    if reached < LEAST_COVERED:
        raise Unusable(f"{1 - reached:.0%} of the brain would lie outside the scan")
    if config.extraction is Extraction.deepbet:
        from brain_ldm.preprocessing.extraction import extract_brain

        mask = extract_brain(fine, paper_grid(1))
        fine = np.where(mask, fine, fine.min())
    grid = paper_grid(config.resolution)
    image = scale_intensity(averaged(fine, grid), config.percentiles)
    return Prepared(image, matrix, template_correlation(image, grid))


def covered(shape: tuple[int, ...], affine: np.ndarray, matrix: np.ndarray) -> float:
    """The part of the template's brain that lies within a scan (X, Y, Z) at `affine`."""
    grid = paper_grid(4)
    to_voxel = np.linalg.inv(affine) @ matrix @ grid.affine
    brain = np.argwhere(brain_mask(grid))
    index = brain @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    return float(((index > -0.5) & (index < np.subtract(shape, 0.5))).all(axis=1).mean())
