"""Train the tissue segmenter on label maps alone, with random contrast (Billot et al. 2023)."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.errors import InputError
from brain_ldm.models import GridConfig, SavedSegmenter, Segmenter
from brain_ldm.progress import track
from brain_ldm.training.config import Schedule, SegmenterTask, TrainConfig
from brain_ldm.training.data import CohortData, Rows
from brain_ldm.training.module import TaskModule
from brain_ldm.training.packed import Team, cache_folder, packed, packed_images, shown
from brain_ldm.training.randomness import generator
from brain_ldm.training.schedules import make_schedule
from brain_ldm.training.synthesis import CLASSES, TISSUES, compact, synthesise

VOLUMES = ("ventricular_volume", "brain_volume")
LEAST_SLOPE = 0.1  # of a network that measures at all: below, undoing it would only add noise
CALIBRATED = 64  # images of training rows that the line of each volume is found on


def build(config: TrainConfig, cohort: Cohort) -> tuple[TaskModule, CohortData]:
    """Return the module, label maps to train it and images with known volumes to check it."""
    grid = GridConfig(**cohort.grid.to_dict())
    saved = SavedSegmenter(grid=grid, network=config.task.network, classes=CLASSES)
    ids = list(cohort.rows("train")["participant_id"])
    if not ids:
        raise InputError(f"{cohort.root}: no training rows")
    shape = cohort.read_labels(ids[0])[0].shape
    factor = shape[0] // cohort.grid.shape[0]

    def labels(wanted: Sequence[int], team: Team) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        for row in shown(wanted, "reading labels", team):
            found, _ = cohort.read_labels(ids[row])
            if found.shape != tuple(factor * s for s in cohort.grid.shape):
                raise InputError(
                    f"{cohort.label_path(ids[row])}: shape {found.shape} is not a whole "
                    f"multiple of the images' {cohort.grid.shape}, the same for every participant"
                )
            yield row, {"labels": compact(found)}

    def draw(item: dict[str, Tensor], step: int, row: int) -> dict[str, Tensor]:
        drawn = generator(config.seed, step, row)
        seen, resolution = item["labels"], cohort.grid.resolution
        if step < config.task.coarse * config.trainer.max_steps:
            seen, resolution = seen[::2, ::2, ::2], 2 * resolution
        image, shares = synthesise(seen, factor, resolution, config.task.t1_share, drawn)
        return {"image": image, "shares": shares}

    def rows(split: str, team: Team) -> Rows:
        if split == "train":
            folder = cache_folder(config.data.cache, cohort, "labels_train")
            key = {"cohort": cohort.content_hash(), "participants": ids, "tissues": TISSUES}
            arrays = {"labels": (shape, "uint8")}
            return Rows(
                packed(folder, key, len(ids), arrays, lambda wanted: labels(wanted, team), team),
                draw,
            )
        table = cohort.rows(split)
        folder = cache_folder(config.data.cache, cohort, f"images_{split}")
        return Rows(
            {
                "image": packed_images(cohort, table, folder, team, config.data.storage),
                **{name: table[name].to_numpy(np.float32) for name in VOLUMES},
            },
            only=np.flatnonzero(table[list(VOLUMES)].notna().all(axis=1)),
        )

    module = SegmenterTraining(Segmenter(saved), config.task, config.seed, config.trainer.max_steps)
    return module, CohortData(config, len(ids), rows)


@torch.no_grad()
def volume_errors(model: Segmenter, cohort: Cohort) -> dict[str, float]:
    """Return the validation metrics of a model as it is used, that is, calibrated.

    Empty where no validation row has all volumes.
    """
    rows = cohort.rows("val").dropna(subset=list(VOLUMES))
    device = next(model.parameters()).device
    found: dict[str, list[float]] = {f"{name}_error": [] for name in VOLUMES}
    for _, row in rows.iterrows():
        image = torch.from_numpy(cohort.read(row["participant_id"]))[None, None].to(device)
        for name, volume in model.volumes(image).items():
            found[f"{name}_error"].append(100 * abs(float(volume) / row[name] - 1))
    if rows.empty:
        return {}
    errors = {name: float(np.mean(values)) for name, values in found.items()}
    return {**errors, "volume_error": sum(errors.values()) / len(VOLUMES)}


@torch.no_grad()
def calibrate(model: Segmenter, cohort: Cohort) -> None:
    """Find the line of counted on true volumes and let the model undo it from now on.

    On images of training rows: the network saw their labels in other contrasts and deformations,
    and never these images. A line is kept only where there are volumes to tell one by.

    Args:
        model: on any device, not yet calibrated.
        cohort: whose training rows it learnt from.
    """
    rows = cohort.rows("train").dropna(subset=list(VOLUMES))
    rows = rows.iloc[np.linspace(0, len(rows) - 1, min(CALIBRATED, len(rows))).round().astype(int)]
    device = next(model.parameters()).device
    found: dict[str, list[float]] = {name: [] for name in VOLUMES}
    for participant in track(rows["participant_id"].tolist(), "calibrating volumes"):
        image = torch.from_numpy(cohort.read(participant))[None, None].to(device)
        for name, counted in model.counted(image).items():
            found[name].append(float(counted))
    maps = rows["label_map"] if "label_map" in rows else np.zeros(len(rows))
    groups = pd.factorize(maps)[0]
    for name in VOLUMES:
        true, counted = rows[name].to_numpy(float), np.array(found[name])
        if len(true) < 3 or np.ptp(true) == 0:
            continue
        # Within each label map: maps differ from one another by more than a line.
        x, y = (values - _group_means(values, groups) for values in (true, counted))
        slope = float((x * y).sum() / max((x * x).sum(), 1e-12))
        if slope > LEAST_SLOPE:
            offset = float(counted.mean() - slope * true.mean())
            model.config.calibration[name] = [offset, slope]


def _group_means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return for each value the mean of its group, (n,)."""
    return (np.bincount(groups, values) / np.bincount(groups))[groups]


class SegmenterTraining(TaskModule):
    """Dice and cross-entropy against the share of each class in each voxel."""

    judges = ("volume_error", *(f"{name}_error" for name in VOLUMES))

    def __init__(self, model: Segmenter, task: SegmenterTask, seed: int, max_steps: int) -> None:
        super().__init__(model, task, seed, max_steps)
        # Dice whose optimum, like that of cross-entropy, is at the true shares (Wang et al. 2023,
        # arXiv 2303.16296); the usual one's is at whole voxels, and volumes would come out biased.
        self.dice = DiceLoss(softmax=True, soft_label=True)

    def configure_optimizers(self) -> dict:
        """Return Adam; the learning rate rises over a tenth of the training and then falls."""
        optimizer = torch.optim.Adam(self.model.parameters(), self.task.lr)
        schedule = make_schedule(optimizer, Schedule.one_cycle, self.max_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Return the loss on images drawn from label maps."""
        logits = self.model.network(self.fed(batch["image"])).float()
        loss = self.dice(logits, batch["shares"]) + F.cross_entropy(logits, batch["shares"])
        self.note({"loss": loss})
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Log the mean absolute error of each volume, and of both, in percent of the true one."""
        # In 32 bits, as it is used: sums over all voxels feel what bf16 rounds off.
        with torch.autocast(self.device.type, enabled=False):
            measured = self.model.volumes(self.fed(batch["image"]))
        errors = {
            f"{name}_error": (measured[name] / batch[name] - 1).abs().mean() * 100
            for name in VOLUMES
        }
        errors["volume_error"] = sum(errors.values()) / len(VOLUMES)
        self.log_validation(errors, len(batch["index"]))
