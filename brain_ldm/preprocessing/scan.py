"""A raw scan: where it lies, whose it is, and reading it."""

import gzip
import io
import math
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.quaternions import quat2mat
from nibabel.spatialimages import HeaderDataError

from brain_ldm.cohorts.files import brief

HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}  # by their length, which they begin with
MOST_BYTES = 2**31  # of one file, decompressed
MOST_VOXELS = 2**29
FEWEST_SLICES = 16  # along any axis
LONGEST_EDGE = 6.0  # of a voxel, mm
SHORTEST_VIEW = 100.0  # along any axis, mm: less does not hold a brain
ROUNDING = 1e-2  # mm: what voxel edges of sform and qform may differ by
LEAST_DETERMINANT = 0.1  # of the axes' directions; 1 for orthogonal ones


class Unusable(Exception):
    """A scan that cannot be used; the message says why, in a line fit for rejected.tsv."""


class Failed(Unusable):
    """What need not be the scan's fault: the next run tries it again."""


@dataclass(frozen=True)
class Scan:
    """A raw T1w scan.

    Attributes:
        participant_id: its name in the cohort, `sub-` and letters or digits; unique.
        subject: whose it is, `sub-` and letters or digits; all scans of one land in one split.
        path: a NIfTI file, or a zip that holds one.
        member: the file in the zip.
        row: session (where the source has any) and covariates in real units; missing ones absent.
        problem: why it cannot be used, where that is known before it is read.
    """

    participant_id: str
    subject: str
    path: Path
    member: str | None = None
    row: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


