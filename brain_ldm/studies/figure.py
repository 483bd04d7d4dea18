"""The figure of a study: a panel a measure, a line a series."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#1f6feb", "#f0a04b", "#2f9e68", "#b0479b", "#7d8790", "#8a6d3b")
COLUMNS = 3


def draw(path: Path, points: list[dict[str, Any]], caption: str) -> Figure:
    """Draw and save each measure against the study's `x`, with 95 % intervals where there are any.

    Args:
        path: of the picture.
        points: each with `study` (its title, x and series), `point` (its values) and `measures`
            (value, low and high by title).
        caption: what distances were taken of.
    """
    study = points[0]["study"]
    titles = list(points[0]["measures"])
    lines = -(-len(titles) // COLUMNS)
    figure = Figure((4.3 * min(COLUMNS, len(titles)), 3.4 * lines + 0.5), dpi=160)
    grid = figure.subplots(lines, min(COLUMNS, len(titles)), squeeze=False)
    for ax in grid.flat[len(titles) :]:
        ax.set_visible(False)
    for ax, title in zip(grid.flat, titles, strict=False):
        panel(ax, study["x"], study["series"], points, title)
    if study["series"] is not None:
        grid.flat[0].legend(frameon=False, fontsize=8, title=study["series"])
    figure.suptitle(study["title"], x=0.01, ha="left", weight="bold", size=11)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.text(0.01, 0.012, caption, size=7, color="#5d666f")
    figure.savefig(path)
    return figure


def panel(
    ax: Axes, axis: str, series: str | None, points: list[dict[str, Any]], title: str
) -> None:
    """Draw one measure."""
    values = list(dict.fromkeys(point["point"][axis] for point in points))
    numeric = all(isinstance(value, int | float) for value in values)
    if numeric:
        values.sort()
    groups: dict[Any, list[dict[str, Any]]] = {}
    for point in points:
        groups.setdefault(point["point"].get(series or ""), []).append(point)
    for number, (name, group) in enumerate(groups.items()):
        known = [p for p in group if p["measures"][title]["value"] is not None]
        known.sort(key=lambda point: values.index(point["point"][axis]))
        x = [p["point"][axis] if numeric else values.index(p["point"][axis]) for p in known]
        found = [p["measures"][title] for p in known]
        y = np.array([f["value"] for f in found])
        bars = np.array(
            [
                [max(f["value"] - f["low"], 0), max(f["high"] - f["value"], 0)]
                if f["low"] is not None and f["high"] is not None
                else [0, 0]
                for f in found
            ]
        ).reshape(-1, 2)
        ax.errorbar(
            x,
            y,
            bars.T,
            marker="o",
            markersize=4,
            capsize=3,
            linewidth=1.3 if numeric else 0,
            elinewidth=1,
            color=COLOURS[number % len(COLOURS)],
            label=str(name),
        )
    if numeric:
        ax.set_xscale("log")
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.minorticks_off()
    else:
        ax.set_xticks(range(len(values)), [str(value) for value in values], rotation=20)
    ax.set_xlabel(axis.replace("_", " "))
    ax.set_title(title, loc="left", size=10)
    ax.spines[["top", "right"]].set_visible(False)
