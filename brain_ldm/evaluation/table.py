"""The paper's Table 1, and the same figures of ours."""

from typing import Any

import numpy as np

REAL = "Real"
# Pinaya et al. 2022, Table 1: FID, MS-SSIM, 4-G-R-SSIM. Its FID is of features that the paper does
# not describe closely, on brains of 1 mm: it is read by its order, not held against ours.
PAPER = {
    "LSGAN": (0.0231, 0.9997, 0.9969),
    "VAE-GAN": (0.1576, 0.9671, 0.8719),
    "LDM": (0.0076, 0.6555, 0.3883),
    "LDM + DDIM": (0.0080, 0.6704, 0.3957),
    REAL: (0.0005, 0.6536, 0.3909),
}
NOTHING = {"value": None, "low": None, "high": None}
MEASURES = ("fid", "ms_ssim", "gradient_ssim")


def comparison(
    synthetic: dict[str, dict[str, Any]], real: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Rows of the table by title, ours with the paper's of the same name.

    Args:
        synthetic: of metrics.json, by cohort.
        real: of metrics.json, with `floor`.

    Returns:
        by title: `cohorts`, and for each measure its `values` (one a cohort), their `mean`, the
        `low` and `high` that hold all their 95 % intervals, and the paper's value.
    """
    groups: dict[str, list[str]] = {}
    for name, cohort in synthetic.items():
        groups.setdefault(cohort["title"], []).append(name)
    order = sorted(groups, key=lambda title: list(PAPER).index(title) if title in PAPER else -1)
    rows = {
        title: _row(title, groups[title], [synthetic[n] for n in groups[title]]) for title in order
    }
    of_real = {"realism": real["floor"], "similarity": real["similarity"]}
    rows[REAL] = _row(REAL, [], [of_real])
    return rows


def _row(title: str, names: list[str], cohorts: list[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"cohorts": names}
    for measure, paper in zip(MEASURES, PAPER.get(title, (None,) * 3), strict=True):
        part = "realism" if measure == "fid" else "similarity"
        found = [c[part][measure] if c[part] else NOTHING for c in cohorts]
        known = [f for f in found if f["value"] is not None]
        row[measure] = {
            "values": [f["value"] for f in found],
            "mean": float(np.mean([f["value"] for f in known])) if known else None,
            "low": min((f["low"] for f in known if f["low"] is not None), default=None),
            "high": max((f["high"] for f in known if f["high"] is not None), default=None),
            "paper": paper,
        }
    return row
