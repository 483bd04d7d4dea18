import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from brain_ldm.preprocessing.scan import Scan, Unusable, read_scan
from tests.preprocessing.raw import (
    KINDS,
    MEMBER,
    ZIP_KINDS,
    damage,
    plain_head,
    raw_head,
    scanned,
    to_bytes,
    write_raw,
)

DATA = Path(os.environ.get("BRAIN_LDM_DATA", Path(__file__).parents[3] / "shared" / "data"))


def scan(path):
    return Scan("sub-1", "sub-1", path, MEMBER if path.suffix == ".zip" else None)


def reason(path):
    with pytest.raises(Unusable) as told:
        read_scan(scan(path))
    return str(told.value)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.zip"])
def test_what_was_written_is_read(tmp_path, name):
    voxels, affine, _ = raw_head(3)
    write_raw(tmp_path / name, voxels, affine)
    read, read_affine = read_scan(scan(tmp_path / name))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, voxels)
    np.testing.assert_allclose(read_affine, affine, atol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def variants():
    voxels, affine = plain_head()
    scaled = nib.Nifti1Image(voxels, affine)
    scaled.header.set_slope_inter(0.25, -100)
    swapped = nib.Nifti1Image(voxels, affine, nib.Nifti1Header(endianness=">"))
    trailing = nib.Nifti1Image(voxels[..., None, None], affine)
    only_qform = nib.Nifti1Image(voxels, affine)
    only_qform.set_qform(affine, 1)
    only_qform.set_sform(None, 0)
    return {
        "uint8": nib.Nifti1Image((voxels // 4).astype(np.uint8), affine),
        "float64": nib.Nifti1Image(voxels / 3, affine),
        "int32": nib.Nifti1Image(voxels.astype(np.int32), affine),
        "scaled": scaled,
        "big-endian": swapped,
        "nifti2": nib.Nifti2Image(voxels, affine),
        "one volume": trailing,
        "only qform": only_qform,
    }


@pytest.mark.parametrize("kind", variants())
def test_any_nifti_reads_as_nibabel_reads_it(tmp_path, kind):
    path = tmp_path / "a.nii.gz"
    nib.save(variants()[kind], path)
    voxels, affine = read_scan(scan(path))
    expected = nib.load(path)
    np.testing.assert_allclose(voxels, expected.get_fdata().reshape(voxels.shape), rtol=1e-6)
    np.testing.assert_allclose(affine, expected.affine, atol=1e-5)


@pytest.mark.parametrize("index", range(5))
def test_qforms_of_any_orientation_are_read(tmp_path, index):
    voxels, affine = scanned(*plain_head(), index)
    image = nib.Nifti1Image(voxels, None)
    image.set_qform(affine, 1)
    nib.save(image, tmp_path / "a.nii.gz")
    read, read_affine = read_scan(scan(tmp_path / "a.nii.gz"))
    np.testing.assert_allclose(read_affine, affine, atol=1e-3)
    np.testing.assert_array_equal(read, voxels)


def test_rounded_headers_are_taken(tmp_path):
    voxels, affine = plain_head()
    image = nib.Nifti1Image(voxels, affine)
    rounded = affine.copy()
    rounded[0, 1], rounded[:3, 3] = 0.009, rounded[:3, 3] + 0.3
    image.set_sform(rounded, 2)
    image.set_qform(affine, 1)
    image.header["pixdim"][0] = 0
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read_scan(scan(tmp_path / "a.nii.gz"))[1], rounded, atol=1e-5)


def test_a_scan_that_was_aligned_keeps_both_of_its_places(tmp_path):
    voxels, affine = plain_head()
    image = nib.Nifti1Image(voxels, affine)
    aligned = np.eye(4)
    aligned[:3, :3] = Rotation.from_euler("xyz", [3, -5, 10], degrees=True).as_matrix()
    aligned[:3, 3] = 20, -30, 5
    image.set_sform(aligned @ affine, 2)
    image.set_qform(affine, 1)
    nib.save(image, tmp_path / "a.nii.gz")
    found = read_scan(scan(tmp_path / "a.nii.gz"))[1]
    np.testing.assert_allclose(found, aligned @ affine, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_each_damage_has_its_reason(tmp_path, kind):
    path = tmp_path / "a.nii.gz"
    write_raw(path, *plain_head())
    damage(path, kind)
    told = reason(path)
    assert re.search(KINDS[kind], told), told
    others = [k for k, pattern in KINDS.items() if k != kind and re.search(pattern, told)]
    assert others in ([], ["constant"] if kind == "one voxel" else [])


@pytest.mark.parametrize("kind", ZIP_KINDS)
def test_each_damage_of_a_zip_has_its_reason(tmp_path, kind):
    path = tmp_path / "a.zip"
    write_raw(path, *plain_head())
    damage(path, kind)
    assert re.search(ZIP_KINDS[kind], reason(path))


def test_files_that_are_no_files(tmp_path):
    assert reason(tmp_path / "absent.nii.gz") == "no such file"
    assert reason(tmp_path) == "a folder, not a file"
    analyze = tmp_path / "a.nii"
    nib.save(nib.AnalyzeImage(plain_head()[0], None), tmp_path / "a.img")
    analyze.write_bytes((tmp_path / "a.hdr").read_bytes())
    assert "Analyze" in reason(analyze)


def test_a_small_file_that_promises_much_is_told_at_once(tmp_path):
    data = bytearray(to_bytes(*plain_head()))
    data[42:48] = np.array([800, 800, 800], "<i2").tobytes()
    (tmp_path / "a.nii").write_bytes(data)
    assert "truncated: 0 % of the voxels" in reason(tmp_path / "a.nii")


def corrupted(random, data, within):
    """Some bytes changed, some cut out or put in, or all of it cut short."""
    data = bytearray(data)
    within = min(within, len(data))
    for _ in range(random.integers(1, 9)):
        at = int(random.integers(within))
        match random.integers(6):
            case 0 | 1 | 2:
                data[at : at + 1] = random.bytes(1)
            case 3:
                data[at : at + 4] = [b"\xff" * 4, bytes(4), b"\x00\x00\xc0\x7f"][at % 3]
            case 4:
                del data[at : at + int(random.integers(1, 50))]
            case 5:
                data[at:at] = random.bytes(int(random.integers(1, 50)))
    if random.integers(8) == 0:
        del data[int(random.integers(len(data))) :]
    return bytes(data)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "within"), [("a.nii", 348), ("a.nii", 10**9), ("a.nii.gz", 10**9), ("a.zip", 10**9)]
)
def test_no_bytes_make_it_fail_otherwise(tmp_path, name, within, caplog):
    path = tmp_path / name
    write_raw(path, *plain_head((32, 32, 32)))
    sound, random = path.read_bytes(), np.random.default_rng(7)
    told = set()
    for _ in range(250):
        path.write_bytes(corrupted(random, sound, within))
        try:
            voxels, affine = read_scan(scan(path))
        except Unusable as error:
            assert str(error) and "\n" not in str(error)
            told.add(str(error)[:12])
        else:
            assert np.isfinite(voxels).all() and np.isfinite(affine).all()
    assert len(told) >= 2
    assert not caplog.records  # no chatter of the library


@pytest.mark.filterwarnings("error")
def test_no_end_of_a_zip_makes_it_fail_otherwise(tmp_path):
    path = tmp_path / "a.zip"
    write_raw(path, *plain_head((32, 32, 32)))
    sound, random = path.read_bytes(), np.random.default_rng(8)
    for _ in range(400):  # the directory of a zip is at its end
        path.write_bytes(sound[:-250] + corrupted(random, sound[-250:], 250))
        try:
            read_scan(scan(path))
        except Unusable as error:
            assert "\n" not in str(error)


def test_a_real_scan_is_read_as_nibabel_reads_it():
    path = DATA / "t1" / "chris_t1.nii.gz"
    if not path.exists():
        pytest.skip(f"no scan at {path} (set BRAIN_LDM_DATA)")
    voxels, affine = read_scan(scan(path))
    expected = nib.load(path)
    np.testing.assert_array_equal(voxels, expected.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(affine, expected.affine)
