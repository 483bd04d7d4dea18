"""The report's pictures: brains in three planes, requested against measured, and sweeps.

Brains are drawn in grey from 0 (black) to 1 (white), all on one scale and none stretched, in
neurological convention (the participant's left is on the left), enlarged with bilinear
interpolation, which smooths voxel edges and adds no detail.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from brain_ldm.cohorts.grid import VoxelGrid

# Where the planes are cut, mm in MNI space: near the midline, and through the bodies of both
# lateral ventricles.
CUT = (2.0, -14.0, 20.0)
# Voxels at least this bright in some brain decide how much empty margin is cut away.
FOREGROUND = 0.05
DOTS_PER_INCH = 160

INK, PAPER, QUIET = "#1b1f24", "#ffffff", "#7a828c"
NIGHT, LIGHT, DIM = "#000000", "#f2f4f6", "#9aa3ad"
BLUE, GREY, AMBER = "#1f6feb", "#7d8790", "#f0a04b"
COLOURS = (BLUE, AMBER, "#2f9e68", GREY, "#b0479b", "#8a6d3b")


@dataclass(frozen=True)
class Window:
    """The part of a grid that figures show, and the voxel where its planes cross."""

    low: tuple[int, int, int]
    high: tuple[int, int, int]
    cut: tuple[int, int, int]

    @property
    def size(self) -> tuple[int, int, int]:
        return tuple(high - low for low, high in zip(self.low, self.high, strict=True))

    def axial(self, volume: np.ndarray) -> np.ndarray:
        """Rows from the front to the back, columns from the left to the right."""
        return self._crop(volume)[:, ::-1, self.cut[2] - self.low[2]].T

    def coronal(self, volume: np.ndarray) -> np.ndarray:
        """Rows from the top down, columns from the left to the right."""
        return self._crop(volume)[:, self.cut[1] - self.low[1], ::-1].T

    def sagittal(self, volume: np.ndarray) -> np.ndarray:
        """Rows from the top down, columns from the back to the front."""
        return self._crop(volume)[self.cut[0] - self.low[0], :, ::-1].T

    def _crop(self, volume: np.ndarray) -> np.ndarray:
        return volume[tuple(map(slice, self.low, self.high))]


def window(grid: VoxelGrid, volumes: Sequence[np.ndarray]) -> Window:
    """Frame all these volumes (X, Y, Z) alike, so that their sizes can be compared."""
    bright = np.max(volumes, axis=0) > FOREGROUND
    margin = max(1, round(4 / grid.resolution))
    low, high = [], []
    for axis in range(3):
        (inside,) = np.nonzero(bright.any(tuple(a for a in range(3) if a != axis)))
        first, last = (inside[0], inside[-1]) if len(inside) else (0, grid.shape[axis] - 1)
        low.append(int(max(first - margin, 0)))
        high.append(int(min(last + margin + 1, grid.shape[axis])))
    voxel = np.rint(np.linalg.solve(grid.affine, [*CUT, 1.0])[:3]).astype(int)
    cut = tuple(int(c) for c in np.clip(voxel, low, np.subtract(high, 1)))
    return Window(tuple(low), tuple(high), cut)


@dataclass(frozen=True)
class Brain:
    """A volume (X, Y, Z) to show, and the lines of text that go with it."""

    volume: np.ndarray
    lines: tuple[str, ...] = ()


def montage(path: Path, grid: VoxelGrid, rows: dict[str, Sequence[Brain]]) -> Figure:
    """Draw and save rows of brains: of each a coronal, a sagittal and an axial slice, and its text.

    rows: title of the row to its brains, every row of the same length.
    """
    brains = [brain for row in rows.values() for brain in row]
    frame = window(grid, [brain.volume for brain in brains])
    x, y, z = frame.size
    tile = np.array([x + y, z + y])  # coronal and sagittal above; axial and the text below
    columns = max(len(row) for row in rows.values())
    title, gap = 0.34, 0.14
    inch = (13 - gap * (columns - 1)) / columns / tile[0]
    width, height = 13.0, len(rows) * (tile[1] * inch + title)
    figure = Figure((width, height), facecolor=NIGHT, dpi=DOTS_PER_INCH)
    note = "participant's left is on the left · grey 0 to 1 · bilinear"
    figure.text(0.996, 1 - title / 2 / height, note, color=DIM, size=9.5, ha="right", va="center")
    for r, (name, row) in enumerate(rows.items()):
        top = height - r * (tile[1] * inch + title)
        figure.text(
            0.004,
            (top - title / 2) / height,
            name,
            color=LIGHT,
            size=12,
            weight="bold",
            va="center",
        )
        for c, brain in enumerate(row):
            left = c * (tile[0] * inch + gap)
            for image, column, line in (
                (frame.coronal(brain.volume), 0, 0),
                (frame.sagittal(brain.volume), x, 0),
                (frame.axial(brain.volume), 0, z),
            ):
                _brain(
                    figure,
                    image,
                    (left + column * inch) / width,
                    (top - title - (line + image.shape[0]) * inch) / height,
                    image.shape[1] * inch / width,
                    image.shape[0] * inch / height,
                )
            figure.text(
                (left + (x + 0.06 * y) * inch) / width,
                (top - title - (z + 0.5 * y) * inch) / height,
                "\n".join(brain.lines),
                color=LIGHT,
                size=11,
                linespacing=1.5,
                va="center",
            )
    figure.savefig(path)
    return figure


def _brain(figure: Figure, image: np.ndarray, *box: float) -> Axes:
    axes = figure.add_axes(box)
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="bilinear", aspect="auto")
    axes.set_axis_off()
    return axes


@dataclass(frozen=True)
class Points:
    """Requested against measured values (n,) of one covariate, in the unit named.

    The first pair is the synthetic cohort's, the second the real one's (the ceiling).
    """

    title: str
    unit: str
    synthetic: tuple[np.ndarray, np.ndarray]
    ceiling: tuple[np.ndarray, np.ndarray]
    synthetic_note: str
    ceiling_note: str


def scatter(path: Path, panels: Sequence[Points]) -> Figure:
    """Draw and save, per covariate, the synthetic cohort above the real one on the same axes."""
    side, left, below, above = 3.35, 0.8, 0.62, 0.78
    width, height = (left + side + 0.15) * len(panels), 2 * (below + side + above)
    figure = Figure((width, height), facecolor=PAPER, dpi=DOTS_PER_INCH)
    for c, panel in enumerate(panels):
        shown = np.concatenate([*panel.synthetic, *panel.ceiling])
        shown = shown[np.isfinite(shown)]
        low, high = (shown.min(), shown.max()) if len(shown) else (0.0, 1.0)
        pad = 0.06 * (high - low or 1.0)
        limits = (low - pad, high + pad)
        for r, (points, note, colour, kind, word) in enumerate(
            (
                (panel.synthetic, panel.synthetic_note, BLUE, "synthetic", "requested"),
                (panel.ceiling, panel.ceiling_note, GREY, "real, the ceiling", "true"),
            )
        ):
            corner = (c * width / len(panels) + left, (1 - r) * height / 2 + below)
            box = np.divide((*corner, side, side), (width, height, width, height))
            ax = figure.add_axes(box)
            _identity(ax, limits)
            ax.plot(*points, "o", color=colour, alpha=0.65, markersize=5, markeredgewidth=0)
            ax.set(xlim=limits, ylim=limits)
            name = f"{panel.title}: {kind}"
            ax.set_title(name, loc="left", size=11.5, color=INK, weight="bold", pad=36)
            ax.set_xlabel(f"{word} ({panel.unit})", color=INK)
            ax.set_ylabel(f"measured ({panel.unit})", color=INK)
            where = {"transform": ax.transAxes, "va": "bottom", "linespacing": 1.4}
            ax.text(0, 1.02, note, size=10, color=INK, **where)
            ax.locator_params(nbins=6)
            _plain(ax)
    figure.savefig(path)
    return figure


@dataclass(frozen=True)
class Line:
    """One measured quantity along a sweep, a series (values varied, measured) per seed.

    `requested` is what was asked for, the same shape of pair, nan where nothing was. The axis
    covers at least `span`, so that a drift looks as small or large as it is among real brains.
    What lies outside `known`, the training range, is shaded.
    """

    title: str
    xlabel: str
    ylabel: str
    series: Sequence[tuple[np.ndarray, np.ndarray]]
    requested: tuple[np.ndarray, np.ndarray]
    span: tuple[float, float]
    ticks: dict[float, str] | None = None
    known: tuple[float, float] | None = None


def sweep(path: Path, grid: VoxelGrid, brains: Sequence[Brain], lines: Sequence[Line]) -> Figure:
    """Draw and save a sweep: a coronal and an axial slice of each brain, text and line plots below.

    brains: in the order of the value that varies, all of one seed.
    """
    frame = window(grid, [brain.volume for brain in brains])
    x, y, z = frame.size
    width, label, gap, plot = 13.0, 0.66, 0.04, 3.3 if lines else 0.0
    inch = min((width - gap * (len(brains) - 1)) / len(brains), 2.2) / x
    margin = (width - (len(brains) * (x * inch + gap) - gap)) / 2
    strip = (y + z) * inch + label
    height = strip + plot
    figure = Figure((width, height), facecolor=NIGHT, dpi=DOTS_PER_INCH)
    for i, brain in enumerate(brains):
        left = margin + i * (x * inch + gap)
        for image, line in ((frame.coronal(brain.volume), 0), (frame.axial(brain.volume), z)):
            _brain(
                figure,
                image,
                left / width,
                (height - (line + image.shape[0]) * inch) / height,
                image.shape[1] * inch / width,
                image.shape[0] * inch / height,
            )
        figure.text(
            (left + x * inch / 2) / width,
            (plot + label / 2) / height,
            "\n".join(brain.lines),
            color=LIGHT,
            size=11,
            ha="center",
            va="center",
            linespacing=1.4,
        )
    each = width / max(len(lines), 1)
    for i, line in enumerate(lines):
        box = (i * each + 0.85, 0.55, each - 1.1, plot - 1.0)
        ax = figure.add_axes(np.divide(box, (width, height, width, height)), facecolor=NIGHT)
        ax.update_datalim([(line.requested[0][0], end) for end in line.span])
        if line.known is not None:
            _shade_outside(ax, line.requested[0], line.known)
        ax.plot(*line.requested, "--", color=QUIET, linewidth=1.2, label="requested")
        for n, series in enumerate(line.series):
            name = "measured" if n == 0 else None
            ax.plot(*series, "o-", color=AMBER, markersize=4, linewidth=1.2, label=name)
        ax.set_title(line.title, loc="left", size=11, color=LIGHT, weight="bold")
        ax.set_xlabel(line.xlabel, color=DIM, size=10)
        ax.set_ylabel(line.ylabel, color=DIM, size=10)
        if line.ticks:
            ax.set_xticks(list(line.ticks), list(line.ticks.values()))
        if i == 0:
            ax.legend(frameon=False, labelcolor=LIGHT, fontsize=9.5)
        _plain(ax, DIM)
    figure.savefig(path)
    return figure


@dataclass(frozen=True)
class Dots:
    """A row of a panel: values, one a cohort, and the ends of the interval that holds theirs."""

    title: str
    values: Sequence[float | None]
    low: float | None
    high: float | None


@dataclass(frozen=True)
class DotPanel:
    """Rows of dots on one axis."""

    title: str
    rows: Sequence[Dots]


def dots(path: Path, panels: Sequence[DotPanel], caption: str) -> Figure:
    """Draw and save panels side by side whose rows are the same; the last row is the reference.

    caption: stands below.
    """
    names = [row.title for row in panels[0].rows]
    width, height = 13.0, 1.4 + 0.42 * len(names)
    figure = Figure((width, height), facecolor=PAPER, dpi=DOTS_PER_INCH)
    label, gap = 1.7, 0.35
    each = (width - label - gap) / len(panels)
    for p, panel in enumerate(panels):
        box = (label + p * each, 0.75, each - gap, height - 1.3)
        ax = figure.add_axes(np.divide(box, (width, height, width, height)))
        for r, row in enumerate(panel.rows):
            colour = GREY if r == len(names) - 1 else BLUE
            values = [value for value in row.values if value is not None]
            if row.low is not None:
                ax.plot((row.low, row.high), (r, r), color=colour, linewidth=2, alpha=0.45)
            ax.plot(values, [r] * len(values), "o", color=colour, markersize=6, alpha=0.8)
            if values and r == len(names) - 1:
                ax.axvline(np.mean(values), color=QUIET, linestyle="--", linewidth=1, zorder=0)
        ax.set(ylim=(len(names) - 0.5, -0.5))
        ax.set_yticks(range(len(names)), names if p == 0 else [""] * len(names))
        ax.set_title(panel.title, loc="left", size=10.5, color=INK, weight="bold")
        ax.locator_params(axis="x", nbins=5)
        _plain(ax)
    figure.text(label / width, 0.12 / height, caption, size=8, color=QUIET)
    figure.savefig(path)
    return figure


def errors(
    path: Path,
    xlabel: str,
    ylabel: str,
    lines: dict[str, Sequence[tuple[float, float, float, float]]],
) -> Figure:
    """Draw and save lines of points (x, value, low, high) with error bars, x on a log scale."""
    figure = Figure((7.5, 4.5), facecolor=PAPER, dpi=DOTS_PER_INCH)
    ax = figure.add_axes((0.11, 0.14, 0.86, 0.8))
    shown = set()
    for (name, points), colour in zip(lines.items(), COLOURS, strict=False):
        x, value, low, high = np.array(points, float).T
        shown |= set(x)
        # Lines that meet at one x would hide each other's bars.
        x = x * (1 + 0.02 * list(lines).index(name))
        bars = np.clip([value - low, high - value], 0, None)
        ax.errorbar(x, value, bars, marker="o", color=colour, capsize=3, linewidth=1.5, label=name)
    ax.set_xscale("log")
    ax.set_xticks(sorted(shown), [f"{x:g}" for x in sorted(shown)])
    ax.minorticks_off()
    ax.set_xlabel(xlabel, color=INK)
    ax.set_ylabel(ylabel, color=INK)
    ax.legend(frameon=False)
    _plain(ax)
    figure.savefig(path)
    return figure


def _shade_outside(ax: Axes, x: np.ndarray, known: tuple[float, float]) -> None:
    for low, high in ((min(*x, known[0]), known[0]), (known[1], max(*x, known[1]))):
        if high > low:
            ax.axvspan(low, high, color=QUIET, alpha=0.2, linewidth=0)


def _identity(ax: Axes, limits: tuple[float, float]) -> None:
    ax.plot(limits, limits, "--", color=QUIET, linewidth=1, zorder=0)


def _plain(ax: Axes, colour: str = INK) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(colour)
    ax.tick_params(colors=colour, labelsize=9)
