"""FID, KID, precision, recall, density and coverage against their literal definitions."""

import json
from dataclasses import asdict, astuple

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.kid import poly_mmd

from brain_ldm.evaluation.realism import (
    Pair,
    compare,
    coverage,
    frechet_distance,
    interval,
    kernel_distance,
)


def correlated(n, d, seed, shift=0.0):
    """Rows of one Gaussian with correlated columns and a mean that is not zero."""
    mixing = np.random.default_rng(d).normal(size=(d, d))
    return np.random.default_rng(seed).normal(size=(n, d)) @ mixing + 2 + shift


def frechet_by_sqrtm(x, y):
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    shift = x.mean(0) - y.mean(0)
    return shift @ shift + np.trace(a) + np.trace(b) - 2 * np.trace(sqrtm(a @ b)).real


def kernel_by_loops(x, y):
    def kernel(u, v):
        return (float(u @ v) / len(u) + 1) ** 3

    def within(rows):
        n = len(rows)
        pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
        return sum(kernel(rows[i], rows[j]) for i, j in pairs) / len(pairs)

    between = np.mean([kernel(u, v) for u in x for v in y])
    return within(x) + within(y) - 2 * between


def coverage_by_loops(real, synthetic, k):
    def distance(u, v):
        return np.sqrt(((u - v) ** 2).sum())

    def radii(rows):
        n = len(rows)
        return [
            sorted(distance(rows[i], rows[j]) for j in range(n) if j != i)[k - 1] for i in range(n)
        ]

    radius, radius_synthetic = radii(real), radii(synthetic)
    n, m = range(len(real)), range(len(synthetic))
    inside = [[distance(real[i], synthetic[j]) < radius[i] for j in m] for i in n]
    return (
        np.mean([any(inside[i][j] for i in n) for j in m]),
        np.mean([any(distance(real[i], synthetic[j]) < radius_synthetic[j] for j in m) for i in n]),
        np.mean([sum(inside[i][j] for i in n) for j in m]) / k,
        np.mean([min(distance(real[i], synthetic[j]) for j in m) < radius[i] for i in n]),
    )


@pytest.mark.parametrize(
    ("n", "m", "d"), [(12, 9, 30), (40, 60, 7), (12, 50, 20), (50, 12, 20), (2, 2, 3), (9, 9, 1)]
)
def test_fid_is_that_of_the_matrix_square_root(n, m, d):
    x, y = correlated(n, d, 1), 1.5 * correlated(m, d, 2, shift=0.3)
    if d == 1:
        literal = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    else:
        literal = frechet_by_sqrtm(x, y)
    assert frechet_distance(x, y) == pytest.approx(literal, rel=1e-4)
    assert frechet_distance(y, x) == pytest.approx(frechet_distance(x, y), rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(20, 6), (20, 64)])
def test_fid_of_a_set_and_itself_is_nothing_and_of_a_shifted_set_the_shift(n, d):
    x = correlated(n, d, 3)
    assert 0 <= frechet_distance(x, x[::-1]) < 1e-9
    assert frechet_distance(x, x + 0.5) == pytest.approx(0.25 * d, rel=1e-9)


def test_fid_of_two_samples_of_one_gaussian_is_its_known_bias():
    """Of N(0, I): d·(1/n + 1/m) from the means and d(d + 1)/4·(1/(n−1) + 1/(m−1)) from the rest.

    |Σx^½ − Σy^½|² is |Σx − Σy|²/4 near I, and the mean of |Σx − I|² is d(d + 1)/(n − 1). The mean
    of 200 FIDs has a standard error of some 2 %, and what the expansion leaves out is of order d/n.
    """
    n, m, d = 500, 300, 4
    random = np.random.default_rng(0)
    found = [
        frechet_distance(random.normal(size=(n, d)), random.normal(size=(m, d))) for _ in range(200)
    ]
    expected = d * (1 / n + 1 / m) + d * (d + 1) / 4 * (1 / (n - 1) + 1 / (m - 1))
    assert np.mean(found) == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize(("n", "m"), [(15, 15), (12, 18)])
def test_kid_is_the_unbiased_estimate(n, m):
    x, y = correlated(n, 6, 1), correlated(m, 6, 2, shift=0.2)
    assert kernel_distance(x, y) == pytest.approx(kernel_by_loops(x, y), rel=1e-9)
    if n == m:  # torchmetrics asks for that
        theirs = float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y)))
        assert kernel_distance(x, y) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("neighbours", [1, 3])
