"""What is asked for: one row of covariates and a seed for each brain to be drawn."""

from typing import Any

import numpy as np
import pandas as pd

from brain_ldm.cohorts.covariates import COVARIATES, CovariateEncoder
from brain_ldm.errors import InputError
from brain_ldm.sampling.config import SampleConfig
from brain_ldm.sampling.population import population_rows
from brain_ldm.sampling.ranges import drawn, stepped
from brain_ldm.sampling.tables import changed_rows, table_rows

WAYS = ("table", "population", "grid", "sweep", "from")  # of saying which brains; else n alone
# By option, the ways that it goes with.
GOES_WITH = {
    "split": ("table", "population", "from"),
    "n": ("n", "table", "population", "sweep", "from"),
    "noises": ("sweep",),
    "ranges": ("n", "grid", "sweep", "from"),
    "change": ("from",),
}
# Options that are given by covariate: what their values are, and an example.
BY_COVARIATE = {
    "ranges": ((int, float, str, list), "{age: [60, 70], sex: F}"),
    "grid": ((int,), "{age: 5, sex: 2}"),
    "change": ((int, float), "{age: 10}"),
}


def requested_rows(config: SampleConfig, encoder: CovariateEncoder) -> pd.DataFrame:
    """Return participant_id, seed and the model's covariates in real units, a row a brain.

    A row's seed follows from `config.seed` and its number alone; the steps of a sweep share one.
    Rows of `config.from_` have none: their noise is that of a brain, which source_id names.

    Raises:
        InputError: the request is contradictory or asks for what the model does not know.
    """
    way = _way(config)
    asked = _asked(config, encoder)
    if way == "table":
        rows = table_rows(config, encoder)
    elif way == "population":
        rows = population_rows(config, encoder, asked)
    elif way == "grid":
        rows = stepped(config, encoder, config.grid)
    elif way == "sweep":
        sweep = stepped(config, encoder, {config.sweep: config.n})
        rows = pd.concat([sweep] * config.noises, ignore_index=True)
    elif way == "from":
        rows = changed_rows(config, encoder, asked)
    else:
        rows = drawn(config, encoder)
    for name in encoder.names:
        if name not in asked or name not in rows:
            rows[name] = None
    _check_values(rows, config, encoder)
    return _numbered(rows, config)


def unconditional_rows(config: SampleConfig) -> pd.DataFrame:
    """Return participant_id and seed, a row a brain, for a model that knows no covariates.

    Raises:
        InputError: the request is for anything but a number of brains.
    """
    for name in (*WAYS, "split", "ranges", "change", "covariates", "extrapolate"):
        if _option(config, name):
            raise InputError(f"{name}: {config.model} knows no covariates; leave {name} out")
    if config.noises != 1:
        raise InputError(f"noises is {config.noises}: it is for sweeps; leave noises out")
    if config.guidance != 1:
        raise InputError(
            f"guidance is {config.guidance:g}: {config.model} is a GAN's generator and has none; "
            "leave guidance out"
        )
    if config.rescale != 0:
        raise InputError(
            f"rescale is {config.rescale:g}: {config.model} is a GAN's generator and has no "
            "guidance; leave rescale out"
        )
    if config.n is None or config.n < 1:
        raise InputError("say how many brains: n=… (at least 1)")
    return _numbered(pd.DataFrame(index=range(config.n)), config)


def _option(config: SampleConfig, name: str) -> Any:
    return config.from_ if name == "from" else getattr(config, name)


def _way(config: SampleConfig) -> str:
    """Return the way in which the request says which brains, one of `WAYS`, or n."""
    given = [way for way in WAYS if _option(config, way) is not None]
    if len(given) > 1:
        ways = f"{', '.join(WAYS[:-1])} and {WAYS[-1]}"
        raise InputError(f"{given[0]} and {given[1]} both say which brains; give one of {ways}")
    way = given[0] if given else "n"
    for name in ("n", "noises"):
        if _option(config, name) is not None and _option(config, name) < 1:
            raise InputError(f"{name} is {_option(config, name)}; give at least 1")
    if config.n is None and way in ("n", "population", "sweep"):
        raise InputError(
            "say which brains: table=… or n=…" if way == "n" else f"{way}: say how many, n=…"
        )
    for name, ways in GOES_WITH.items():
        if way not in ways and _option(config, name) != getattr(SampleConfig, name):
            takers = " or ".join(taker for taker in ways if taker != name)
            raise InputError(f"{name} goes with {takers}, not with {way}; leave it out")
    for name, (kind, example) in BY_COVARIATE.items():
        given = _option(config, name)
        by_covariate = isinstance(given, dict) and all(type(v) in kind for v in given.values())
        if given is not None and not by_covariate:
            raise InputError(f"{name}: {given!r}; give it by covariate, e.g. '{name}={example}'")
    return way


def _asked(config: SampleConfig, encoder: CovariateEncoder) -> list[str]:
    """Return the covariates that the model shall be told."""
    asked = encoder.names if config.covariates is None else config.covariates
    sweep = [config.sweep] if config.sweep else []
    for name in (
        *asked,
        *(config.ranges or {}),
        *(config.grid or {}),
        *(config.change or {}),
        *sweep,
    ):
        if name not in encoder.names:
            raise InputError(
                f"{config.model}: knows no covariate '{name}', only {', '.join(encoder.names)}"
            )
        if name not in asked:
            raise InputError(f"{name}: covariates leaves it out; add it there")
    if config.sweep in COVARIATES and COVARIATES[config.sweep].levels:
        raise InputError(
            f"sweep={config.sweep}: a sweep needs a covariate that is a number; "
            f"grid={{{config.sweep}: {len(COVARIATES[config.sweep].levels)}}} takes each code"
        )
    return asked


def _check_values(rows: pd.DataFrame, config: SampleConfig, encoder: CovariateEncoder) -> None:
    """Refuse values that the model was not trained on, or cannot even extrapolate to."""
    named = rows.rename(columns={"source_id": "participant_id"})
    whose = config.table or config.from_
    outside = [] if config.extrapolate else encoder.check_range(named)
    if outside:
        row, name, value, low, high = outside[0]
        unit = encoder.units[encoder.names.index(name)]
        source = f" ({rows['source_id'][row]})" if "source_id" in rows else ""
        if name in (config.ranges or {}):
            where, mend = f"ranges.{name}", "stay within it"
        elif name in (config.change or {}):
            where, mend = f"change.{name}: {name} of row {row + 1}{source}", "change less"
        else:
            where, mend = f"{whose}: {name} of row {row + 1}{source}", "take such rows out"
        count = len({row for row, *_ in outside})
        raise InputError(
            f"{where} is {value:.10g} {unit}".rstrip()
            + f", outside the training range of {low:.10g} to {high:.10g} {unit}".rstrip()
            + f" ({count} of {len(rows)} rows are outside); {mend}, or give extrapolate=true"
        )
    try:
        encoder.encode(named)
    except InputError as error:
        raise InputError(f"{whose}: {error}" if whose else str(error)) from None


def _numbered(rows: pd.DataFrame, config: SampleConfig) -> pd.DataFrame:
    """Return rows with their participant_id and, unless they have noise of their own, seed."""
    if config.from_ is None:
        seeds = np.random.SeedSequence(config.seed).generate_state(len(rows), np.uint64) >> 1
        steps = config.n if config.sweep else 1
        rows["seed"] = np.repeat(seeds[: len(rows) // steps], steps)
    rows.insert(0, "participant_id", [f"sub-{config.seed:03d}{i:06d}" for i in range(len(rows))])
    return rows
