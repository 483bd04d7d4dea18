import numpy as np
import pytest

from brain_ldm.cohorts.grid import FIELD_OF_VIEW, VoxelGrid, paper_grid
from brain_ldm.errors import InputError


@pytest.mark.parametrize("resolution", [1, 2, 4])
def test_every_resolution_covers_the_papers_field_of_view(resolution):
    grid = paper_grid(resolution)
    low = grid.affine[:3, 3] - resolution / 2
    high = low + np.array(grid.shape) * resolution
    assert low.tolist() == [-80, -129, -75]
    assert (high - low).tolist() == list(FIELD_OF_VIEW)
    assert low[0] == -high[0]
    assert grid.resolution == resolution
    assert grid.voxel_volume == resolution**3


def test_the_template_brain_lies_centred_within_the_field_of_view():
    from nilearn.datasets import load_mni152_template

    template = load_mni152_template(resolution=1)
    voxels = np.argwhere(np.asarray(template.dataobj) > 0)
    corners = np.array([voxels.min(0), voxels.max(0)])
    low, high = corners @ template.affine[:3, :3].T + template.affine[:3, 3]
    grid = paper_grid(1)
    first = grid.affine[:3, 3]
    below = low - first
    above = first + np.array(grid.shape) - 1 - high
    assert (below > 0).all() and (above > 0).all()
    assert np.abs(below - above).max() <= 4  # mm


@pytest.mark.parametrize("resolution", [0, 3, 8])
def test_other_resolutions_are_refused(resolution):
    with pytest.raises(InputError, match=f"resolution is {resolution}"):
        paper_grid(resolution)


def test_grids_differ_by_shape_and_by_place():
    grid = paper_grid(4)
    moved = grid.affine.copy()
    moved[0, 3] += 1
    assert grid.same_as(VoxelGrid.from_dict(grid.to_dict()))
    assert not grid.same_as(VoxelGrid(grid.shape, moved))
    assert not grid.same_as(VoxelGrid((40, 56, 41), grid.affine))
