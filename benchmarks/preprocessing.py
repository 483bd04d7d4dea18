"""What bringing one scan to MNI space takes, beside transforms of TorchIO that do not register.

`prepare` is what `preprocess` does with a scan in each of its processes, in one thread; its parts
are timed within it. TorchIO reads the same file, reorients it, resamples to 1 mm, crops and
scales, in one thread too. Both run by turns in one process, so that a busy machine slows both.
Seconds are of the processor; where it is shared, those on the clock are longer. The scan is a
phantom, laid askew into voxels of 0.9 mm. Run: make bench
"""

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
import torchio as tio
from scipy import ndimage
from threadpoolctl import threadpool_limits

from brain_ldm.cohorts.grid import FIELD_OF_VIEW, paper_grid
from brain_ldm.cohorts.template import draw_phantom
from brain_ldm.preprocessing import prepare as steps
from brain_ldm.preprocessing.config import PreprocessConfig
from brain_ldm.preprocessing.extraction import extract_brain
from brain_ldm.preprocessing.intensity import correct_bias
from brain_ldm.preprocessing.scan import Scan, read_scan

TURNS = 3
VOXEL, SHAPE = 0.9, (192, 256, 256)
PARTS = {
    "read_scan": "read",
    "register_to_template": "register",
    "resample": "resample",
    "scale_intensity": "scale",
    "template_correlation": "correlate",
}
Seconds = dict[str, float]


def write_scan(path: Path) -> None:
    """Write a phantom as a scanner might: askew, off centre, right to left."""
    phantom, grid = draw_phantom(seed=1, index=0, resolution=1).image, paper_grid(1)
    nod = 0.15
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(nod), -np.sin(nod)], [np.sin(nod), np.cos(nod)]]
    affine[:3, 3] = [6, -10, 25]
    affine = affine @ np.diag([-VOXEL, VOXEL, VOXEL, 1])
    affine[:3, 3] -= affine[:3, :3] @ (np.array(SHAPE) / 2)
    pull = np.linalg.inv(grid.affine) @ affine
    voxels = ndimage.affine_transform(phantom, pull[:3, :3], pull[:3, 3], SHAPE, order=1)
    image = nib.Nifti1Image((voxels * 1000).astype(np.int16), affine)
    image.set_qform(affine, 1)
    nib.save(image, path)


def clocked(function: Callable, name: str, seconds: Seconds) -> Callable:
    """The function, which leaves the seconds it took at `name`."""

    def timed(*arguments):
        began = time.process_time()
        result = function(*arguments)
        seconds[name] = time.process_time() - began
        return result

    return timed


def ours(scan: Scan, config: PreprocessConfig) -> Seconds:
    """`prepare`, whole and in parts."""
    seconds = {}
    with ExitStack() as stack:
        for function, name in PARTS.items():
            replaced = clocked(getattr(steps, function), name, seconds)
            stack.enter_context(mock.patch.object(steps, function, replaced))
        prepared = clocked(steps.prepare, "whole", seconds)(scan, config)
    seconds["other"] = seconds["whole"] - sum(seconds[name] for name in PARTS.values())
    voxels, affine = read_scan(scan)
    clocked(correct_bias, "bias_correction=true", seconds)(voxels, affine)
    if find_spec("deepbet") is not None:
        extract = clocked(extract_brain, "extraction=deepbet", seconds)
        extract(prepared.image, paper_grid(1))
    return seconds


def theirs(path: Path, percentiles: list[float]) -> Seconds:
    """TorchIO's transforms, whole and in parts."""
    seconds = {}

    def whole() -> None:
        image = tio.ScalarImage(path)
        clocked(image.load, "read", seconds)()
        for name, transform in {
            "reorient": tio.ToCanonical(),
            "resample": tio.Resample(1),
            "crop": tio.CropOrPad(FIELD_OF_VIEW),
            "scale": tio.RescaleIntensity((0, 1), percentiles=tuple(percentiles)),
        }.items():
            image = clocked(transform, name, seconds)(image)

    clocked(whole, "whole", seconds)()
    return seconds


def show(title: str, turns: list[Seconds]) -> None:
    """Print a row a part."""
    print(title)
    for name in turns[0]:
        times = [turn[name] for turn in turns]
        print(f"  {name:22} {statistics.median(times):7.2f}  ({min(times):.2f}, {max(times):.2f})")


def main() -> None:
    """Print seconds of both, and their ratio."""
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    config = PreprocessConfig()
    print(f"{platform.processor() or platform.machine()}, one thread, {TURNS} turns; "
          f"scan of {SHAPE} voxels of {VOXEL} mm")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        path = Path(folder) / "scan.nii.gz"
        write_scan(path)
        scan = Scan("sub-1", "sub-1", path)
        mine, plain, wall = [], [], []
        for turn in range(TURNS + 1):
            began = time.perf_counter()
            pair = ours(scan, config), theirs(path, config.percentiles)
            if turn:  # the first turn loads the template
                mine.append(pair[0])
                plain.append(pair[1])
                wall.append(time.perf_counter() - began)
    print(f"{'s of the processor':24} {'median':>7}  (min, max)")
    show("ours", mine)
    show("TorchIO, which does not register", plain)
    ratios = [a["whole"] / b["whole"] for a, b in zip(mine, plain, strict=True)]
    print(
        f"ours / TorchIO: {statistics.median(ratios):.1f}  ({min(ratios):.1f}, {max(ratios):.1f})"
    )
    print(f"a scan and core: {statistics.median(t['whole'] for t in mine):.1f} s; "
          f"a turn of all took {statistics.median(wall):.0f} s on the clock")  # fmt: skip


if __name__ == "__main__":
    main()
