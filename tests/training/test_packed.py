"""Packed images: what comes back is what was stored, to the precision of its storage."""

import numpy as np
import pytest
import torch

from brain_ldm.training.config import Storage
from brain_ldm.training.data import Rows
from brain_ldm.training.packed import Levels, Team, packed_images


@pytest.fixture(params=Storage)
def storage(request):
    return request.param


def test_each_storage_is_as_precise_as_it_says(tiny_cohort, tmp_path, storage):
    table = tiny_cohort.rows("val")
    images = packed_images(tiny_cohort, table, tmp_path / "images_val", Team(), storage)
    assert len(images) == len(table) == 4
    # Half a step of 1/255, or of a float of 11 bits below 1; a 32-bit quotient adds 2⁻²⁵.
    limit = {Storage.uint8: 1 / 510 + 2**-25, Storage.float16: 2**-12}[storage]
    errors = []
    for row, pid in enumerate(table["participant_id"]):
        stored, image = images[row], tiny_cohort.read(pid)
        assert stored.shape == image.shape
        assert stored.min() == 0 and stored.max() <= 1
        errors.append(np.abs(stored.astype(np.float64) - image).max())
    assert 0 < max(errors) <= limit


def test_every_level_comes_back_as_its_quotient():
    stored = np.arange(256, dtype=np.uint8).reshape(1, 4, 8, 8)
    read = Levels(stored)[0]
    assert read.dtype == np.float32
    assert np.array_equal(read.ravel(), (np.arange(256) / 255).astype(np.float32))
    assert read.min() == 0 and read.max() == 1


def test_rows_read_levels_as_images():
    stored = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 4), dtype=np.uint8)
    rows = Rows({"image": Levels(stored)})
    item = rows[0, 2]["image"]
    assert item.dtype == torch.float32
    assert np.array_equal(np.rint(item.numpy() * 255), stored[2])


def test_storages_lie_beside_each_other(tiny_cohort, tmp_path, capsys):
    table = tiny_cohort.rows("val")
    folder = tmp_path / "images_val"
    for storage in (*Storage, *Storage):
        packed_images(tiny_cohort, table, folder, Team(), storage)
    assert "made anew" not in capsys.readouterr().out
    sizes = [
        (tmp_path / name / "images.npy").stat().st_size
        for name in ("images_val", "images_val_uint8")
    ]
    assert sizes[0] - 128 == 2 * (sizes[1] - 128)  # but for the header
