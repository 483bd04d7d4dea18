import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nilearn.datasets import load_mni152_template
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brain_ldm.cohorts.grid import paper_grid
from brain_ldm.preprocessing import mni

DATA = Path(os.environ.get("BRAIN_LDM_DATA", Path(__file__).parents[3] / "shared" / "data"))
CENTRE = np.array([0.0, -17.0, 5.0])  # of the template's brain


def pose(turn, shift):
    """A rotation vector in degrees about the brain's centre, then a shift in mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(turn, degrees=True).as_matrix()
    matrix[:3, 3] = CENTRE + shift - matrix[:3, :3] @ CENTRE
    return matrix


def flipped(voxels, affine, axes):
    """The same scan, stored backwards along some axes."""
    for axis in axes:
        flip = np.eye(4)
        flip[axis, axis], flip[axis, 3] = -1, voxels.shape[axis] - 1
        voxels, affine = np.flip(voxels, axis), affine @ flip
    return voxels, affine


def apart(a, b):
    """Largest distance in mm on a sphere of 60 mm about the brain, and the angle in degrees."""
    points = np.random.default_rng(0).normal(size=(3, 200))
    points = CENTRE[:, None] + 60 * points / np.linalg.norm(points, axis=0)
    difference = a - b
    distance = np.linalg.norm(difference[:3, :3] @ points + difference[:3, 3:], axis=0).max()
    return distance, np.degrees(Rotation.from_matrix(a[:3, :3].T @ b[:3, :3]).magnitude())


@pytest.fixture(scope="module")
def template():
    image = load_mni152_template(resolution=1)
    return image.get_fdata(dtype=np.float32), image.affine


def test_a_turned_and_shifted_template_is_brought_back(template):
    random = np.random.default_rng(0)
    axis, direction = random.normal(size=(2, 3))
    truth = pose(20 * axis / np.linalg.norm(axis), 15 * direction / np.linalg.norm(direction))
    # Seen by a scanner of its own: other voxels, another field of view.
    spacing = np.diag([*random.uniform(1.5, 2.5, 3), 1])
    spacing[:3, 3] = CENTRE - 115 + random.uniform(-10, 10, 3)
    shape = tuple((230 / np.diag(spacing)[:3]).astype(int))
    voxels, affine = template
    pull = np.linalg.inv(affine) @ np.linalg.inv(truth) @ spacing
    scan = ndimage.affine_transform(voxels, pull[:3, :3], pull[:3, 3], shape, order=1)
    found = mni.register_to_template(*flipped(scan, spacing, axes=[0, 2]))
    distance, angle = apart(found, truth)
    assert distance < 0.5 and angle < 0.5
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-9)
    assert np.linalg.det(found) == pytest.approx(1)


@pytest.fixture(scope="module")
def head():
    path = DATA / "t1" / "chris_t1.nii.gz"
    if not path.exists():
        pytest.skip(f"no scan at {path} (set BRAIN_LDM_DATA)")
    image = nib.load(path)
    voxels, affine = np.asarray(image.dataobj).astype(np.float32), image.affine
    return voxels, affine, mni.register_to_template(voxels, affine)


def test_a_real_head_ends_in_one_place_from_wherever_it_starts(head):
    voxels, affine, expected = head
    moved = pose([30, 20, -15], [40, -60, 80])
    found = mni.register_to_template(*flipped(voxels, moved @ affine, axes=[0, 2]))
    distance, angle = apart(np.linalg.inv(moved) @ found, expected)
    assert distance < 1 and angle < 1


def test_a_real_head_in_place_fits_the_template_and_a_turned_one_does_not(head):
    voxels, affine, matrix = head
    grid = paper_grid(2)

    def fit(moved):
        return mni.template_correlation(mni.resample(voxels, affine, matrix @ moved, 2), grid)

    assert fit(np.eye(4)) > 0.7
    assert fit(pose([20, 0, 0], np.zeros(3))) < 0.5
    assert fit(pose([0, 0, 180], np.zeros(3))) < 0.4


def test_itk_brings_the_scan_where_we_do(head, tmp_path):
    voxels, affine, matrix = head
    path = tmp_path / "sub-1_from-MNI_to-scan.txt"
    mni.write_transform(path, matrix)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    np.testing.assert_allclose(mni.read_transform(path), matrix, atol=1e-9)

    ours = mni.resample(voxels, affine, matrix, 1)
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "scan.nii")
    nib.save(nib.Nifti1Image(ours, paper_grid(1).affine), tmp_path / "ours.nii")
    scan, reference = (
        sitk.ReadImage(str(tmp_path / n), sitk.sitkFloat32) for n in ("scan.nii", "ours.nii")
    )
    theirs = sitk.Resample(scan, reference, sitk.ReadTransform(str(path)), sitk.sitkLinear, 0.0)
    theirs = sitk.GetArrayFromImage(theirs).T
    assert np.corrcoef(theirs.ravel(), ours.ravel())[0, 1] > 0.99
    assert np.corrcoef(theirs[:-1].ravel(), ours[1:].ravel())[0, 1] < 0.99  # one voxel off


def test_a_transform_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    mni.write_transform(path, np.eye(4))
    before = path.read_text()
    monkeypatch.setattr(sitk, "WriteTransform", lambda _, name: Path(name).write_text("#Insight"))
    with pytest.raises((OSError, RuntimeError)):
        mni.write_transform(path, pose([1, 2, 3], np.ones(3)))
    assert path.read_text() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("resolution", [1, 2, 4])
def test_every_voxel_shows_the_place_that_the_matrix_says(resolution):
    # A scan whose intensity is a coordinate of its own world, in voxels of 0.8, 1.3 and 3 mm.
    affine = Rotation.from_rotvec([0.2, 0.1, 0.3]).as_matrix() @ np.diag([0.8, -1.3, 3])
    affine = nib.affines.from_matvec(affine, [-110, 150, -140])
    along = np.array([0.2, 0.5, -0.3])
    index = np.stack(np.meshgrid(*map(np.arange, (300, 230, 100)), indexing="ij"), axis=-1)
    scan = ((index @ affine[:3, :3].T + affine[:3, 3]) @ along).astype(np.float32)
    matrix = pose([10, -5, 3], [4, -6, 8])
    grid = paper_grid(resolution)
    image = mni.resample(scan, affine, matrix, resolution)
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    to_world = matrix @ grid.affine
    world = index @ to_world[:3, :3].T + to_world[:3, 3]
    to_voxel = np.linalg.inv(affine)
    place = world @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    inside = ((place > 8) & (place < np.array(scan.shape) - 9)).all(axis=-1)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(image[inside], (world @ along)[inside], atol=0.05)


def test_resampling_keeps_range_and_volume_and_fills_with_the_darkest():
    random = np.random.default_rng(1)
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = [-60, -90, -60]
    noise = random.uniform(5, 9, (60, 70, 60)).astype(np.float32)
    image = mni.resample(noise, affine, pose([12, 5, -20], np.zeros(3)), 1)
    assert image.dtype == np.float32 and image.min() == noise.min() and image.max() <= noise.max()
    assert image[0, 0, 0] == noise.min()
    away = pose([0, 0, 0], [1e4, 0, 0])
    assert (mni.resample(noise, affine, away, 4) == noise.min()).all()

    x, y, z = np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in noise.shape), indexing="ij")
    ball = (x**2 + y**2 + z**2 < 1).astype(np.float32)
    for resolution in (1, 2, 4):
        moved = mni.resample(ball, affine, pose([12, 5, -20], np.zeros(3)), resolution)
        assert moved.sum() * resolution**3 == pytest.approx(ball.sum() * 8, rel=0.01)
        assert (moved > 0.5).sum() * resolution**3 == pytest.approx(ball.sum() * 8, rel=0.02)


@pytest.mark.parametrize("resolution", [1, 2, 4])
def test_the_template_fits_itself_despite_bias(template, resolution):
    grid = paper_grid(resolution)
    image = mni.resample(*template, np.eye(4), resolution)
    assert mni.template_correlation(image, grid) > 0.99
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in grid.shape), indexing="ij")
    assert mni.template_correlation(image * np.exp(0.5 * x - 0.5 * y), grid) > 0.9  # sevenfold
    assert mni.template_correlation(image[:, ::-1], grid) < 0.5
    assert mni.template_correlation(np.zeros(grid.shape, np.float32), grid) == 0


def test_the_brain_is_whole_filled_and_of_one_size_on_all_grids(template):
    voxels, affine = template
    volumes = [mni.brain_mask(paper_grid(r)).sum() * r**3 for r in (1, 2, 4)]
    np.testing.assert_allclose(volumes, volumes[0], rtol=0.02)
    brain, grid = mni.brain_mask(paper_grid(1)), paper_grid(1)
    assert brain.shape == grid.shape and brain.dtype == bool
    assert (ndimage.binary_fill_holes(brain) == brain).all()
    seen = np.argwhere(voxels > 0.3)[::97] + np.rint(affine[:3, 3] - grid.affine[:3, 3] - 0.5)
    assert brain[tuple(seen.astype(int).T)].mean() > 0.99
