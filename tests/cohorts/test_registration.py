import numpy as np
import pytest
from nilearn.datasets import load_mni152_template
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brain_ldm.cohorts.registration import register_rigid, to_itk

STEP = 4.0  # mm
CENTRE = np.array([0.0, -17.0, 5.0])


@pytest.fixture(scope="module")
def template():
    image = load_mni152_template(resolution=1)
    voxels = ndimage.gaussian_filter(image.get_fdata(dtype=np.float32), 1.5)[::4, ::4, ::4]
    return np.pad(voxels, 3), image.affine @ _scaled([STEP] * 3, [-12] * 3)


def _scaled(steps, origin):
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = origin
    return affine


def pose(turn, shift):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(turn, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def seen(picture, truth, shape=(75, 60, 75)):
    """A picture of MNI space in a scan where each point lies at `truth`; x and z are reversed."""
    voxels, affine = picture
    steps = np.array([-3.0, 4, -3])
    middle = truth[:3, :3] @ CENTRE + truth[:3, 3]
    at = _scaled(steps, middle - steps * (np.array(shape) // 2 + [3, -5, 4]))
    pull = np.linalg.inv(affine) @ np.linalg.inv(truth) @ at
    return ndimage.affine_transform(voxels, pull[:3, :3], pull[:3, 3], shape, order=1), at


def farthest(found, truth):
    points = CENTRE + 60 * np.vstack([np.eye(3), -np.eye(3)])
    return np.linalg.norm((found - truth) @ np.c_[points, np.ones(6)].T, axis=0).max()


def test_a_turned_and_shifted_brain_is_brought_back_to_the_bit_each_time(template):
    truth = pose([17, 0, 11], [8, -12, 15])
    scan = seen(template, truth)
    found, value = register_rigid(*template, *scan)
    assert farthest(found, truth) < 0.5
    assert value > 0.9
    again, _ = register_rigid(*template, *scan)
    assert (again == found).all()


def test_a_neck_a_scalp_and_a_bias_field_do_not_mislead(template):
    voxels, affine = template
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(voxels > 0.05, iterations=2))
    # A smaller brain than the template's, in a head of dark skull and bright scalp on a neck.
    grid = _scaled([STEP] * 3, [-150, -180, -260])
    shape = (75, 80, 100)
    small = np.diag([1 / 0.92, 1 / 0.92, 1 / 0.92, 1.0])
    small[:3, 3] = CENTRE - small[:3, :3] @ CENTRE
    pull = np.linalg.inv(affine) @ small @ grid
    picture, inside = (
        ndimage.affine_transform(i, pull[:3, :3], pull[:3, 3], shape, order=1)
        for i in (voxels, brain.astype(np.float32))
    )
    outside = STEP * ndimage.distance_transform_edt(inside < 0.5)
    picture[(outside > 7) & (outside < 18)] = 1.4
    x, y, z = (
        np.arange(n).reshape(np.roll([-1, 1, 1], a)) * STEP + grid[a, 3]
        for a, n in enumerate(shape)
    )
    picture[(np.hypot(x, y + 30) < 65) & (z < -75) & (outside > 7)] = 0.9
    picture = picture * np.exp(0.004 * y - 0.003 * z)
    truth = pose([-35, 15, 20], [30, 60, -50])
    scan = seen((picture, grid), truth, shape=(90, 70, 110))
    found, _ = register_rigid(*template, *scan, mask=brain)
    assert farthest(found, truth) < 2.0


def test_itk_matrices_are_their_own_inverse():
    matrix = pose([10, 20, 30], [1, 2, 3])
    assert to_itk(matrix)[:3, 3].tolist() == [-1, -2, 3]
    np.testing.assert_array_equal(to_itk(to_itk(matrix)), matrix)
