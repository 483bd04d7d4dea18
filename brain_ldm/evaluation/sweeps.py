"""Sweeps: one covariate varies while noise and all other covariates stay; what follows it?"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from brain_ldm.evaluation.quantities import QUANTITIES


@dataclass(frozen=True)
class Response:
    """How a measured quantity answers to the covariate that varies, over seeds.

    Attributes:
        n: brains.
        seeds: how many noises; each gives a line of its own, and values here are means over lines.
        slope: of the least-squares line of measured on requested, of those within the training
            range; None with fewer than two values there.
        slope_sd: its standard deviation over seeds; None for one.
        slope_below, slope_above: of those below and above that range, with the outermost within;
            None where there are none.
        monotonicity: Kendall's tau-b between requested and measured, 1 where it rises throughout.
        outside: values that lie beyond the training range.
    """

    n: int
    seeds: int
    slope: float | None
    slope_sd: float | None
    slope_below: float | None
    slope_above: float | None
    monotonicity: float | None
    outside: int


@dataclass(frozen=True)
class Leakage:
    """How far another quantity drifts while its own request stays.

    Attributes:
        change: of the measured value from the lowest to the highest value of the training range,
            by the least-squares line, mean over seeds, in the quantity's unit.
        change_in_sd: the same in standard deviations among real brains, by the same network.
    """

    change: float
    change_in_sd: float | None


def response(table: pd.DataFrame, covariate: str, low: float, high: float) -> Response:
    """Judge the measured values of the covariate that a sweep varies.

    Args:
        table: a row a brain with columns `covariate`, measured_`covariate` and, where there were
            several noises, seed.
        low, high: of the training range.
    """
    slopes, below, above, taus = [], [], [], []
    for line in _lines(table, covariate):
        x, y = line[covariate].to_numpy(float), line[f"measured_{covariate}"].to_numpy(float)
        inside = (x >= low) & (x <= high)
        slopes.append(_slope(x[inside], y[inside]))
        for found, beyond, nearest in (
            (below, x < low, x[inside][:1]),
            (above, x > high, x[inside][-1:]),
        ):
            if beyond.any():
                chosen = beyond | np.isin(x, nearest)
                found.append(_slope(x[chosen], y[chosen]))
        taus.append(stats.kendalltau(x, y).statistic if len(x) > 1 else np.nan)
    values = table[covariate].to_numpy(float)
    return Response(
        n=len(table),
        seeds=len(slopes),
        slope=_mean(slopes),
        slope_sd=float(np.std(slopes, ddof=1)) if len(slopes) > 1 else None,
        slope_below=_mean(below),
        slope_above=_mean(above),
        monotonicity=_mean(taus),
        outside=int(((values < low) | (values > high)).sum()),
    )


def leakage(
    table: pd.DataFrame, covariate: str, low: float, high: float, real: pd.DataFrame
) -> dict[str, Leakage]:
    """Judge the other measured quantities of a sweep.

    Args:
        table, covariate, low, high: as for `response`; `covariate` may be a code of 0 and 1.
        real: real brains with the same columns measured_*.
    """
    found = {}
    for name in QUANTITIES:
        column = f"measured_{name}"
        if name == covariate or column not in table or not table[column].notna().all():
            continue
        slopes = []
        for line in _lines(table, covariate):
            x, y = line[covariate].to_numpy(float), line[column].to_numpy(float)
            inside = (x >= low) & (x <= high)
            slopes.append(_slope(x[inside], y[inside]))
        slope = _mean(slopes)
        if slope is None:
            continue
        change = slope * (high - low)
        sd = float(real[column].std(ddof=1)) if len(real) > 1 else 0.0
        found[name] = Leakage(change, change / sd if sd > 0 else None)
    return found


def _lines(table: pd.DataFrame, covariate: str) -> list[pd.DataFrame]:
    groups = [g for _, g in table.groupby("seed", sort=False)] if "seed" in table else [table]
    return [group.sort_values(covariate, kind="stable") for group in groups]


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 2 or np.ptp(x) == 0:
        return np.nan
    centred = x - x.mean()
    return float((centred * (y - y.mean())).sum() / (centred**2).sum())


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None
