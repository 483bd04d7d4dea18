"""The brain in a T1w scan, by deepbet.

Fisch et al., deepbet: Fast brain extraction of T1-weighted MRI using Convolutional Neural Networks
(2024, doi 10.1016/j.compbiomed.2024.108845). Its mask holds what lies within the skull's inner
surface, as wide as brain and CSF around it.
"""

import warnings
from functools import lru_cache
from importlib.util import find_spec

import nibabel as nib
import numpy as np

from brain_ldm.cohorts.files import brief
from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.errors import InputError
from brain_ldm.preprocessing.scan import Unusable

LEAST_VOLUME = 0.3e6  # mm³; no adult's brain is near it


def check_deepbet() -> None:
    """Make sure that deepbet is there.

    Raises:
        InputError: it is not installed.
    """
    if find_spec("deepbet") is None:
        raise InputError(
            "extraction=deepbet: deepbet is not installed; pip install -e '.[extraction]' in the "
            "checkout"
        )


def extract_brain(image: np.ndarray, grid: VoxelGrid) -> np.ndarray:
    """Where the brain is in an image in MNI space.

    Args:
        image: (X, Y, Z) on `grid`, of about 1 mm.

    Returns:
        bool (X, Y, Z), in one piece without holes.

    Raises:
        Unusable: no brain is found.
        InputError: deepbet is not installed.
    """
    return _mask(image, grid.affine)


def brain_volume(voxels: np.ndarray, affine: np.ndarray) -> float:
    """Volume of the brain in any scan.

    Args:
        voxels: (X, Y, Z) of any orientation and voxel size.
        affine: (4, 4) voxel to world in mm.

    Returns:
        mm³ within the mask of `extract_brain`.

    Raises:
        Unusable: no brain is found.
        InputError: deepbet is not installed.
    """
    return _mask(voxels, affine).sum() * float(abs(np.linalg.det(affine[:3, :3])))


def _mask(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    import torch

    network = _network()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # scans run side by side
    try:
        scan = nib.Nifti1Image(voxels.astype(np.float32, copy=False), affine)
        mask = np.asarray(network.run(scan)[1].dataobj) > 0
    except (AssertionError, ValueError) as error:  # nothing to put a box around, no piece to keep
        raise Unusable(f"deepbet finds no brain ({brief(error)})") from None
    finally:
        torch.set_num_threads(threads)
    volume = mask.sum() * abs(np.linalg.det(affine[:3, :3]))
    if volume < LEAST_VOLUME:
        raise Unusable(f"deepbet finds a brain of {volume / 1000:.0f} ml only")
    return mask


@lru_cache(maxsize=1)
def _network():
    """Its two networks, on the CPU, whose results do not depend on the machine's card."""
    check_deepbet()
    from deepbet.bet import BrainExtraction

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript's
        return BrainExtraction(no_gpu=True)
