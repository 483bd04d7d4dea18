"""One picture of the covariates of a cohort."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from brain_ldm.cohorts.files import temporary

INK, BAR = "#1b1f24", "#1f6feb"
ACROSS = 2  # panels side by side
BINS = 30


def draw_covariates(path: Path, table: pd.DataFrame, columns: dict[str, dict]) -> None:
    """Draw how often the values of each column come, as a PNG; bars for codes.

    Args:
        path: of the picture.
        table: covariates, one column each; missing values are left out.
        columns: participants.json, for units.
    """
    down = -(-len(table.columns) // ACROSS)
    across = min(ACROSS, len(table.columns))
    figure = Figure((3.4 * across, 2.7 * down), dpi=120, layout="constrained")
    for number, name in enumerate(table.columns):
        axes = figure.add_subplot(down, across, number + 1)
        values = table[name].dropna()
        if pd.api.types.is_numeric_dtype(values):
            bins = min(BINS, max(5, round(np.sqrt(len(values)))))
            axes.hist(values, bins, color=BAR)
            if values.nunique() > 1:
                axes.locator_params(axis="x", nbins=4)
            else:
                axes.set_xticks(values.unique())
            if values.abs().max() >= 1000:
                axes.xaxis.set_major_formatter("{x:,.0f}")
        else:
            counts = values.value_counts().sort_index()
            axes.bar(counts.index.astype(str), counts, color=BAR, width=0.6)
        unit = columns.get(name, {}).get("Units")
        axes.set_xlabel(name + (f" ({unit})" if unit else ""), color=INK)
        axes.set_ylabel("brains", color=INK)
        axes.spines[["top", "right"]].set_visible(False)
    unfinished = temporary(path)
    figure.savefig(unfinished)
    unfinished.replace(path)
