"""What is measured on a brain, and how it is shown to people."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Quantity:
    """A measured covariate: `unit` in tables and metrics, `display` with `scale` for reading."""

    title: str
    unit: str
    display: str
    scale: float
    digits: int

    def shown(self, values: np.ndarray) -> np.ndarray:
        """Values in the unit for reading."""
        return values * self.scale

    def text(self, value: float | None) -> str:
        """One value with its unit; n/a where there is none."""
        if value is None or np.isnan(value):
            return "n/a"
        return f"{value * self.scale:.{self.digits}f} {self.display}"

    def note(self, found: dict[str, Any]) -> str:
        """An agreement of metrics.json in two lines."""
        if found["r"] is None:
            return f"{found['n']} rows, no r"
        return (
            f"r {found['r']:.3f} [{found['r_low']:.3f}, {found['r_high']:.3f}], n {found['n']}\n"
            f"MAE {self.text(found['mae'])}, slope {found['slope']:.2f}"
        )


QUANTITIES = {
    "ventricular_volume": Quantity("Ventricular volume", "mm3", "ml", 1e-3, 1),
    "brain_volume": Quantity("Brain volume", "mm3", "ml", 1e-3, 0),
    "age": Quantity("Age", "year", "years", 1.0, 1),
}


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def interval(found: dict[str, Any]) -> str:
    """Pearson's r of an agreement with its 95 % interval."""
    if found["r"] is None:
        return "–"
    return f"{found['r']:.3f} [{found['r_low']:.3f}, {found['r_high']:.3f}]"


def bracket(value: float | None, low: float | None, high: float | None, digits: int = 3) -> str:
    """A value with its 95 % interval."""
    if value is None:
        return "–"
    if low is None or high is None:
        return number(value, digits)
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def distance(value: float | None, low: float | None, high: float | None) -> str:
    """A distance between cohorts, whose size depends on the features, with its 95 % interval."""
    if value is None:
        return "–"
    if low is None or high is None:
        return f"{value:.3g}"
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def compared(features: dict[str, Any], floor: dict[str, Any]) -> str:
    """What distances between cohorts were taken of, without which they say nothing."""
    return f"{features['name']} {features['sha256'][:12]}, {floor['n']} against {floor['n_real']}"


def percent(share: float | None, low: float | None = None, high: float | None = None) -> str:
    """A share in percent, with its 95 % interval where there is one."""
    if share is None:
        return "–"
    text = f"{100 * share:.1f} %"
    return text if low is None or high is None else f"{text} [{100 * low:.1f}, {100 * high:.1f}]"


def spread(found: dict[str, Any], digits: int = 3) -> str:
    """Mean ± standard deviation."""
    if found["sd"] is None:
        return number(found["mean"], digits)
    return f"{found['mean']:.{digits}f} ± {found['sd']:.{digits}f}"
