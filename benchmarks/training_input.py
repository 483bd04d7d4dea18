"""How fast training gets its input: the packed cache beside TorchIO from .nii.gz files.

160×224×160 voxels at 1 mm. TorchIO brings raw scans of some 1 mm to the grid and to 0..1 at every
step (its ToCanonical, Resample, CropOrPad and RescaleIntensity), or merely reads images that lie
there so already. The autoencoder's augmentation is the same on all sides: every volume's changes
follow from its step. One process and one thread each, as a loader's worker has; files are in the
page cache. All ways run by turns, so that a busy machine slows all; medians over the turns, and
their spread. Run: make bench
"""

import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
import torchio as tio
from scipy.ndimage import gaussian_filter, zoom
from torch.utils.data import DataLoader

from brain_ldm.cohorts.cohort import Cohort, open_cohort
from brain_ldm.cohorts.grid import paper_grid
from brain_ldm.cohorts.writer import CohortWriter
from brain_ldm.training.augmentation import augment
from brain_ldm.training.config import AugmentationConfig, Storage
from brain_ldm.training.data import Rows, StepBatches
from brain_ldm.training.packed import Levels, Team, packed_images
from brain_ldm.training.randomness import generator

TURNS, VOLUMES = 5, 3
# Times that a turn goes through the volumes: augmentation is cheap for most and dear for a few.
ROUNDS = {"cache": 12, "images": 4, "raw": 1}
RAW, SPACING = (176, 256, 256), (1.0, 0.98, 0.98)  # as scanners give them, in mm
GRID = paper_grid(1)
Way = Callable[[range, bool], Iterator[torch.Tensor]]  # steps, whether they augment


def head(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return an ellipsoid of smooth texture and a little noise in an empty field, in 0..1."""
    random = np.random.default_rng(seed)
    texture = gaussian_filter(random.standard_normal([s // 4 for s in shape]), 1.5)
    texture = zoom(texture, np.divide(shape, texture.shape), order=1)
    axes = np.meshgrid(*(np.linspace(-1.2, 1.2, s) for s in shape), indexing="ij", sparse=True)
    inside = sum(axis**2 for axis in axes) < 1
    image = 0.5 + 0.2 * texture / texture.std() + 0.02 * random.standard_normal(shape)
    return np.where(inside, image, 0).clip(0, 1).astype(np.float32)


def write(folder: Path) -> tuple[Cohort, list[Path]]:
    """Write a cohort, and raw scans in another orientation; return it and their paths."""
    writer = CohortWriter(folder / "cohort", "Heads", {"Name": "bench"}, GRID, synthetic=True)
    affine = np.diag([-SPACING[0], *SPACING[1:], 1.0])
    affine[:3, 3] = np.multiply(SPACING, RAW) / (2, -2, -2)
    paths = []
    for number in range(VOLUMES):
        row = {"participant_id": f"sub-{number}", "split": "train"}
        writer.add(row, head(GRID.shape, number))
        paths.append(folder / f"raw{number}.nii.gz")
        scan = (1000 * head(RAW, VOLUMES + number)).astype(np.int16)
        nib.save(nib.Nifti1Image(scan, affine), paths[-1])
    writer.finish()
    return open_cohort(folder / "cohort"), paths


def augmented(image: torch.Tensor, step: int) -> torch.Tensor:
    """Return an image (X, Y, Z) as the autoencoder's training changes it."""
    return augment(image, AugmentationConfig(), generator(0, "augmentation", step))


def from_cache(images: np.ndarray | Levels) -> Way:
    """Return the way of training: rows of the packed cache."""

    def read(steps: range, augments: bool) -> Iterator[torch.Tensor]:
        def change(item: dict, step: int, row: int) -> dict:
            image = item["image"].float()
            return {"image": augmented(image, step) if augments else image}

        batches = StepBatches(VOLUMES, 1, 1, 0, 1, 0, steps.start, steps.stop)
        for batch in DataLoader(Rows({"image": images}, change), batch_sampler=batches):
            yield batch["image"][0]

    return read


def from_files(paths: list[Path], *transforms: tio.Transform) -> Way:
    """Return TorchIO's way: .nii.gz files, and transforms of them."""
    subjects = [tio.Subject(image=tio.ScalarImage(path)) for path in paths]
    dataset = tio.SubjectsDataset(subjects, tio.Compose(transforms))

    def read(steps: range, augments: bool) -> Iterator[torch.Tensor]:
        for start in steps[::VOLUMES]:
            for step, batch in enumerate(tio.SubjectsLoader(dataset, batch_size=1), start):
                image = batch["image"][tio.DATA][0, 0].float()
                yield augmented(image, step) if augments else image

    return read


def speed(way: Way, rounds: int, turn: int, augments: bool) -> float:
    """Return volumes a second."""
    count = rounds * VOLUMES
    steps = range(turn * count, (turn + 1) * count)
    began = time.perf_counter()
    for image in way(steps, augments):
        assert tuple(image.shape) == GRID.shape
    return count / (time.perf_counter() - began)


def main() -> None:
    """Print a row a way, with and without augmentation."""
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cohort, raw = write(folder)
        table = cohort.rows("train")
        caches = {
            storage: packed_images(cohort, table, folder / "images", Team(), storage)
            for storage in Storage
        }
        images = [cohort.image_path(pid) for pid in table["participant_id"]]
        ways = {
            "packed, float16": ("cache", from_cache(caches[Storage.float16])),
            "packed, uint8": ("cache", from_cache(caches[Storage.uint8])),
            "TorchIO, images on the grid": ("images", from_files(images)),
            "TorchIO, raw scans": (
                "raw",
                from_files(
                    raw,
                    tio.ToCanonical(),
                    tio.Resample(GRID.resolution),
                    tio.CropOrPad(GRID.shape),
                    tio.RescaleIntensity((0, 1), percentiles=(0.5, 99.5)),
                ),
            ),
        }
        print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, "
              f"TorchIO {tio.__version__}, {TURNS} turns")  # fmt: skip
        print(f"{'volumes/s: median (min, max)':38} {'augmented':>22} {'not':>22}")
        speeds = {(way, augments): [] for way in ways for augments in (True, False)}
        for turn in range(TURNS):
            for way, augments in speeds:
                kind, read = ways[way]
                speeds[way, augments].append(speed(read, ROUNDS[kind], turn, augments))
    for way in ways:
        cells = [spread(speeds[way, augments], "6.2f") for augments in (True, False)]
        print(f"{way:38} {cells[0]:>22} {cells[1]:>22}")
    for storage in ("float16", "uint8"):
        for other in ("TorchIO, images on the grid", "TorchIO, raw scans"):
            cells = [
                spread(
                    np.divide(speeds[f"packed, {storage}", augments], speeds[other, augments]),
                    ".1f",
                )
                for augments in (True, False)
            ]
            print(f"{f'{storage} / {other}':38} {cells[0]:>22} {cells[1]:>22}")


def spread(values: Sequence[float], form: str) -> str:
    """Return median, minimum and maximum as text."""
    middle, low, high = (f"{f(values):{form}}" for f in (statistics.median, min, max))
    return f"{middle} ({low.strip()}, {high.strip()})"


if __name__ == "__main__":
    main()
