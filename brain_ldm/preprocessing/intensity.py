"""Intensities of a scan: the bias field taken out, and a range of 0 to 1."""

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk

from brain_ldm.preprocessing.scan import Unusable

N4_VOXEL = 4.0  # mm; the field is far smoother
N4_ITERATIONS = (20, 20, 20, 20)  # at most, a level; 50 change the field little and take longer


def scale_intensity(image: np.ndarray, percentiles: Sequence[float]) -> np.ndarray:
    """Map the range between two percentiles to 0..1 and cut what lies beyond.

    Args:
        image: (X, Y, Z), the field of view whose voxels are counted.
        percentiles: lower and upper, 0 to 100.

    Returns:
        float32 (X, Y, Z).

    Raises:
        Unusable: a voxel is not finite, or both percentiles have one intensity.
    """
    if not np.isfinite(image).all():
        raise Unusable("voxels that are not finite")
    low, high = np.percentile(image, percentiles)
    # Far from 0 a range may be too small for 32 bits.
    if not np.float32(high) > np.float32(low):
        lower, upper = percentiles
        raise Unusable(f"no contrast: percentiles {lower:g} and {upper:g} are both {low:.4g}")
    scaled = (image.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(scaled, 0, 1, out=scaled)


def correct_bias(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Take out the smooth multiplicative field that coils leave in a scan.

    N4 (Tustison et al. 2010) finds it in every n-th voxel, about 4 mm apart, within Otsu's
    foreground; the scan is divided by it at full resolution. It runs in one thread, since the
    order of sums would change the result.

    Args:
        voxels: (X, Y, Z), finite.
        affine: (4, 4) voxel to world in mm.

    Returns:
        float32 (X, Y, Z).

    Raises:
        Unusable: there is no foreground.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # of the filters within N4 too
    try:
        image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T, dtype=np.float32))
        image.SetSpacing(spacing.tolist())
        small = sitk.Shrink(image, [max(1, round(N4_VOXEL / s)) for s in spacing])
        # N4 takes logarithms.
        foreground = sitk.And(sitk.OtsuThreshold(small, 0, 1), sitk.Greater(small, 0.0))
        if not sitk.GetArrayViewFromImage(foreground).any():
            raise Unusable("no foreground to find a bias field in")
        n4 = sitk.N4BiasFieldCorrectionImageFilter()
        n4.SetMaximumNumberOfIterations(N4_ITERATIONS)
        n4.Execute(small, foreground)
        field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).T
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    return voxels.astype(np.float32) / np.exp(field)
