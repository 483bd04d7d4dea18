"""Train the brain-age network (Cole et al. 2017): L1 loss, SGD with momentum."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.models import BrainAge, GridConfig, SavedBrainAge
from brain_ldm.training.config import Schedule, TrainConfig
from brain_ldm.training.data import CohortData, Rows
from brain_ldm.training.module import TaskModule
from brain_ldm.training.packed import Team, cache_folder, packed_images
from brain_ldm.training.randomness import draws, normal, stack
from brain_ldm.training.schedules import make_schedule


def build(config: TrainConfig, cohort: Cohort) -> tuple[TaskModule, CohortData]:
    """Return the module and the images with ages that train `config.task` on `cohort`."""
    saved = SavedBrainAge(grid=GridConfig(**cohort.grid.to_dict()), network=config.task.network)
    model = BrainAge(saved)
    known = cohort.rows("train")["age"].dropna().to_numpy(np.float32)
    model.network.mean.fill_(known.mean())
    model.network.sd.fill_(known.std(ddof=1))

    def rows(split: str, team: Team) -> Rows:
        table = cohort.rows(split)
        folder = cache_folder(config.data.cache, cohort, f"images_{split}")
        images = packed_images(cohort, table, folder, team, config.data.storage)
        ages = table["age"].to_numpy(np.float32)
        return Rows({"image": images, "age": ages}, only=np.flatnonzero(~np.isnan(ages)))

    module = BrainAgeTraining(model, config.task, config.seed, config.trainer.max_steps)
    return module, CohortData(config, len(known), rows)


class BrainAgeTraining(TaskModule):
    """Regress age; each training volume is shifted by a few voxels and given a little noise."""

    judges = ("mae",)

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
        images = self.fed(batch["image"])
        generators = draws(self.seed, self.global_step, batch["index"])
        images = self.shift(images, generators) + self.task.noise * normal(generators, images)
        target = (batch["age"] - network.mean) / network.sd
        loss = F.l1_loss(network(images).float(), target)
        self.note({"mae": loss * network.sd})
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
        predicted = self.model.predict(self.fed(batch["image"]))
        self.log_validation({"mae": F.l1_loss(predicted, batch["age"])}, len(predicted))
