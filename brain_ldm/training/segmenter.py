"""Train the tissue segmenter on label maps alone, with random contrast (Billot et al. 2023)."""

from collections.abc import Iterable
from pathlib import Path

import lightning as L
import numpy as np
import torch
from monai.losses import DiceCELoss
from torch import Tensor

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.errors import InputError
from brain_ldm.models import GridConfig, SavedSegmenter, Segmenter
from brain_ldm.progress import track
from brain_ldm.training.config import Schedule, SegmenterTask, TrainConfig
from brain_ldm.training.data import CohortData
from brain_ldm.training.packed import packed, packed_images
from brain_ldm.training.randomness import draws
from brain_ldm.training.schedules import make_schedule
from brain_ldm.training.synthesis import CLASSES, compact, synthesise


def build(config: TrainConfig, cohort: Cohort, run: Path) -> tuple[L.LightningModule, CohortData]:
    """Return the module, label maps to train it and images with known volumes to check it."""
    grid = GridConfig(**cohort.grid.to_dict())
    saved = SavedSegmenter(grid=grid, network=config.task.network, classes=CLASSES)
    train_ids = list(cohort.rows("train")["participant_id"])
    if not train_ids:
        raise InputError(f"{cohort.root}: no training rows")
    shape = cohort.read_labels(train_ids[0])[0].shape
    factor = shape[0] // cohort.grid.shape[0]

    def labels() -> Iterable[dict[str, np.ndarray]]:
        for participant in track(train_ids, "reading labels"):
            found, _ = cohort.read_labels(participant)
            if found.shape != tuple(factor * s for s in cohort.grid.shape):
                raise InputError(
                    f"{cohort.label_path(participant)}: shape {found.shape} is not a whole "
                    f"multiple of the images' {cohort.grid.shape}, the same for every participant"
                )
            yield {"labels": compact(found)[None]}

    def arrays(split: str) -> dict[str, np.ndarray]:
        if split == "train":
            key = {"cohort": cohort.content_hash(), "participants": train_ids}
            size = {"labels": ((len(train_ids), *shape), "uint8")}
            return packed(run / "labels_train", key, size, labels)
        rows = cohort.rows(split)
        volumes = ["ventricular_volume", "brain_volume"]
        return {
            "image": packed_images(cohort, rows, run / f"images_{split}"),
            **{name: rows[name].to_numpy(np.float32) for name in volumes},
        }

    module = SegmenterTraining(
        Segmenter(saved), config.task, factor, config.seed, config.trainer.max_steps
    )
    return module, CohortData(config.data, arrays)


class SegmenterTraining(L.LightningModule):
    """Dice and cross-entropy against the share of each class in each voxel."""

    def __init__(
        self, model: Segmenter, task: SegmenterTask, factor: int, seed: int, max_steps: int
    ) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.factor = factor
        self.seed = seed
        self.max_steps = max_steps
        self.loss = DiceCELoss(softmax=True)

    def configure_optimizers(self) -> dict:
        """Return Adam; the learning rate rises over a tenth of the training and then falls."""
        optimizer = torch.optim.Adam(self.model.parameters(), self.task.lr)
        schedule = make_schedule(optimizer, Schedule.one_cycle, self.max_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Return the loss on images drawn from the batch's label maps."""
        generators = draws(self.seed, self.global_step, batch["index"])
        pairs = [
            synthesise(labels, self.factor, self.task.t1_share, generator)
            for labels, generator in zip(batch["labels"], generators, strict=True)
        ]
        images, shares = (torch.stack(part) for part in zip(*pairs, strict=True))
        loss = self.loss(self.model.network(images).float(), shares)
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Log the mean absolute error of each volume, in percent of the true one."""
        # In 32 bits, as it is used: sums over all voxels feel what bf16 rounds off.
        with torch.autocast(self.device.type, enabled=False):
            measured = self.model.volumes(batch["image"].float().unsqueeze(1))
        for name, values in measured.items():
            error = (values / batch[name] - 1).abs().mean() * 100
            self.log(f"val/{name}_error", error, prog_bar=True)