def read_scan(scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """All voxels of a scan, which is checked to be a whole T1w volume with a known orientation.

    Returns:
        float32 (X, Y, Z) as stored, scaled by the file's slope and intercept; and the affine (4, 4)
        from voxel to scanner in mm, which is the sform, or the qform where there is no sform.

    Raises:
        Unusable: whatever is wrong with the file.
    """
    data = _read_bytes(scan.path, scan.member)
    header = _read_header(data)
    dtype = _voxel_type(header)
    shape = _shape(header)
    affine = _orientation(header)
    view = np.linalg.norm(affine[:3, :3], axis=0) * shape
    if view.min() < SHORTEST_VIEW:
        raise Unusable(f"field of view {_times(view.round())} mm: too small to hold a brain")
    return _voxels(data, header, dtype, shape), affine


def _read_bytes(path: Path, member: str | None) -> bytes:
    """The bytes of a file or of a zip's member, gunzipped."""
    try:
        size = path.stat().st_size
        if size == 0:
            raise Unusable("empty file")
        if member is not None:
            data = _read_member(path, member)
        elif size > MOST_BYTES:
            raise Unusable(f"{size / 2**30:.1f} GiB: too big for a T1w scan")
        else:
            data = path.read_bytes()
    except FileNotFoundError:
        broken = path.is_symlink()
        raise Unusable("a link to a file that is not there" if broken else "no such file") from None
    except IsADirectoryError:
        raise Unusable("a folder, not a file") from None
    except OSError as error:
        raise Unusable(f"cannot be read ({error.strerror or brief(error)})") from None
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            # To its end, where gzip keeps a checksum of all.
            data = file.read(MOST_BYTES + 1)
    except EOFError:
        raise Unusable("truncated: gzip ends too early") from None
    except (OSError, zlib.error) as error:
        raise Unusable(f"damaged gzip ({brief(error)})") from None
    if len(data) > MOST_BYTES:
        raise Unusable("more than 2 GiB unzipped: too big for a T1w scan")
    return data


def _read_member(path: Path, member: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if member in names:
                if archive.getinfo(member).file_size > MOST_BYTES:
                    raise Unusable("more than 2 GiB unzipped: too big for a T1w scan")
                return archive.read(member)
    except (Unusable, FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # zipfile raises nearly anything on damaged bytes
        raise Unusable(f"damaged zip ({brief(error)})") from None
    # UK Biobank puts scans that failed its own quality control into T1/unusable.
    others = [n for n in names if n.endswith(member.rpartition("/")[2]) and n.isprintable()]
    raise Unusable(f"the zip has no {member}" + (f", only {others[0]}" if others else ""))


def _read_header(data: bytes) -> nib.Nifti1Header:
    for order, sign in (("little", "<"), ("big", ">")):
        size = int.from_bytes(data[:4], order)
        if size not in HEADERS:
            continue
        if len(data) < size:
            raise Unusable("truncated: ends within the NIfTI header")
        header = HEADERS[size](data[:size], endianness=sign, check=False)
        magic = bytes(header["magic"].item())[:3]
        if magic in (b"ni1", b"ni2"):
            raise Unusable("half of a pair of .hdr and .img; convert them to one NIfTI file")
        if magic not in (b"n+1", b"n+2"):
            raise Unusable("an Analyze header or a damaged one: NIfTI's magic is missing")
        return header
    raise Unusable(f"neither gzip nor NIfTI (begins with {data[:8]!r})")


def _voxel_type(header: nib.Nifti1Header) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except (KeyError, HeaderDataError):
        raise Unusable(f"unknown data type {int(header['datatype'])}") from None
    if dtype.names:
        raise Unusable(f"a colour image ({''.join(dtype.names)}), not intensities")
    if dtype.kind not in "iuf":
        raise Unusable(f"voxels of type {dtype.name}, not intensities")
    return dtype


def _shape(header: nib.Nifti1Header) -> tuple[int, int, int]:
    count, *axes = (int(n) for n in header["dim"])
    if not 1 <= count <= 7 or min(axes[:count]) < 1:
        raise Unusable(f"impossible dimensions in the header ({[count, *axes]})")
    shape, volumes = (*axes[:count], 1, 1)[:3], math.prod(axes[3:count])
    if volumes > 1:
        raise Unusable(f"{volumes} volumes in one file; a T1w scan has one")
    if min(shape) == 1:
        raise Unusable(f"a two-dimensional image of {_times(shape)} voxels")
    if min(shape) < FEWEST_SLICES:
        raise Unusable(f"only {min(shape)} slices ({_times(shape)} voxels)")
    if math.prod(shape) > MOST_VOXELS:
        raise Unusable(f"{_times(shape)} voxels: too many for a T1w scan")
    return shape


@np.errstate(all="ignore")  # numbers in a damaged header may be of any size
def _orientation(header: nib.Nifti1Header) -> np.ndarray:
    """Affine (4, 4) of a header whose sform and qform make sense."""
    pixdim = header["pixdim"].astype(float)
    affines = {}
    if header["sform_code"] > 0:
        affines["sform"] = header.get_sform()
    if header["qform_code"] > 0:
        affines["qform"] = _qform(header, pixdim)
    if not affines:
        raise Unusable("no orientation: the codes of sform and qform are both 0")
    for name, affine in affines.items():
        if not np.isfinite(affine).all():
            raise Unusable(f"{name} holds NaN or infinite numbers")
    _check_edges(pixdim[1:4])
    for name, affine in affines.items():
        edges, directions = _axes(affine)
        if abs(np.linalg.det(directions)) < LEAST_DETERMINANT:
            raise Unusable(f"{name} is singular: its axes do not span the space")
        _check_edges(edges)
    if len(affines) == 2:
        differences = _differences(affines["sform"], affines["qform"])
        if differences:
            raise Unusable(f"sform and qform disagree: {', '.join(differences)}")
    return next(iter(affines.values()))


def _qform(header: nib.Nifti1Header, pixdim: np.ndarray) -> np.ndarray:
    quaternion = np.array([float(header[f"quatern_{c}"]) for c in "bcd"])
    square = quaternion @ quaternion
    if not square < 1.01:
        raise Unusable("qform is no rotation")
    affine = np.eye(4)
    affine[:3, :3] = quat2mat([math.sqrt(max(0.0, 1 - square)), *quaternion])
    # qfac is 1 where it is not -1, as the standard says of 0.
    affine[:3, :3] *= [pixdim[1], pixdim[2], -pixdim[3] if pixdim[0] == -1 else pixdim[3]]
    affine[:3, 3] = [float(header[f"qoffset_{c}"]) for c in "xyz"]
    return affine


def _check_edges(edges: np.ndarray) -> None:
    if not (np.isfinite(edges).all() and edges.min() > 0 and edges.max() <= LONGEST_EDGE):
        raise Unusable(
            f"voxels of {_times(edges)} mm; more than 0 and at most {LONGEST_EDGE:g} are taken"
        )


def _axes(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxel edges (3,) in mm, and the directions (3, 3) of the axes in its columns."""
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    return edges, np.nan_to_num(affine[:3, :3] / edges)


def _differences(sform: np.ndarray, qform: np.ndarray) -> list[str]:
    """In what two affines differ that registration cannot make good, in words.

    Programs that align a scan write the turned pose into one of the two, so axes and places may
    differ. Left and right, and the size of voxels, may not.
    """
    edges, other_edges = _axes(sform)[0], _axes(qform)[0]
    found = []
    if np.abs(edges - other_edges).max() > ROUNDING:
        found.append(f"voxels of {_times(edges)} and {_times(other_edges)} mm")
    if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        found.append("one has left for right")
    return found


def _voxels(
    data: bytes, header: nib.Nifti1Header, dtype: np.dtype, shape: tuple[int, int, int]
) -> np.ndarray:
    """float32 (X, Y, Z), checked."""
    offset = float(header["vox_offset"])
    if not int(header["sizeof_hdr"]) <= offset <= MOST_BYTES:
        raise Unusable(f"voxels begin at byte {offset:g}, which cannot be")
    count = math.prod(shape)
    there = len(data) - int(offset)
    if there < count * dtype.itemsize:
        percent = 100 * max(there, 0) // (count * dtype.itemsize)
        raise Unusable(f"truncated: {percent} % of the voxels are there")
    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        raise Unusable(brief(error)) from None
    stored = np.frombuffer(data, dtype, count, int(offset)).reshape(shape, order="F")
    with np.errstate(all="ignore"):  # what overflows is infinite, and told below
        image = stored.astype(np.float32)
        if slope is not None:
            image *= np.float32(slope)
            image += np.float32(inter)
    if not np.isfinite(image).all():
        raise Unusable(f"{(~np.isfinite(image)).sum()} voxels are NaN or infinite")
    if image.min() == image.max():
        raise Unusable(f"every voxel is {image.max():g}")
    low, high = np.percentile(image[::2, ::2, ::2], [1, 99])
    if low == high:
        raise Unusable(f"nearly every voxel is {low:g}")
    return image


def _times(numbers) -> str:
    return "×".join(f"{n:.3g}" if isinstance(n, float) else str(n) for n in numbers)
