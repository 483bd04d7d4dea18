"""A cohort on disk (a BIDS derivative): open and check it, read it."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from brain_ldm.cohorts.covariates import COVARIATES, numbers
from brain_ldm.cohorts.files import UNREADABLE, brief, read_json
from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.errors import InputError
from brain_ldm.progress import track

SPACE = "MNI152NLin2009aSym"
SPLITS = ("train", "val", "test")
COLUMNS = ("participant_id", "age", "sex", "ventricular_volume", "brain_volume", "split")


def assign_split(participant_id: str) -> str:
    """The split of a participant: train 80 %, val 5 %, test 15 %, by a hash of the id alone.

    A participant keeps it however the cohort grows. The paper does not state its split.
    """
    digest = hashlib.sha256(participant_id.encode()).digest()
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if fraction < 0.80 else "val" if fraction < 0.85 else "test"


@dataclass(frozen=True)
class Cohort:
    """A folder of brains that passed `open_cohort`.

    Attributes:
        root: its folder.
        table: participants.tsv, one row a participant, with at least `COLUMNS`; sex is F, M or
            missing, all other covariates are float64 in their units, missing is NaN.
        grid: the voxels of every image.
        description: dataset_description.json.
    """

    root: Path
    table: pd.DataFrame
    grid: VoxelGrid
    description: dict = field(repr=False)

    def image_path(self, participant_id: str) -> Path:
        """The participant's T1w image."""
        return _image_path(self.root, participant_id)

    def label_path(self, participant_id: str) -> Path | None:
        """The participant's segmentation, or None where the cohort has none."""
        found = sorted((self.root / participant_id / "anat").glob(f"{participant_id}_*dseg.nii.gz"))
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
        try:
            image = np.asarray(nib.load(path).dataobj, dtype=np.float32)
        except UNREADABLE as error:
            raise InputError(f"{path}: voxels cannot be read ({brief(error)})") from None
        if image.shape != tuple(self.grid.shape):
            raise InputError(f"{path}: shape {image.shape}, the cohort has {self.grid.shape}")
        if not np.isfinite(image).all():
            count = int((~np.isfinite(image)).sum())
            raise InputError(f"{path}: {count} voxels are NaN or infinite; make this image again")
        low, high = float(image.min()), float(image.max())
        if low == high:
            raise InputError(f"{path}: every voxel is {low:g}; make this image again")
        if low < -1e-3 or high > 1 + 1e-3:
            raise InputError(f"{path}: intensities {low:g} to {high:g}; scale them to 0..1")
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
            raise InputError(f"{self.root}: {participant_id} has no segmentation (*_dseg.nii.gz)")
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
        """sha256 over participants.tsv and every image's voxels.

        Voxels enter by the checksum that gzip keeps at the end of each file, so no image is read.
        """
        digest = hashlib.sha256((self.root / "participants.tsv").read_bytes())
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
    if not root.is_dir():
        raise InputError(f"{root}: no such cohort folder")
    description = read_json(root / "dataset_description.json")
    table = _read_table(root / "participants.tsv", need)
    grids = {}
    participants = table["participant_id"].tolist()
    for pid in track(participants, "checking cohort") if len(table) > 2000 else participants:
        grids[pid] = _header_grid(_image_path(root, pid))
    common = Counter((g.shape, tuple(g.affine.round(3).ravel())) for g in grids.values())
    shape, affine = common.most_common(1)[0][0]
    grid = VoxelGrid(shape, np.reshape(affine, (4, 4)))
    for pid, other in grids.items():
        if not grid.same_as(other):
            raise InputError(
                f"{_image_path(root, pid)}: {other}, the rest of the cohort has {grid}"
            )
    return Cohort(root, table, grid, description)


def _read_table(path: Path, need: Sequence[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, na_values=["n/a", ""], keep_default_na=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable table ({brief(error)})") from None
    for name in ("participant_id", *need):
        if name not in table.columns:
            raise InputError(f"{path}: column {name} is missing (found {', '.join(table.columns)})")
    if table.empty:
        raise InputError(f"{path}: no rows")
    ids = table["participant_id"]
    for i, pid in enumerate(ids):
        if not isinstance(pid, str) or not re.fullmatch(r"sub-[A-Za-z0-9]+", pid):
            raise InputError(
                f"{path}: row {i + 1}: participant_id is {pid!r}; give sub- and letters or digits"
            )
    twice = ids[ids.duplicated()]
    if len(twice):
        raise InputError(f"{path}: row {twice.index[0] + 1}: {twice.iloc[0]} appears twice")
    try:
        for name in {*COVARIATES, *need} - {"participant_id", "split"}:
            values = numbers(table, name)
            if name not in COVARIATES or not COVARIATES[name].levels:
                table[name] = values
            elif name not in table.columns:
                table[name] = None
            if name in need and np.isnan(values).all():
                raise InputError(f"column {name}: no row has a value")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if "split" not in table.columns:
        table["split"] = None
    table["split"] = table["split"].where(table["split"].notna(), ids.map(assign_split))
    wrong = table[~table["split"].isin(SPLITS)]
    if len(wrong):
        raise InputError(
            f"{path}: row {wrong.index[0] + 1} ({wrong['participant_id'].iloc[0]}): split is "
            f"{wrong['split'].iloc[0]!r}; give train, val or test"
        )
    for name in table.columns.difference(COLUMNS):
        converted = pd.to_numeric(table[name], errors="coerce")
        if converted.notna().equals(table[name].notna()):
            table[name] = converted
    extras = [c for c in table.columns if c not in COLUMNS]
    return table[[*COLUMNS, *extras]]


def _image_path(root: Path, participant_id: str) -> Path:
    folder = root / participant_id / "anat"
    names = [f"{participant_id}_space-{SPACE}{desc}_T1w.nii.gz" for desc in ("", "_desc-synth")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder / names[0]}: no such file, though participants.tsv names it")


def _header_grid(path: Path) -> VoxelGrid:
    try:
        image = nib.load(path)
        header = image.header
    except UNREADABLE as error:
        raise InputError(f"{path}: not a readable NIfTI file ({brief(error)})") from None
    if len(image.shape) != 3:
        raise InputError(f"{path}: {len(image.shape)} dimensions, a T1w volume has 3")
    sform, scode = header.get_sform(coded=True)
    qform, qcode = header.get_qform(coded=True)
    if scode and qcode and not np.allclose(sform, qform, atol=1e-2):
        raise InputError(f"{path}: sform and qform disagree; write one affine to both")
    steps = np.diag(image.affine)[:3]
    if not np.allclose(image.affine[:3, :3], np.diag(steps), atol=1e-3) or (steps <= 0).any():
        raise InputError(f"{path}: not stored RAS+ along MNI's axes; resample it to MNI space")
    if np.ptp(steps) > 1e-3:
        raise InputError(f"{path}: voxels of {steps.round(3).tolist()} mm; resample to equal edges")
    return VoxelGrid(tuple(image.shape), image.affine)
