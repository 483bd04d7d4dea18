"""What is asked for: one row of covariates and a seed for each brain to be drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brain_ldm.cohorts.covariates import COVARIATES, CovariateEncoder, numbers
from brain_ldm.errors import InputError
from brain_ldm.sampling.config import SampleConfig


def requested_rows(config: SampleConfig, encoder: CovariateEncoder) -> pd.DataFrame:
    """Return participant_id, seed and the model's covariates in real units, a row a brain.

    A row's seed follows from `config.seed` and its number alone; the steps of a sweep share one.

    Raises:
        InputError: the request is contradictory or asks for what the model does not know.
    """
    if not isinstance(config.ranges, dict | None):
        raise InputError(
            f"ranges: {config.ranges!r}; give a value or [low, high] by covariate, "
            "e.g. 'ranges={age: [60, 70], sex: F}'"
        )
    if config.table is not None:
        rows = _from_table(config, encoder)
    elif config.n is None or config.n < 1:
        raise InputError("say which brains: table=… or n=… (at least 1)")
    elif config.noises < 1 or (config.noises > 1 and config.sweep is None):
        raise InputError(f"noises is {config.noises}; it is for sweeps, and at least 1")
    elif config.sweep is not None:
        rows = _sweep(config, encoder)
    else:
        rows = _from_ranges(config, encoder)
    for name in encoder.names:
        if name not in rows or name not in _asked(config, encoder):
            rows[name] = None
    rows = _numbered(rows, config)
    encoder.encode(rows)  # complains about unknown codes and values out of reach
    return rows


def unconditional_rows(config: SampleConfig) -> pd.DataFrame:
    """Return participant_id and seed, a row a brain, for a model that knows no covariates.

    Raises:
        InputError: the request is for anything but a number of brains.
    """
    for name in ("table", "split", "sweep", "ranges", "covariates"):
        if getattr(config, name):
            raise InputError(f"{name}: {config.model} knows no covariates; leave {name} out")
    if config.guidance != 1:
        raise InputError(
            f"guidance is {config.guidance:g}: {config.model} is a GAN's generator and has none; "
            "leave guidance out"
        )
    if config.n is None or config.n < 1:
        raise InputError("say how many brains: n=… (at least 1)")
    return _numbered(pd.DataFrame(index=range(config.n)), config)


def _numbered(rows: pd.DataFrame, config: SampleConfig) -> pd.DataFrame:
    """Return rows with their participant_id and seed."""
    seeds = np.random.SeedSequence(config.seed).generate_state(len(rows), np.uint64) >> 1
    rows["seed"] = seeds if config.sweep is None else np.repeat(seeds[: config.noises], config.n)
    rows.insert(0, "participant_id", [f"sub-{config.seed:03d}{i:06d}" for i in range(len(rows))])
    return rows


def _asked(config: SampleConfig, encoder: CovariateEncoder) -> list[str]:
    asked = encoder.names if config.covariates is None else config.covariates
    for name in (*asked, *(config.ranges or {}), *([config.sweep] if config.sweep else [])):
        if name not in encoder.names:
            raise InputError(
                f"{config.model}: knows no covariate '{name}', only {', '.join(encoder.names)}"
            )
    return asked


def _from_table(config: SampleConfig, encoder: CovariateEncoder) -> pd.DataFrame:
    if config.sweep is not None or config.ranges:
        raise InputError("give table=…, or n=… with ranges or a sweep, not both")
    path = Path(config.table)
    if not path.is_file():
        raise InputError(f"{path}: no such table")
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, na_values=["n/a", ""], keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable table ({error})") from None
    if config.split is not None:
        if "split" not in table:
            raise InputError(f"{path}: no column split, so split={config.split} finds nothing")
        table = table[table["split"] == config.split]
    table = table.head(config.n) if config.n is not None else table
    if table.empty:
        raise InputError(f"{path}: no rows" + (f" of split {config.split}" if config.split else ""))
    table = table.reset_index(drop=True)
    try:
        found = {
            name: table[name]
            if name in COVARIATES and COVARIATES[name].levels
            else numbers(table, name)
            for name in dict.fromkeys([*COVARIATES, *encoder.names])
            if name in table
        }
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    rows = pd.DataFrame(found, index=table.index)
    if "participant_id" in table:
        rows["source_id"] = table["participant_id"]
    return rows


def _limits(config: SampleConfig, encoder: CovariateEncoder, name: str) -> tuple[Any, Any]:
    """Return the lowest and highest value of a covariate, in its unit or as a code."""
    levels = list(COVARIATES[name].levels) if name in COVARIATES else []
    index = encoder.names.index(name)
    default = (levels[0], levels[-1]) if levels else (encoder.low[index], encoder.high[index])
    given = (config.ranges or {}).get(name, default)
    low, high = given if isinstance(given, list | tuple) and len(given) == 2 else (given, given)
    if levels:
        wrong = [code for code in (low, high) if code not in levels]
    else:
        wrong = [v for v in (low, high) if isinstance(v, bool) or not isinstance(v, int | float)]
    if wrong:
        expected = " or ".join(levels) if levels else "a number, or [low, high]"
        raise InputError(f"ranges.{name}: {given!r}; give {expected}")
    return low, high


def _from_ranges(config: SampleConfig, encoder: CovariateEncoder) -> pd.DataFrame:
    columns = {}
    random = np.random.default_rng(np.random.SeedSequence([config.seed, config.n]))
    for name in encoder.names:
        low, high = _limits(config, encoder, name)
        share = random.random(config.n)
        if isinstance(low, str):
            columns[name] = np.where(share < 0.5, low, high)
        else:
            columns[name] = low + (high - low) * share
    return pd.DataFrame(columns, index=range(config.n))


def _sweep(config: SampleConfig, encoder: CovariateEncoder) -> pd.DataFrame:
    columns = {}
    for name in encoder.names:
        low, high = _limits(config, encoder, name)
        if isinstance(low, str):
            if name == config.sweep:
                raise InputError(f"sweep={name}: a sweep needs a covariate that is a number")
            columns[name] = [low] * config.n
        elif name == config.sweep:
            columns[name] = np.linspace(low, high, config.n)
        else:
            columns[name] = np.full(config.n, (low + high) / 2)
    return pd.concat([pd.DataFrame(columns)] * config.noises, ignore_index=True)
