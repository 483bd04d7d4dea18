"""Files of a data set: written whole or not at all, and read back."""

import gzip
import json
import uuid
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from brain_ldm.errors import InputError

MNI_CODE = 4  # NIfTI's sform code of MNI space
UNREADABLE = (OSError, EOFError, zlib.error, ValueError, nib.filebasedimages.ImageFileError)


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


def _temporary(path: Path) -> Path:
    # A dot keeps it out of every glob, and the suffix says what it is to nibabel.
    return path.with_name(f".{uuid.uuid4().hex[:8]}_{path.name}")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    temporary = _temporary(path)
    temporary.write_text(text)
    temporary.replace(path)


def write_json(path: Path, data: dict) -> None:
    """Write a JSON object whole or not at all."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def write_nifti(path: str, voxels: np.ndarray, affine: np.ndarray, slope: float | None) -> None:
    """Write voxels in MNI space and read them back.

    Args:
        path: ending in .nii.gz.
        voxels: (X, Y, Z) integers, stored as they are.
        affine: (4, 4) voxel to MNI world in mm, for both sform and qform.
        slope: what a reader multiplies the integers by; None for labels.

    Raises:
        OSError: what was read back differs.
    """
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


def brief(error: Exception) -> str:
    """The first line of an exception's message, for a line of our own."""
    text = str(error) or type(error).__name__
    return text.splitlines()[0][:120]