@pytest.mark.parametrize("lattice", [False, True])
def test_coverage_is_the_literal_definition(neighbours, lattice):
    """On a lattice many distances are equal, and radii are strict."""
    x, y = correlated(14, 3, 1), correlated(11, 3, 2, shift=0.5)
    if lattice:
        x, y = np.round(x / 2), np.round(y / 2)
    literal = coverage_by_loops(x, y, neighbours)
    assert astuple(coverage(x, y, neighbours)) == pytest.approx(literal, abs=1e-12)


def test_coverage_sees_a_lost_mode_and_an_invented_one():
    random = np.random.default_rng(0)
    here, there = random.normal(size=(40, 5)), random.normal(size=(40, 5)) + 50
    lost = coverage(np.concatenate([here, there]), here + 1e-3)
    assert lost.precision == 1 and lost.recall == 0.5 and lost.coverage == 0.5
    invented = coverage(here, np.concatenate([here + 1e-3, there]))
    assert invented.precision == 0.5 and invented.recall == 1 and invented.coverage == 1


@pytest.mark.parametrize("d", [5, 60])
def test_a_resample_is_the_set_of_its_rows(d):
    x, y = correlated(25, d, 1), correlated(30, d, 2, shift=0.3)
    drawn = Pair.of(x, y).resample(np.random.default_rng(4))
    assert drawn.times_x.sum() == 25 and drawn.times_y.sum() == 30
    assert drawn.times_x.max() > 1
    again = x[np.repeat(np.arange(25), drawn.times_x)], y[np.repeat(np.arange(30), drawn.times_y)]
    assert drawn.frechet_distance() == pytest.approx(frechet_distance(*again), rel=1e-9)
    assert drawn.kernel_distance() == pytest.approx(kernel_distance(*again), rel=1e-9)
    assert drawn.coverage(3) == coverage(*again, 3)


def test_the_interval_lies_about_the_estimate():
    x, y = correlated(30, 8, 1), correlated(30, 8, 2)
    seen = []

    def recorded(pair):
        seen.append(pair.frechet_distance())
        return seen[-1]

    estimate, low, high = interval(recorded, x, y, resamples=60, seed=0)
    assert estimate == frechet_distance(x, y) == seen[0]
    drawn = np.array(seen[1:])
    assert len(drawn) == 60 and drawn.mean() > estimate  # resamples alone would lie too high
    shift = drawn.mean() - estimate
    assert low == pytest.approx(np.percentile(drawn, 2.5) - shift)
    assert high == pytest.approx(np.percentile(drawn, 97.5) - shift)
    assert low < estimate < high
    assert interval(Pair.frechet_distance, x, y, 60, 0) == (estimate, low, high)
    assert interval(Pair.frechet_distance, x, y, 60, 1)[1:] != (low, high)


def test_the_interval_is_as_wide_as_the_spread_over_fresh_samples():
    random = np.random.default_rng(0)

    def sets():
        return random.normal(size=(80, 3)), random.normal(size=(80, 3)) + 0.5

    spread = np.std([frechet_distance(*sets()) for _ in range(300)])
    widths = [np.diff(interval(Pair.frechet_distance, *sets(), 60, 0)[1:]) for _ in range(10)]
    assert np.mean(widths) / (2 * 1.96) == pytest.approx(spread, rel=0.25)


def test_a_comparison_holds_every_metric_with_its_interval():
    real, rows = correlated(30, 6, 1), correlated(20, 6, 3, 1.0)
    found = compare(real, rows, neighbours=5, resamples=20, seed=0)
    assert (found.n_real, found.n) == (30, 20)
    assert found.fid.value == frechet_distance(real, rows)
    assert found.kid.value == kernel_distance(real, rows)
    literal = asdict(coverage(real, rows))
    assert {name: getattr(found, name).value for name in literal} == literal
    for name in ("fid", "kid", *literal):
        value = getattr(found, name)
        assert value.low <= value.value <= value.high, name
    assert found.fid.low >= 0 and found.precision.high <= 1
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["kid"]["note"] is None


@pytest.mark.parametrize("few", [0, 1, 2, 5])
def test_too_few_brains_are_a_note(few):
    real = correlated(12, 4, 1)
    found = compare(real, real[:few], neighbours=5, resamples=5, seed=0)
    note = f"12 real against {few}: needs"
    assert found.coverage.value is None
    assert found.coverage.note == f"{note} 6 brains on either side"
    if few < 2:
        assert found.fid.value is None
        assert found.kid.note == f"{note} 2 brains on either side"
    else:
        assert np.isfinite(found.fid.value)
    json.dumps(asdict(found), allow_nan=False)
