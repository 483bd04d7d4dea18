import importlib.util
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.errors import InputError
from brain_ldm.preprocessing.extraction import (
    _network,
    brain_volume,
    check_deepbet,
    extract_brain,
)
from brain_ldm.preprocessing.scan import Unusable

DATA = Path(os.environ.get("BRAIN_LDM_DATA", Path(__file__).parents[3] / "shared" / "data"))
SCAN = DATA / "t1" / "chris_t1.nii.gz"

needs_deepbet = pytest.mark.skipif(
    importlib.util.find_spec("deepbet") is None,
    reason="deepbet is not installed (pip install -e '.[extraction]')",
)


@pytest.fixture(scope="module")
def head():
    """A real head in voxels of about 2 mm, which is fast."""
    if not SCAN.is_file():
        pytest.skip(f"no scan at {SCAN} (set BRAIN_LDM_DATA)")
    scan = nib.load(SCAN)
    step = np.diag([2.0, 2.0, 2.0, 1.0])
    return scan.get_fdata(dtype=np.float32)[::2, ::2, ::2], scan.affine @ step


@pytest.fixture(scope="module")
def mask(head):
    voxels, affine = head
    threads = torch.get_num_threads()
    mask = extract_brain(voxels, VoxelGrid(voxels.shape, affine))
    assert torch.get_num_threads() == threads
    return mask


@needs_deepbet
def test_the_brain_of_a_real_head(head, mask):
    voxels, affine = head
    assert mask.dtype == bool and mask.shape == voxels.shape
    assert 1.3e6 < mask.sum() * np.linalg.det(affine) < 1.8e6
    # In the head's middle, above the neck, without skin.
    assert mask[tuple(np.argwhere(mask).mean(axis=0).astype(int))]
    assert not mask[:, :, 0].any() and not mask[:3].any() and not mask[-3:].any()
    _, count = ndimage.label(mask)
    assert count == 1 and (ndimage.binary_fill_holes(mask) == mask).all()
    assert "tkinter" not in sys.modules, "its window system is not needed"


@needs_deepbet
def test_the_volume_stays_when_the_head_is_turned_and_scaled(head, mask, capfd):
    voxels, affine = head
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    grid = np.array([[0, 0, -2.0, 92], [2, 0, 0, -128], [0, 2, 0, -90], [0, 0, 0, 1]])
    pull = np.linalg.inv(affine) @ turn @ grid
    turned = ndimage.affine_transform(voxels, pull[:3, :3], pull[:3, 3], (128, 92, 92), order=1)
    volume = mask.sum() * np.linalg.det(affine)
    assert brain_volume(1000 * turned, grid) == pytest.approx(volume, rel=0.01)
    assert capfd.readouterr() == ("", "")


@needs_deepbet
@pytest.mark.parametrize("value", [0.0, 9.0])
def test_an_image_without_a_brain_is_no_scan(value):
    with pytest.raises(Unusable, match="deepbet finds no brain"):
        brain_volume(np.full((40, 40, 40), value), np.diag([4.0, 4.0, 4.0, 1.0]))


def test_a_brain_no_adult_has_is_no_scan(monkeypatch):
    class Network:
        def run(self, scan):
            found = np.zeros(scan.shape, np.uint8)
            found[:5, :5, :5] = 1
            return scan, nib.Nifti1Image(found, scan.affine), 0.0

    monkeypatch.setattr("brain_ldm.preprocessing.extraction._network", Network)
    with pytest.raises(Unusable, match="deepbet finds a brain of 8 ml only"):
        brain_volume(np.ones((9, 9, 9)), np.diag([4.0, 4.0, 4.0, 1.0]))


def test_without_deepbet_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("brain_ldm.preprocessing.extraction.find_spec", lambda name: None)
    _network.cache_clear()
    grid = VoxelGrid((4, 4, 4), np.eye(4))
    for call in (check_deepbet, lambda: extract_brain(np.zeros((4, 4, 4)), grid)):
        with pytest.raises(InputError, match=r"pip install -e '.\[extraction\]'") as caught:
            call()
        assert "\n" not in str(caught.value)
