"""How alike two sets of brains are: FID, KID, precision, recall, density and coverage.

All are functions of features, one row a brain, and depend on what extracts them. FID falls as the
brains become more, so none is read without the numbers of brains and without a floor: what other
real brains reach in place of the synthetic ones.
"""

from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import svdvals
from scipy.spatial.distance import cdist

# What a metric can be. Percentiles that are shifted beyond it are cut off there.
RANGES = {
    "fid": (0.0, np.inf),
    "kid": (-np.inf, np.inf),
    "precision": (0.0, 1.0),
    "recall": (0.0, 1.0),
    "density": (0.0, np.inf),
    "coverage": (0.0, 1.0),
}


@dataclass(frozen=True)
class Coverage:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020)."""

    precision: float  # share of synthetic brains within the radius of some real one
    recall: float  # share of real brains within the radius of some synthetic one
    density: float  # radii of real brains that hold a synthetic one, over those expected
    coverage: float  # share of real brains with a synthetic one within their radius


@dataclass(frozen=True)
class Value:
    """A metric and its 95 % bootstrap interval; None with a note where brains are too few."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Comparison:
    """`n` brains against `n_real` real ones."""

    n: int
    n_real: int
    fid: Value
    kid: Value
    precision: Value
    recall: Value
    density: Value
    coverage: Value


