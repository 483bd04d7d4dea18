"""Synthetic contrast: what the segmenter learns from."""

import numpy as np
import pytest
import torch

from brain_ldm.cohorts.labels import GROUPS, NAMES
from brain_ldm.training.randomness import generator
from brain_ldm.training.synthesis import (
    CLASSES,
    OUTSIDE,
    TISSUES,
    brain_mask,
    compact,
    deform,
    intensities,
    pool,
    scan,
    synthesise,
)


def position(number):
    return int(compact(np.array([number]))[0])


@pytest.fixture(scope="module")
def phantom(tiny_cohort):
    """A brain without a skull."""
    found, _ = tiny_cohort.read_labels(tiny_cohort.table["participant_id"][0])
    return torch.from_numpy(compact(found))


@pytest.fixture(scope="module")
def head(phantom):
    """The same within CSF, bone and skin."""
    axis = torch.linspace(-1, 1, phantom.shape[0])
    radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    head = torch.where(radius < 0.98, position(511), phantom)
    head = torch.where(radius < 0.93, position(515), head)
    head = torch.where(radius < 0.88, position(24), head)
    return torch.where(phantom > 0, phantom, head).to(torch.uint8)


def test_compact_tells_tissues_apart_but_not_sides():
    assert len({position(n) for n in NAMES}) == len(TISSUES)
    assert position(4) == position(43) != position(136)
    assert TISSUES[position(10)] == TISSUES[position(49)] == "thalamus"
    for unknown in (1, -1, 9999):
        assert TISSUES[position(unknown)] == "background"


def test_a_pair_is_an_image_in_range_and_shares_that_sum_to_one(head):
    image, shares = synthesise(head, 2, 2.0, 0.5, generator(1))
    assert image.shape == (32, 32, 32) and shares.shape == (len(CLASSES), 32, 32, 32)
    assert float(image.min()) >= 0 and float(image.max()) == 1
    assert torch.allclose(shares.sum(dim=0), torch.ones(()))
    for name in ("grey", "white", "ventricle"):
        assert float(shares[CLASSES.index(name)].sum()) > 0


@pytest.mark.parametrize("factor", [1, 2])
def test_a_pair_depends_on_its_generator_alone(phantom, factor):
    again = [synthesise(phantom, factor, 2.0, 0.5, generator(1, 2, 3)) for _ in range(2)]
    other = synthesise(phantom, factor, 2.0, 0.5, generator(1, 2, 4))
    assert torch.equal(again[0][0], again[1][0]) and torch.equal(again[0][1], again[1][1])
    assert not torch.equal(again[0][0], other[0])


def test_pooled_values_are_means_over_blocks():
    labels = torch.randint(0, 3, (4, 6, 8), generator=generator(0)).to(torch.uint8)
    table = torch.tensor([[0.0, 5.0], [1.0, -1.0], [4.0, 2.0]])
    values = table.numpy()[labels.numpy()]
    expected = values.reshape(2, 2, 3, 2, 4, 2, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(pool(labels, table, 2).movedim(0, -1), expected, rtol=1e-6)


def test_contrast_varies_and_t1_order_is_kept_where_asked():
    csf, grey, white = (position(n) for n in (24, 3, 2))
    orders = set()
    for seed in range(30):
        means, spreads = intensities(0.0, generator(seed))
        assert (spreads >= 0).all() and (means >= 0).all()
        orders.add(bool(means[grey] < means[white]))
        means, _ = intensities(1.0, generator(seed))
        assert means[csf] < means[grey] < means[white]
        assert means[position(515)] < means[white]  # cortical bone
    assert orders == {True, False}


def test_what_lies_outside_the_brain_has_intensities_of_its_own():
    outside = [position(n) for n in GROUPS["background"] if n]
    assert {TISSUES[place] for place in outside} == set(OUTSIDE)
    for t1_share in (0.0, 1.0):
        means, _ = intensities(t1_share, generator(3))
        assert means[outside].unique().numel() == len(outside)
        assert means[0] < 0.1  # air


def test_deformation_moves_labels_but_invents_none(head):
    moved = deform(head, generator(5))
    assert moved.dtype == torch.uint8
    assert set(moved.unique().tolist()) <= set(head.unique().tolist())
    assert 0.01 < float((moved != head).float().mean()) < 0.6


def test_heads_are_flipped_left_to_right_and_no_other_way():
    corner = torch.zeros(24, 24, 24, dtype=torch.uint8)
    corner[2:8, 2:8, 2:8] = 1
    sides = set()
    for seed in range(20):
        x, y, z = (float(i) for i in deform(corner, generator(seed)).nonzero().float().mean(dim=0))
        assert y < 11 and z < 11
        sides.add(x < 11.5)
    assert sides == {True, False}


def test_a_scan_changes_no_constant_and_blurs_detail():
    constant = torch.full((13, 16, 11), 0.7)
    detail = torch.zeros(16, 16, 16)
    detail[8, 8, 8] = 1
    peaks = []
    for seed in range(20):
        assert torch.allclose(scan(constant, 2.0, generator(seed)), constant, atol=1e-5)
        peaks.append(float(scan(detail, 2.0, generator(seed)).max()))
    assert max(peaks) > 0.9 and min(peaks) < 0.3


def test_slices_are_as_thick_in_mm_whatever_the_voxels():
    line = torch.zeros(1, 1, 48)
    line[..., 24] = 1
    voxels = torch.arange(48) - 24

    def widest(resolution):
        """The largest standard deviation of a point's image, in voxels."""
        scans = [scan(line, resolution, generator(seed))[0, 0] for seed in range(100)]
        return max(float((s * voxels**2).sum() / s.sum()) ** 0.5 for s in scans)

    assert widest(6.0) < 0.7
    assert widest(1.0) == pytest.approx(2 * widest(2.0), rel=0.25)


def test_a_stripped_head_keeps_the_brain(head):
    _, shares = synthesise(head, 2, 2.0, 1.0, generator(0))
    brain = shares[[CLASSES.index(name) for name in ("grey", "white", "ventricle")]].sum(dim=0)
    outside = shares[CLASSES.index("background")]
    for seed in range(10):
        mask = brain_mask(shares, generator(seed))
        assert (mask[brain == 1] == 1).all() and (mask[outside == 1] == 0).all()


def test_some_images_are_stripped_and_some_show_the_skull(head):
    at_skin = [
        float(synthesise(head, 2, 2.0, 1.0, generator(seed))[0][0:2].max()) for seed in range(20)
    ]
    assert 2 < sum(value == 0 for value in at_skin) < 18
