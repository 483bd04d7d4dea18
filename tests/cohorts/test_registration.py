import numpy as np
from nilearn.datasets import load_mni152_template
from scipy import ndimage

from brain_ldm.cohorts.registration import register_rigid


def test_a_turned_and_shifted_head_is_brought_back():
    template = load_mni152_template(resolution=1)
    step = np.diag([3.0, 3.0, 3.0, 1.0])
    fixed = template.get_fdata(dtype=np.float32)[::3, ::3, ::3]
    affine = template.affine @ step
    nod, turn = 0.3, 0.2
    x = np.array([[1, 0, 0], [0, np.cos(nod), -np.sin(nod)], [0, np.sin(nod), np.cos(nod)]])
    z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    truth = np.eye(4)
    truth[:3, :3] = x @ z
    truth[:3, 3] = [8, -12, 15]
    # The moving image, stored with x and z flipped: at `truth` of a point lies what was there.
    flipped = affine @ np.diag([-1.0, 1, -1, 1])
    flipped[:3, 3] = affine[:3, 3] + 3.0 * (np.array(fixed.shape) - 1) * [1, 0, 1]
    pull = np.linalg.inv(affine) @ np.linalg.inv(truth) @ flipped
    moving = ndimage.affine_transform(fixed, pull[:3, :3], pull[:3, 3], order=1)

    found, value = register_rigid(fixed, affine, moving, flipped)

    points = np.array([[0, -17, 5, 1], [60, -17, 5, 1], [0, 60, 5, 1], [0, -17, 70, 1]]).T
    error = np.linalg.norm(((found - truth) @ points)[:3], axis=0)
    assert error.max() < 1.0  # mm, a third of a voxel
    assert value > 0
