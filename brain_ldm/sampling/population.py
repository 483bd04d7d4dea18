"""Covariates that go together as they do in a cohort, and that nobody in it has."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from brain_ldm.cohorts.covariates import CovariateEncoder
from brain_ldm.errors import InputError
from brain_ldm.sampling.config import SampleConfig
from brain_ldm.sampling.tables import cohort_table

FEWEST = 10  # rows from which a distribution is told; ours


def population_rows(
    config: SampleConfig, encoder: CovariateEncoder, asked: Sequence[str]
) -> pd.DataFrame:
    """Return `config.n` rows of `asked` covariates that resemble the cohort `config.population`.

    Rows of the cohort that lack a covariate, or lie outside the training range where
    `config.extrapolate` does not allow it, have no part in it; how many is printed.

    Raises:
        InputError: there is no such cohort, or there are too few rows to tell a distribution.
    """
    if not asked:
        raise InputError("population: no covariate is asked for; give n=… alone")
    split = config.split or "train"
    rows = cohort_table(config.population, asked, split)[list(asked)]
    good = rows.notna().all(axis=1)
    if not config.extrapolate:
        good[[row for row, *_ in encoder.check_range(rows)]] = False
    if not good.all():
        print(
            f"{config.population}: {good.sum()} of {len(rows)} rows of split {split} are drawn "
            f"from; the others lack one of {', '.join(asked)}, or are outside the training range"
        )
    random = np.random.default_rng(np.random.SeedSequence([config.seed, config.n]))
    try:
        return resembling(rows[good], config.n, random)
    except InputError as error:
        raise InputError(
            f"{config.population}: {error}; give a larger cohort, or ask for fewer covariates"
        ) from None


def resembling(table: pd.DataFrame, n: int, random: np.random.Generator) -> pd.DataFrame:
    """Draw rows from the joint distribution of a table's columns, none of them a row of the table.

    Columns of codes, or of two values at most, are levels; each combination of levels keeps its
    share and has a distribution of its own. All other columns are drawn by the smoothed bootstrap
    that keeps mean and covariance (Silverman 1986, section 6.4) with Scott's bandwidth (1992), on
    normal scores: a value's rank becomes the quantile of a standard normal. So each column keeps
    its distribution, whatever its shape, and no value leaves its column's range; on the values
    themselves the kernel would reach beyond, and cutting it off there would narrow the column. For
    the same reason logarithms of volumes would change nothing. The scores are our choice.

    Args:
        table: rows without a missing value.
        n: rows to draw.

    Raises:
        InputError: fewer than `FEWEST` rows have the same levels.
    """
    levels = [
        name
        for name, column in table.items()
        if not pd.api.types.is_numeric_dtype(column) or column.nunique() <= 2
    ]
    others = table.columns.difference(levels, sort=False)
    groups = table.groupby(levels).indices if levels else {(): np.arange(len(table))}
    for key, group in groups.items():
        if len(group) < FEWEST:
            values = np.atleast_1d(np.array(key, dtype=object))
            which = ", ".join(f"{name} {value}" for name, value in zip(levels, values, strict=True))
            with_levels = f" with {which}" if levels else ""
            raise InputError(f"{len(group)} rows{with_levels} are too few, {FEWEST} are needed")
    if not groups:
        raise InputError(f"0 rows are too few, {FEWEST} are needed")
    picked = random.integers(len(table), size=n)
    drawn = table.astype(dict.fromkeys(others, float)).iloc[picked].reset_index(drop=True)
    for group in groups.values() if len(others) else ():
        mine = np.isin(picked, group)
        values = table[others].to_numpy(float)[group]
        drawn.loc[mine, others] = _smoothed(values, np.searchsorted(group, picked[mine]), random)
    return drawn


def _smoothed(values: np.ndarray, picked: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return values (n, D) about those of `values` (m, D) that `picked` (n,) names."""
    m, d = values.shape
    margins = [_Margin(column) for column in values.T]
    scores = np.column_stack([margin.scores for margin in margins])
    bandwidth = m ** (-1 / (d + 4))
    covariance = scores.T @ scores / m
    kernel = random.multivariate_normal(np.zeros(d), covariance, len(picked), method="eigh")
    smoothed = (scores[picked] + bandwidth * kernel) / np.sqrt(1 + bandwidth**2)
    return np.column_stack(
        [margin.quantiles(ndtr(z)) for margin, z in zip(margins, smoothed.T, strict=True)]
    )


class _Margin:
    """One column's distribution function: straight lines between its values.

    Attributes:
        scores: (m,) normal scores of the column, of mean 0 and standard deviation 1.
    """

    def __init__(self, column: np.ndarray) -> None:
        self.values, which, counts = np.unique(column, return_inverse=True, return_counts=True)
        self.shares = (np.cumsum(counts) - counts / 2) / len(column)  # up to the middle of ties
        scores = ndtri(self.shares)[which]
        self.scores = (scores - scores.mean()) / (scores.std() or 1)
        # Both extremes are approached and never reached: they are somebody's.
        self.shares[0], self.shares[-1] = 0, 1

    def quantiles(self, shares: np.ndarray) -> np.ndarray:
        """Return the values below which these shares of the distribution lie."""
        return np.interp(shares, self.shares, self.values)
