"""Covariates drawn from ranges, or taken in even steps through them."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from brain_ldm.cohorts.covariates import COVARIATES, CovariateEncoder
from brain_ldm.errors import InputError
from brain_ldm.sampling.config import SampleConfig


def limits(config: SampleConfig, encoder: CovariateEncoder, name: str) -> tuple[Any, Any]:
    """Return the lowest and highest value of a covariate, in its unit or as a code.

    They are those of `config.ranges`, or else of the training range.

    Raises:
        InputError: `config.ranges` has no value of this covariate.
    """
    levels = list(COVARIATES[name].levels) if name in COVARIATES else []
    index = encoder.names.index(name)
    default = (levels[0], levels[-1]) if levels else (encoder.low[index], encoder.high[index])
    given = (config.ranges or {}).get(name, default)
    low, high = given if isinstance(given, list | tuple) and len(given) == 2 else (given, given)
    if levels:
        wrong = [code for code in (low, high) if code not in levels]
    else:
        wrong = [v for v in (low, high) if isinstance(v, bool) or not isinstance(v, int | float)]
    if wrong:
        expected = " or ".join(levels) if levels else "a number, or [low, high]"
        raise InputError(f"ranges.{name}: {given!r}; give {expected}")
    return low, high


def drawn(config: SampleConfig, encoder: CovariateEncoder) -> pd.DataFrame:
    """Return `config.n` rows, each covariate drawn by itself and evenly between its limits."""
    columns = {}
    random = np.random.default_rng(np.random.SeedSequence([config.seed, config.n]))
    for name in encoder.names:
        low, high = limits(config, encoder, name)
        share = random.random(config.n)
        if isinstance(low, str):
            columns[name] = np.where(share < 0.5, low, high)
        else:
            columns[name] = low + (high - low) * share
    return pd.DataFrame(columns, index=range(config.n))


def stepped(config: SampleConfig, encoder: CovariateEncoder, steps: dict[str, int]) -> pd.DataFrame:
    """Return every combination of so many even steps between the limits of each covariate.

    Args:
        steps: by covariate; of a covariate with codes, all of them. One that is not named, or has
            one step, stays in the middle of its limits, or at the first code.

    Raises:
        InputError: a covariate cannot be taken in so many steps.
    """
    axes = []
    for name in encoder.names:
        low, high = limits(config, encoder, name)
        count = steps.get(name, 1)
        codes = list(dict.fromkeys((low, high))) if isinstance(low, str) else None
        if count < 1 or (codes and name in steps and count != len(codes)):
            expected = f"{len(codes)}, for {' and '.join(codes)}" if codes else "at least 1"
            raise InputError(f"grid.{name}: {count} steps; give {expected}")
        if codes:
            axes.append(codes[:count])
        else:
            axes.append(np.linspace(low, high, count) if count > 1 else [(low + high) / 2])
    return pd.DataFrame(list(product(*axes)), columns=encoder.names)
