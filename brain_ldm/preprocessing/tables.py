"""Tables of participants, as studies hand them out: find a scan's rows, and read their values."""

import csv
import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from brain_ldm.cohorts.covariates import COVARIATES, PLAUSIBLE
from brain_ldm.cohorts.files import brief
from brain_ldm.errors import InputError
from brain_ldm.preprocessing.config import PreprocessConfig

MISSING = {"", "n/a", "na", "nan", "#n/a", "null", "none", "unknown", ".", "-"}
SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}
# Other spellings that are taken for ours where a table lacks ours.
SPELLINGS = {
    "session": ("session_id",),
    "age": ("age_at_scan", "age_at_session", "age_years"),
    "sex": ("gender",),
}
PLACES = ("participant_id", "session", "file")  # columns that say whose a row is
# Columns of the cohort that preprocess makes itself.
RESERVED = ("subject", "split", "source", "template_correlation")
CELLS_AT_ONCE = 5_000_000
MOST_BY_HAND = 500  # columns of a table that a person may have edited


@dataclass(frozen=True)
class Row:
    """A row of a table: its number from 1, below the header, and its texts by column."""

    number: int
    cells: dict[str, str]


@dataclass
class Table:
    """Some columns of a table.

    Attributes:
        path: of its file.
        rows: those that were kept.
        count: of all rows.
        columns: the table's name of each column of ours.
    """

    path: Path
    rows: list[Row]
    count: int
    columns: dict[str, str]
    _by_id: dict[str, list[Row]] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        name = self.columns.get("participant_id")
        for row in self.rows if name else ():
            self._by_id.setdefault(key(row.cells[name]), []).append(row)

    @property
    def by_session(self) -> bool:
        """Whether it says which session a row is about."""
        return "session" in self.columns

    def find(self, participant: str, session: str | None = None) -> list[Row]:
        """The rows of a participant, and of one session where the table has sessions.

        Ids agree if they are the same but for `sub-` and, where they are numbers, leading zeros;
        the very same spelling is preferred. A session may be the end of the table's, after `_` or
        `-`, as `d0129` of `OAS30001_MR_d0129`.
        """
        rows = self._by_id.get(key(participant), [])
        if len(rows) > 1:
            exact = [r for r in rows if self.id_of(r) == bare(participant)]
            rows = exact or rows
            spelt = sorted({self.id_of(r) for r in rows})
            if len(spelt) > 1:
                raise InputError(
                    f"{self.path}: {participant} may be {' or '.join(spelt)}; "
                    "give ids that differ by more than zeros"
                )
        if session is None or not self.by_session:
            return rows
        cells = [(row, row.cells[self.columns["session"]].strip()) for row in rows]
        same = [row for row, cell in cells if key(cell, "ses-") == key(session)]
        return same or [r for r, cell in cells if cell.endswith((f"_{session}", f"-{session}"))]

    def id_of(self, row: Row) -> str:
        """The row's id, without `sub-`."""
        return bare(row.cells[self.columns["participant_id"]])


def bare(participant: str) -> str:
    """An id without `sub-`."""
    return participant.strip().removeprefix("sub-")


def key(text: str, prefix: str = "sub-") -> str:
    """What two spellings of an id, session or code have in common."""
    text = text.strip().removeprefix(prefix)
    number = re.fullmatch(r"0*(\d+)(\.0*)?", text)
    return number[1] if number else text


