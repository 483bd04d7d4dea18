"""Writing a cohort (a BIDS derivative), so that an interrupted one can go on."""

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from brain_ldm.cohorts.cohort import COLUMNS, SPACE, assign_split
from brain_ldm.cohorts.covariates import COVARIATES, MEASURED
from brain_ldm.cohorts.files import read_json, write_json, write_nifti, write_text
from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.errors import InputError

# How intensities are stored: the type of a voxel, and how many of its steps make 1. Of int16 they
# are a power of two, so that 0 and 1 come back exactly.
STORAGE = {"int16": (np.int16, 4096), "uint8": (np.uint8, 255), "float32": (np.float32, None)}
IMAGE = "_image"  # of a row: the image's file (from the cohort's folder on), bytes and sha256


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
            `{"seed": {"Description": "Seed of the starting noise"}}`; or other descriptions of
            usual ones.
        grows: whether a finished cohort may be gone on with, as more brains arrive; then rows stay
            in `<root>/.unfinished`.
        storage: type of the images' voxels, one of `STORAGE`.

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
        grows: bool = False,
        storage: str = "int16",
    ):
        self.root = Path(root)
        self.name = name
        self.generated_by = generated_by
        self.grid = grid
        self.synthetic = synthetic
        self.skull_stripped = skull_stripped
        self.extra_columns = extra_columns or {}
        self.grows = grows
        self.storage = storage
        self.work = self.root / ".unfinished"
        self._claim()

    @property
    def finished(self) -> bool:
        """Whether this very cohort is complete in `root`."""
        return (self.root / "dataset_description.json").exists()

    def _identity(self) -> dict:
        return json.loads(json.dumps({"Name": self.name, "GeneratedBy": [self.generated_by]}))

    def _claim(self) -> None:
        identity = self._identity()
        mend = "choose another out, or remove that folder"
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"{self.root}: a file is in the way; {mend}")
        if self.finished:
            there = read_json(self.root / "dataset_description.json")
            other = _difference(there, identity)
            if other:
                raise InputError(f"{self.root}: a cohort with other parameters ({other}); {mend}")
            if not self.grows:
                return
        elif (self.work / "identity.json").exists():
            other = _difference(read_json(self.work / "identity.json"), identity)
            if other:
                raise InputError(
                    f"{self.root}: an unfinished cohort with other parameters ({other}); {mend}"
                )
            return
        elif self.root.exists() and {p.name for p in self.root.iterdir()} - {
            self.work.name,
            *(["reject.txt"] if self.grows else []),
        }:
            raise InputError(f"{self.root}: the folder is not empty and is no cohort; {mend}")
        self.open_work()

    def open_work(self) -> None:
        """Make `.unfinished`, also in a finished cohort: lost images may then be added again.

        Raises:
            InputError: it cannot be written.
        """
        try:
            (self.work / "rows").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.root}: cannot be written ({error.strerror})") from None
        # Shards lock this file: one that is there is not replaced.
        if not (self.work / "identity.json").exists():
            write_text(self.work / "identity.json", json.dumps(self._identity()))

    def done(self, participants: Iterable[str] | None = None) -> dict[str, dict]:
        """The rows of the participants that are already written, by participant_id.

        Args:
            participants: of these alone, without a look at the others' files; None for all.
        """
        folder = self.work / "rows"
        if participants is None:
            paths = sorted(folder.glob("sub-*.json"))
        else:
            paths = [folder / f"{pid}.json" for pid in participants]
        rows = []
        for path in paths:
            # Not done, another process has just finished, or torn by a power cut.
            with suppress(FileNotFoundError, ValueError):
                rows.append(json.loads(path.read_text()))
        return {row["participant_id"]: row for row in rows}

    def add(
        self,
        row: dict,
        image: np.ndarray,
        labels: np.ndarray | None = None,
        label_affine: np.ndarray | None = None,
        sidecar: dict | None = None,
    ) -> None:
        """Write one participant.

        Args:
            row: participant_id (`sub-` and letters or digits) and the other columns in real units;
                a missing one is n/a. A missing split is drawn from the id.
            image: (X, Y, Z) on the grid, intensities in 0..1.
            labels: (X', Y', Z') in FreeSurfer's numbers, possibly finer than the image.
            label_affine: (4, 4) of the labels in mm; the grid's if not given.
            sidecar: further fields of the image's JSON.

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
        if labels is not None:
            affine = self.grid.affine if label_affine is None else label_affine
            step = f"{affine[0, 0]:g}"
            base = f"{stem}_res-{step.replace('.', 'p')}mm_dseg"
            write_nifti(Path(f"{base}.nii.gz"), labels.astype(np.int16), affine, slope=None)
            write_json(
                Path(f"{base}.json"), {"Manual": False, "Resolution": f"Voxels of {step} mm"}
            )
        base = f"{stem}{'_desc-synth' if self.synthetic else ''}_T1w"
        sidecar = {"SkullStripped": self.skull_stripped, **(sidecar or {})}
        write_json(Path(f"{base}.json"), sidecar)
        kind, steps = STORAGE[self.storage]
        stored = image if steps is None else np.rint(image * steps)
        path, slope = Path(f"{base}.nii.gz"), None if steps is None else 1 / steps
        written = write_nifti(path, stored.astype(kind), self.grid.affine, slope)
        row = {
            **row,
            "split": row.get("split") or assign_split(row.get("subject") or pid),
            IMAGE: {"file": str(path.relative_to(self.root)), **vars(written)},
        }
        write_json(self.work / "rows" / f"{pid}.json", row)

    def finish(self, rows: Sequence[dict] | None = None, tidy: bool = True) -> None:
        """Write participants.tsv, its description and dataset_description.json, in this order.

        Args:
            rows: what participants.tsv lists; by default all that were added, by participant_id.
            tidy: also remove `.unfinished`, unless the cohort grows.
        """
        rows = list(self.done().values()) if rows is None else rows
        if not rows:
            raise InputError(f"{self.root}: no participant was written")
        self.remove_left_overs()
        table = pd.DataFrame(rows).reindex(
            columns=list(dict.fromkeys([*COLUMNS, *self.extra_columns]))
        )
        columns = {
            "participant_id": {"Description": "Participant"},
            "split": {
                "Description": "Part of the cohort that the participant belongs to",
                "Levels": {"train": "training", "val": "validation", "test": "held out"},
            },
            **{c.name: _describe(c) for c in COVARIATES.values()},
            **self.extra_columns,
        }
        if self.grows and (self.root / "participants.tsv").exists():
            described = read_json(self.root / "participants.json")
            table, carried = self._carry_over(table, described)
            columns = {**described, **columns, **{name: described[name] for name in carried}}
        if any(self.root.glob("sub-*/anat/*_dseg.nii.gz")):
            from brain_ldm.cohorts.labels import NAMES

            lines = [f"{index}\t{label}" for index, label in sorted(NAMES.items())]
            write_text(self.root / "dseg.tsv", "index\tname\n" + "\n".join(lines) + "\n")
        text = table.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n")
        write_text(self.root / "participants.tsv", text)
        write_json(
            self.root / "participants.json", {name: columns.get(name, {}) for name in table.columns}
        )
        description = {
            "Name": self.name,
            "BIDSVersion": "1.9.0",
            "DatasetType": "derivative",
            "GeneratedBy": [self.generated_by],
        }
        write_json(self.root / "dataset_description.json", description)
        if tidy and not self.grows:
            self.remove_work()

    def remove_left_overs(self) -> None:
        """Remove temporary files of a process that was killed while it wrote an image."""
        for left_over in self.root.glob("sub-*/anat/.*"):
            left_over.unlink(missing_ok=True)

    def remove_work(self) -> None:
        """Remove `.unfinished`, as far as no other process has a file of it open."""
        # The file that is locked goes last: who is killed before that is gone on from.
        for folder in (self.work / "rows", self.work):
            shutil.rmtree(folder, ignore_errors=True)

    def _carry_over(
        self, table: pd.DataFrame, described: dict[str, dict]
    ) -> tuple[pd.DataFrame, list[str]]:
        """Keep what others added to participants.tsv, and tell which covariates are theirs.

        That is columns that are not ours, and covariates that have no value here and were measured
        there. Other values that are missing here were taken out on purpose.
        """
        old = pd.read_csv(
            self.root / "participants.tsv",
            sep="\t",
            dtype=str,
            na_values=["n/a"],
            keep_default_na=False,
        ).set_index("participant_id")
        old = old.reindex(table["participant_id"]).set_axis(table.index)
        carried = []
        for name in old.columns:
            if name not in table.columns:
                table[name] = old[name]
            elif (
                name in COVARIATES
                and table[name].isna().all()
                and MEASURED in described.get(name, {}).get("Description", "")
            ):
                table[name] = old[name]
                carried.append(name)
        return table, carried


def _describe(covariate) -> dict:
    description = {"Description": covariate.description}
    if covariate.unit:
        description["Units"] = covariate.unit
    if covariate.level_names:
        description["Levels"] = covariate.level_names
    return description


def _difference(there: dict, asked: dict) -> str:
    """The first parameter in which two data set descriptions differ, in words; "" if none."""
    made, wanted = there.get("GeneratedBy"), asked["GeneratedBy"][0]
    made = made[0] if isinstance(made, list) and made and isinstance(made[0], dict) else {}
    for key in [*wanted, *made]:
        if made.get(key) != wanted.get(key):
            return f"{key} is {made.get(key)!r} there, asked {wanted.get(key)!r}"
    if there.get("Name") != asked["Name"]:
        return f"Name is {there.get('Name')!r} there, asked {asked['Name']!r}"
    return ""
