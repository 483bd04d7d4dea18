"""Which brains and numbers each figure of the report shows."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.plotting import view_img

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.cohorts.covariates import COVARIATES
from brain_ldm.evaluation import figures
from brain_ldm.evaluation.inputs import asked_like
from brain_ldm.evaluation.measure import Measured
from brain_ldm.evaluation.quantities import QUANTITIES, Quantity
from brain_ldm.evaluation.table import MEASURES, REAL

# Brains in the strip of a sweep: as many as fit a page side by side.
STRIP = 7
HEADINGS = {
    "fid": "FID against real (lower: more alike)",
    "ms_ssim": "MS-SSIM of pairs (lower: more diverse)",
    "gradient_ssim": "4-G-R-SSIM of pairs (lower: more diverse)",
}


def overview(path: Path, real: Measured, synthetic: dict[str, Measured], count: int) -> None:
    """Some brains of every row of the table, taken evenly from its first cohort.

    synthetic: by title.
    """
    rows = {}
    for title, measured in {REAL: real, **synthetic}.items():
        chosen = _spread(len(measured), count)
        ids = measured.table["participant_id"].iloc[chosen]
        rows[title] = [figures.Brain(measured.cohort.read(pid)) for pid in ids]
    figures.montage(path, real.cohort.grid, rows)


def comparison(path: Path, table: dict[str, dict[str, Any]], of: str) -> None:
    """The table as dots with their intervals; `of`: what FID was taken of."""
    panels = []
    for measure in MEASURES:
        rows = [
            figures.Dots(title, row[measure]["values"], row[measure]["low"], row[measure]["high"])
            for title, row in table.items()
        ]
        panels.append(figures.DotPanel(HEADINGS[measure], rows))
    figures.dots(path, panels, of)


def montage(
    path: Path,
    real: Measured,
    quality: dict[str, np.ndarray] | None,
    reconstruct: Callable[[np.ndarray], np.ndarray],
    synthetic: Measured,
    count: int,
) -> bool:
    """Real brains, their reconstructions, and synthetic ones below; whether these match.

    They match where the synthetic brains were asked for with a real participant's covariates
    (column source_id); otherwise the n-th real brain stands above the n-th synthetic one.

    Args:
        path: of the picture.
        real: the rows that are compared.
        quality: psnr and ssim of each; None without an autoencoder.
        reconstruct: the reconstruction of a volume (X, Y, Z).
        synthetic: a cohort.
        count: brains in a row.
    """
    pairs, matched = _pairs_to_show(real.table, synthetic.table, count)
    rows: dict[str, list[figures.Brain]] = {"Real": []}
    if quality is not None:
        rows["Reconstructed"] = []
    rows["Synthetic"] = []
    for r, s in pairs:
        person, made = real.table.loc[r], synthetic.table.loc[s]
        volume = real.cohort.read(person.participant_id)
        rows["Real"].append(figures.Brain(volume, _caption(person, "true")))
        if quality is not None:
            lines = (f"PSNR {quality['psnr'][r]:.1f} dB", f"SSIM {quality['ssim'][r]:.3f}")
            rows["Reconstructed"].append(figures.Brain(reconstruct(volume), lines))
        rows["Synthetic"].append(
            figures.Brain(synthetic.cohort.read(made.participant_id), _caption(made, "asked"))
        )
    figures.montage(path, real.cohort.grid, rows)
    return matched


def scatter(
    path: Path, synthetic: pd.DataFrame, real: pd.DataFrame, found: dict[str, dict]
) -> None:
    """Requested against measured, of each covariate that was measured."""

    def points(rows: pd.DataFrame, name: str, quantity: Quantity) -> tuple[np.ndarray, np.ndarray]:
        return (
            quantity.shown(rows[name].to_numpy(float)),
            quantity.shown(rows[f"measured_{name}"].to_numpy()),
        )

    figures.scatter(
        path,
        [
            figures.Points(
                QUANTITIES[name].title,
                QUANTITIES[name].display,
                points(synthetic, name, QUANTITIES[name]),
                points(real, name, QUANTITIES[name]),
                QUANTITIES[name].note(found[name]),
                QUANTITIES[name].note(found[name]["ceiling"])
                if found[name]["ceiling"]
                else "no true values",
            )
            for name in found
        ],
    )


def sweep(
    path: Path,
    measured: Measured,
    real: pd.DataFrame,
    varied: str,
    known: tuple[float, float] | None,
) -> None:
    """The brains of a sweep and what was measured on them.

    Args:
        path: of the picture.
        measured: the sweep.
        real: real brains, for the axes.
        varied: the covariate.
        known: its training range; None for a covariate of codes.
    """
    levels = COVARIATES[varied].levels if varied in COVARIATES else {}
    quantity = QUANTITIES.get(varied, Quantity(varied, "", "", 1.0, 2))
    table = measured.table
    values = table[varied].map(levels) if levels else quantity.shown(table[varied])
    table = table.assign(value=values.astype(float)).sort_values("value", kind="stable")
    seeds = [part for _, part in table.groupby("seed", sort=False)] if "seed" in table else [table]
    first = seeds[0]
    brains = []
    for _, row in first.iloc[_spread(len(first), STRIP)].iterrows():
        asked = row[varied] if levels else quantity.text(row[varied])
        beyond = known is not None and not known[0] <= row[varied] <= known[1]
        lines = [f"asked {asked}" + (" *" if beyond else "")]
        if f"measured_{varied}" in row:
            lines.append(f"measured {quantity.text(row[f'measured_{varied}'])}")
        brains.append(figures.Brain(measured.cohort.read(row.participant_id), tuple(lines)))

    def line(name: str, other: Quantity) -> figures.Line:
        requested = other.shown(first[name].to_numpy(float))
        asked = "not requested" if np.isnan(requested).all() else "kept fixed"
        return figures.Line(
            f"{other.title}: {'varied' if name == varied else asked}",
            f"{quantity.title.lower()} requested"
            + (f" ({quantity.display})" * bool(quantity.display)),
            f"{other.title.lower()} ({other.display})",
            [
                (part.value.to_numpy(), other.shown(part[f"measured_{name}"].to_numpy()))
                for part in seeds
            ],
            (first.value.to_numpy(), requested),
            tuple(other.shown(np.percentile(real[f"measured_{name}"], [0, 100]))),
            {code: level for level, code in levels.items()} or None,
            None if known is None else tuple(quantity.shown(np.array(known))),
        )

    there = [name for name in QUANTITIES if f"measured_{name}" in table]
    order = sorted(there, key=lambda name: name != varied)
    figures.sweep(
        path, measured.cohort.grid, brains, [line(name, QUANTITIES[name]) for name in order]
    )


def neighbours(
    path: Path,
    synthetic: Measured,
    train: Measured,
    closest: Sequence[tuple[int, int, float]],
) -> None:
    """The synthetic brains that lie closest to a training brain, above that brain.

    closest: rows of both and how alike they are.
    """
    rows: dict[str, list[figures.Brain]] = {"Synthetic": [], "Closest training brain": []}
    for s, t, likeness in closest:
        made, person = synthetic.table.loc[s], train.table.loc[t]
        rows["Synthetic"].append(
            figures.Brain(
                synthetic.cohort.read(made.participant_id),
                (made.participant_id, f"likeness {likeness:.3f}"),
            )
        )
        rows["Closest training brain"].append(
            figures.Brain(train.cohort.read(person.participant_id), (person.participant_id,))
        )
    figures.montage(path, train.cohort.grid, rows)


def utility(path: Path, networks: Sequence[dict[str, Any]]) -> None:
    """Error on real brains against the number of brains that an age network learnt from."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for network in networks:
        if network["real_rows"] + network["synthetic_rows"]:
            lines.setdefault(network["source"], []).append(network)
    figures.errors(
        path,
        "training brains",
        "mean absolute error on real brains (years)",
        {
            source: sorted(
                (n["real_rows"] + n["synthetic_rows"], n["mae"], n["mae_low"], n["mae_high"])
                for n in found
            )
            for source, found in lines.items()
        },
    )


