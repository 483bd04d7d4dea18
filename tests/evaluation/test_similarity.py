"""PSNR, SSIM and MS-SSIM: known answers, and the library's own on the same window."""

import numpy as np
import pytest
import torch
from monai.metrics import MultiScaleSSIMMetric, SSIMMetric, regression

from brain_ldm.errors import InputError
from brain_ldm.evaluation.similarity import (
    ms_ssim,
    pair_mean,
    psnr,
    random_pairs,
    scale_weights,
    ssim,
)


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


def test_ms_ssim_is_monais_on_as_many_scales_as_fit(volumes, monkeypatch):
    weights = scale_weights((28, 30, 29))
    assert len(weights) == 3
    # In 64 bits, which MONAI's would round away: the coarsest scale is one window, and 32 bits of
    # either are up to 7e-6 from the truth there.
    monkeypatch.setattr(regression, "convert_data_type", lambda volume, **_: (volume.double(),))
    metric = MultiScaleSSIMMetric(3, kernel_size=7, weights=weights, reduction="none")
    exact = [volume.double() for volume in volumes]
    theirs = metric(*exact)[:, 0].tolist()
    assert ms_ssim(*exact).tolist() == pytest.approx(theirs, abs=1e-6)
    assert ms_ssim(*volumes).tolist() == pytest.approx(theirs, abs=1e-5)
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


@pytest.mark.parametrize(("n", "count"), [(2, 5), (7, 21), (40, 100), (100_000, 1000)])
def test_pairs_of_few_and_of_many_brains(n, count):
    pairs = random_pairs(n, count, seed=3)
    assert len(pairs) == min(count, n * (n - 1) // 2)
    assert (pairs[:, 0] < pairs[:, 1]).all() and pairs.min() >= 0 and pairs.max() < n
    assert len({tuple(pair) for pair in pairs.tolist()}) == len(pairs)


def test_all_pairs_are_equally_likely():
    counts = np.zeros((6, 6))
    for seed in range(3000):
        for a, b in random_pairs(6, 3, seed):
            counts[a, b] += 1
    chosen = counts[np.triu_indices(6, 1)]
    assert chosen.sum() == 9000
    assert np.abs(chosen - 600).max() < 5 * np.sqrt(600)


@pytest.mark.parametrize(("own", "shared"), [(1.0, 0.0), (0.0, 1.0), (0.7, 0.7)])
def test_the_interval_of_a_mean_over_pairs_holds_it_19_times_of_20(own, shared):
    """Values of pairs are sums of what each brain brings and of what the pair has of its own."""
    held = 0
    for seed in range(300):
        random = np.random.default_rng(seed)
        pairs = random_pairs(60, 400, seed)
        brains = shared * random.normal(size=60)
        values = 3 + brains[pairs].sum(axis=1) + own * random.normal(size=len(pairs))
        found = pair_mean(values, pairs, 60)
        held += found["low"] <= 3 <= found["high"]
    assert 0.91 <= held / 300 <= 0.985


@pytest.mark.parametrize("brains", [4, 6, 10])
def test_the_interval_of_few_brains_is_not_too_narrow(brains):
    """All pairs of so many brains, with values that brains alone decide."""
    pairs = random_pairs(brains, 1000, 0)
    means = np.random.default_rng(0).normal(size=(600, brains))
    found = [pair_mean(values[pairs].sum(axis=1), pairs, brains) for values in means]
    held = np.mean([interval["low"] <= 0 <= interval["high"] for interval in found])
    assert 0.92 <= held <= 0.98


def test_three_brains_have_no_interval():
    found = pair_mean(np.array([0.5, 0.6, 0.7]), random_pairs(3, 3, 0), 3)
    assert (found["low"], found["high"], found["n"]) == (None, None, 3)


def test_one_pair_has_a_mean_and_no_interval():
    found = pair_mean(np.array([0.5]), np.array([[0, 1]]), 2)
    assert (found["value"], found["low"], found["sd"], found["n"]) == (0.5, None, None, 1)
    assert pair_mean(None, np.empty((0, 2)), 1)["n"] == 0
