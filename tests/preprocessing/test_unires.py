import gzip
import time

import nibabel as nib
import numpy as np
import pytest
from nilearn.datasets import load_mni152_template

from brain_ldm.errors import InputError
from brain_ldm.preprocessing.scan import Unusable
from brain_ldm.preprocessing.unires import find_unires, recovered_transform, run_unires

MNI = np.array([[1.0, 0, 0, -20], [0, 1, 0, -25], [0, 0, 1, -15], [0, 0, 0, 1]])
SCAN = np.array([[0, 2.0, 0, 3], [-2, 0, 0, 7], [0, 0, 1.5, -9], [0, 0, 0, 1]])
RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.random((6, 5, 4)).astype(np.float32)


@pytest.fixture
def scan():
    return RANDOM.random((5, 6, 7)), SCAN


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Put a program `unires` of our own on the PATH, made of these lines of shell."""

    def write(*lines):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "unires"
        program.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return program

    return write


@pytest.fixture
def writes(fake, tmp_path):
    """A program that writes this image, and keeps its arguments and its input."""

    def write(voxels, affine=MNI):
        data = bytearray(nib.Nifti1Image(voxels, MNI).to_bytes())
        data[280:328] = (
            affine[:3].astype("<f4").tobytes()
        )  # sform, also one nibabel would not write
        (tmp_path / "image.nii.gz").write_bytes(gzip.compress(data))
        fake(
            f'printf "%s\\n" "$@" > "{tmp_path}/arguments"',
            f'for last; do :; done; cp "$last" "{tmp_path}/input.nii.gz"',
            f'echo "progress"; cp "{tmp_path}/image.nii.gz" "$6/u_x.nii.gz"',
        )

    return write


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_command_is_the_documented_one_and_its_image_comes_back(
    writes, scan, tmp_path, device, capfd
):
    writes(IMAGE)
    voxels, affine = run_unires(*scan, tmp_path, device)
    given = (tmp_path / "arguments").read_text().splitlines()
    out, path = given[5], given[8]
    assert given == (
        f"--common_output --atlas_rigid --vx 1.0 --dir_out {out} --device {device} {path}".split(
            " "
        )
    )
    assert path.endswith("/x.nii.gz") and tmp_path in (tmp_path / path).parents
    raw = nib.load(tmp_path / "input.nii.gz")
    np.testing.assert_allclose(raw.get_fdata(), scan[0], rtol=1e-6)
    np.testing.assert_allclose(raw.affine, SCAN)
    np.testing.assert_array_equal(voxels, IMAGE)
    np.testing.assert_array_equal(affine, MNI)
    assert voxels.dtype == np.float32
    assert not list(tmp_path.glob("unires_*")), "its files are removed"
    assert capfd.readouterr() == ("", ""), "nothing between the lines of a progress bar"


def test_a_missing_command_is_the_users_to_install(tmp_path, monkeypatch, scan):
    monkeypatch.setenv("PATH", str(tmp_path))
    for call in (find_unires, lambda: run_unires(*scan, tmp_path)):
        with pytest.raises(InputError, match=r"unires.*PATH.*docs/preprocessing\.md") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_command_that_cannot_be_started_is_the_users_to_mend(fake, tmp_path, scan):
    program = fake()
    program.write_text("#!/no/such/interpreter\n")
    with pytest.raises(InputError, match="unires: cannot be started"):
        run_unires(*scan, tmp_path)


def patched(value, index=(0, 0, 0)):
    voxels = IMAGE.copy()
    voxels[index] = value
    return voxels


@pytest.mark.parametrize(
    ("voxels", "affine", "reason"),
    [
        (patched(np.nan), MNI, "voxels that are not finite"),
        (patched(np.inf), MNI, "voxels that are not finite"),
        (np.full_like(IMAGE, 3), MNI, "constant"),
        (IMAGE[..., None].repeat(2, axis=3), MNI, "4 axes, not 3"),
        (IMAGE, MNI @ np.diag([1, 1, 1.02, 1]), "voxels of 1 × 1 × 1.02 mm, not 1"),
        (IMAGE, np.diag([1.0, 1, 0, 1]), "cannot be inverted"),
        (IMAGE, np.diag([1.0, 1, np.nan, 1]), "cannot be inverted"),
    ],
)
def test_a_bad_image_is_no_scan(writes, scan, tmp_path, voxels, affine, reason):
    writes(voxels, affine)
    with pytest.raises(Unusable, match=reason):
        run_unires(*scan, tmp_path)


def test_voxels_of_almost_1_mm_will_do(writes, scan, tmp_path):
    writes(IMAGE, MNI @ np.diag([1, 1, 1.005, 1]))
    run_unires(*scan, tmp_path)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["exit 0"], "wrote no u_x.nii.gz"),
        (['echo nonsense > "$6/u_x.nii.gz"'], "unreadable"),
        (
            ["echo Traceback >&2", "echo '  ValueError: too   thin ' >&2", "echo >&2", "exit 3"],
            "exit status 3: ValueError: too thin$",
        ),
        (["exit 1"], "exit status 1$"),
        (["kill -9 $$"], "exit status -9$"),
    ],
)
def test_a_failure_says_what_the_program_said(fake, scan, tmp_path, lines, reason):
    fake(*lines)
    with pytest.raises(Unusable, match=reason) as caught:
        run_unires(*scan, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("unires_*"))


def test_a_truncated_image_is_unreadable(writes, scan, tmp_path):
    writes(RANDOM.random((20, 20, 20)).astype(np.float32))
    image = tmp_path / "image.nii.gz"
    image.write_bytes(image.read_bytes()[:-2000])
    with pytest.raises(Unusable, match="unreadable"):
        run_unires(*scan, tmp_path)


def test_one_that_hangs_is_stopped_with_what_it_started(fake, scan, tmp_path):
    fake(f'(sleep 1; echo alive > "{tmp_path}/late") &', "sleep 60")
    began = time.monotonic()
    with pytest.raises(Unusable, match=r"stopped after 0\.3 s"):
        run_unires(*scan, tmp_path, patience=0.3)
    assert time.monotonic() - began < 10
    time.sleep(1.5)
    assert not (tmp_path / "late").exists()


def test_where_it_moved_a_scan_is_found_again():
    head = load_mni152_template(resolution=1).get_fdata(dtype=np.float32)[::5, ::5, ::5]
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    affine[:3, 3] = [-98, -134, -72]
    nod = 0.15
    moved = np.eye(4)
    moved[1:3, 1:3] = [[np.cos(nod), -np.sin(nod)], [np.sin(nod), np.cos(nod)]]
    moved[:3, 3] = [5, -8, 12]
    # The same voxels in both worlds, noisy and stored from right to left in the scan's.
    noise = RANDOM.normal(0, 0.03, head.shape)
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = head.shape[0] - 1
    found = recovered_transform(head, affine, (head + noise)[::-1], moved @ affine @ flip)
    points = np.array([[60, -17, 5, 1], [-60, -17, 5, 1], [0, 60, 5, 1], [0, -17, 70, 1]]).T
    assert np.linalg.norm(((found - moved) @ points)[:3], axis=0).max() < 1
