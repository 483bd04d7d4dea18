"""UniRes, the paper's way to MNI space: a program of its own, in an environment of its own.

Brudfors et al., A Tool for Super-Resolving Multimodal Clinical MRI (2019, arXiv 1909.01140). It
denoises, resamples to 1 mm and aligns rigidly to an atlas.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from brain_ldm.cohorts.files import UNREADABLE, brief
from brain_ldm.cohorts.registration import register_rigid
from brain_ldm.errors import InputError
from brain_ldm.preprocessing.scan import Failed, Unusable

COMMAND = "unires"
PATIENCE = 7200.0  # s; on a CPU a scan takes long
VOXEL_TOLERANCE = 1e-2  # mm


def find_unires() -> str:
    """Path of UniRes' command.

    Raises:
        InputError: it is not on the PATH.
    """
    path = shutil.which(COMMAND)
    if path is None:
        raise InputError(
            f"registration=unires: no command '{COMMAND}' on the PATH; it is not on PyPI and needs "
            "an environment of its own (docs/preprocessing.md), or give registration=simpleitk"
        )
    return path


def run_unires(
    voxels: np.ndarray,
    affine: np.ndarray,
    work: Path,
    device: str = "cpu",
    patience: float = PATIENCE,
) -> tuple[np.ndarray, np.ndarray]:
    """Denoise a scan and align it rigidly to UniRes' atlas.

    It computes in one thread, since scans run side by side; OMP_NUM_THREADS changes that.

    Args:
        voxels: (X, Y, Z).
        affine: (4, 4) voxel to world in mm.
        work: folder for its files, which are removed.
        device: cpu or cuda.
        patience: s until it is stopped.

    Returns:
        float32 (X, Y, Z), and its (4, 4) affine, of voxels of 1 mm.

    Raises:
        Unusable: it failed, took too long or wrote no usable image.
        InputError: the command is missing or cannot be started.
    """
    command = find_unires()
    with tempfile.TemporaryDirectory(prefix="unires_", dir=work) as name:
        folder = Path(name).resolve()
        scan, out = folder / "x.nii.gz", folder / "out"
        out.mkdir()
        nib.save(nib.Nifti1Image(voxels.astype(np.float32, copy=False), affine), scan)
        arguments = ["--common_output", "--atlas_rigid", "--vx", "1.0"]
        arguments += ["--dir_out", str(out), "--device", device, str(scan)]
        _run([command, *arguments], folder, patience)
        return _read(out / "u_x.nii.gz")


def recovered_transform(
    output: np.ndarray, affine: np.ndarray, scan: np.ndarray, scan_affine: np.ndarray
) -> np.ndarray:
    """Where UniRes moved a scan, which it does not write: both images show the same head.

    Args:
        output, affine: what `run_unires` gave.
        scan, scan_affine: what it was given.

    Returns:
        (4, 4) rigid matrix from the output's world to the scan's, in mm.
    """
    head = output > output.mean()
    return register_rigid(output, affine, scan, scan_affine, head)[0]


def _run(command: list[str], folder: Path, patience: float) -> None:
    # Into a file: a pipe would stay open while any child of a stopped wrapper lives.
    log = folder / "stderr"
    with log.open("wb") as stderr:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={"OMP_NUM_THREADS": "1", **os.environ},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                process_group=0,
            )
        except OSError as error:
            raise InputError(f"{command[0]}: cannot be started ({brief(error)})") from None
    try:
        code = process.wait(patience)
    except BaseException as error:
        # The command may be a script that waits for the program: both are in the group.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise Failed(f"{COMMAND} was stopped after {patience:g} s") from None
        raise
    if code:
        lines = log.read_text(errors="replace").strip().splitlines()
        said = f": {' '.join(lines[-1].split())[:200]}" if lines else ""
        raise Failed(f"{COMMAND} failed with exit status {code}{said}")


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise Unusable(f"{COMMAND} wrote no {path.name}")
    try:
        image = nib.load(path)
        voxels = image.get_fdata(dtype=np.float32)
    except UNREADABLE as error:
        raise Unusable(f"{COMMAND}'s image is unreadable ({brief(error)})") from None
    affine = image.affine.astype(float)
    if voxels.ndim != 3:
        raise Unusable(f"{COMMAND}'s image has {voxels.ndim} axes, not 3")
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine) < 4:
        raise Unusable(f"the affine of {COMMAND}'s image cannot be inverted")
    sizes = nib.affines.voxel_sizes(affine)
    if np.abs(sizes - 1).max() > VOXEL_TOLERANCE:
        shown = " × ".join(f"{s:.3g}" for s in sizes)
        raise Unusable(f"{COMMAND}'s image has voxels of {shown} mm, not 1")
    if not np.isfinite(voxels).all():
        raise Unusable(f"{COMMAND}'s image has voxels that are not finite")
    if voxels.min() == voxels.max():
        raise Unusable(f"{COMMAND}'s image is constant")
    return voxels, affine
