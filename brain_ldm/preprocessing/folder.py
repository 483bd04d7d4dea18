"""Scans in any folder, and a table."""

import re
from collections.abc import Iterator
from pathlib import Path

from brain_ldm.errors import InputError
from brain_ldm.preprocessing.bids import open_table
from brain_ldm.preprocessing.config import PreprocessConfig
from brain_ldm.preprocessing.found import NIFTI, Finding, Found, Lookup, files, only_table, stem
from brain_ldm.preprocessing.tables import PLACES, Row, Table

GROUPS = ("id", "subject", "session", "run")


def nifti_files(source: Path) -> Iterator[Path]:
    """NIfTI files anywhere below a folder."""
    return (path for path in files(source) if path.name.endswith(NIFTI))


def find_folder(source: Path, config: PreprocessConfig) -> Finding:
    """Each NIfTI file that the table's column `file` or the pattern names, or all.

    Raises:
        InputError: the pattern or the table cannot be used.
    """
    table = open_table(Path(config.table) if config.table else only_table(source), config.columns)
    columns = {ours: theirs for ours, theirs in table.columns.items() if ours not in PLACES}
    paths = list(nifti_files(source))
    if config.pattern is not None:
        named, notes = _by_pattern(source, paths, table, config.pattern)
    elif "file" in table.columns:
        named, notes = _by_file(source, paths, table)
    elif "participant_id" in table.columns:
        named, notes = [(path, *_by_name(path, table)) for path in paths], []
    scans = [
        Found(path, subject, tuple(entities), None, [Lookup(table, rows, columns)])
        for path, subject, entities, rows in named
    ]
    return Finding(scans, table, notes)


def _by_pattern(source: Path, paths: list[Path], table: Table, pattern: str) -> tuple[list, list]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(f"pattern: not a regular expression ({error})") from None
    unknown = [name for name in expression.groupindex if name not in GROUPS]
    if "id" not in expression.groupindex or unknown:
        raise InputError(
            f"pattern: {pattern!r}; give it a group (?P<id>…), and no others than "
            "subject, session and run"
        )
    if "participant_id" not in table.columns:
        raise InputError(f"{table.path}: pattern needs a column participant_id")
    named = []
    for path in paths:
        match = expression.search(path.relative_to(source).as_posix())
        if not match or not match["id"]:
            continue
        group = {name: text for name, text in match.groupdict().items() if text}
        short = {"session": "ses", "run": "run"}
        entities = [(short[name], group[name]) for name in short if name in group]
        rows = table.find(group["id"], group.get("session"))
        named.append((path, group.get("subject", group["id"]), entities, rows))
    if not named and paths:
        example = paths[0].relative_to(source).as_posix()
        raise InputError(f"pattern: {pattern!r} is in no file's path, such as {example}")
    left = len(paths) - len(named)
    return named, [f"{left} NIfTI files are not of the pattern"] if left else []


def _by_file(source: Path, paths: list[Path], table: Table) -> tuple[list, list]:
    """The table says which file a row is about: its path below the source, or its name."""
    by_path, by_name = {}, {}
    for path in paths:
        by_path[path.relative_to(source).as_posix()] = path
        by_name.setdefault(path.name, []).append(path)
    named: dict[Path, tuple[str, list, list[Row]]] = {}
    for row in table.rows:
        cell = row.cells[table.columns["file"]].strip()
        where = Path(cell)
        if where.is_absolute() and where.is_relative_to(source.absolute()):
            where = where.relative_to(source.absolute())
        there = by_name.get(cell, []) if where.as_posix() not in by_path else []
        if len(there) > 1:
            raise InputError(
                f"{table.path}: row {row.number}: {len(there)} files are called {cell}; "
                f"give the path below {source}"
            )
        path = by_path.get(where.as_posix()) or next(iter(there), None)
        if path is None:
            continue
        session = row.cells[table.columns["session"]].strip() if table.by_session else ""
        subject = table.id_of(row) if "participant_id" in table.columns else stem(path)
        named.setdefault(path, (subject, [("ses", session)] if session else [], []))[2].append(row)
    if paths and not named:
        example = paths[0].relative_to(source).as_posix()
        raise InputError(f"{table.path}: no row names a file there, such as {example}")
    left = len(paths) - len(named)
    notes = [f"{left} NIfTI files are in no row of {table.path.name}"] if left else []
    return [(path, *named[path]) for path in sorted(named)], notes


def _by_name(path: Path, table: Table) -> tuple[str, list, list[Row]]:
    """A file's name is a row's id, or begins with it; the longest such id counts."""
    name = stem(path)
    ends = [m.start() for m in re.finditer(r"[^A-Za-z0-9]", name)]
    for end in (len(name), *reversed(ends)):
        rows = table.find(name[:end]) if end else []
        if rows:
            return table.id_of(rows[0]), [], rows
    return name, [], []
