"""How measured volumes agree with those that a cohort's table has: a small table to print."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from scipy.stats import linregress

# Fewer points than this lie on a line whatever measured them.
MIN_ROWS = 3


@dataclass(frozen=True)
class Agreement:
    """Measured against known values of one volume; None where there is nothing to compute.

    `percent` and `error` are the mean absolute error in % of the known value and in its unit,
    `slope` is that of the least-squares line of measured on known, `r` is Pearson's.
    """

    n: int
    r: float | None = None
    percent: float | None = None
    error: float | None = None
    slope: float | None = None


def agreement(known: np.ndarray, measured: np.ndarray) -> Agreement:
    """Compare known and measured values, (n,) each in one unit; rows that lack one are left out."""
    both = np.isfinite(known) & np.isfinite(measured)
    known, measured = known[both], measured[both]
    n = len(known)
    if n == 0:
        return Agreement(0)
    off = np.abs(measured - known)
    percent = float((off / known).mean() * 100) if (known > 0).all() else None
    if n < MIN_ROWS or np.ptp(known) == 0 or np.ptp(measured) == 0:
        return Agreement(n, percent=percent, error=float(off.mean()))
    line = linregress(known, measured)
    return Agreement(n, float(line.rvalue), percent, float(off.mean()), float(line.slope))


def print_agreement(frame: pd.DataFrame, volumes: list[str], within: str | None) -> None:
    """Print known against measured volumes, over all rows and within each value of a column.

    Args:
        frame: for each of `volumes` the known values in mm³ and, in the column named measured_ and
            the volume, the measured ones.
        volumes: columns to compare.
        within: a column; None for all rows alone.
    """
    parts = [("all", frame)]
    if within is not None:
        groups = frame.groupby(frame[within].fillna("n/a"))
        parts += [(f"{within} {value}", part) for value, part in groups]
    table = Table(title="Known or requested against measured", box=SIMPLE_HEAD, padding=(0, 1))
    table.title_justify = "left"
    table.add_column("")
    table.add_column("")
    for column in ("n", "r", "error", "ml", "slope"):
        table.add_column(column, justify="right", no_wrap=True)
    for name in volumes:
        for label, part in parts:
            found = agreement(part[name].to_numpy(), part[f"measured_{name}"].to_numpy())
            table.add_row(
                name.replace("_", " "),
                label,
                str(found.n),
                _shown(found.r, ".3f"),
                _shown(found.percent, ".1f", " %"),
                _shown(found.error and found.error / 1000, ".1f"),
                _shown(found.slope, ".2f"),
            )
    Console().print(table)


def _shown(value: float | None, digits: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{digits}}{unit}"
