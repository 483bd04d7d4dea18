"""Scans of a BIDS data set."""

import re
from collections.abc import Iterator
from pathlib import Path

from brain_ldm.preprocessing.config import PreprocessConfig
from brain_ldm.preprocessing.found import Finding, Found, Lookup
from brain_ldm.preprocessing.tables import (
    PLACES,
    Table,
    missing_column,
    named_columns,
    read_header,
    read_rows,
)

# Subject, and the other entities between it and the suffix.
NAME = re.compile(r"sub-([^_]+)(.*)_T1w\.nii(?:\.gz)?")


def t1w_files(source: Path) -> Iterator[Path]:
    """`sub-*/[ses-*/]anat/*_T1w.nii[.gz]`; derivatives lie elsewhere."""
    for folder in ("sub-*/anat", "sub-*/ses-*/anat"):
        for path in source.glob(f"{folder}/sub-*_T1w.*"):
            if NAME.fullmatch(path.name):
                yield path


def find_bids(source: Path, config: PreprocessConfig) -> Finding:
    """Each T1w file, with its row of participants.tsv and of its participant's sessions file."""
    table, notes = None, []
    path = Path(config.table) if config.table else source / "participants.tsv"
    if config.table or config.columns or path.exists():
        table = open_table(path, config.columns)
    else:
        notes.append(f"{path} is not there: no covariates")
    sessions: dict[str, Table | None] = {}
    scans = []
    for file in sorted(t1w_files(source)):
        subject, rest = NAME.fullmatch(file.name).groups()
        entities = tuple(tuple(part.split("-", 1)) for part in rest.split("_") if "-" in part)
        session = dict(entities).get("ses")
        tables = [table]
        if session is not None:
            if subject not in sessions:
                sessions[subject] = _open_sessions(source, subject, config.columns)
            tables.append(sessions[subject])
        lookups = [_lookup(t, subject, session) for t in tables if t is not None]
        scans.append(Found(file, subject, entities, lookups=lookups))
    return Finding(scans, table, notes)


def open_table(path: Path, given: dict[str, str]) -> Table:
    """A table with a row a participant, or a participant's session.

    Raises:
        InputError: it cannot be read, or says nowhere whose a row is.
    """
    header, _ = read_header(path)
    columns = named_columns(path, header, given)
    if "participant_id" not in columns and "file" not in columns:
        raise missing_column(
            path, header, "participant_id; say which it is, columns={participant_id: NAME}", "id"
        )
    return Table(path, *read_rows(path, columns.values()), columns)


def _lookup(table: Table, participant: str, session: str | None) -> Lookup:
    columns = {ours: theirs for ours, theirs in table.columns.items() if ours not in PLACES}
    return Lookup(table, table.find(participant, session), columns)


def _open_sessions(source: Path, subject: str, given: dict[str, str]) -> Table | None:
    path = source / f"sub-{subject}" / f"sub-{subject}_sessions.tsv"
    if not path.exists():
        return None
    header, _ = read_header(path)
    there = {o: t for o, t in given.items() if t in header and o not in PLACES}
    columns = named_columns(path, header, {**there, "session": "session_id"})
    columns = {ours: theirs for ours, theirs in columns.items() if ours != "file"}
    rows, count = read_rows(path, columns.values())
    # All rows are this participant's, whatever else they say.
    for row in rows:
        row.cells["participant_id"] = subject
    return Table(path, rows, count, {**columns, "participant_id": "participant_id"})
