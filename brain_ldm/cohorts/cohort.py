"""A cohort on disk: open and check it, read it, write it (a BIDS derivative)."""

import gzip
import hashlib
import json
import os
import re
import shutil
import uuid
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from brain_ldm.cohorts.covariates import COVARIATES, numbers
from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.errors import InputError
from brain_ldm.progress import track

SPACE = "MNI152NLin2009aSym"
SPLITS = ("train", "val", "test")
COLUMNS = ("participant_id", "age", "sex", "ventricular_volume", "brain_volume", "split")
MNI_CODE = 4  # NIfTI's sform code of MNI space
# Images are stored as integers with a power of two as slope, so that 0 and 1 come back exactly.
LEVELS = 4096
UNREADABLE = (OSError, EOFError, zlib.error, ValueError, nib.filebasedimages.ImageFileError)


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
            raise InputError(f"{path}: voxels cannot be read ({_brief(error)})") from None
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
            raise InputError(f"{path}: voxels cannot be read ({_brief(error)})") from None

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
    description = _read_json(root / "dataset_description.json")
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


def _read_json(path: Path) -> dict:
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; is {path.parent} a finished cohort?") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable JSON ({_brief(error)})") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: not a JSON object")
    return data


def _read_table(path: Path, need: Sequence[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, na_values=["n/a", ""], keep_default_na=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable table ({_brief(error)})") from None
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
        raise InputError(f"{path}: not a readable NIfTI file ({_brief(error)})") from None
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


def _brief(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0][:120]


class CohortWriter:
    """Writes a cohort so that an interrupted one can go on and none looks finished too early.

    Each image is written to a temporary name, read back and renamed; then the participant's row is
    kept in `<root>/.unfinished`. participants.tsv and dataset_description.json come last, in
    `finish`. A writer may be sent to other processes; each participant is added by one of them.

    Args:
        root: folder of the cohort; absent, empty, or begun by a writer with the same arguments.
        name: title of the data set.
        generated_by: what made it, with every parameter that its content depends on; kept as
            BIDS' GeneratedBy, and what tells the same cohort from another.
        grid: voxels of the images.
        synthetic: whether the images carry `desc-synth` (no scanner saw them).
        skull_stripped: whether the images show the brain alone.
        extra_columns: further columns of participants.tsv with their BIDS descriptions, as in
            `{"seed": {"Description": "Seed of the starting noise"}}`.

    Raises:
        InputError: if `root` holds anything else.
    """

    def __init__(
        self,
        root: str | Path,
        name: str,
        generated_by: dict,
        grid: VoxelGrid,
        synthetic: bool,
        skull_stripped: bool = True,
        extra_columns: dict[str, dict] | None = None,
    ):
        self.root = Path(root)
        self.name = name
        self.generated_by = generated_by
        self.grid = grid
        self.synthetic = synthetic
        self.skull_stripped = skull_stripped
        self.extra_columns = extra_columns or {}
        self.work = self.root / ".unfinished"
        self.finished = False
        """Whether this very cohort was already complete in `root`."""
        self._claim()

    def _claim(self) -> None:
        identity = json.loads(json.dumps({"Name": self.name, "GeneratedBy": [self.generated_by]}))
        mend = "choose another out, or remove that folder"
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"{self.root}: a file is in the way; {mend}")
        if (self.root / "dataset_description.json").exists():
            there = _read_json(self.root / "dataset_description.json")
            other = _difference(there, identity)
            if other:
                raise InputError(f"{self.root}: a cohort with other parameters ({other}); {mend}")
            self.finished = True
            return
        if (self.work / "identity.json").exists():
            other = _difference(_read_json(self.work / "identity.json"), identity)
            if other:
                raise InputError(
                    f"{self.root}: an unfinished cohort with other parameters ({other}); {mend}"
                )
            return
        if self.root.exists() and any(self.root.iterdir()):
            raise InputError(f"{self.root}: the folder is not empty and is no cohort; {mend}")
        try:
            (self.work / "rows").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.root}: cannot be written ({error.strerror})") from None
        _write_text(self.work / "identity.json", json.dumps(identity))

    def done(self) -> dict[str, dict]:
        """The rows of the participants that are already written, by participant_id."""
        rows = [json.loads(p.read_text()) for p in sorted((self.work / "rows").glob("sub-*.json"))]
        return {row["participant_id"]: row for row in rows}

    def add(
        self,
        row: dict,
        image: np.ndarray,
        labels: np.ndarray | None = None,
        label_affine: np.ndarray | None = None,
    ) -> None:
        """Write one participant.

        Args:
            row: participant_id (`sub-` and letters or digits) and the other columns in real units;
                a missing one is n/a. A missing split is drawn from the id.
            image: (X, Y, Z) on the grid, intensities in 0..1.
            labels: (X', Y', Z') in FreeSurfer's numbers, possibly finer than the image.
            label_affine: (4, 4) of the labels in mm; the grid's if not given.

        Raises:
            ValueError: if the image is not on the grid, not finite or not in 0..1.
        """
        pid = row["participant_id"]
        if not re.fullmatch(r"sub-[A-Za-z0-9]+", pid):
            raise ValueError(f"participant_id {pid!r}")
        if image.shape != tuple(self.grid.shape):
            raise ValueError(f"{pid}: image {image.shape}, grid {self.grid.shape}")
        if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
            raise ValueError(f"{pid}: intensities must be finite and within 0..1")
        stem = self.root / pid / "anat" / f"{pid}_space-{SPACE}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        sidecar = {"SkullStripped": self.skull_stripped}
        if labels is not None:
            affine = self.grid.affine if label_affine is None else label_affine
            step = f"{affine[0, 0]:g}"
            base = f"{stem}_res-{step.replace('.', 'p')}mm_dseg"
            _write_nifti(f"{base}.nii.gz", labels.astype(np.int16), affine, slope=None)
            _write_json(
                Path(f"{base}.json"), {"Manual": False, "Resolution": f"Voxels of {step} mm"}
            )
        base = f"{stem}{'_desc-synth' if self.synthetic else ''}_T1w"
        stored = np.rint(image * LEVELS).astype(np.int16)
        _write_json(Path(f"{base}.json"), sidecar)
        _write_nifti(f"{base}.nii.gz", stored, self.grid.affine, slope=1 / LEVELS)
        row = {**row, "split": row.get("split") or assign_split(pid)}
        _write_json(self.work / "rows" / f"{pid}.json", row)

    def finish(self) -> None:
        """Write participants.tsv, its description and dataset_description.json, in this order."""
        rows = self.done()
        if not rows:
            raise InputError(f"{self.root}: no participant was written")
        for left_over in self.root.glob("sub-*/anat/.*"):
            left_over.unlink()  # temporary files of a writer that was killed
        table = pd.DataFrame(list(rows.values())).reindex(columns=[*COLUMNS, *self.extra_columns])
        text = table.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n")
        columns = {
            "participant_id": {"Description": "Participant"},
            "split": {
                "Description": "Part of the cohort that the participant belongs to",
                "Levels": {"train": "training", "val": "validation", "test": "held out"},
            },
            **{c.name: _describe(c) for c in COVARIATES.values()},
            **self.extra_columns,
        }
        if any(self.root.glob("sub-*/anat/*_dseg.nii.gz")):
            from brain_ldm.cohorts.labels import NAMES

            lines = [f"{index}\t{label}" for index, label in sorted(NAMES.items())]
            _write_text(self.root / "dseg.tsv", "index\tname\n" + "\n".join(lines) + "\n")
        _write_text(self.root / "participants.tsv", text)
        _write_json(
            self.root / "participants.json", {name: columns[name] for name in table.columns}
        )
        description = {
            "Name": self.name,
            "BIDSVersion": "1.9.0",
            "DatasetType": "derivative",
            "GeneratedBy": [self.generated_by],
        }
        _write_json(self.root / "dataset_description.json", description)
        shutil.rmtree(self.work)
        self.finished = True


