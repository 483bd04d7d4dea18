"""Rows that lie on disk: a table's, or those of a cohort whose brains are to be changed."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from brain_ldm.cohorts.cohort import people, read_tables
from brain_ldm.cohorts.covariates import COVARIATES, CovariateEncoder, numbers
from brain_ldm.cohorts.findings import refuse
from brain_ldm.errors import InputError
from brain_ldm.sampling.config import SampleConfig
from brain_ldm.sampling.ranges import limits


def chosen(
    table: pd.DataFrame, where: str | Path, split: str | None, n: int | None = None
) -> pd.DataFrame:
    """Return the rows of one split (None: all), the first `n` of them, numbered from 0.

    Raises:
        InputError: there are none; `where` says of what.
    """
    if split is not None:
        if "split" not in table:
            raise InputError(f"{where}: no column split, so split={split} finds nothing")
        table = table[table["split"] == split]
    if table.empty:
        raise InputError(f"{where}: no rows" + (f" of split {split}" if split else ""))
    return table.head(len(table) if n is None else n).reset_index(drop=True)


def cohort_table(
    root: str, need: Sequence[str], split: str | None, n: int | None = None
) -> pd.DataFrame:
    """Return rows of a cohort's participants.tsv; see `chosen`.

    Args:
        need: columns in which the cohort must have values.

    Raises:
        InputError: there is no such cohort, its table has an error, or there are no such rows.
    """
    _, table, findings = read_tables(Path(root), need)
    refuse(findings)
    return chosen(table, root, split, n)


def table_rows(config: SampleConfig, encoder: CovariateEncoder) -> pd.DataFrame:
    """Return the covariates in the rows of `config.table`, and their ids as source_id.

    Raises:
        InputError: it cannot be read, has no such rows, or a value in them is none.
    """
    path = Path(config.table)
    if not path.is_file():
        raise InputError(f"{path}: no such table")
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, na_values=["n/a", ""], keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable table ({error})") from None
    table = chosen(table, path, config.split, config.n)
    found = {}
    for name in dict.fromkeys([*COVARIATES, *encoder.names]):
        if name not in table:
            continue
        try:
            found[name] = numbers(table, name)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        if name in COVARIATES and COVARIATES[name].levels:
            found[name] = table[name]  # as codes
    rows = pd.DataFrame(found, index=table.index)
    if "participant_id" in table:
        rows["source_id"] = table["participant_id"]
    return rows


def source_hash(config: SampleConfig, encoder: CovariateEncoder) -> str | None:
    """Return the sha256 of what `config.table` or `config.population` holds; None of neither.

    Of the columns that brains depend on alone: `measure` may add others to a cohort meanwhile.
    """
    if config.table is not None:
        path = Path(config.table)
    elif config.population is not None:
        path = Path(config.population) / "participants.tsv"
    else:
        return None
    asked = encoder.names if config.covariates is None else config.covariates
    read = {"participant_id", "split", *asked}
    if config.table is not None:  # what the model does not know comes along
        read |= COVARIATES.keys() - set(encoder.names)
    table = pd.read_csv(
        path, sep="\t", dtype=str, keep_default_na=False, usecols=lambda name: name in read
    )
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()


def changed_rows(
    config: SampleConfig, encoder: CovariateEncoder, asked: Sequence[str]
) -> pd.DataFrame:
    """Return what becomes of the brains of the cohort `config.from_`.

    Returns:
        `asked` covariates after the change; source_id, the brain that each row changes; subject
        and split, which keep all brains of a person together.

    Raises:
        InputError: there are no such brains, or what is to change is not known of them.
    """
    table = cohort_table(config.from_, asked, config.split, config.n)
    rows = table[list(asked)].assign(
        source_id=table["participant_id"], subject=people(table), split=table["split"]
    )
    for name, amount in (config.change or {}).items():
        if name in (config.ranges or {}):
            raise InputError(f"change.{name}: ranges.{name} sets it already; give one of them")
        if name in COVARIATES and COVARIATES[name].levels:
            codes = " or ".join(COVARIATES[name].levels)
            raise InputError(f"change.{name}: {amount:g}; set it by ranges.{name}: {codes}")
        lacking = rows.loc[rows[name].isna(), "source_id"]
        if len(lacking):
            raise InputError(
                f"{config.from_}/participants.tsv: {lacking.iloc[0]} has no {name} to change "
                f"({len(lacking)} of {len(rows)} brains lack it); fill it in, or set it by "
                f"ranges.{name}"
            )
        rows[name] += amount
    for name, given in (config.ranges or {}).items():
        low, high = limits(config, encoder, name)
        if low != high:
            raise InputError(f"ranges.{name}: {given}; with from give one value")
        rows[name] = low
    return rows
