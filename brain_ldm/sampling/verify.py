"""A finished synthetic set held against its manifest: no model is needed, and nothing is changed.

What is wrong comes as findings, all at once.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from brain_ldm.cohorts.cohort import read_tables
from brain_ldm.cohorts.files import brief, read_json
from brain_ldm.cohorts.findings import Finding, refuse, show, write_findings
from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.cohorts.images import check_grids, common_grid, read_grid
from brain_ldm.errors import InputError
from brain_ldm.sampling.manifest import FIXED, MANIFEST, read_manifest
from brain_ldm.shards import parse_shard
from brain_ldm.workers import cores, each

FINDINGS = "findings.tsv"
REDRAW = "give the command again that drew this set: it draws what is missing"
REMOVE = "remove this file and give the command again that drew this set"
RESTORE = f"put it right, or remove its folder and {REDRAW}"


@dataclass(frozen=True)
class Listed:
    """A cohort of the set: its folder, its manifest and what it says it was made by."""

    root: Path
    table: pd.DataFrame
    made_by: dict[str, Any]


def verify(out: Path) -> None:
    """Check every file and row of a finished set, and print that all is well.

    Raises:
        InputError: the only finding, or how many there are; then all are shown as a table and
            written to `out`.
    """
    report = out / FINDINGS
    with suppress(OSError):
        report.unlink(missing_ok=True)  # of an earlier call
    cohorts, findings = open_listed(out)
    findings += _check_images(cohorts)
    for cohort in cohorts:
        findings += [*_check_tables(cohort), *_check_strays(cohort)]
    findings += _check_twins(cohorts)
    if len(findings) > 1:
        show(findings, out)
        with suppress(OSError):  # of a set that may not be written to, the table must do
            write_findings(findings, report)
        raise InputError(f"{len(findings)} findings in {out}: see the table above, all in {report}")
    refuse(findings)
    count = sum(len(cohort.table) for cohort in cohorts)
    print(f"{out}: {count} brains, every file as the manifest says")


def open_listed(out: Path) -> tuple[list[Listed], list[Finding]]:
    """Open the cohorts of a set, and tell of those that are not there or not finished.

    Raises:
        InputError: there is no set.
    """
    if not out.is_dir():
        raise InputError(f"{out}: no such folder")
    roots = sorted(out.glob("part-*"), key=lambda path: (len(path.name), path.name)) or [out]
    cohorts, findings, expected = [], [], set()
    for root in roots:
        path = root / "dataset_description.json"
        try:
            description, table = read_json(path), read_manifest(root)
        except InputError as error:
            begun = not path.exists() and (root / ".unfinished").exists()
            what = f"no finished cohort ({brief(error)})"
            findings.append(Finding(str(root), what, REDRAW if begun else RESTORE))
            continue
        try:
            made_by = description["GeneratedBy"][0]
            part = made_by.get("Part")
            count = 0 if part is None else parse_shard(part)[1]  # of parts
        except (InputError, LookupError, TypeError, AttributeError):
            what = "GeneratedBy, or Part in it, is not as sample wrote it"
            findings.append(Finding(str(path), what, RESTORE))
            continue
        cohorts.append(Listed(root, table, made_by))
        if (root / ".unfinished").exists():
            findings.append(Finding(str(root), "its command has not come to its end", REDRAW))
        expected |= {out / f"part-{number:03d}" for number in range(count)}
    for root in sorted(expected - set(roots)):
        findings.append(Finding(str(root), "no such folder", REDRAW))
    for cohort in cohorts[1:]:
        differing = _differing(cohort.made_by, cohorts[0].made_by)
        if differing:
            what = f"{differing} is not that of {cohorts[0].root}: parts of two sets"
            findings.append(Finding(str(cohort.root), what, RESTORE))
    if not cohorts:
        refuse(findings)
    return cohorts, findings


def _differing(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """The first parameter that two parts of one set should share and do not."""
    keys = sorted((one.keys() | other.keys()) - {"Part", "Brains"})
    return next((key for key in keys if one.get(key) != other.get(key)), None)


def _check_images(cohorts: list[Listed]) -> Iterator[Finding]:
    """Every file that a manifest lists is there, has its bytes, and the voxel grid of the rest."""
    items = [
        (cohort.root / file, size, digest)
        for cohort in cohorts
        for file, size, digest in cohort.table[["file", "bytes", "sha256"]]
        .drop_duplicates()
        .fillna("")
        .itertuples(index=False)
    ]
    grids = {}
    for (path, *_), (grid, found) in each(examine, items, "verifying", cores()):
        yield from found
        if not found:
            grids[path] = grid
    if grids:
        yield from check_grids(grids, common_grid(grids.values()))


def examine(item: tuple[Path, str, str]) -> tuple[VoxelGrid | None, list[Finding]]:
    """Hold one image against its length and sha256; return its grid, and what is wrong."""
    path, size, digest = item
    where = str(path)
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            length = file.tell()
    except FileNotFoundError:
        return None, [Finding(where, "no such file, though the manifest lists it", REDRAW)]
    except OSError as error:
        return None, [Finding(where, f"cannot be read ({brief(error)})", REMOVE)]
    if str(length) != size:
        return None, [Finding(where, f"{length} bytes, the manifest says {size}", REMOVE)]
    if found != digest:
        return None, [Finding(where, "other bytes than the manifest's sha256 says", REMOVE)]
    sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
    try:
        read_json(sidecar)
    except InputError as error:
        what = str(error).removeprefix(f"{sidecar}: ")
        return None, [Finding(str(sidecar), what, f"remove it and {path.name}; {REDRAW}")]
    return read_grid(path)


def _check_tables(cohort: Listed) -> Iterator[Finding]:
    """The manifest and participants.tsv have the same rows, as many as were asked for."""
    manifest = cohort.root / MANIFEST
    wanted = cohort.made_by.get("Brains")
    ids = cohort.table["participant_id"]
    if ids.nunique() != wanted:
        what = f"{ids.nunique()} brains, {wanted} were asked for"
        yield Finding(str(manifest), what, REDRAW)
    path = cohort.root / "participants.tsv"
    try:
        _, participants, findings = read_tables(cohort.root)
    except InputError as error:
        yield Finding.told(str(path), error, f"{path}: ")
        return
    yield from findings
    listed = cohort.table.drop_duplicates("participant_id").set_index("participant_id")
    participants = participants.set_index("participant_id")
    for pid in participants.index.difference(listed.index):
        yield Finding(f"{path}: {pid}", f"not on {MANIFEST}", "remove the row")
    for pid in listed.index.difference(participants.index):
        yield Finding(f"{manifest}: {pid}", "not in participants.tsv", RESTORE)
    told = listed.dropna(axis=1, how="all").columns
    for name in told.difference([*participants.columns, *FIXED[2:]]):
        yield Finding(f"{path}: column {name}", f"missing, though {MANIFEST} has it", RESTORE)
    model = cohort.made_by.get("ModelHash")
    for pid in listed.index[listed["model_sha256"] != model]:
        yield Finding(f"{manifest}: {pid}", "of another model than the cohort's", RESTORE)
    both = listed.index.intersection(participants.index)
    for name in listed.columns.intersection(participants.columns):
        mine, its = (_comparable(t.loc[both, name]) for t in (listed, participants))
        for pid in both[(mine != its) & ~(mine.isna() & its.isna())]:
            what = f"{name} is {its[pid]}, {MANIFEST} says {mine[pid]}"
            yield Finding(f"{path}: {pid}", what, "it is what was asked for: give it again")


def _comparable(values: pd.Series) -> pd.Series:
    """A column as numbers where it has some, however they are written."""
    numeric = pd.to_numeric(values, errors="coerce")
    return numeric if numeric.notna().any() else values


def _check_strays(cohort: Listed) -> Iterator[Finding]:
    """Folders of participants hold what the manifest lists, its sidecars, and nothing else."""
    files = set(cohort.table["file"].dropna())
    known = files | {re.sub(r"\.nii\.gz$", ".json", file) for file in files}
    for path in sorted(cohort.root.glob("sub-*/**/*")):
        if path.is_file() and str(path.relative_to(cohort.root)) not in known:
            yield Finding(str(path), f"not on {MANIFEST}", "remove it")


def _check_twins(cohorts: list[Listed]) -> Iterator[Finding]:
    """No participant, no noise and no image of another noise comes twice in the whole set.

    Of one noise, the steps of a sweep may well be alike: at guidance=0, or if the model does not
    heed the covariate.
    """
    first: dict[tuple, tuple[str, Any]] = {}
    for cohort in cohorts:
        # The steps of a sweep share a seed; their covariates tell them apart.
        swept = [name for name in cohort.table if name == cohort.made_by.get("Sweep")]
        for row in cohort.table.to_dict("records"):
            pid, seed = row["participant_id"], row["seed"]
            where = f"{cohort.root / MANIFEST}: {pid}"
            keys = {
                "the same participant": ("participant", pid),
                "the same seed": ("seed", seed, *(row[name] for name in swept)),
                "the same image": ("image", row["sha256"]),
            }
            for what, key in keys.items():
                if pd.isna(key[1]):
                    continue
                twin, its_seed = first.setdefault(key, (where, seed))
                if twin is not where and (key[0] != "image" or its_seed != seed):
                    yield Finding(where, f"{what} as {twin}", "keep one of the two")
                    break  # one line that came twice is one finding