def viewer(path: Path, cohort: Cohort, participant_id: str, title: str) -> None:
    """A page that shows one brain in three planes that follow the mouse (nilearn)."""
    image = nib.Nifti1Image(cohort.read(participant_id), cohort.grid.affine)
    view = view_img(
        image,
        bg_img=False,
        cmap="gray",
        vmin=0,
        vmax=1,
        symmetric_cmap=False,
        colorbar=False,
        threshold=None,
        black_bg=True,
        title=title,
        resampling_interpolation="nearest",
    )
    view.save_as_html(path)


def _pairs_to_show(
    real: pd.DataFrame, synthetic: pd.DataFrame, count: int
) -> tuple[list[tuple[int, int]], bool]:
    """Row numbers (real, synthetic) for the montage, spread over age; whether they match."""
    first: dict[int, int] = {}  # the first brain that was asked for like each real one
    for made, person in asked_like(real, synthetic).items():
        first.setdefault(person, made)
    pairs = list(first.items())
    matched = bool(pairs)
    if not matched:
        pairs = [(row, row) for row in range(min(len(real), len(synthetic)))]
    pairs.sort(key=lambda pair: (np.nan_to_num(real.age[pair[0]], nan=np.inf), pair[0]))
    return [pairs[i] for i in _spread(len(pairs), count)], matched


def _spread(n: int, count: int) -> np.ndarray:
    """At most `count` numbers from 0 to n - 1, evenly apart."""
    return np.linspace(0, n - 1, min(count, n)).round().astype(int)


def _caption(row: pd.Series, word: str) -> tuple[str, ...]:
    age = "" if pd.isna(row.age) else f"{row.age:.0f} years"
    sex = "" if pd.isna(row.sex) else f"{row.sex}"
    lines = [", ".join(part for part in (age, sex) if part)]
    ventricles = QUANTITIES["ventricular_volume"]
    if "measured_ventricular_volume" in row:
        lines.append("ventricles")
        if not pd.isna(row.ventricular_volume):
            lines.append(f"{word} {ventricles.text(row.ventricular_volume)}")
        lines.append(f"measured {ventricles.text(row.measured_ventricular_volume)}")
    return tuple(line for line in lines if line)
