"""A cohort on disk (a BIDS derivative): its rules, opening it, reading it.

A rule returns what breaks it as findings: opening stops at the first, `validation` tells them all.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from brain_ldm.cohorts.covariates import COVARIATES, numbers
from brain_ldm.cohorts.files import UNREADABLE, brief, read_json
from brain_ldm.cohorts.findings import Finding, refuse
from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.cohorts.images import (
    absent,
    check_grids,
    check_voxels,
    common_grid,
    read_grid,
    read_voxels,
    voxel_facts,
)
from brain_ldm.errors import InputError
from brain_ldm.progress import track

SPACE = "MNI152NLin2009aSym"
SPLITS = ("train", "val", "test")
COLUMNS = ("participant_id", "age", "sex", "ventricular_volume", "brain_volume", "split")


def assign_split(subject: str) -> str:
    """The split of a person: train 80 %, val 5 %, test 15 %, by a hash of the id alone.

    A person keeps it however the cohort grows, and all scans of one share it. The paper does not
    state its split.

    Args:
        subject: the column `subject` where participants.tsv has it, else the participant_id.
    """
    digest = hashlib.sha256(subject.encode()).digest()
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if fraction < 0.80 else "val" if fraction < 0.85 else "test"


@dataclass(frozen=True)
class Cohort:
    """A folder of brains that passed `open_cohort`.

    Attributes:
        root: its folder.
        table: participants.tsv, one row a scan, with at least `COLUMNS`; sex is F, M or missing,
            all other covariates are float64 in their units, missing is NaN.
        grid: the voxels of every image.
        description: dataset_description.json.
        guests: the folder of each participant who lies in another one, where cohorts were joined.
        selection: what `selection` made of the folder's rows, for names of caches.
    """

    root: Path
    table: pd.DataFrame
    grid: VoxelGrid
    description: dict = field(repr=False)
    guests: dict[str, Path] = field(default_factory=dict, repr=False)
    selection: str = ""

    def home(self, participant_id: str) -> Path:
        """The cohort folder that holds the participant."""
        return self.guests.get(participant_id, self.root)

    def image_path(self, participant_id: str) -> Path:
        """The participant's T1w image.

        Raises:
            InputError: there is none.
        """
        path = _image_path(self.home(participant_id), participant_id)
        if not path.is_file():
            raise InputError(str(absent(path)))
        return path

    def label_path(self, participant_id: str) -> Path | None:
        """The participant's segmentation, or None where the cohort has none."""
        folder = self.home(participant_id) / participant_id / "anat"
        found = sorted(folder.glob(f"{participant_id}_*dseg.nii.gz"))
        return found[0] if found else None

    def read(self, participant_id: str) -> np.ndarray:
        """The participant's T1w image.

        Returns:
            float32 (X, Y, Z) on `grid`, intensities in 0..1.

        Raises:
            InputError: if the file is truncated, of another shape, constant, out of range, or
                holds NaN or infinite voxels.
        """
        path = self.image_path(participant_id)
        image = read_voxels(path, self.grid.shape)
        refuse(check_voxels(path, *voxel_facts(image)))
        return np.clip(image, 0, 1)

    def read_labels(self, participant_id: str) -> tuple[np.ndarray, np.ndarray]:
        """The participant's segmentation in FreeSurfer's numbers.

        Returns:
            int16 (X, Y, Z), and its affine (4, 4) in mm: labels may be finer than the image.

        Raises:
            InputError: if there is none, or it cannot be read.
        """
        path = self.label_path(participant_id)
        if path is None:
            folder = self.home(participant_id)
            raise InputError(f"{folder}: {participant_id} has no segmentation (*_dseg.nii.gz)")
        try:
            image = nib.load(path)
            return np.asarray(image.dataobj).astype(np.int16), image.affine
        except UNREADABLE as error:
            raise InputError(f"{path}: voxels cannot be read ({brief(error)})") from None

    def rows(self, split: str | None = None) -> pd.DataFrame:
        """The rows of one split (train, val or test), or all, numbered from 0."""
        table = self.table if split is None else self.table[self.table["split"] == split]
        return table.reset_index(drop=True)

    def content_hash(self) -> str:
        """sha256 over participants.tsv, of all folders, and the voxels of every image in `table`.

        Voxels enter by the checksum that gzip keeps at the end of each file, so no image is read.
        """
        digest = hashlib.sha256()
        for root in dict.fromkeys([self.root, *self.guests.values()]):
            digest.update((root / "participants.tsv").read_bytes())
        for participant_id in self.table["participant_id"]:
            path = self.image_path(participant_id)
            with path.open("rb") as file:
                file.seek(-8, os.SEEK_END)
                digest.update(path.name.encode() + file.read())
        return digest.hexdigest()


def open_cohort(root: str | Path, need: Sequence[str] = ()) -> Cohort:
    """Open a cohort and check all of it but the voxels, which `Cohort.read` checks.

    Args:
        root: folder with dataset_description.json, participants.tsv and sub-*/anat/*_T1w.nii.gz.
        need: columns that the caller cannot do without; each must have at least one value.

    Raises:
        InputError: naming the file, row or column that is wrong.
    """
    root = Path(root)
    description, table, findings = read_tables(root, need)
    refuse(findings)
    grids = {}
    for path, grid, found in read_grids(root, table["participant_id"].tolist()):
        refuse(found)
        grids[path] = grid
    grid = common_grid(grids.values())
    refuse(check_grids(grids, grid))
    return Cohort(root, table, grid, description)