def read_header(path: Path) -> tuple[list[str], str]:
    """The columns' names, and what separates them.

    Raises:
        InputError: there is no such file, or it is no text.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except FileNotFoundError:
        raise InputError(f"{path}: no such table") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if b"\0" in head:
        raise InputError(f"{path}: no text (Excel?); save it as CSV in UTF-8")
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        line = file.readline().rstrip("\n")
    if not line.strip():
        raise InputError(f"{path}: no header in its first line")
    unquoted = re.sub(r'"[^"]*"', "", line)
    separator = max(",\t;", key=unquoted.count)
    try:
        return [n.strip() for n in next(csv.reader([line], delimiter=separator))], separator
    except csv.Error as error:
        raise InputError(f"{path}: not a readable table ({error})") from None


def read_rows(
    path: Path, columns: Iterable[str], keep: Callable[[dict[str, str]], bool] | None = None
) -> tuple[list[Row], int]:
    """Some columns of a table, read piece by piece: tables may be larger than memory.

    Args:
        columns: names as in the header.
        keep: which rows to keep; None: all.

    Returns:
        The rows kept, and how many there are.

    Raises:
        InputError: the file is no table.
    """
    header, separator = read_header(path)
    wanted = sorted({header.index(name) for name in columns})
    names = [header[i] for i in wanted]
    # One column more than the header has: an unquoted comma, which shifts a row's values, shows.
    # Only of tables that programs wrote are some columns read alone, which drops what is beyond.
    wide = len(header) > MOST_BY_HAND
    rows, count = [], 0
    try:
        pieces = pd.read_csv(
            path,
            sep=separator,
            header=None,
            skiprows=1,
            names=range(len(header) + (not wide)),
            usecols=wanted if wide else None,
            dtype=str,
            na_filter=False,
            index_col=False,
            encoding="utf-8-sig",
            encoding_errors="replace",
            chunksize=max(1000, CELLS_AT_ONCE // len(header)),
        )
        for piece in pieces:
            if not wide and (piece[len(header)] != "").any():
                at = count + int((piece[len(header)] != "").argmax()) + 1
                raise InputError(
                    f"{path}: row {at} has more fields than the header; "
                    f"quote texts that hold {separator!r}"
                )
            for texts in piece[wanted].itertuples(index=False, name=None):
                count += 1
                cells = dict(zip(names, texts, strict=True))
                if keep is None or keep(cells):
                    rows.append(Row(count, cells))
    except pd.errors.EmptyDataError:
        return [], 0
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable table ({brief(error)})") from None
    return rows, count


def named_columns(path: Path, header: list[str], given: dict[str, str]) -> dict[str, str]:
    """The table's name of each column of ours: as given, else ours in the usual spellings.

    Raises:
        InputError: a name that is given is not there, or two columns may be ours.
    """
    found = {}
    for ours, theirs in given.items():
        if theirs not in header:
            raise missing_column(path, header, f"{theirs} (columns.{ours})", theirs)
        found[ours] = theirs
    lower = {}
    for name in header:
        lower.setdefault(name.lower(), name)
    for ours in (*PLACES, *COVARIATES):
        if ours in found or ours in header:
            found.setdefault(ours, ours)
            continue
        there = [lower[s] for s in (ours, *SPELLINGS.get(ours, ())) if s in lower]
        if len(there) > 1:
            raise InputError(
                f"{path}: {ours} may be {' or '.join(there)}; say which: "
                f"'columns={{{ours}: {there[0]}}}'"
            )
        if there:
            found[ours] = there[0]
    for theirs in found.values():
        if header.count(theirs) > 1:
            raise InputError(
                f"{path}: {header.count(theirs)} columns are called {theirs}; rename all but one"
            )
    return found


def missing_column(path: Path, header: list[str], what: str, wanted: str) -> InputError:
    """That a table lacks a column, with what is most like it."""
    near = difflib.get_close_matches(wanted, header, n=3) or header[:8]
    more = ", …" if len(near) < len(header) else ""
    return InputError(f"{path}: no column {what}; it has {', '.join(near)}{more}")


def check_columns(config: PreprocessConfig) -> None:
    """Check names in `columns` and codes in `sexes`.

    Raises:
        InputError: a name that cannot be a column of the cohort, or a code that means nothing.
    """
    for ours in config.columns:
        if ours in RESERVED or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", ours):
            raise InputError(
                f"columns.{ours}: "
                + ("preprocess makes this column" if ours in RESERVED else "not a column's name")
                + "; give another name of letters, digits and _"
            )
    sex_codes(config)


def sex_codes(config: PreprocessConfig) -> dict[str, str | None]:
    """F, M or None (missing) by code, in lower case."""
    codes: dict[str, str | None] = dict(SEXES)
    if config.sexes is None:
        return codes
    if not isinstance(config.sexes, dict):
        raise InputError(f"sexes: {config.sexes!r}; give what codes mean, 'sexes={{1: M, 2: F}}'")
    for code, meaning in config.sexes.items():
        text = str(meaning).strip().lower()
        if text not in SEXES and text not in MISSING:
            raise InputError(f"sexes.{code}: {meaning!r}; give F, M or n/a")
        codes[key(str(code)).lower()] = SEXES.get(text)
    return codes


def values(
    table: Table, rows: list[Row], columns: dict[str, str], sexes: dict[str, str | None]
) -> dict[str, Any]:
    """What rows of one scan say, in real units; missing values are None.

    Args:
        columns: the table's name of each column of ours to be read.

    Raises:
        InputError: naming row and column; what cannot be read, or a contradiction.
    """
    found: dict[str, Any] = {}
    for ours, theirs in columns.items():
        found[ours] = None
        for row in rows:
            try:
                value = read_value(ours, row.cells[theirs], sexes)
            except ValueError as error:
                whose = f" ({table.id_of(row)})" if "participant_id" in table.columns else ""
                raise InputError(
                    f"{table.path}: row {row.number}{whose}, column {theirs}: {error}"
                ) from None
            if value is None:
                continue
            if found[ours] not in (None, value):
                raise Contradiction(rows, theirs, found[ours], value)
            found[ours] = value
    return found


class Contradiction(Exception):
    """Two rows of one scan say different things."""

    def __init__(self, rows: list[Row], column: str, one: Any, other: Any):
        self.rows = rows
        numbers = " and ".join(str(r.number) for r in rows[:2])
        super().__init__(f"rows {numbers} say {one} and {other} in {column}")


def read_value(name: str, text: str, sexes: dict[str, str | None]) -> Any:
    """A cell's value in the unit of our column `name`; None where it is missing.

    Raises:
        ValueError: it cannot be read; how it should be.
    """
    text = text.strip()
    if name == "sex" and key(text).lower() in sexes:
        return sexes[key(text).lower()]
    if text.lower() in MISSING:
        return None
    if name == "sex":
        raise ValueError(
            f"{text!r} is no known sex; say what it means, 'sexes={{{text}: F}}' (or M, or n/a)"
        )
    try:
        number = float(text)
    except ValueError:
        if name in COVARIATES:
            unit = COVARIATES[name].unit
            raise ValueError(f"{text!r} is no number; give it in {_UNITS[unit]}, or n/a") from None
        return text
    if name == "age":  # a volume may be that of a rare brain; nobody's age is
        low, high = PLAUSIBLE[name]
        if not low <= number <= high:
            raise ValueError(f"{text} is not within {low} to {high} years; mend it, or give n/a")
    elif number != number or number in (float("inf"), -float("inf")):
        return None
    return int(number) if number.is_integer() and "." not in text else number


_UNITS = {"year": "years", "mm3": "mm³"}
