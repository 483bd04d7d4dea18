"""The figure of a study: a panel a measure, a colour a series, a kind of line each its dashes."""

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

COLOURS = ("#1f6feb", "#f0a04b", "#2f9e68", "#b0479b", "#7d8790", "#8a6d3b")
DASHES = ("-", "--", ":", "-.")
COLUMNS = 3
WIDTH, HEIGHT, LEGEND = 4.3, 3.4, 1.6  # inches of a panel, and of the legends beside them
CROWDED = 4  # lines in a panel, above which intervals step back behind the values
APART = 1.015  # ratio of a numeric x between two groups, so that intervals can be told apart


def draw(path: Path, points: list[dict[str, Any]], caption: str) -> Figure:
    """Draw and save each measure against the study's `x`, with 95 % intervals where there are any.

    Args:
        path: of the picture.
        points: each with `study` (its title, x, series and dashes), `point` (its values) and
            `measures` (value, low and high by title).
        caption: what distances were taken of.
    """
    study = points[0]["study"]
    titles = list(points[0]["measures"])
    columns, lines = min(COLUMNS, len(titles)), -(-len(titles) // COLUMNS)
    kinds = {
        key: dict(zip(_values(points, study[key]), cycle(looks), strict=False))
        for key, looks in (("series", COLOURS), ("dashes", DASHES))
    }
    named = [key for key in kinds if study[key] is not None]
    width = WIDTH * columns + LEGEND * bool(named)
    figure = Figure((width, HEIGHT * lines + 0.5), dpi=160)
    grid = figure.subplots(lines, columns, squeeze=False)
    for ax in grid.flat[len(titles) :]:
        ax.set_visible(False)
    for ax, title in zip(grid.flat, titles, strict=False):
        panel(ax, study, kinds, points, title)
    for key, top in zip(named, (0.9, 0.5), strict=False):
        drawn = {"series": "color", "dashes": "linestyle"}[key]
        lines_of = [
            Line2D([], [], **{"color": "#3c444c", drawn: look}, label=str(value))
            for value, look in kinds[key].items()
        ]
        figure.legend(
            handles=lines_of,
            title=study[key].replace("_", " "),
            frameon=False,
            fontsize=8,
            alignment="left",
            loc="upper right",
            bbox_to_anchor=(1, top),
        )
    figure.suptitle(study["title"], x=0.01, ha="left", weight="bold", size=11)
    figure.tight_layout(rect=(0, 0.04, 1 - LEGEND / width * bool(named), 1))
    figure.text(0.01, 0.012, caption, size=7, color="#5d666f")
    figure.savefig(path)
    return figure


def panel(
    ax: Axes,
    study: dict[str, Any],
    kinds: dict[str, dict[Any, str]],
    points: list[dict[str, Any]],
    title: str,
) -> None:
    """Draw one measure.

    Args:
        ax: where.
        study, points: as `draw` has them.
        kinds: the colour of each of the `series`, and the kind of line of each of the `dashes`.
        title: the measure's.
    """
    axis = study["x"]
    values = _values(points, axis)
    numeric = all(isinstance(value, int | float) for value in values)
    if numeric:
        values.sort()
    groups: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for point in points:
        key = point["point"].get(study["series"]), point["point"].get(study["dashes"])
        groups.setdefault(key, []).append(point)
    crowded = len(groups) > CROWDED
    for k, ((series, dashes), group) in enumerate(groups.items()):
        aside = APART ** (k - (len(groups) - 1) / 2)
        # A point may be of an earlier version of the study, which did not measure this.
        known = [p for p in group if p["measures"].get(title, {}).get("value") is not None]
        known.sort(key=lambda point: values.index(point["point"][axis]))
        x = [p["point"][axis] * aside if numeric else values.index(p["point"][axis]) for p in known]
        found = [p["measures"][title] for p in known]
        *_, whiskers = ax.errorbar(
            x,
            [f["value"] for f in found],
            np.array([_interval(f) for f in found]).reshape(-1, 2).T,
            marker="o",
            markersize=4,
            capsize=0 if crowded else 3,
            linewidth=1.3 if numeric else 0,
            elinewidth=1,
            color=kinds["series"].get(series, COLOURS[0]),
            linestyle=kinds["dashes"].get(dashes, DASHES[0]),
        )
        if crowded:
            whiskers[0].set_alpha(0.3)
    if numeric:
        ax.set_xscale("log")
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.minorticks_off()
    else:
        ax.set_xticks(range(len(values)), [str(value).replace("_", " ") for value in values])
        ax.tick_params(axis="x", labelrotation=30, labelsize=8)
        for label in ax.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    ax.set_xlabel(axis.replace("_", " "))
    ax.set_title(title, loc="left", size=10)
    ax.spines[["top", "right"]].set_visible(False)


def _values(points: list[dict[str, Any]], name: str | None) -> list[Any]:
    """The values of a point's `name`, in the order in which they come; none without a name."""
    return [] if name is None else list(dict.fromkeys(point["point"][name] for point in points))


def _interval(found: dict[str, float | None]) -> tuple[float, float]:
    """How far a measure's 95 % interval reaches below and above its value."""
    if found["low"] is None or found["high"] is None:
        return 0.0, 0.0
    return max(found["value"] - found["low"], 0), max(found["high"] - found["value"], 0)