class Products:
    """What resamples of two sets of brains share: products, kernels and distances of their rows.

    x, y: features (n, d) and (m, d). Each matrix is computed once, when it is first asked for.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self._raw = np.asarray(x, float), np.asarray(y, float)
        # Nothing but the kernel minds a shift; sums of squares are more exact about the middle.
        middle = np.concatenate(self._raw).mean(0)
        self.x, self.y = (side - middle for side in self._raw)

    @cached_property
    def cross(self) -> np.ndarray:
        """Inner products of the rows of x and y: (n, m)."""
        return self.x @ self.y.T

    @cached_property
    def kernels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """KID's cubic kernel (u·v / d + 1)³ within x, within y, and between them."""
        x, y = self._raw
        return tuple((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))

    @cached_property
    def distances(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Squared distances within x, within y, and between them.

        Not from inner products: equal distances shall stay equal to the bit, since radii are
        strict.
        """
        x, y = self._raw
        return tuple(cdist(a, b, "sqeuclidean") for a, b in ((x, x), (y, y), (x, y)))


@dataclass(frozen=True)
class Pair:
    """Two sets of brains in which a brain may come several times, as in a bootstrap resample.

    times_x (n,), times_y (m,): how often each row of x and y comes.
    """

    products: Products
    times_x: np.ndarray
    times_y: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> "Pair":
        """Each brain once."""
        return cls(Products(x, y), np.ones(len(x), int), np.ones(len(y), int))

    def resample(self, random: np.random.Generator) -> "Pair":
        """As many brains of either side, drawn with replacement from it."""
        times = (
            np.bincount(random.integers(0, n, size=n), minlength=n)
            for n in (len(self.times_x), len(self.times_y))
        )
        return Pair(self.products, *times)

    def frechet_distance(self) -> float:
        """See `frechet_distance`.

        A row that comes c times is one row times √c: that leaves the covariance and the singular
        values as they are, and a third of the rows of a resample fall away.
        """
        rows, columns = np.flatnonzero(self.times_x), np.flatnonzero(self.times_y)
        a, b = self.times_x[rows], self.times_y[columns]
        x, y = self.products.x[rows], self.products.y[columns]
        n, m = a.sum(), b.sum()
        mean_x, mean_y = a @ x / n, b @ y / m
        x, y = x - mean_x, y - mean_y
        traces = a @ np.square(x).sum(1) / (n - 1) + b @ np.square(y).sum(1) / (m - 1)
        root_a, root_b = np.sqrt(a)[:, None], np.sqrt(b)[:, None]
        if x.shape[1] < min(len(x), len(y)):
            # x = QR turns x·yᵀ into Q·(R·Rᵀ)·Qᵀ: the same singular values in (d, d).
            cross = np.linalg.qr(root_a * x, mode="r") @ np.linalg.qr(root_b * y, mode="r").T
        else:
            cross = self.products.cross[np.ix_(rows, columns)]
            by_row, by_column = cross @ b / m, a @ cross / n
            cross = cross - by_row[:, None] - by_column + a @ by_row / n
            cross = root_a * cross * root_b.T
        nuclear = svdvals(cross, overwrite_a=True, check_finite=False).sum()
        shift = np.square(mean_x - mean_y).sum()
        return float(max(shift + traces - 2 * nuclear / np.sqrt((n - 1) * (m - 1)), 0.0))

    def kernel_distance(self) -> float:
        """See `kernel_distance`."""
        within_x, within_y, between = self.products.kernels

        def within(kernel: np.ndarray, times: np.ndarray) -> float:
            n = times.sum()
            return (times @ kernel @ times - times @ kernel.diagonal()) / (n * (n - 1))

        a, b = self.times_x, self.times_y
        mean_between = a @ between @ b / (a.sum() * b.sum())
        return float(within(within_x, a) + within(within_y, b) - 2 * mean_between)

    def coverage(self, neighbours: int) -> Coverage:
        """See `coverage`; x is real, y synthetic."""
        rows = np.repeat(np.arange(len(self.times_x)), self.times_x)
        columns = np.repeat(np.arange(len(self.times_y)), self.times_y)
        real, synthetic, between = self.products.distances
        radii_real = _radii(real[np.ix_(rows, rows)], neighbours)
        radii_synthetic = _radii(synthetic[np.ix_(columns, columns)], neighbours)
        between = between[np.ix_(rows, columns)]
        in_real = between < radii_real[:, None]
        return Coverage(
            precision=float(in_real.any(0).mean()),
            recall=float((between < radii_synthetic).any(1).mean()),
            density=float(in_real.sum(0).mean() / neighbours),
            coverage=float(in_real.any(1).mean()),
        )


def _radii(distances: np.ndarray, neighbours: int) -> np.ndarray:
    # Of each row the smallest, in place 0, is its distance from itself.
    return np.partition(distances, neighbours, axis=1)[:, neighbours]


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Fréchet distance of the Gaussians fitted to features x (n, d) and y (m, d), n and m above 1.

    Squared, as FID is (Heusel et al. 2017): |μx − μy|² + Tr Σx + Tr Σy − 2 Tr (Σx Σy)^½, in units
    of the features squared. With centred rows X and Y, Σx = XᵀX / (n − 1) and Σy likewise. The
    eigenvalues of XᵀX YᵀY that are not zero are those of (XYᵀ)(XYᵀ)ᵀ, so the trace of its root
    is the sum of the singular values of XYᵀ over √((n − 1)(m − 1)): exact, never complex, and
    of (n, m) or, by a QR decomposition of either side, of (d, d), whichever is smaller. Below 0 is
    rounding and given as 0.
    """
    return Pair.of(x, y).frechet_distance()


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """KID of features x (n, d) and y (m, d), n and m above 1 (Bińkowski et al. 2018).

    The unbiased estimate of the squared maximum mean discrepancy under the kernel
    (u·v / d + 1)³, so it may lie below 0. Of the whole sets: Bińkowski averages over subsets to
    save time, which thousands of brains do not need. n and m may differ.
    """
    return Pair.of(x, y).kernel_distance()


def coverage(real: np.ndarray, synthetic: np.ndarray, neighbours: int = 5) -> Coverage:
    """Precision, recall, density and coverage of features real (n, d) and synthetic (m, d).

    The radius of a brain is the distance of its neighbour of that number in its own set, itself
    not counted; a brain lies within it if strictly nearer. n and m must exceed `neighbours`.
    """
    return Pair.of(real, synthetic).coverage(neighbours)


def interval(
    statistic: Callable[[Pair], float | np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    resamples: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A statistic of features x (n, d) and y (m, d), and its 95 % bootstrap interval.

    Brains of both sides are drawn with replacement (Efron & Tibshirani 1993). A resample has
    fewer different brains than its set, and FID rises as brains become fewer, so the percentiles
    lie too high (those of recall and its like are off as well): they are shifted until the mean of
    the resamples is the estimate itself. The interval is then about the estimate at these numbers
    of brains, its bias included, not about the value for infinitely many.

    Args:
        statistic: e.g. `Pair.frechet_distance`; it may give several values at once.
        x: features of the one set.
        y: features of the other.
        resamples: how many.
        seed: of the draws.

    Returns:
        Estimate, low and high, each shaped as what the statistic gives.
    """
    pair = Pair.of(x, y)
    estimate = np.asarray(statistic(pair))
    random = np.random.default_rng(seed)
    values = np.array([statistic(pair.resample(random)) for _ in range(resamples)])
    low, high = np.percentile(values, [2.5, 97.5], axis=0) + estimate - values.mean(0)
    return estimate, low, high


def compare(
    real: np.ndarray, other: np.ndarray, neighbours: int, resamples: int, seed: int
) -> Comparison:
    """Every metric of other brains, synthetic or real ones, against real brains.

    Args:
        real: features (n, d).
        other: features (m, d); metrics of several cohorts compare at equal numbers alone.
        neighbours: brains within a radius of `coverage`.
        resamples: behind each interval.
        seed: of the resamples.

    What too few brains do not allow is None with a note.
    """

    def distances(pair: Pair) -> np.ndarray:
        return np.array([pair.frechet_distance(), pair.kernel_distance()])

    def shares(pair: Pair) -> np.ndarray:
        return np.array(astuple(pair.coverage(neighbours)))

    found: dict[str, Value] = {}
    for names, statistic, fewest in (
        (("fid", "kid"), distances, 2),
        (("precision", "recall", "density", "coverage"), shares, neighbours + 1),
    ):
        if min(len(real), len(other)) < fewest:
            note = f"{len(real)} real against {len(other)}: needs {fewest} brains on either side"
            found |= dict.fromkeys(names, Value(note=note))
            continue
        rows = zip(*interval(statistic, real, other, resamples, seed), strict=True)
        for name, (value, low, high) in zip(names, rows, strict=True):
            low, high = np.clip([low, high], *RANGES[name])
            found[name] = Value(float(value), float(low), float(high))
    return Comparison(len(other), len(real), **found)
