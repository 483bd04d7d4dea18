"""Raw scans and their covariates, in whatever layout they come."""

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from brain_ldm.cohorts.covariates import COVARIATES, PLAUSIBLE
from brain_ldm.errors import InputError
from brain_ldm.preprocessing.bids import find_bids, t1w_files
from brain_ldm.preprocessing.config import Layout, PreprocessConfig, Scans
from brain_ldm.preprocessing.folder import find_folder, nifti_files
from brain_ldm.preprocessing.found import Finding, Found, natural
from brain_ldm.preprocessing.scan import Scan
from brain_ldm.preprocessing.tables import (
    PLACES,
    Contradiction,
    Table,
    check_columns,
    sex_codes,
    values,
)
from brain_ldm.preprocessing.ukb import SEXES, find_ukb, zips

FINDERS = {Layout.bids: find_bids, Layout.ukb: find_ukb, Layout.folder: find_folder}


@dataclass(frozen=True)
class Sources:
    """What lies in a source.

    Attributes:
        scans: in the order of their ids.
        layout: of the source.
        notes: lines to tell the user.
        extra_columns: BIDS descriptions of the cohort's columns beyond its own.
    """

    scans: list[Scan]
    layout: Layout
    notes: list[str]
    extra_columns: dict[str, dict]


def find_scans(config: PreprocessConfig) -> Sources:
    """The scans that lie in `config.source`, each with its covariates.

    A scan's id is `sub-<subject>` and whatever else its name says, as `ses2run1`: it depends on the
    scan's own name alone, so that it stays when further scans arrive.

    Raises:
        InputError: no scan is found, options contradict, or the table cannot be read, is ambiguous
            or holds values that make no sense.
    """
    source = Path(config.source)
    if not source.is_dir():
        raise InputError(f"source={source}: no such folder")
    layout = config.layout or _layout(source)
    _check_options(config, layout)
    finding = FINDERS[layout](source, config)
    if not finding.scans:
        raise InputError(f"{source}: no scans of layout {layout.value}; {_EXPECTED[layout]}")
    found, notes = finding.scans, list(finding.notes)
    _check_ids(found, layout)
    if config.scans is Scans.first:
        first = _first(found)
        if len(first) < len(found):
            notes.append(f"{len(found) - len(first)} later scans are left out (scans=first)")
        found = first
    codes = {**SEXES, **sex_codes(config)} if layout is Layout.ukb else sex_codes(config)
    scans = sorted(_scans(found, finding.table, codes), key=lambda s: s.participant_id)
    if finding.table is not None:
        notes += _check_rows(finding, found, scans, layout)
    return Sources(scans, layout, notes, _extra_columns(config, finding, found))


_EXPECTED = {
    Layout.bids: "expected sub-*/[ses-*/]anat/*_T1w.nii.gz",
    Layout.ukb: "expected <eid>_20252_<instance>_0.zip",
    Layout.folder: "expected NIfTI files (.nii, .nii.gz)",
}


def _layout(source: Path) -> Layout:
    tests = {Layout.bids: t1w_files, Layout.ukb: zips, Layout.folder: nifti_files}
    for layout, files in tests.items():
        if next(iter(files(source)), None) is not None:
            return layout
    raise InputError(f"{source}: no scans; {'; or '.join(_EXPECTED.values())}")


def _check_options(config: PreprocessConfig, layout: Layout) -> None:
    if config.pattern is not None and layout is not Layout.folder:
        raise InputError(f"pattern: not for layout {layout.value}; leave it out, or layout=folder")
    wrong = {Layout.bids: ["file"], Layout.ukb: ["file", "session"]}.get(layout, [])
    for ours in config.columns:
        if ours in wrong:
            raise InputError(f"columns.{ours}: not for layout {layout.value}; leave it out")
    check_columns(config)


def _first(found: list[Found]) -> list[Found]:
    """The first scan of each subject: first session, then first run, then by name.

    One that a table has a row for goes before those that none has one for.
    """

    def order(scan: Found) -> tuple:
        entities = dict(scan.entities)
        return (
            not any(lookup.rows for lookup in scan.lookups),
            *(natural(entities.get(e, "")) for e in ("ses", "run")),
            natural(scan.path.name),
        )

    first: dict[str, Found] = {}
    for scan in found:
        if scan.subject not in first or order(scan) < order(first[scan.subject]):
            first[scan.subject] = scan
    return list(first.values())


