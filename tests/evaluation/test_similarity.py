"""PSNR, SSIM and MS-SSIM: known answers, and the library's own on the same window."""

import numpy as np
import pytest
import torch
from monai.metrics import MultiScaleSSIMMetric, SSIMMetric

from brain_ldm.errors import InputError
from brain_ldm.evaluation.similarity import ms_ssim, psnr, random_pairs, scale_weights, ssim


@pytest.fixture
def volumes() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    a = torch.rand(3, 1, 28, 30, 29)
    return a, (a + 0.1 * torch.randn_like(a)).clamp(0, 1)


def test_psnr_of_known_errors():
    a = torch.zeros(3, 1, 4, 4, 4)
    b = a + torch.tensor([0.1, 0.01, 1.0]).view(3, 1, 1, 1, 1)
    assert psnr(a, b).tolist() == pytest.approx([20, 40, 0], abs=1e-4)


def test_ssim_is_monais(volumes):
    theirs = SSIMMetric(3, win_size=7, reduction="none")(*volumes)[:, 0]
    assert ssim(*volumes).tolist() == pytest.approx(theirs.tolist(), abs=1e-6)
    assert ssim(volumes[0], volumes[0]).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_ms_ssim_is_monais_on_as_many_scales_as_fit(volumes):
    weights = scale_weights((28, 30, 29))
    assert len(weights) == 3
    metric = MultiScaleSSIMMetric(3, kernel_size=7, weights=weights, reduction="none")
    theirs = metric(*volumes)[:, 0]
    assert ms_ssim(*volumes).tolist() == pytest.approx(theirs.tolist(), abs=1e-6)
    assert ms_ssim(volumes[0], volumes[0]).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


@pytest.mark.parametrize(
    ("shape", "scales"),
    [
        ((160, 224, 160), 5),
        ((80, 112, 80), 4),
        ((40, 56, 40), 3),
        ((14, 20, 14), 2),
        ((7, 9, 9), 1),
    ],
)
def test_scales_that_a_grid_allows(shape, scales):
    weights = scale_weights(shape)
    assert len(weights) == scales
    assert sum(weights) == pytest.approx(1, abs=2e-4)
    if shape[0] <= 40:
        assert ms_ssim(torch.rand(1, 1, *shape), torch.rand(1, 1, *shape)).shape == (1,)


def test_a_grid_below_the_window_is_refused():
    with pytest.raises(InputError, match="at least 7 voxels"):
        scale_weights((40, 6, 40))


def test_pairs_are_different_brains_and_none_comes_twice():
    pairs = random_pairs(20, 50, seed=0)
    assert pairs.shape == (50, 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert len({frozenset(pair) for pair in pairs.tolist()}) == 50
    assert np.array_equal(pairs, random_pairs(20, 50, seed=0))
    assert not np.array_equal(pairs, random_pairs(20, 50, seed=1))


def test_few_brains_give_every_pair_they_have():
    assert len(random_pairs(4, 50, seed=0)) == 6
    assert len(random_pairs(1, 50, seed=0)) == 0
