"""Rigid registration that does not depend on where it starts."""

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

# Between nibabel's world (RAS) and ITK's (LPS).
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
# Rotations that are tried: 20 degrees apart, as far as 60 about any axis. No head lies farther from
# what its affine says, unless that is wrong; and then left may be right, which none can tell.
APART, FARTHEST = 20.0, 60.0
SEARCH, COARSE, FINE = 8.0, 5.0, 3.0  # mm, voxels of the three steps
CANDIDATES = 4  # poses of the search that are followed
PASSES = 2  # of the last step
NEIGHBOURHOOD = 16.0  # mm, sigma of the surroundings that contrast is measured in
LEAST_CONTRAST = 0.1  # of the largest: what varies less counts as flat
BRIGHT = 99.0  # percentile of the foreground above which vessels and fat are cut
MARGIN = 60.0  # mm around the moving image that count as background


@dataclass(frozen=True)
class _Image:
    """Voxels along the axes of the world: `voxels` (X, Y, Z) and their (4, 4) `affine` in mm."""

    voxels: np.ndarray
    affine: np.ndarray


def register_rigid(
    fixed: np.ndarray,
    fixed_affine: np.ndarray,
    moving: np.ndarray,
    moving_affine: np.ndarray,
    mask: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """Where each point of a fixed image lies in a moving one of like contrast.

    Both images are first put on one scale locally, by the mean and standard deviation around each
    voxel, so that neither a bias field nor a bright scalp draws the brain away. Then:

    1. For each of the rotations within 60 degrees, 20 apart, the masked normalised correlation at
       every shift (Padfield 2012, Masked object registration in the Fourier domain). So a long
       neck or an odd field of view cannot mislead it.
    2. From the best four, the best correlation nearby; from the best of these, again on finer
       voxels. Size is free meanwhile, since a template larger than the head would be pulled
       to one side; of the similarity found, the rotation and the place of the mask's centre stay.

    Nothing in it is random, and it runs in one thread, since the order of sums would change the
    result.

    Args:
        fixed, moving: (X, Y, Z) of any shape, orientation and voxel size; finite.
        fixed_affine, moving_affine: (4, 4) voxel to world in mm.
        mask: bool, of the fixed image's shape: what is compared; if not given, where the
            fixed image is not 0.

    Returns:
        (4, 4) rigid matrix from fixed to moving world, and the correlation that was reached.
    """
    if mask is None:
        mask = fixed != 0
    where = _upright(mask, fixed_affine, FINE)
    target = _upright(fixed, fixed_affine, FINE)
    normal = normalise_locally(target.voxels, where.voxels, FINE)
    # What lies outside would enter the coarser levels.
    target = _Image(np.where(where.voxels > 0.5, normal, 0), target.affine)
    scan = _upright(moving, moving_affine, FINE, margin=MARGIN)
    foreground = scan.voxels[scan.voxels > scan.voxels.mean()]
    if foreground.size:
        top = np.percentile(foreground, BRIGHT)
        scan = _Image(np.minimum(scan.voxels, top), scan.affine)
    source = _Image(normalise_locally(scan.voxels, np.ones_like(scan.voxels), FINE), scan.affine)

    def level(step: float) -> tuple[_Image, _Image, _Image]:
        return tuple(_upright(i.voxels, i.affine, step) for i in (target, where, source))

    centre = _centre(where)
    # The centre of a brain lies in the head, not in the air.
    around = ndimage.gaussian_filter(scan.voxels - scan.voxels.min(), NEIGHBOURHOOD / FINE)
    head = _upright(around > around.mean(), scan.affine, SEARCH).voxels > 0.5
    starts = _search(*level(SEARCH), centre, head)
    coarse = level(COARSE)
    found = max((_descend(*coarse, start, centre, 4.0) for start in starts), key=lambda f: f[0])
    # So far the scan's scale heeds what lies around the brain, and the template's does not.
    for _ in range(PASSES):
        pull = np.linalg.inv(found[1])
        inside = _sampled(where.voxels, where.affine, pull @ scan.affine, scan.voxels.shape)
        source = _Image(normalise_locally(scan.voxels, inside, FINE), scan.affine)
        found = _descend(target, where, source, found[1], centre, 1.0)
    value, similarity = found
    return _rigid(similarity, centre), value


def normalise_locally(voxels: np.ndarray, weight: np.ndarray, step: float) -> np.ndarray:
    """How far each voxel is from the mean around it, in the standard deviations around it.

    Around it is what a Gaussian with a sigma of 16 mm weighs. Flat parts have a deviation of at
    least a tenth of the largest.

    Args:
        voxels: (X, Y, Z).
        weight: (X, Y, Z), how much each voxel counts for those around it, as a mask does.
        step: edge of a voxel in mm.

    Returns:
        (X, Y, Z).
    """
    sigma = NEIGHBOURHOOD / step
    total = ndimage.gaussian_filter(weight, sigma) + 1e-3
    mean = ndimage.gaussian_filter(weight * voxels, sigma) / total
    square = ndimage.gaussian_filter(weight * voxels**2, sigma) / total
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    least = LEAST_CONTRAST * (weight * deviation).max() + np.finfo(np.float32).tiny
    return (voxels - mean) / (deviation + least)


def to_itk(matrix: np.ndarray) -> np.ndarray:
    """A (4, 4) matrix between RAS worlds as one between LPS worlds; its own inverse."""
    return FLIP @ matrix @ FLIP


def _upright(voxels: np.ndarray, affine: np.ndarray, step: float, margin: float = 0.0) -> _Image:
    """An image on cubic voxels of `step` mm along the world's axes, smoothed as they need."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    sigma = np.sqrt(np.maximum(step**2 - spacing**2, 0)) / 2 / spacing
    voxels = ndimage.gaussian_filter(voxels.astype(np.float32), sigma, mode="nearest")
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in voxels.shape])).reshape(3, -1)
    corners = affine[:3, :3] @ corners + affine[:3, 3:]
    low, high = corners.min(axis=1) - margin, corners.max(axis=1) + margin
    upright = np.diag([step, step, step, 1.0])
    upright[:3, 3] = low
    shape = tuple(np.ceil((high - low) / step).astype(int) + 1)
    return _Image(_sampled(voxels, affine, upright, shape, voxels.min()), upright)


def _sampled(
    voxels: np.ndarray, affine: np.ndarray, at: np.ndarray, shape: tuple, outside: float = 0.0
) -> np.ndarray:
    pull = np.linalg.inv(affine) @ at
    return ndimage.affine_transform(voxels, pull[:3, :3], pull[:3, 3], shape, order=1, cval=outside)


def _centre(where: _Image) -> np.ndarray:
    """The centre of a mask, in mm."""
    middle = ndimage.center_of_mass(where.voxels)
    return where.affine[:3, :3] @ middle + where.affine[:3, 3]


def _rotations() -> np.ndarray:
    """Rotation matrices (N, 3, 3), their vectors on a cubic lattice."""
    reach = np.arange(-FARTHEST, FARTHEST + APART, APART)
    vectors = np.stack(np.meshgrid(reach, reach, reach, indexing="ij"), axis=-1).reshape(-1, 3)
    vectors = vectors[np.linalg.norm(vectors, axis=1) <= FARTHEST]
    return Rotation.from_rotvec(vectors, degrees=True).as_matrix()


def _search(
    target: _Image, where: _Image, source: _Image, centre: np.ndarray, head: np.ndarray
) -> list[np.ndarray]:
    """The best poses (4, 4) by masked normalised correlation, best first.

    Args:
        centre: of the fixed image, in mm.
        head: bool, of the moving image's shape: where the centre may come to lie.
    """
    step = float(source.affine[0, 0])
    # A box about the centre that holds the mask however it is turned.
    inside = np.argwhere(where.voxels > 0.5) @ where.affine[:3, :3].T + where.affine[:3, 3]
    half = int(np.ceil(np.linalg.norm(inside - centre, axis=1).max() / step))
    box = (2 * half + 1,) * 3
    size = [fft.next_fast_len(n + 2 * half, real=True) for n in source.voxels.shape]
    scan = source.voxels.astype(np.float32)
    spectrum, spectrum_of_squares = fft.rfftn(scan, size), fft.rfftn(scan**2, size)

    def correlated(image: np.ndarray, with_spectrum: np.ndarray) -> np.ndarray:
        return fft.irfftn(np.conj(fft.rfftn(image, size)) * with_spectrum, size)

    poses = []
    for turn in _rotations():
        # The box stands upright in the moving image, and so is turned back in the fixed one.
        at = np.eye(4)
        at[:3, :3] = turn.T * step
        at[:3, 3] = centre - turn.T @ np.full(3, half * step)
        weight = np.clip(_sampled(where.voxels, where.affine, at, box), 0, 1)
        picture = _sampled(target.voxels, target.affine, at, box).astype(np.float32)
        total = weight.sum()
        picture -= (weight * picture).sum() / total
        mean = correlated(weight, spectrum)
        variance = correlated(weight, spectrum_of_squares) - mean**2 / total
        # Where the scan is all but flat, a correlation says nothing.
        variance = np.maximum(variance, 0.1 * variance.max())
        value = correlated(weight * picture, spectrum)
        value /= np.sqrt(variance * (weight * picture**2).sum())
        # By where the box's centre comes to lie.
        value = np.roll(value, half, axis=(0, 1, 2))[tuple(map(slice, head.shape))]
        value = np.where(head, value, -1)
        place = np.unravel_index(value.argmax(), value.shape)
        pose = np.eye(4)
        pose[:3, :3] = turn
        pose[:3, 3] = source.affine[:3, 3] + step * np.array(place) - turn @ centre
        poses.append((value.max(), pose))
    poses.sort(key=lambda found: -found[0])
    return [pose for _, pose in poses[:CANDIDATES]]


def _descend(
    target: _Image,
    where: _Image,
    source: _Image,
    start: np.ndarray,
    centre: np.ndarray,
    step: float,
) -> tuple[float, np.ndarray]:
    """The best correlation near a (4, 4) similarity, and the similarity that has it.

    The moving image is put where `start` has it, so that the angles sought are small.
    """
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsCorrelation()
    method.SetMetricFixedMask(_to_itk((where.voxels > 0.5).astype(np.uint8), where.affine))
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(step, step / 1000, 100)
    method.SetOptimizerScalesFromPhysicalShift()
    transform = sitk.Similarity3DTransform()
    transform.SetCenter((FLIP[:3, :3] @ centre).tolist())
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(
        _to_itk(target.voxels.astype(np.float32), target.affine),
        _to_itk(source.voxels.astype(np.float32), np.linalg.inv(start) @ source.affine),
    )
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    matrix[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    return -method.GetMetricValue(), start @ to_itk(matrix)


def _rigid(similarity: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The rigid matrix with a similarity's rotation that puts `centre` where it does."""
    left, _, right = np.linalg.svd(similarity[:3, :3])
    matrix = np.eye(4)
    matrix[:3, :3] = left @ right
    matrix[:3, 3] = (similarity[:3, :3] - matrix[:3, :3]) @ centre + similarity[:3, 3]
    return matrix


def _to_itk(voxels: np.ndarray, affine: np.ndarray) -> sitk.Image:
    matrix = FLIP @ affine
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    image.SetDirection((matrix[:3, :3] / spacing).ravel().tolist())
    return image
