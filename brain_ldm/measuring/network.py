"""A segmenter of ours as an instrument: images in batches through the network."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.device import open_device
from brain_ldm.errors import InputError
from brain_ldm.measuring.config import MeasureConfig
from brain_ldm.measuring.instrument import VOLUMES, Instrument, Outcome
from brain_ldm.models import Segmenter, open_model
from brain_ldm.precision import resolve
from brain_ldm.workers import cores, each


def open_segmenter(config: MeasureConfig, cohort: Cohort) -> Instrument:
    """The segmenter model in the folder `config.segmenter`.

    Raises:
        InputError: there is no such model, or its voxels are not those of `cohort` nor made of
            whole ones.
    """
    for name in ("batch_size", "workers"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: give 1 or more")
    model = open_model(config.segmenter, Segmenter)
    factor = coarser(cohort.grid, model.grid)
    if factor is None:
        raise InputError(
            f"{cohort.root}: {cohort.grid}, but the segmenter {config.segmenter} works on "
            f"{model.grid}; give one of the same field of view and the same or coarser voxels"
        )
    device = open_device(config.device)
    model.to(device)
    precision = resolve(config.precision, device.type)
    workers = config.workers or (1 if device.type == "cpu" else cores())

    def measure(cohort: Cohort, participants: list[str], _: Path) -> Iterator[tuple[str, Outcome]]:
        batch = {}
        # Sent to the processes with every brain, and they need no table.
        read = Reader(replace(cohort, table=cohort.table.head(0)), factor)
        died = None if workers == 1 else _Died(cohort)
        for pid, image in each(read, participants, "measuring", workers, died):
            if isinstance(image, str):
                yield pid, image
                continue
            batch[pid] = image
            if len(batch) == config.batch_size:
                yield from _volumes(model, batch, device, precision)
                batch = {}
        if batch:
            yield from _volumes(model, batch, device, precision)

    name = f"the segmenter whose weights have sha256 {model.hash}"
    return Instrument(name if precision == "32-true" else f"{name}, in {precision}", measure)


def coarser(fine: VoxelGrid, coarse: VoxelGrid) -> int | None:
    """How many voxels of `fine` lie along an edge of one of `coarse`.

    None where `coarse` has another field of view, or voxels that are not made of whole fine ones.
    """
    factor = max(1, round(coarse.resolution / fine.resolution))
    affine = fine.affine.copy()
    affine[:3, :3] *= factor
    affine[:3, 3] += (factor - 1) / 2 * np.diag(fine.affine)[:3]  # the middle of the first block
    shape, rest = np.divmod(fine.shape, factor)
    fits = not rest.any() and VoxelGrid(tuple(shape), affine).same_as(coarse)
    return factor if fits else None


def average_blocks(image: np.ndarray, factor: int) -> np.ndarray:
    """Mean of each `factor`³ voxels: (X, Y, Z) to (X/factor, Y/factor, Z/factor)."""
    x, y, z = (size // factor for size in image.shape)
    return image.reshape(x, factor, y, factor, z, factor).mean((1, 3, 5))


@dataclass(frozen=True)
class Reader:
    """Reads one brain on the segmenter's voxels, in whatever process; a line where it cannot."""

    cohort: Cohort
    factor: int

    def __call__(self, participant_id: str) -> np.ndarray | str:
        try:
            return average_blocks(self.cohort.read(participant_id), self.factor)
        except InputError as error:
            return str(error)


@dataclass(frozen=True)
class _Died:
    """What is told of a brain that twice ended the process that read it."""

    cohort: Cohort

    def __call__(self, participant_id: str) -> str:
        return f"{self.cohort.image_path(participant_id)}: the process that read it died twice"


@torch.inference_mode()
def _volumes(
    model: Segmenter, batch: dict[str, np.ndarray], device: torch.device, precision: str
) -> list[tuple[str, Outcome]]:
    images = torch.from_numpy(np.stack(list(batch.values()))[:, None]).to(device)
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            found = model.volumes(images)
    except torch.OutOfMemoryError:
        raise InputError(
            f"{len(batch)} brains at once need more memory than {device} has; give a smaller "
            "batch_size, or device=cpu"
        ) from None
    rows = zip(*(found[name].tolist() for name in VOLUMES), strict=True)
    return [
        (pid, dict(zip(VOLUMES, row, strict=True))) for pid, row in zip(batch, rows, strict=True)
    ]
