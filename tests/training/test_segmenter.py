"""Synthetic contrast: what the segmenter learns from."""

import numpy as np
import pytest
import torch

from brain_ldm.cohorts.labels import GROUPS
from brain_ldm.training.randomness import generator
from brain_ldm.training.synthesis import CLASSES, LABELS, compact, deform, intensities, synthesise


@pytest.fixture(scope="module")
def labels(tiny_cohort):
    found, _ = tiny_cohort.read_labels(tiny_cohort.table["participant_id"][0])
    return torch.from_numpy(compact(found))


def test_compact_keeps_every_label_and_its_class():
    numbers = np.array(LABELS).reshape(1, 1, -1)
    assert [LABELS[i] for i in compact(numbers).ravel()] == LABELS
    assert LABELS[int(compact(np.array([[[9999]]]))[0, 0, 0])] == 0


def test_a_pair_is_an_image_in_range_and_shares_that_sum_to_one(labels):
    image, shares = synthesise(labels, 2, 0.5, generator(1))
    assert image.shape == (1, 32, 32, 32) and shares.shape == (len(CLASSES), 32, 32, 32)
    assert float(image.min()) >= 0 and float(image.max()) <= 1
    assert torch.allclose(shares.sum(dim=0), torch.ones(()))
    assert all(float(shares[CLASSES.index(name)].sum()) > 0 for name in ("grey", "ventricle"))


def test_a_pair_depends_on_its_generator_alone(labels):
    again = [synthesise(labels, 2, 0.5, generator(1, 2, 3)) for _ in range(2)]
    other = synthesise(labels, 2, 0.5, generator(1, 2, 4))
    assert torch.equal(again[0][0], again[1][0]) and torch.equal(again[0][1], again[1][1])
    assert not torch.equal(again[0][0], other[0])


def test_contrast_varies_and_t1_order_is_kept_where_asked():
    def mean_of(name, means):
        return float(means[[LABELS.index(label) for label in GROUPS[name]]].mean())

    orders = set()
    for seed in range(30):
        means, spreads = intensities(0.0, generator(seed))
        assert (spreads >= 0).all()
        orders.add(mean_of("grey", means) < mean_of("white", means))
        means, _ = intensities(1.0, generator(seed))
        assert mean_of("csf", means) < mean_of("grey", means) < mean_of("white", means)
    assert orders == {True, False}


def test_deformation_moves_labels_but_invents_none(labels):
    moved = deform(labels, generator(5))
    assert set(moved.unique().tolist()) <= set(labels.unique().tolist())
    changed = float((moved != labels).float().mean())
    assert 0.01 < changed < 0.6