def _label(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", text)


def _subject(scan: Found) -> str:
    return f"sub-{_label(scan.subject)}"


def _participant_id(scan: Found) -> str:
    return _subject(scan) + "".join(name + _label(value) for name, value in scan.entities)


def _check_ids(found: list[Found], layout: Layout) -> None:
    mend = {
        Layout.folder: "tell them apart with groups session or run of pattern, or leave one out",
        Layout.ukb: "remove one",
        Layout.bids: "remove one, or give their names an entity such as run-2",
    }[layout]
    by_id: dict[str, Found] = {}
    spelt: dict[str, str] = {}
    for scan in found:
        subject = _subject(scan)
        if subject == "sub-":
            raise InputError(f"{scan.path}: its id {scan.subject!r} has no letter or digit")
        if spelt.setdefault(subject, scan.subject) != scan.subject:
            raise InputError(
                f"{scan.path}: {scan.subject} and {spelt[subject]} would both be {subject}; "
                "give ids that differ in letters or digits"
            )
        other = by_id.setdefault(_participant_id(scan), scan)
        if other is not scan:
            raise InputError(
                f"{other.path} and {scan.path} would both be {_participant_id(scan)}; {mend}"
            )


def _scans(found: list[Found], table: Table | None, codes: dict[str, str | None]) -> list[Scan]:
    scans, contradictions = [], []
    for scan in found:
        row = {} if scan.session is None else {"session": scan.session}
        for lookup in scan.lookups:
            if not lookup.rows:
                continue
            try:
                row.update(values(lookup.table, lookup.rows, lookup.columns, codes))
            except Contradiction as error:
                contradictions.append((scan, lookup.table, error))
        problem = None
        if table is not None and not any(k.rows for k in scan.lookups if k.table is table):
            problem = f"no row in {table.path.name}"
            if table.by_session and scan.session is not None and table.find(scan.subject):
                problem += f" for session {scan.session}"
        row = {name: value for name, value in row.items() if value is not None}
        made = Scan(_participant_id(scan), _subject(scan), scan.path, scan.member, row)
        scans.append(replace(made, problem=problem))
    if contradictions:
        scan, where, error = contradictions[0]
        more = len({(t.path, e.rows[0].number) for _, t, e in contradictions}) - 1
        raise InputError(
            f"{where.path}: {error}, both for {scan.path.name}"
            + (f" ({more} more such pairs)" if more else "")
            + "; leave one row, or tell sessions apart (columns.session, group session of pattern)"
        )
    return scans


def _check_rows(
    finding: Finding, found: list[Found], scans: list[Scan], layout: Layout
) -> list[str]:
    """Notes on how table and scans fit.

    Raises:
        InputError: they do not fit at all, or two subjects have one row.
    """
    table = finding.table
    whose: dict[int, str] = {}
    for scan in found:
        for row in (r for k in scan.lookups if k.table is table for r in k.rows):
            other = whose.setdefault(row.number, scan.subject)
            if other != scan.subject and "participant_id" in table.columns:
                raise InputError(
                    f"{table.path}: row {row.number} ({table.id_of(row)}) may be {other}'s or "
                    f"{scan.subject}'s; give ids that differ by more than zeros"
                )
    if not whose:
        there = [f"{r.cells[table.columns['participant_id']]!r}" for r in table.rows[:2]]
        raise InputError(
            f"{table.path}: none of its {table.count} rows belongs to a scan; scans are such as "
            f"{found[0].subject!r} ({found[0].path.name})"
            + (f", ids such as {' and '.join(there)}" if there else "")
            + f"; check {'pattern and ' * (layout is Layout.folder)}columns.participant_id"
        )
    notes = []
    lonely = sum(s.problem is not None for s in scans)
    if lonely:
        notes.append(f"{lonely} of {len(scans)} scans have no row in {table.path.name}")
    # Rows that belong to scans which scans=first leaves out have one all the same.
    used = {r.number for s in finding.scans for k in s.lookups if k.table is table for r in k.rows}
    if table.count > len(used):
        notes.append(f"{table.count - len(used)} rows of {table.path.name} have no scan")
    for name in ("age", "sex"):
        absent = sum(name not in s.row for s in scans if s.problem is None)
        if absent:
            notes.append(f"{absent} scans have no {name}")
    for name in ("ventricular_volume", "brain_volume"):
        low, high = PLAUSIBLE[name]
        odd = sum(not low <= s.row[name] <= high for s in scans if name in s.row)
        if odd:
            notes.append(f"{odd} scans have a {name} outside {low:,} to {high:,} mm³")
    return notes + _shared_ages(found)


def _shared_ages(found: list[Found]) -> list[str]:
    """A note where one age is all that is known of several sessions."""
    sessions = defaultdict(set)
    for scan in found:
        told = [k for k in scan.lookups if k.rows and "age" in k.columns]
        if scan.session is not None and told and not told[-1].table.by_session:
            sessions[scan.subject, told[-1].columns["age"]].add(scan.session)
    several = sum(len(s) > 1 for s in sessions.values())
    if not several:
        return []
    return [f"{several} subjects have one age for all their sessions: no table says it by session"]


def _extra_columns(config: PreprocessConfig, finding: Finding, found: list[Found]) -> dict:
    columns = {"subject": {"Description": "Person; all scans of one are in one split"}}
    if any(scan.session is not None for scan in found):
        columns["session"] = {"Description": "Session of the scan, as the source names it"}
    columns.update(finding.descriptions)
    for ours, theirs in config.columns.items():
        if ours not in COVARIATES and ours not in PLACES:
            columns[ours] = {"Description": f"Column {theirs} of {finding.table.path.name}"}
    return columns
