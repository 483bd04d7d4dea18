"""Raw scans for tests: heads in scanner space, and the ways in which files are damaged."""

import gzip
import io
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff
from scipy.spatial.transform import Rotation

from brain_ldm.cohorts.grid import paper_grid
from brain_ldm.cohorts.template import draw_phantom

SEED = 31
MEMBER = "T1/T1.nii.gz"
# How scanners store heads: voxel axes, and their directions, of nibabel's orientations.
STORED = ("RAS", "LAS", "PSR", "ASL", "LIP")


def raw_head(index: int, resolution: int = 4) -> tuple[np.ndarray, np.ndarray, dict]:
    """A phantom as a scanner would leave it: turned, shifted, stored along other axes.

    Returns:
        int16 (X, Y, Z); affine (4, 4) in mm; age, sex, ventricular_volume, brain_volume.
    """
    phantom = draw_phantom(SEED, index, resolution)
    voxels = np.rint(phantom.image * 1000).astype(np.int16)
    row = {name: value for name, value in phantom.row.items() if name != "participant_id"}
    return *scanned(voxels, paper_grid(resolution).affine, index), row


def scanned(voxels: np.ndarray, affine: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
    """The same head in another pose, up to 10 degrees and 12 mm away, and stored otherwise."""
    random = np.random.default_rng([SEED, index])
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("xyz", random.uniform(-10, 10, 3), degrees=True).as_matrix()
    pose[:3, 3] = random.uniform(-12, 12, 3)
    axes = nib.orientations.axcodes2ornt(STORED[index % len(STORED)])
    turned = nib.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], axes)
    stored = np.ascontiguousarray(apply_orientation(voxels, turned))
    return stored, pose @ affine @ inv_ornt_aff(turned, voxels.shape)


def plain_head(shape=(40, 48, 40), edge=4.0) -> tuple[np.ndarray, np.ndarray]:
    """A ball with noise in it, int16, and its affine: a scan that can be read, and no more."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    noise = np.random.default_rng(0).integers(0, 200, shape)
    voxels = np.where((grid**2).sum(axis=0) < 0.7, 500 + noise, 0).astype(np.int16)
    affine = np.diag([edge, edge, edge, 1.0])
    affine[:3, 3] = -edge / 2 * np.array(shape)
    return voxels, affine


def to_bytes(voxels: np.ndarray, affine: np.ndarray) -> bytes:
    """A NIfTI-1 file with both sform and qform."""
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm", "sec")
    return image.to_bytes()


def write_raw(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    """Write a scan to a .nii, a .nii.gz, or a .zip as UK Biobank's; folders are made."""
    _write(path, to_bytes(voxels, affine))


def read_bytes(path: Path) -> bytes:
    """What `write_raw` wrote, unzipped."""
    data = path.read_bytes()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            data = archive.read(MEMBER)
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def _write(path: Path, data: bytes) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".nii":
        data = gzip.compress(data, 1, mtime=0)
    if path.suffix == ".zip":
        _write_zip(path, {"T1/T1.json": b"{}", MEMBER: data})
    else:
        path.write_bytes(data)


def _write_zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _header(change):
    """Damage by changing the header: `change(header, voxels)`; returns voxels, or None to keep."""

    def apply(path: Path) -> None:
        data = read_bytes(path)
        image = nib.Nifti1Image.from_bytes(data)
        header, voxels = image.header.copy(), np.asarray(image.dataobj)
        changed = change(header, voxels)
        voxels = voxels if changed is None else changed
        block = io.BytesIO()
        header["vox_offset"] = 352
        header.write_to(block)
        _write(path, block.getvalue()[:348] + bytes(4) + voxels.tobytes(order="F"))

    return apply


def _shaped(header, voxels):
    header.set_data_dtype(voxels.dtype)
    header["dim"][: voxels.ndim + 1] = [voxels.ndim, *voxels.shape]
    return voxels


def _no_orientation(header, voxels):
    header["sform_code"] = header["qform_code"] = 0


def _singular(header, voxels):
    header["qform_code"] = 0
    header["srow_x"], header["srow_y"] = header["srow_z"], header["srow_z"]


def _mirrored(header, voxels):
    for row in ("srow_x", "srow_y", "srow_z"):
        header[row][0] *= -1


def _stretched(header, voxels):
    header["srow_x"][0] *= 1.1


def _zero_edge(header, voxels):
    header["pixdim"][2] = 0


