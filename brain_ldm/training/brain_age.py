"""Train the brain-age network (Cole et al. 2017): L1 loss, SGD with momentum."""

from pathlib import Path

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.models import BrainAge, GridConfig, SavedBrainAge
from brain_ldm.training.config import BrainAgeTask, Schedule, TrainConfig
from brain_ldm.training.data import CohortData
from brain_ldm.training.packed import packed_images
from brain_ldm.training.randomness import draws, normal, stack
from brain_ldm.training.schedules import make_schedule


def build(config: TrainConfig, cohort: Cohort, run: Path) -> tuple[L.LightningModule, CohortData]:
    """Return the module and the images with ages that train `config.task` on `cohort`."""
    saved = SavedBrainAge(grid=GridConfig(**cohort.grid.to_dict()), network=config.task.network)
    model = BrainAge(saved)

    def arrays(split: str) -> dict[str, np.ndarray]:
        rows = cohort.rows(split)
        rows = rows[rows["age"].notna()].reset_index(drop=True)
        return {
            "image": packed_images(cohort, rows, run / f"images_{split}"),
            "age": rows["age"].to_numpy(np.float32),
        }

    data = CohortData(config.data, arrays)
    ages = torch.from_numpy(data.rows["train"].arrays["age"])
    model.network.mean.copy_(ages.mean())
    model.network.sd.copy_(ages.std())
    return BrainAgeTraining(model, config.task, config.seed, config.trainer.max_steps), data


class BrainAgeTraining(L.LightningModule):
    """Regress age; each training volume is shifted by a few voxels and given a little noise."""

    def __init__(self, model: BrainAge, task: BrainAgeTask, seed: int, max_steps: int) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.seed = seed
        self.max_steps = max_steps

    def configure_optimizers(self) -> dict:
        """Return SGD with momentum; the learning rate rises and falls once over the training."""
        optimizer = torch.optim.SGD(
            self.model.parameters(),
            self.task.lr,
            momentum=0.9,
            weight_decay=self.task.weight_decay,
        )
        schedule = make_schedule(optimizer, Schedule.one_cycle, self.max_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Return the mean absolute error in standard deviations of age."""
        network = self.model.network
        images = batch["image"].float().unsqueeze(1)
        generators = draws(self.seed, self.global_step, batch["index"])
        images = self.shift(images, generators) + self.task.noise * normal(generators, images)
        target = (batch["age"] - network.mean) / network.sd
        loss = F.l1_loss(network(images).float(), target)
        self.log("train/mae", loss.detach() * network.sd, prog_bar=True)
        return loss

    def shift(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Return each volume translated by up to `task.shift` voxels along every axis."""
        reach = self.task.shift
        offsets = stack(generators, lambda g: torch.randint(-reach, reach + 1, (3,), generator=g))
        rolled = [
            torch.roll(image, tuple(offset.tolist()), dims=(1, 2, 3))
            for image, offset in zip(images, offsets, strict=True)
        ]
        return torch.stack(rolled)

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Log the mean absolute error in years."""
        predicted = self.model.predict(batch["image"].float().unsqueeze(1))
        self.log("val/mae", F.l1_loss(predicted, batch["age"]), prog_bar=True)
