"""Files of a data set: written whole or not at all, and read back."""

import gzip
import hashlib
import json
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from brain_ldm.errors import InputError

MNI_CODE = 4  # NIfTI's sform code of MNI space
UNREADABLE = (OSError, EOFError, zlib.error, ValueError, nib.filebasedimages.ImageFileError)


@dataclass(frozen=True)
class Written:
    """A file as it lies on disk: its length in bytes, its sha256 in hexadecimal."""

    bytes: int
    sha256: str


def read_json(path: Path) -> dict:
    """A JSON object from a file of a cohort.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; is {path.parent} a finished cohort?") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable JSON ({brief(error)})") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: not a JSON object")
    return data


def temporary(path: Path) -> Path:
    """A name beside `path` to write it under until it is whole; another one at each call."""
    # A dot keeps it out of most globs, and the suffix says what it is.
    return path.with_name(f".{uuid.uuid4().hex[:8]}_{path.name}")


def remove_temporaries(folder: Path) -> None:
    """Remove what a process that was killed left in a folder under names of `temporary`."""
    for path in folder.glob(f".{'[0-9a-f]' * 8}_*"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    unfinished = temporary(path)
    unfinished.write_text(text)
    unfinished.replace(path)


def write_json(path: Path, data: dict) -> None:
    """Write a JSON object whole or not at all."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray, slope: float | None) -> Written:
    """Write voxels in MNI space and read them back.

    Args:
        path: ending in .nii.gz.
        voxels: (X, Y, Z), stored as they are.
        affine: (4, 4) voxel to MNI world in mm, for both sform and qform.
        slope: what a reader multiplies integers by; None for labels and for floats.

    Returns:
        The file's length and sha256.

    Raises:
        OSError: what was read back differs.
    """
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, MNI_CODE)
    image.set_qform(affine, MNI_CODE)
    image.header.set_xyzt_units("mm", "sec")
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    unfinished = temporary(path)
    try:
        # No time and no name inside: the same brain gives the same bytes.
        with unfinished.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as file:
            file.write(image.to_bytes())
        content = unfinished.read_bytes()
        if not np.array_equal(_stored_voxels(content), voxels):
            raise OSError(f"{path}: reading back gave other voxels; is the disk full?")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return Written(len(content), hashlib.sha256(content).hexdigest())


def _stored_voxels(content: bytes) -> np.ndarray | None:
    """The voxels in a .nii.gz file, without its slope; None where they cannot be read."""
    try:
        image = nib.Nifti1Image.from_bytes(gzip.decompress(content))
        return np.asarray(image.dataobj.get_unscaled())
    except UNREADABLE:
        return None


def brief(error: Exception) -> str:
    """The first line of an exception's message, for a line of our own."""
    text = str(error) or type(error).__name__
    return text.splitlines()[0][:120]
