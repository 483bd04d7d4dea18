"""Parts of a cohort, and cohorts joined, for training: on disk nothing changes."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from brain_ldm.cohorts.cohort import Cohort, people
from brain_ldm.errors import InputError


def limited(cohort: Cohort, rows: int) -> Cohort:
    """Keep so many of the training rows, and all others.

    Which ones follows from the participants' ids alone, in an order of its own: of two sizes the
    larger holds all of the smaller, and neither is sorted by anything in the table.

    Raises:
        InputError: there are not so many.
    """
    train = cohort.table["split"] == "train"
    kept = _first(cohort, cohort.table[train], rows)
    table = cohort.table[~train | cohort.table.index.isin(kept.index)]
    return replace(cohort, table=table, selection=f"{cohort.selection}_{rows}_rows")


def joined(cohort: Cohort, others: Sequence[Cohort], rows: int | None = None) -> Cohort:
    """Add rows of other cohorts, whatever their split, to the training rows of one.

    Args:
        cohort: whose validation and test rows stay alone.
        others: cohorts on its grid.
        rows: of each other cohort, chosen as `limited` does; None for all.

    Raises:
        InputError: they have other voxels, too few rows, or a participant of the same id.
    """
    tables, guests, names = [cohort.table], dict(cohort.guests), [cohort.selection]
    taken = dict.fromkeys(cohort.table["participant_id"], cohort.root)
    for other in others:
        if not other.grid.same_as(cohort.grid):
            raise InputError(
                f"{other.root}: {other.grid}, but {cohort.root} has {cohort.grid}; "
                "cohorts that train one model need one grid"
            )
        table = other.table if rows is None else _first(other, other.table, rows)
        for pid in table["participant_id"]:
            if pid in taken:
                raise InputError(
                    f"{other.root}: {pid} is in {taken[pid]} too; sample with another seed"
                )
            taken[pid] = guests[pid] = other.root
        held_out = set(people(cohort.table[cohort.table["split"] != "train"]))
        both = sorted(held_out & set(people(table)))
        if both:
            raise InputError(
                f"{other.root}: {both[0]} is held out in {cohort.root}; leave that person out"
            )
        tables.append(table.assign(split="train"))
        names.append("_".join(other.root.parts[-2:]) + ("" if rows is None else f"_{rows}_rows"))
    table = pd.concat(tables, ignore_index=True)[[*cohort.table.columns]]
    return replace(cohort, table=table, guests=guests, selection="_with_".join(names))


def _first(cohort: Cohort, table: pd.DataFrame, rows: int) -> pd.DataFrame:
    """The first rows of `table` in the order of a hash of their ids, in the table's own order."""
    if not 0 <= rows <= len(table):
        raise InputError(f"{cohort.root}: {rows} of its {len(table)} training rows cannot be taken")
    order = table["participant_id"].map(_place)
    return table.loc[order.sort_values().index[:rows].sort_values()]


def _place(participant_id: str) -> bytes:
    return hashlib.sha256(f"order {participant_id}".encode()).digest()
