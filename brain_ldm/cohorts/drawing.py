"""What all phantoms have in common, whatever they are drawn from."""

from dataclasses import dataclass

import numpy as np

from brain_ldm.cohorts.ageing import Person
from brain_ldm.cohorts.grid import VoxelGrid, paper_grid
from brain_ldm.cohorts.labels import volumes
from brain_ldm.cohorts.warp import spline_field

INTENSITY_STD = 0.02  # of the whole image, relative
BIAS_STD = 0.10  # of the log bias field's control points; a third of it in the image
BIAS_SPACING = 80.0  # mm
NOISE_STD = 0.008


@dataclass(frozen=True)
class Phantom:
    """One brain.

    Attributes:
        row: participant_id, age, sex, ventricular_volume and brain_volume in mm³.
        image: float32 (X, Y, Z) in 0..1.
        labels: int16, FreeSurfer's numbers, on `label_grid`.
        label_grid: as fine as the image or twice.
    """

    row: dict
    image: np.ndarray
    labels: np.ndarray
    label_grid: VoxelGrid


def participant_id(seed: int, index: int) -> str:
    """The id of phantom `index` of `seed`; distinct for distinct pairs."""
    return f"sub-s{seed}i{index:05d}"


def work_grid(resolution: int) -> VoxelGrid:
    """The grid that phantoms are made and labelled on: finer than coarse images, so that volumes
    are counted well and an image voxel holds several tissues."""
    return paper_grid(max(1, resolution // 2))


def generator(seed: int, index: int) -> np.random.Generator:
    """The random numbers of phantom `index` of `seed`, and of no other."""
    return np.random.default_rng(np.random.SeedSequence([seed, index]))


def finish_image(
    rng: np.random.Generator, image: np.ndarray, work: VoxelGrid, grid: VoxelGrid
) -> np.ndarray:
    """What the scanner adds: partial volume, bias field, gain and noise.

    Args:
        image: float32 (X, Y, Z) on `work`, 0 outside the head.

    Returns:
        float32 (X, Y, Z) on `grid`, in 0..1; 0 outside the head stays 0.
    """
    k = round(grid.resolution / work.resolution)
    x, y, z = grid.shape
    image = image.reshape(x, k, y, k, z, k).mean(axis=(1, 3, 5))
    head = image > 0.02
    image = image * np.exp(BIAS_STD * spline_field(rng, grid, 1, BIAS_SPACING)[..., 0])
    image *= 1 + INTENSITY_STD * rng.standard_normal()
    image += head * rng.standard_normal(grid.shape, dtype=np.float32) * np.float32(NOISE_STD)
    return np.clip(image, 0, 1).astype(np.float32)


def phantom(
    rng: np.random.Generator,
    name: str,
    person: Person,
    labels: np.ndarray,
    image: np.ndarray,
    resolution: int,
) -> Phantom:
    """Scan a rendered brain and count its volumes.

    Args:
        name: participant_id.
        labels, image: (X, Y, Z) on the work grid of `resolution`.
    """
    work = work_grid(resolution)
    row = {
        "participant_id": name,
        "age": round(person.age, 2),
        "sex": person.sex,
        **volumes(labels, work.voxel_volume),
    }
    return Phantom(row, finish_image(rng, image, work, paper_grid(resolution)), labels, work)
