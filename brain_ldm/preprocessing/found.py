"""A scan as a source's layout names it, before its values are read and its id is made."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from brain_ldm.errors import InputError
from brain_ldm.preprocessing.tables import Row, Table

NIFTI = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Lookup:
    """Rows of a table that belong to a scan, and which of their columns to read."""

    table: Table
    rows: list[Row]
    columns: dict[str, str]


@dataclass(frozen=True)
class Found:
    """A file that is a scan.

    Attributes:
        path, member: where it lies.
        subject: whose it is, as the source says.
        entities: what else its name says, in order, as `(("ses", "01"), ("run", "2"))`.
        lookups: rows of tables; what a later one says counts.
    """

    path: Path
    subject: str
    entities: tuple[tuple[str, str], ...] = ()
    member: str | None = None
    lookups: list[Lookup] = field(default_factory=list)

    @property
    def session(self) -> str | None:
        """Its session, where its name says one."""
        return dict(self.entities).get("ses")


@dataclass(frozen=True)
class Finding:
    """All that a layout finds.

    Attributes:
        scans: in any order.
        table: whose rows they may have.
        notes: lines to tell the user.
        descriptions: of usual columns that mean something else in this layout.
    """

    scans: list[Found]
    table: Table | None
    notes: list[str] = field(default_factory=list)
    descriptions: dict[str, dict] = field(default_factory=dict)


def files(source: Path) -> Iterator[Path]:
    """All files below a folder in order, without hidden ones; links to folders are followed."""
    seen = set()
    for folder, below, names in os.walk(source, followlinks=True):
        # A link back to a folder above would lead round in circles.
        below[:] = sorted(b for b in below if not b.startswith("."))
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder) / name


def stem(path: Path) -> str:
    """A NIfTI file's name without its suffix."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def natural(text: str) -> list:
    """A key that sorts numbers within texts by their value."""
    return [(0, int(t), "") if t.isdigit() else (1, 0, t) for t in re.split(r"(\d+)", text) if t]


def only_table(source: Path) -> Path:
    """The only CSV or TSV that lies in a folder.

    Raises:
        InputError: there is none, or several.
    """
    tables = sorted(
        p
        for p in source.iterdir()
        if p.suffix.lower() in (".csv", ".tsv") and not p.name.startswith(".")
    )
    if len(tables) == 1:
        return tables[0]
    if not tables:
        raise InputError(
            f"{source}: no CSV or TSV lies there; say where the covariates are, table=FILE "
            "(a column of ids is enough)"
        )
    names = ", ".join(p.name for p in tables[:5])
    raise InputError(f"{source}: several tables lie there ({names}); say which, table=FILE")