def read_tables(root: Path, need: Sequence[str] = ()) -> tuple[dict, pd.DataFrame, list[Finding]]:
    """Read what a cohort says of itself.

    Args:
        root: its folder.
        need: as for `open_cohort`.

    Returns:
        dataset_description.json; participants.tsv as `Cohort.table`, indexed by its rows from 0,
        without rows whose id is no good and with wrong values as missing; and what is wrong.

    Raises:
        InputError: there are no such files, or no rows.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such cohort folder")
    description = read_json(root / "dataset_description.json")
    path = root / "participants.tsv"
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, na_values=["n/a", ""], keep_default_na=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable table ({brief(error)})") from None
    there = ", ".join(table.columns)
    if "participant_id" not in table.columns:
        raise InputError(f"{path}: column participant_id is missing (found {there})")
    if table.empty:
        raise InputError(f"{path}: no rows")
    findings = [
        Finding(str(path), f"column {name} is missing (found {there})", "add it")
        for name in need
        if name not in table.columns
    ]
    table = _with_good_ids(path, table, findings)
    _make_numbers(path, table, need, findings)
    _make_splits(path, table, findings)
    for name in table.columns.difference([*COLUMNS, "subject"]):
        converted = pd.to_numeric(table[name], errors="coerce")
        if converted.notna().equals(table[name].notna()):
            table[name] = converted
    extras = [c for c in table.columns if c not in COLUMNS]
    return description, table[[*COLUMNS, *extras]], findings


def row_of(path: Path, table: pd.DataFrame, row: int) -> str:
    """How a finding names a row of `table`, whose index counts the rows of participants.tsv."""
    return f"{path}: row {row + 1} ({table.loc[row, 'participant_id']})"


def _with_good_ids(path: Path, table: pd.DataFrame, findings: list[Finding]) -> pd.DataFrame:
    good, seen = [], set()
    for row, pid in table["participant_id"].items():
        if not isinstance(pid, str) or not re.fullmatch(r"sub-[A-Za-z0-9]+", pid):
            what, mend = f"participant_id is {pid!r}", "give sub- and letters or digits"
        elif pid in seen:
            what, mend = f"{pid} appears twice", "give each scan an id of its own"
        else:
            seen.add(pid)
            good.append(row)
            continue
        findings.append(Finding(f"{path}: row {row + 1}", what, mend))
    return table.loc[good].copy()


def _make_numbers(
    path: Path, table: pd.DataFrame, need: Sequence[str], findings: list[Finding]
) -> None:
    """Turn covariates and other needed columns into numbers, or codes of sex that are known."""
    for name in dict.fromkeys((*COVARIATES, *need)):
        if name in ("participant_id", "split"):
            continue
        given = name in table.columns
        wrong = dict(_wrong_values(path, table, name))
        findings += wrong.values()
        if wrong:
            table.loc[list(wrong), name] = None
        values = numbers(table, name)
        if name not in COVARIATES or not COVARIATES[name].levels:
            table[name] = values
        elif not given:
            table[name] = None
        if name in need and given and not wrong and np.isnan(values).all():
            where = f"{path}: column {name}"
            findings.append(Finding(where, "no row has a value", "fill it in"))


def _wrong_values(path: Path, table: pd.DataFrame, name: str) -> Iterator[tuple[int, Finding]]:
    """Yield the rows whose text in column `name` is no value, and what is wrong with it."""
    try:
        numbers(table, name)
        return
    except InputError:  # the first of them
        pass
    for row, value in table[name].items():
        try:
            numbers(pd.DataFrame({name: [value]}), name)
        except InputError as error:
            yield row, Finding.told(row_of(path, table, row), error, "row 1: ")


def _make_splits(path: Path, table: pd.DataFrame, findings: list[Finding]) -> None:
    """Give a split to each row that has none; a wrong one becomes missing."""
    ids = table["participant_id"]
    if "split" not in table.columns:
        table["split"] = None
    persons = people(table)
    table["split"] = table["split"].where(table["split"].notna(), persons.map(assign_split))
    for row, split in table["split"][~table["split"].isin(SPLITS)].items():
        where = row_of(path, table, row)
        findings.append(Finding(where, f"split is {split!r}", "give train, val or test"))
        table.loc[row, "split"] = None
    first: dict[str, tuple[str, str]] = {}
    known = table["split"].notna()
    for row, person, pid, split in zip(
        table.index[known], persons[known], ids[known], table["split"][known], strict=True
    ):
        other, its_split = first.setdefault(person, (pid, split))
        if split != its_split:
            what = f"subject {person} is in {split} here and in {its_split} as {other}"
            mend = "give all scans of a person one split"
            findings.append(Finding(row_of(path, table, row), what, mend))


def people(table: pd.DataFrame) -> pd.Series:
    """Whose scan each row is: its `subject`, or its participant_id where it names none."""
    ids = table["participant_id"]
    return table["subject"].where(table["subject"].notna(), ids) if "subject" in table else ids


def read_grids(
    root: Path, participants: Sequence[str]
) -> Iterator[tuple[Path, VoxelGrid | None, list[Finding]]]:
    """Read the headers of all images.

    Yields:
        an image's path, its grid (None where it cannot be told), and what is wrong with them.
    """
    many = len(participants) > 2000
    for pid in track(participants, "checking cohort") if many else participants:
        path = _image_path(root, pid)
        yield path, *read_grid(path)


def _image_path(root: Path, participant_id: str) -> Path:
    """The image that is there, or where it should be."""
    folder = root / participant_id / "anat"
    plain, synthetic = (
        folder / f"{participant_id}_space-{SPACE}{desc}_T1w.nii.gz" for desc in ("", "_desc-synth")
    )
    return synthetic if synthetic.is_file() and not plain.is_file() else plain
