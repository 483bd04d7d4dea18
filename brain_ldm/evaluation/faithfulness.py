"""How well what was asked for is what was measured, and what chance alone would give."""

from dataclasses import dataclass

import numpy as np

# Fewer points than this lie on a line whatever the model does.
MIN_ROWS = 3


@dataclass(frozen=True)
class Agreement:
    """Requested against measured values of one covariate.

    `mae` has the unit of the values, `slope` is that of the least-squares line of measured on
    requested; `r_low` and `r_high` bound the 95 % percentile bootstrap interval of Pearson's `r`.
    Where something cannot be computed it is None and `note` says why.
    """

    n: int
    left_out: int
    r: float | None = None
    r_low: float | None = None
    r_high: float | None = None
    mae: float | None = None
    slope: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Chance:
    """|r| when requests and measurements are paired at random: its mean and central 95 %."""

    permutations: int
    mean_abs_r: float
    abs_r_low: float
    abs_r_high: float


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson correlation along the last axis; nan where x or y is constant.

    x, y: (..., n), broadcast against each other. Returns (...).
    """
    # Not told from the variance, which rounding can leave above 0.
    varied = (np.ptp(x, -1) > 0) & (np.ptp(y, -1) > 0)
    x = x - x.mean(-1, keepdims=True)
    y = y - y.mean(-1, keepdims=True)
    scale = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(varied, (x * y).sum(-1) / scale, np.nan)


def bootstrap_interval(
    x: np.ndarray, y: np.ndarray, resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of Pearson's r (Efron & Tibshirani 1993, chapter 13).

    x, y: (n,) paired values; whole pairs are drawn with replacement. Resamples that are constant
    (all one row, likely only when n is tiny) have no r and are passed over.
    """
    random = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        rows = random.integers(0, len(x), size=len(x))
        found.append(pearson(x[rows], y[rows]))
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile(found, [tail, 100 - tail])
    return float(low), float(high)


def agreement(
    requested: np.ndarray, measured: np.ndarray, resamples: int = 2000, seed: int = 0
) -> Agreement:
    """Compare requested with measured values, both (n,) in one unit.

    Rows whose request is nan (nothing was asked, n/a in the table) are left out and counted.
    """
    requested, measured, left_out = _asked(requested, measured)
    n = len(requested)
    if n < MIN_ROWS:
        asked = "row has" if n == 1 else "rows have"
        note = f"only {n} {asked} a value of this covariate; at least {MIN_ROWS} are needed"
        return Agreement(n, left_out, note=note)
    mae = float(np.abs(measured - requested).mean())
    if _constant(requested):
        note = "every row has the same requested value, so there is no correlation or slope"
        return Agreement(n, left_out, mae=mae, note=note)
    if _constant(measured):
        note = "every row was measured the same, so there is no correlation"
        return Agreement(n, left_out, mae=mae, slope=0.0, note=note)
    low, high = bootstrap_interval(requested, measured, resamples, seed)
    centred = requested - requested.mean()
    slope = float((centred * (measured - measured.mean())).sum() / (centred * centred).sum())
    return Agreement(n, left_out, float(pearson(requested, measured)), low, high, mae, slope)


def chance(
    requested: np.ndarray, measured: np.ndarray, permutations: int = 1000, seed: int = 0
) -> Chance | None:
    """The |r| that random pairing of the same values gives; None where r itself has no meaning."""
    requested, measured, _ = _asked(requested, measured)
    if len(requested) < MIN_ROWS or _constant(requested) or _constant(measured):
        return None
    rng = np.random.default_rng(seed)
    shuffles = [pearson(rng.permutation(requested), measured) for _ in range(permutations)]
    size = np.abs(shuffles)
    low, high = np.percentile(size, [2.5, 97.5])
    return Chance(permutations, float(size.mean()), float(low), float(high))


def _asked(requested: np.ndarray, measured: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    requested = np.asarray(requested, dtype=np.float64)
    measured = np.asarray(measured, dtype=np.float64)
    asked = ~np.isnan(requested)
    return requested[asked], measured[asked], int((~asked).sum())


def _constant(values: np.ndarray) -> bool:
    return bool(np.ptp(values) == 0)
