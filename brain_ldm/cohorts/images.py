"""Images of a cohort: reading their headers and voxels, and the rules that these keep."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from brain_ldm.cohorts.files import UNREADABLE, brief
from brain_ldm.cohorts.findings import Finding
from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.errors import InputError

AGAIN = "make this image again"


def absent(path: Path) -> Finding:
    """What to say of an image that is not there."""
    what = "no such file, though participants.tsv names it"
    return Finding(str(path), what, "make it, or remove its row")


def read_grid(path: Path) -> tuple[VoxelGrid | None, list[Finding]]:
    """An image's grid, None where it cannot be told, and what is wrong with its header."""
    if not path.is_file():
        return None, [absent(path)]
    try:
        image = nib.load(path)
        header = image.header
    except UNREADABLE as error:
        what = f"not a readable NIfTI file ({brief(error)})"
        return None, [Finding(str(path), what, AGAIN)]
    if len(image.shape) != 3:
        what = f"{len(image.shape)} dimensions, a T1w volume has 3"
        return None, [Finding(str(path), what, "store one volume a file")]
    grid = VoxelGrid(tuple(image.shape), image.affine)
    sform, scode = header.get_sform(coded=True)
    qform, qcode = header.get_qform(coded=True)
    if not (scode or qcode):
        what = "neither sform nor qform has a code"
        return grid, [Finding(str(path), what, "write the affine with code 4, MNI")]
    problems = []
    if scode and qcode and not np.allclose(sform, qform, atol=1e-2):
        problems.append(("sform and qform disagree", "write one affine to both"))
    steps = np.diag(image.affine)[:3]
    if not np.allclose(image.affine[:3, :3], np.diag(steps), atol=1e-3) or (steps <= 0).any():
        problems.append(("not stored RAS+ along MNI's axes", "resample it to MNI space"))
    elif np.ptp(steps) > 1e-3:
        problems.append((f"voxels of {steps.round(3).tolist()} mm", "resample to equal edges"))
    return grid, [Finding(str(path), *problem) for problem in problems]


def common_grid(grids: Iterable[VoxelGrid]) -> VoxelGrid:
    """The grid that most images have."""
    count = Counter((g.shape, tuple(g.affine.round(3).ravel())) for g in grids)
    shape, affine = count.most_common(1)[0][0]
    return VoxelGrid(shape, np.reshape(affine, (4, 4)))


def check_grids(grids: dict[Path, VoxelGrid], common: VoxelGrid) -> Iterator[Finding]:
    """Every image has the voxels that most have."""
    for path, grid in grids.items():
        if not common.same_as(grid):
            what = f"{grid}, the rest of the cohort has {common}"
            yield Finding(str(path), what, "resample it to these")


def read_voxels(path: Path, shape: Sequence[int]) -> np.ndarray:
    """An image as it is stored: float32 (X, Y, Z).

    Raises:
        InputError: it cannot be read, or has another shape.
    """
    try:
        image = np.asarray(nib.load(path).dataobj, dtype=np.float32)
    except UNREADABLE as error:
        raise InputError(f"{path}: voxels cannot be read ({brief(error)}); {AGAIN}") from None
    if image.shape != tuple(shape):
        raise InputError(f"{path}: shape {image.shape}, the cohort has {tuple(shape)}; {AGAIN}")
    return image


def voxel_facts(image: np.ndarray) -> tuple[int, float, float]:
    """How many voxels are not finite, and the lowest and the highest of the others."""
    finite = np.isfinite(image)
    count = image.size - int(np.count_nonzero(finite))
    inside = image[finite] if count else image
    return (count, float(inside.min()), float(inside.max())) if inside.size else (count, 0.0, 0.0)


def check_voxels(path: Path, not_finite: int, low: float, high: float) -> Iterator[Finding]:
    """Voxels are finite, of more than one value, and in 0..1.

    Args:
        path: of the image.
        not_finite, low, high: its `voxel_facts`.
    """
    if not_finite:
        yield Finding(str(path), f"{not_finite} voxels are NaN or infinite", AGAIN)
    elif low == high:
        yield Finding(str(path), f"every voxel is {low:g}", AGAIN)
    if low < -1e-3 or high > 1 + 1e-3:
        yield Finding(str(path), f"intensities {low:g} to {high:g}", "scale them to 0..1")
