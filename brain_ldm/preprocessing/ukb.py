"""Scans of UK Biobank: bulk field 20252, a zip a scan, and a table of fields."""

import re
from collections.abc import Iterator
from pathlib import Path

from brain_ldm.errors import InputError
from brain_ldm.preprocessing.config import PreprocessConfig
from brain_ldm.preprocessing.found import Finding, Found, Lookup, files, only_table
from brain_ldm.preprocessing.tables import Table, key, missing_column, read_header, read_rows

MEMBER = "T1/T1.nii.gz"
ZIP = re.compile(r"(\d+)_20252_(\d+)_0\.zip")
# P. Sex is asked once; the others belong to a visit.
FIELDS = {"sex": 31, "age": 21003, "ventricular_volume": 25004, "brain_volume": 25009}
DESCRIPTIONS = {
    "ventricular_volume": {
        "Description": "Volume of ventricular cerebrospinal fluid (UK Biobank field 25004)",
        "Units": "mm3",
    },
    "brain_volume": {
        "Description": "Volume of grey and white matter, normalised for head size and so not a "
        "physical volume (UK Biobank field 25009)",
        "Units": "mm3",
    },
}
SEXES = {"0": "F", "1": "M"}  # UK Biobank's data coding 9
IDS = ("eid", "f.eid", "participant.eid")
# A field's column as ukbconv writes it for CSV, for R, and as the research analysis platform does.
SPELLINGS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(\d+)-(\d+)\.(\d+)",
        r"f\.(\d+)\.(\d+)\.(\d+)",
        r"(?:participant\.)?p(\d+)(?:_i(\d+))?(?:_a(\d+))?",
    )
)


def zips(source: Path) -> Iterator[Path]:
    """`<eid>_20252_<instance>_0.zip` anywhere below a folder."""
    return (path for path in files(source) if ZIP.fullmatch(path.name))


def find_ukb(source: Path, config: PreprocessConfig) -> Finding:
    """Each zip, with its participant's row and the columns of its own instance.

    Raises:
        InputError: the table has no eid, or not the columns that are given.
    """
    path = Path(config.table) if config.table else only_table(source)
    header, _ = read_header(path)
    eid = config.columns.get("participant_id") or next((n for n in IDS if n in header), None)
    if eid not in header:
        raise missing_column(path, header, f"{eid or 'eid'} (participant_id)", eid or "eid")
    found = [(file, *ZIP.fullmatch(file.name).groups()) for file in zips(source)]
    instances = sorted({instance for _, _, instance in found})
    columns = {i: _columns_at(path, header, config.columns, int(i)) for i in instances}
    participants = {key(participant) for _, participant, _ in found}
    wanted = {eid, *(name for at in columns.values() for name in at.values())}
    rows, count = read_rows(path, wanted, lambda cells: key(cells[eid]) in participants)
    table = Table(path, rows, count, {"participant_id": eid})
    scans = [
        Found(
            file,
            participant,
            (("ses", instance),),
            MEMBER,
            [Lookup(table, table.find(participant), columns[instance])],
        )
        for file, participant, instance in found
    ]
    notes = [
        f"{path.name} has no field {field} ({ours}) at instance {instance}"
        for instance in instances
        for ours, field in FIELDS.items()
        if ours not in columns[instance]
    ]
    own = {ours: DESCRIPTIONS[ours] for ours in DESCRIPTIONS if ours not in config.columns}
    return Finding(scans, table, notes, own)


def _columns_at(
    path: Path, header: list[str], given: dict[str, str], instance: int
) -> dict[str, str]:
    """The table's name of each column of ours, for scans of one instance."""
    places: dict[tuple[int, int | None], str] = {}
    for name in header:
        match = next(filter(None, (s.fullmatch(name) for s in SPELLINGS)), None)
        if match and int(match[3] or 0) == 0:
            at = None if match[2] is None else int(match[2])
            places.setdefault((int(match[1]), at), name)

    def column(field: int) -> str | None:
        at = 0 if field == FIELDS["sex"] else instance
        return places.get((field, at)) or places.get((field, None))

    found = {
        ours: column(field)
        for ours, field in FIELDS.items()
        if ours not in given and column(field) is not None
    }
    for ours, theirs in given.items():
        if ours == "participant_id":
            continue
        if theirs in header:
            found[ours] = theirs
        elif not theirs.isdigit():
            raise missing_column(path, header, f"{theirs} (columns.{ours})", theirs)
        elif not any(field == int(theirs) for field, _ in places):
            raise InputError(f"{path}: no column of field {theirs} (columns.{ours})")
        elif column(int(theirs)):
            found[ours] = column(int(theirs))
    return found
