"""Covariates in real units, and the one encoder that scales them to 0..1."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from brain_ldm.errors import InputError

MISSING = -1.0
MEASURED = ", measured by "  # in a column's description: what follows is the instrument
# Beyond these a value is a slip, or in another unit: a newborn's brain has 350 ml, and the largest
# lateral ventricles of hydrocephalus some 500 ml.
PLAUSIBLE = {
    "age": (0, 120),
    "brain_volume": (300_000, 2_500_000),
    "ventricular_volume": (500, 500_000),
}


@dataclass(frozen=True)
class Covariate:
    """A column of participants.tsv: its unit, its meaning and, where it has codes, their values."""

    name: str
    unit: str
    description: str
    levels: dict[str, float] = field(default_factory=dict)
    level_names: dict[str, str] = field(default_factory=dict)


# In the order of the published model's condition vector.
COVARIATES = {
    c.name: c
    for c in (
        Covariate(
            "sex",
            "",
            "Sex",
            # UK Biobank's field 31; the paper does not say how it coded sex.
            levels={"F": 0.0, "M": 1.0},
            level_names={"F": "female", "M": "male"},
        ),
        Covariate("age", "year", "Age"),
        Covariate(
            "ventricular_volume",
            "mm3",
            "Volume of the lateral and inferior lateral ventricles of both sides",
        ),
        Covariate(
            "brain_volume", "mm3", "Volume of grey and white matter, without ventricles and CSF"
        ),
    )
}


def numbers(table: pd.DataFrame, name: str) -> np.ndarray:
    """Column `name` as float64 (n,), codes of sex replaced by their numbers, missing as NaN.

    A column that `table` lacks is missing in every row.

    Raises:
        InputError: for an unknown code or a text that is no number, naming row and column.
    """
    if name not in table.columns:
        return np.full(len(table), np.nan)
    levels = COVARIATES[name].levels if name in COVARIATES else {}
    values = np.full(len(table), np.nan)
    for i, value in enumerate(table[name].tolist()):
        if pd.isna(value) or str(value).strip() in ("", "n/a"):
            continue
        if levels:
            if value not in levels:
                known = " or ".join(levels)
                raise InputError(f"{_row(table, i)}: {name} is {value!r}; give {known}, or n/a")
            values[i] = levels[value]
            continue
        try:
            values[i] = float(value)
        except (TypeError, ValueError):
            raise InputError(
                f"{_row(table, i)}: {name} is {value!r}; give a number, or n/a"
            ) from None
        if not np.isfinite(values[i]):
            raise InputError(f"{_row(table, i)}: {name} is {value!r}; give a finite number, or n/a")
    return values


def _row(table: pd.DataFrame, i: int) -> str:
    if "participant_id" in table.columns:
        return f"row {i + 1} ({table['participant_id'].iloc[i]})"
    return f"row {i + 1}"


@dataclass(frozen=True)
class CovariateEncoder:
    """Min-max scaling of covariates to 0..1, with a missing value as a state of its own.

    Attributes:
        names: covariates, in the order of the encoded columns.
        units: the unit of each.
        low, high: the value of each that becomes 0 and 1, in its own unit.
    """

    names: list[str]
    low: list[float]
    high: list[float]
    units: list[str]

    @classmethod
    def fit(cls, table: pd.DataFrame, names: list[str]) -> "CovariateEncoder":
        """An encoder with the ranges found in `table`: give the training rows alone.

        Raises:
            InputError: if a covariate has no value, or only a single one, in these rows.
        """
        low, high = [], []
        for name in names:
            levels = COVARIATES[name].levels if name in COVARIATES else {}
            values = np.array(list(levels.values())) if levels else numbers(table, name)
            values = values[np.isfinite(values)]
            if not values.size:
                raise InputError(
                    f"covariate {name}: no value in the {len(table)} training rows; "
                    "add the column to participants.tsv or leave the covariate out"
                )
            if values.min() == values.max():
                raise InputError(
                    f"covariate {name}: every training row has {values[0]:g}; "
                    "a model cannot learn from a constant, leave the covariate out"
                )
            low.append(float(values.min()))
            high.append(float(values.max()))
        units = [COVARIATES[n].unit if n in COVARIATES else "" for n in names]
        return cls(list(names), low, high, units)

    def encode(self, table: pd.DataFrame) -> np.ndarray:
        """Scale the covariates of each row.

        Args:
            table: n rows in real units; columns that are no covariate are ignored.

        Returns:
            float32 (n, C). Values outside the range extrapolate (below 0, above 1). A missing
            value or an absent column is `MISSING`; a present value never is, since one that would
            fall at or below it is refused.

        Raises:
            InputError: for an unknown sex code, a text where a number belongs, or a value so far
                below the range that it would read as missing.
        """
        encoded = np.empty((len(table), len(self.names)), dtype=np.float32)
        for c, (name, low, high) in enumerate(zip(self.names, self.low, self.high, strict=True)):
            values = numbers(table, name)
            scaled = (values - low) / (high - low)
            far = np.flatnonzero(scaled <= MISSING)
            if far.size:
                raise InputError(
                    f"{_row(table, far[0])}: {name} is {values[far[0]]:g}, a whole range below the "
                    f"{low:g} to {high:g} that the model knows, where it would read as missing; "
                    "give a higher one"
                )
            encoded[:, c] = np.where(np.isnan(scaled), MISSING, scaled)
        return encoded

    def check_range(self, table: pd.DataFrame) -> list[tuple[int, str, float, float, float]]:
        """Which values lie outside the ranges that the training rows had.

        Returns:
            A list of (row position from 0, covariate, value, low, high), in real units.
        """
        outside = []
        for name, low, high in zip(self.names, self.low, self.high, strict=True):
            values = numbers(table, name)
            for i in np.flatnonzero((values < low) | (values > high)):
                outside.append((int(i), name, float(values[i]), low, high))
        return outside

    def to_dict(self) -> dict:
        """Plain data for a model's config.yaml."""
        rows = zip(self.names, self.units, self.low, self.high, strict=True)
        return {
            "covariates": [{"name": n, "unit": u, "low": lo, "high": h} for n, u, lo, h in rows]
        }

    @classmethod
    def from_dict(cls, data: dict) -> "CovariateEncoder":
        """The encoder that `to_dict` described."""
        rows = data["covariates"]
        return cls(
            [str(r["name"]) for r in rows],
            [float(r["low"]) for r in rows],
            [float(r["high"]) for r in rows],
            [str(r["unit"]) for r in rows],
        )
