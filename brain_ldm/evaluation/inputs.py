"""The cohorts that are held against each other: their names, and whether they fit together."""

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from brain_ldm.cohorts.cohort import SPLITS, Cohort, open_cohort
from brain_ldm.cohorts.covariates import COVARIATES
from brain_ldm.errors import InputError
from brain_ldm.evaluation.config import EvaluateConfig
from brain_ldm.evaluation.gradient_similarity import check_grid
from brain_ldm.evaluation.instruments import Instruments
from brain_ldm.evaluation.similarity import scale_weights

GENERATOR = "brain_ldm sample"
COUNTS = (
    *("pairs", "bootstrap", "resamples", "compared", "neighbours", "permutations"),
    *("shown", "batch_size"),
)


@dataclass(frozen=True)
class Inputs:
    """Opened cohorts.

    Attributes:
        real: the real one.
        synthetic: by the names that the report calls them.
        titles: the row of the table that each synthetic cohort belongs to.
        sweeps: by name.
    """

    real: Cohort
    synthetic: dict[str, Cohort]
    titles: dict[str, str]
    sweeps: dict[str, Cohort]


def open_inputs(config: EvaluateConfig) -> Inputs:
    """Open the cohorts that `config` names.

    Raises:
        InputError: one is missing or damaged, or given twice.
    """
    folders = [folder for group in config.synthetic.values() for folder in group]
    names = named(folders)
    titles = {}
    for title, group in config.synthetic.items():
        for folder in group:
            name = next(n for n, f in names.items() if f == folder)
            titles[name] = name if title is None else str(title)
    return Inputs(
        open_cohort(config.real),
        {name: open_cohort(folder) for name, folder in names.items()},
        titles,
        {name: open_cohort(folder) for name, folder in named(config.sweeps).items()},
    )


def named(folders: list[str]) -> dict[str, str]:
    """Name each folder after its last part, or its last two where that tells them not apart."""
    paths = [Path(folder).resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        twice = next(f for f, p in zip(folders, paths, strict=True) if paths.count(p) > 1)
        raise InputError(f"{twice}: this cohort is given twice")
    last = [path.name for path in paths]
    names = [
        path.name if last.count(path.name) == 1 else f"{path.parent.name}-{path.name}"
        for path in paths
    ]
    if len(set(names)) < len(names):
        raise InputError(f"cohorts named alike: {', '.join(folders)}; rename one of the folders")
    return dict(zip(names, folders, strict=True))


def swept(cohort: Cohort) -> str | None:
    """The covariate that a sweep varies; None for a cohort that is no sweep."""
    return _made_by(cohort).get("Sweep")


def asked_like(real: pd.DataFrame, synthetic: pd.DataFrame) -> dict[int, int]:
    """The row of `real` whose covariates a synthetic brain was asked for with, by its own row.

    Found by `source_id` and by the covariates, since two sites may number their people alike. A
    brain that was asked for with nothing has no such row.
    """
    if "source_id" not in synthetic:
        return {}
    rows = {participant: row for row, participant in enumerate(real["participant_id"])}
    covariates = [name for name in COVARIATES if name in real and name in synthetic]
    found = {}
    for number, brain in enumerate(synthetic.to_dict("records")):
        row = rows.get(brain["source_id"])
        asked = [name for name in covariates if not pd.isna(brain[name])]
        if row is not None and asked:
            person = real.iloc[row]
            if all(_same(person[name], brain[name]) for name in asked):
                found[number] = row
    return found


def _same(a: float | str, b: float | str) -> bool:
    return a == b if isinstance(b, str) else math.isclose(a, b, rel_tol=1e-6)


def check(config: EvaluateConfig, inputs: Inputs) -> None:
    """Refuse options and cohorts that do not fit together, before anything is opened or measured.

    Raises:
        InputError: with what can still be computed, where some of it fits.
    """
    for key in COUNTS:
        value = getattr(config, key)
        if value is not None and value < 1:
            raise InputError(f"{key} is {value}; give at least 1")
    if config.seed < 0:
        raise InputError(f"seed is {config.seed}; give 0 or more")
    real = inputs.real
    if config.split not in SPLITS:
        raise InputError(f"split is {config.split!r}; give {', '.join(SPLITS)}")
    if real.rows(config.split).empty:
        raise InputError(f"{real.root}/participants.tsv: no row has split {config.split}")
    if _made_by(real).get("Name") == GENERATOR:
        others = [c for c in inputs.synthetic.values() if _made_by(c).get("Name") != GENERATOR]
        swap = f": is it the synthetic one, and {others[0].root} the real one?" if others else ""
        raise InputError(f"real={config.real}: a synthetic cohort, made by {GENERATOR}{swap}")
    for name, cohort in {**inputs.synthetic, **inputs.sweeps}.items():
        if name.lower() == "real":
            raise InputError(
                f"{cohort.root}: would be taken for the real cohort by its name; rename the folder"
            )
    scale_weights(real.grid.shape)
    check_grid(real.grid.shape)
    cohorts = {**inputs.synthetic, **inputs.sweeps}
    fitting = [c for c in cohorts.values() if c.grid.same_as(real.grid)]
    for cohort in cohorts.values():
        if not cohort.grid.same_as(real.grid):
            rest = ", ".join(str(c.root) for c in fitting)
            raise InputError(
                f"{cohort.root}: {cohort.grid}, but the real cohort {real.root} has {real.grid}; "
                f"give cohorts of one grid (these have it: {rest or 'none of them'})"
            )
    for cohort in inputs.synthetic.values():
        if swept(cohort):
            raise InputError(f"{cohort.root}: a sweep of {swept(cohort)}; give it as sweeps=[…]")
    for cohort in inputs.sweeps.values():
        varied = swept(cohort)
        if varied is None:
            raise InputError(f"{cohort.root}: not a sweep; give it as synthetic=…")
        if varied not in cohort.table.columns or cohort.table[varied].isna().any():
            raise InputError(f"{cohort.root}/participants.tsv: a sweep needs {varied} in every row")


def check_networks(config: EvaluateConfig, real: Cohort, instruments: Instruments) -> None:
    """Refuse networks that work on another grid.

    Raises:
        InputError: with the first of them.
    """
    for name, model in instruments.named().items():
        if not model.grid.same_as(real.grid):
            raise InputError(
                f"{real.root}: {real.grid}, but {name} ({getattr(config, name)}) works on "
                f"{model.grid}; give a cohort and models of one grid, or {name}=null"
            )


def _made_by(cohort: Cohort) -> dict:
    return (cohort.description.get("GeneratedBy") or [{}])[0]
