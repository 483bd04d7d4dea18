"""Correlation, interval, slope and chance against scipy and closed forms."""

import numpy as np
import pytest
from scipy import stats

from brain_ldm.evaluation.faithfulness import agreement, bootstrap_interval, chance, pearson


def normal_pairs(n: int, r: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    return x, r * x + np.sqrt(1 - r**2) * rng.normal(size=n)


def test_agrees_with_scipy():
    x, y = normal_pairs(50, 0.7, seed=1)
    x, y = 60 + 10 * x, 55 + 8 * y
    found = agreement(x, y)
    line = stats.linregress(x, y)
    assert found.r == pytest.approx(line.rvalue, abs=1e-12)
    assert found.slope == pytest.approx(line.slope, abs=1e-12)
    assert found.mae == pytest.approx(np.abs(x - y).mean())
    assert (found.n, found.left_out, found.note) == (50, 0, None)


def test_slope_is_of_measured_on_requested():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    found = agreement(x, 0.5 * x + 3)
    assert found.r == pytest.approx(1)
    assert found.slope == pytest.approx(0.5)
    assert found.mae == pytest.approx(np.mean([2.5, 2, 1.5, 1]))


def test_pearson_works_row_by_row():
    x, y = np.random.default_rng(0).normal(size=(2, 5, 20))
    assert pearson(x, y) == pytest.approx(
        [stats.pearsonr(a, b)[0] for a, b in zip(x, y, strict=True)]
    )


def test_pearson_of_a_constant_is_nan_whatever_rounding_leaves():
    x = np.array([[0.1, 0.1, 0.1], [0.1, 0.2, 0.4]])
    assert np.isnan(pearson(x, x)).tolist() == [True, False]


def test_interval_is_scipys_percentile_bootstrap():
    x, y = normal_pairs(60, 0.6, seed=2)
    ours = bootstrap_interval(x, y, resamples=4000, seed=0)
    theirs = stats.bootstrap(
        (x, y),
        lambda a, b, axis: pearson(a, b),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.02)
    assert ours == bootstrap_interval(x, y, resamples=4000, seed=0)
    assert ours != bootstrap_interval(x, y, resamples=4000, seed=3)


def test_interval_covers_the_true_correlation_as_often_as_it_says():
    intervals = [bootstrap_interval(*normal_pairs(80, 0.8, s), 400, s) for s in range(200)]
    covered = np.mean([low < 0.8 < high for low, high in intervals])
    # 95 % less what the percentile bootstrap is known to lack at this n; sd over 200 is 1.5 %.
    assert 0.88 < covered < 0.99


def test_rows_without_a_request_are_left_out_and_counted():
    x = np.array([1.0, np.nan, 3.0, 2.0, np.nan])
    found = agreement(x, np.array([1.0, 50.0, 3.0, 2.0, -9.0]))
    assert (found.n, found.left_out) == (3, 2)
    assert found.mae == 0
    assert found.r == pytest.approx(1)


def test_too_few_rows_are_said_plainly():
    found = agreement(np.array([1.0, 2.0, np.nan]), np.array([1.0, 2.0, 3.0]))
    assert (found.n, found.left_out, found.r, found.r_low, found.slope) == (2, 1, None, None, None)
    assert "only 2 rows have a value" in found.note
    assert "only 1 row has" in agreement(np.array([1.0]), np.array([1.0])).note
    assert "only 0 rows have" in agreement(np.full(4, np.nan), np.zeros(4)).note


def test_a_constant_request_or_measurement_has_no_correlation():
    rising, constant = np.array([1.0, 2.0, 3.0]), np.full(3, 5.0)
    asked_once = agreement(constant, rising)
    assert (asked_once.r, asked_once.slope, asked_once.mae) == (None, None, 3.0)
    assert "same requested value" in asked_once.note
    ignored = agreement(rising, constant)
    assert (ignored.r, ignored.slope) == (None, 0.0)
    assert chance(constant, rising) is None
    assert chance(rising, constant) is None
    assert chance(rising[:2], rising[:2]) is None


def test_chance_level_is_that_of_independent_values():
    x, y = normal_pairs(100, 0.95, seed=4)
    found = chance(x, y, permutations=4000, seed=0)
    # Permuted r is nearly normal with variance 1 / (n - 1).
    sd = 1 / np.sqrt(99)
    assert found.mean_abs_r == pytest.approx(sd * np.sqrt(2 / np.pi), rel=0.05)
    assert found.abs_r_high == pytest.approx(stats.halfnorm.ppf(0.975, scale=sd), rel=0.06)
    assert 0 <= found.abs_r_low < 0.01
    assert found == chance(x, y, permutations=4000, seed=0)
