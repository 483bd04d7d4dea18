"""Columns put into a cohort's participants.tsv, while all others stay as they are to the byte."""

import csv
import io
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from brain_ldm.cohorts.files import read_json, write_json
from brain_ldm.errors import InputError

MISSING = "n/a"


@dataclass(frozen=True)
class Participants:
    """participants.tsv and participants.json as they stand.

    Attributes:
        root: folder of the cohort.
        text: of participants.tsv, with its own line ends.
        frame: what it says, a row a participant, as text; missing is NaN.
        columns: participants.json.
    """

    root: Path
    text: str
    frame: pd.DataFrame
    columns: dict[str, dict]

    def numbers(self, column: str) -> pd.Series:
        """A column as float64, NaN where it is missing or no number, or the column is not there."""
        if column not in self.frame:
            return pd.Series(float("nan"), self.frame.index)
        return pd.to_numeric(self.frame[column], errors="coerce")


def read_participants(root: Path) -> Participants:
    """Read the tables of a cohort that `open_cohort` has checked."""
    data = (root / "participants.tsv").read_bytes()
    described = root / "participants.json"
    columns = read_json(described) if described.exists() else {}
    return Participants(root, data.decode("utf-8"), _parsed(data), columns)


def put(
    before: Participants, fields: dict[str, list[str]], columns: dict[str, dict]
) -> Participants:
    """Return the tables with columns put into them; nothing is written.

    Args:
        before: the tables.
        fields: by column, a text a participant, in the table's order. A column that is there is
            replaced where it stands, others are appended.
        columns: descriptions for participants.json.

    Raises:
        InputError: fields of the table cannot be told apart by its tabs and lines alone.
    """
    text = _with_columns(before.text, fields)
    try:
        frame = _parsed(text.encode())
    except ValueError:  # as pandas calls it
        frame = before.frame.head(0)
    kept = [name for name in before.frame.columns if name not in fields]
    same = (
        len(frame) == len(before.frame)
        and all(before.frame[name].equals(frame[name]) for name in kept)
        and all(frame[name].fillna(MISSING).tolist() == new for name, new in fields.items())
    )
    if not same:
        raise InputError(
            f"{before.root / 'participants.tsv'}: a field in quotes holds a tab or a line break; "
            "write it without"
        )
    return Participants(before.root, text, frame, {**before.columns, **columns})


def write(after: Participants) -> None:
    """Write both tables, each whole or not at all: a temporary file, read back and renamed."""
    path, data = after.root / "participants.tsv", after.text.encode()
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}_{path.name}")
    try:
        temporary.write_bytes(data)
        if temporary.read_bytes() != data:
            raise OSError(0, "reading back gave other bytes; is the disk full?")
        shutil.copymode(path, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    # Last: what it says of an instrument is true then.
    write_json(after.root / "participants.json", after.columns)


def _parsed(data: bytes) -> pd.DataFrame:
    return pd.read_csv(
        io.BytesIO(data), sep="\t", dtype=str, na_values=[MISSING, ""], keep_default_na=False
    )


def _with_columns(text: str, fields: dict[str, list[str]]) -> str:
    lines = list(io.StringIO(text, newline=""))  # with their ends, whatever these are
    filled = [number for number, line in enumerate(lines) if line.strip("\r\n")]
    header = next(csv.reader([lines[filled[0]].rstrip("\r\n").lstrip("\ufeff")], delimiter="\t"))
    position = {name: header.index(name) if name in header else None for name in fields}
    for row, number in enumerate(filled):
        body = lines[number].rstrip("\r\n")
        end = lines[number][len(body) :]
        cells = body.split("\t")
        cells += [MISSING] * (len(header) - len(cells))
        for name, place in position.items():
            cell = name if row == 0 else fields[name][row - 1] if row <= len(fields[name]) else ""
            if place is None:
                cells.append(cell)
            else:
                cells[place] = cell
        lines[number] = "\t".join(cells) + end
    return "".join(lines)