def _describe(covariate) -> dict:
    description = {"Description": covariate.description}
    if covariate.unit:
        description["Units"] = covariate.unit
    if covariate.level_names:
        description["Levels"] = covariate.level_names
    return description


def _difference(there: dict, asked: dict) -> str:
    """The first parameter in which two data set descriptions differ, in words; "" if none."""
    made, wanted = (there.get("GeneratedBy") or [{}])[0], asked["GeneratedBy"][0]
    for key in [*wanted, *made]:
        if made.get(key) != wanted.get(key):
            return f"{key} is {made.get(key)!r} there, asked {wanted.get(key)!r}"
    if there.get("Name") != asked["Name"]:
        return f"Name is {there.get('Name')!r} there, asked {asked['Name']!r}"
    return ""


def _temporary(path: Path) -> Path:
    # A dot keeps it out of every glob, and the suffix says what it is to nibabel.
    return path.with_name(f".{uuid.uuid4().hex[:8]}_{path.name}")


def _write_text(path: Path, text: str) -> None:
    temporary = _temporary(path)
    temporary.write_text(text)
    temporary.replace(path)


def _write_json(path: Path, data: dict) -> None:
    _write_text(path, json.dumps(data, indent=2) + "\n")


def _write_nifti(path: str, voxels: np.ndarray, affine: np.ndarray, slope: float | None) -> None:
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, MNI_CODE)
    image.set_qform(affine, MNI_CODE)
    image.header.set_xyzt_units("mm", "sec")
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    temporary = _temporary(Path(path))
    try:
        # No time and no name inside: the same brain gives the same bytes.
        with temporary.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as file:
            file.write(image.to_bytes())
        written = np.asarray(nib.load(temporary).dataobj.get_unscaled())
        if not np.array_equal(written, voxels):
            raise OSError(f"{path}: reading back gave other voxels; is the disk full?")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
