"""Rigid registration to MNI space."""

import numpy as np
import SimpleITK as sitk

# Between nibabel's world (RAS) and ITK's (LPS).
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
# Tilts tried at the coarsest level, in rad about x (nodding) and z: heads differ most in these.
TILTS = ((-0.25, 0.0), (0.25, 0.0), (0.0, -0.15), (0.0, 0.15))
SEED = 42  # of the sampling, so that a map always lands in the same place


def register_rigid(
    fixed: np.ndarray, fixed_affine: np.ndarray, moving: np.ndarray, moving_affine: np.ndarray
) -> tuple[np.ndarray, float]:
    """Where each point of a fixed image lies in a moving one.

    Mattes mutual information (50 bins, a seeded 20 % of the voxels), gradient descent from
    matched moments and from several tilts about them; the best goes on to full resolution. It
    runs in one thread, since the order of sums would change the result.

    Args:
        fixed, moving: (X, Y, Z) of any shape and orientation.
        fixed_affine, moving_affine: (4, 4) voxel to world in mm.

    Returns:
        (4, 4) rigid matrix from fixed to moving world, and the mutual information (larger is
        better).
    """
    target = _to_itk(fixed, fixed_affine)
    source = _to_itk(moving, moving_affine)
    moments = sitk.Euler3DTransform(
        sitk.CenteredTransformInitializer(
            target,
            source,
            sitk.Euler3DTransform(),
            sitk.CenteredTransformInitializerFilter.MOMENTS,
        )
    )
    coarse = []
    for about_x, about_z in ((0.0, 0.0), *TILTS):
        start = sitk.Euler3DTransform(moments)
        start.SetRotation(about_x, 0.0, about_z)
        coarse.append(_descend(target, source, start, shrink=[4], smooth=[2]))
    best = min(coarse, key=lambda result: result[0])[1]
    value, transform = _descend(target, source, best, shrink=[2, 1], smooth=[1, 0])
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    matrix[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    return FLIP @ matrix @ FLIP, -value


def _descend(target, source, start, shrink: list[int], smooth: list[float]):
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(shrink)
    method.SetSmoothingSigmasPerLevel(smooth)
    method.SetInitialTransform(sitk.Euler3DTransform(start), inPlace=False)
    transform = method.Execute(target, source)
    if transform.GetName() == "CompositeTransform":
        transform = sitk.CompositeTransform(transform).GetBackTransform()
    return method.GetMetricValue(), sitk.Euler3DTransform(transform)


def _to_itk(voxels: np.ndarray, affine: np.ndarray) -> sitk.Image:
    matrix = FLIP @ affine
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T, dtype=np.float32))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    image.SetDirection((matrix[:3, :3] / spacing).ravel().tolist())
    return image
