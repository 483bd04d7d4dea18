"""Contrast is made standard where tissues can be told, and left alone where they cannot."""

import numpy as np
import pytest
import torch

from brain_ldm.networks.segmenter import STANDARD, standard_contrast

PLACES = (0.15, 0.3, 0.8)  # of CSF, grey and white matter in the image
SHAPE = (12, 12, 12)


@pytest.fixture
def drawn():
    """An image of three slabs of tissue with border voxels, noise, and its posteriors."""
    shares = torch.zeros(3, *SHAPE)
    for tissue, slab in enumerate((slice(0, 4), slice(4, 8), slice(8, 12))):
        shares[tissue, slab] = 1
    shares[:2, 4] = 0.5  # half CSF, half grey
    image = torch.einsum("k,kxyz->xyz", torch.tensor(PLACES), shares)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    return (image + 0.01 * noise)[None, None], shares[None]


def test_tissues_come_where_they_stand_and_borders_stay_between(drawn):
    image, shares = drawn
    found = standard_contrast(image, shares)
    for tissue, place in enumerate(STANDARD):
        sure = found[0, 0][shares[0, tissue] > 0.95]
        assert float(sure.median()) == pytest.approx(place, abs=1e-3)
    assert float(found[0, 0, 4].mean()) == pytest.approx(sum(STANDARD[:2]) / 2, abs=0.02)
    medians = [float(image[0, 0][shares[0, k] > 0.95].median()) for k in range(3)]
    wanted = np.interp(image.numpy(), [0, *medians, 1], [0, *STANDARD, 1])
    assert np.allclose(found.numpy(), wanted, atol=1e-5)


def test_contrast_that_is_standard_already_stays(drawn):
    image, shares = drawn
    once = standard_contrast(image, shares)
    assert torch.allclose(standard_contrast(once, shares), once, atol=1e-4)


def test_images_without_the_order_or_the_tissues_stay_as_they_are(drawn):
    image, shares = drawn
    inverted, unsure = 1 - image, shares * 0.9
    both = standard_contrast(torch.cat([inverted, image]), torch.cat([shares, shares]))
    assert torch.equal(both[:1], inverted) and not torch.equal(both[1:], image)
    assert torch.equal(standard_contrast(image, unsure), image)
    assert torch.equal(standard_contrast(torch.full_like(image, 0.5), shares), 0.5 + 0 * image)