def _thick(header, voxels):
    header["pixdim"][1:4] *= 3
    for row in ("srow_x", "srow_y", "srow_z"):
        header[row][:3] *= 3


def _small(header, voxels):
    return _shaped(header, voxels[:20])


def _slab(header, voxels):
    return _shaped(header, voxels[:, :, :10])


def _flat(header, voxels):
    return _shaped(header, voxels[:, :, :1])


def _two_volumes(header, voxels):
    return _shaped(header, np.stack([voxels, voxels], axis=-1))


def _not_finite(header, voxels):
    holes = voxels.astype(np.float32)
    holes[10, 10, 10:13] = np.nan, np.inf, np.nan
    return _shaped(header, holes)


def _constant(header, voxels):
    return np.zeros_like(voxels)


def _one_voxel(header, voxels):
    lonely = np.zeros_like(voxels)
    lonely[20, 20, 20] = 900
    return lonely


def _colour(header, voxels):
    colours = np.zeros(voxels.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    return _shaped(header, colours)


def _bytes(change):
    """Damage by changing the bytes of the file as it lies there."""
    return lambda path: path.write_bytes(change(path.read_bytes()))


def _truncated_voxels(path: Path) -> None:
    data = read_bytes(path)
    _write(path, data[: 2 * len(data) // 3])


def _checksum(data: bytes) -> bytes:
    return data[:-8] + bytes(b ^ 0x55 for b in data[-8:-4]) + data[-4:]


def _broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("annexed"))


def _unusable_member(path: Path) -> None:
    _write_zip(path, {"T1/unusable/T1.nii.gz": gzip.compress(read_bytes(path))})


def _truncated_member(path: Path) -> None:
    data = gzip.compress(read_bytes(path))
    _write_zip(path, {MEMBER: data[: len(data) // 2]})


# What is done to a file, and what the reason then says. Those of a .nii.gz:
_DAMAGES = {
    "empty": (_bytes(lambda data: b""), r"^empty file$"),
    "broken link": (_broken_link, r"link to a file that is not there"),
    "text": (_bytes(lambda data: b"404: not found\n" * 9), r"neither gzip nor NIfTI"),
    "truncated gzip": (_bytes(lambda data: data[: len(data) // 2]), r"truncated: gzip"),
    "checksum": (_bytes(_checksum), r"damaged gzip"),
    "truncated voxels": (_truncated_voxels, r"truncated: 6\d % of the voxels"),
    "no orientation": (_header(_no_orientation), r"no orientation"),
    "singular": (_header(_singular), r"sform is singular"),
    "mirrored sform": (_header(_mirrored), r"sform and qform disagree: one has left for right"),
    "stretched sform": (_header(_stretched), r"sform and qform disagree: voxels of"),
    "zero edge": (_header(_zero_edge), r"voxels of 4\S*×0\S*×4\S* mm"),
    "thick voxels": (_header(_thick), r"voxels of 12\S* mm"),
    "small view": (_header(_small), r"field of view 80\S* mm: too small"),
    "slab": (_header(_slab), r"only 10 slices"),
    "one slice": (_header(_flat), r"two-dimensional"),
    "two volumes": (_header(_two_volumes), r"2 volumes"),
    "not finite": (_header(_not_finite), r"3 voxels are NaN or infinite"),
    "constant": (_header(_constant), r"every voxel is 0"),
    "one voxel": (_header(_one_voxel), r"nearly every voxel is 0"),
    "colour": (_header(_colour), r"colour image \(RGB\)"),
}
# Those of a .zip.
_ZIP_DAMAGES = {
    "truncated zip": (_bytes(lambda data: data[: len(data) // 2]), r"damaged zip"),
    "flipped zip": (_bytes(lambda data: data[:2000] + b"????" + data[2004:]), r"damaged zip"),
    "unusable": (_unusable_member, r"no T1/T1.nii.gz, only T1/unusable/T1.nii.gz"),
    "truncated member": (_truncated_member, r"truncated: gzip"),
}
KINDS = {kind: reason for kind, (_, reason) in _DAMAGES.items()}
ZIP_KINDS = {kind: reason for kind, (_, reason) in _ZIP_DAMAGES.items()}


def damage(path: Path, kind: str) -> None:
    """Damage a scan of voxels of 4 mm, in place; KINDS and ZIP_KINDS have a regex of its reason."""
    {**_DAMAGES, **_ZIP_DAMAGES}[kind][0](Path(path))
