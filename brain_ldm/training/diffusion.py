"""Train the conditional diffusion model on cached latents."""

from pathlib import Path

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.cohorts.covariates import MISSING, CovariateEncoder
from brain_ldm.diffusion.config import Prediction
from brain_ldm.diffusion.parameterisation import training_target
from brain_ldm.diffusion.schedule import add_noise
from brain_ldm.errors import InputError
from brain_ldm.models import Autoencoder, Diffusion, GridConfig, SavedDiffusion, open_model
from brain_ldm.training.config import DiffusionTask, TrainConfig
from brain_ldm.training.data import CohortData
from brain_ldm.training.latents import cached_latents, latent_scale
from brain_ldm.training.randomness import draws, normal, stack, uniform
from brain_ldm.training.schedules import make_schedule


def build(config: TrainConfig, cohort: Cohort, run: Path) -> tuple[L.LightningModule, CohortData]:
    """Return the module, and the latents with conditions, that train `config.task`."""
    task = config.task
    if task.x0_weight != 1 and task.prediction is not Prediction.x0:
        raise InputError(
            f"task.x0_weight is for task.prediction=x0, not {task.prediction.value}: leave it at 1"
        )
    encoder = CovariateEncoder.fit(cohort.rows("train"), task.covariates)
    autoencoder = open_model(task.autoencoder, Autoencoder)

    def arrays(split: str) -> dict[str, np.ndarray]:
        rows = cohort.rows(split)
        latents = cached_latents(autoencoder, cohort, rows, run / f"latents_{split}")
        return {**latents, "conditions": encoder.encode(rows)}

    data = CohortData(config.data, arrays)
    train = data.rows["train"].arrays
    mean = np.zeros(autoencoder.latent_shape, np.float32)
    if task.centre_latents:
        mean = train["mu"].mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = task.latent_scale or latent_scale(train["mu"], train["sigma"], mean)
    saved = SavedDiffusion(
        grid=GridConfig(**cohort.grid.to_dict()),
        network=task.network,
        schedule=task.schedule,
        prediction=task.prediction,
        latent_scale=scale,
        covariates=encoder.to_dict()["covariates"],
    )
    model = Diffusion(saved, autoencoder)
    model.latent_mean.copy_(torch.from_numpy(mean))
    return DiffusionTraining(model, task, config.seed, config.trainer.max_steps), data


def moving_average(decay: float):
    """Return the update of an exponential moving average that reaches `decay` gradually.

    Early on the average follows the weights: step n uses min(decay, (1 + n) / (10 + n)).
    """

    def update(averages: list[Tensor], weights: list[Tensor], steps: Tensor) -> None:
        n = float(steps)
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + n) / (10 + n)))

    return update


class DiffusionTraining(L.LightningModule):
    """Mean squared error of epsilon, v or x0 at a random timestep (Ho et al. 2020, equation 14)."""

    def __init__(self, model: Diffusion, task: DiffusionTask, seed: int, max_steps: int) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.seed = seed
        self.max_steps = max_steps
        model.autoencoder.requires_grad_(False)
        self.average = AveragedModel(model.network, multi_avg_fn=moving_average(task.ema))

    def configure_optimizers(self) -> dict:
        """Return AdamW with its schedule."""
        optimizer = torch.optim.AdamW(self.model.network.parameters(), self.task.lr)
        schedule = make_schedule(optimizer, self.task.lr_schedule, self.max_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Return the loss with fresh posterior noise, timesteps and condition dropout."""
        generators = draws(self.seed, self.global_step, batch["index"])
        loss = self.loss(self.model.network, batch, generators, dropout=True).mean()
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def loss(
        self,
        network: torch.nn.Module,
        batch: dict[str, Tensor],
        generators: list[torch.Generator],
        dropout: bool,
    ) -> Tensor:
        """Return the squared error of each row of the batch, (B,)."""
        mu, sigma = batch["mu"].float(), batch["sigma"].float()
        total = len(self.model.alphas_cumprod)
        latents = mu + sigma * normal(generators, mu)
        x0 = (latents - self.model.latent_mean) * self.model.config.latent_scale
        noise = normal(generators, x0)
        share = stack(generators, lambda g: torch.rand((), generator=g)) ** self.task.timestep_power
        t = (total * share).long().clamp(max=total - 1)
        alpha_bar = self.model.alphas_cumprod[t].to(x0.device)
        conditions = batch["conditions"]
        if dropout:
            conditions = self.drop(conditions, generators)
        output = network(add_noise(x0, noise, alpha_bar), t.to(x0.device), conditions).float()
        target = training_target(self.model.config.prediction, x0, noise, alpha_bar)
        errors = F.mse_loss(output, target, reduction="none").flatten(1).mean(dim=1)
        if self.model.config.prediction is Prediction.x0:
            weight = (1 / (1 - alpha_bar)).clamp(max=self.task.x0_weight)
            errors = errors * weight.to(errors)
        return errors

    def drop(self, conditions: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Return conditions (B, N) with some covariates, or all of a row's, set to missing."""
        chance = uniform(generators, conditions, conditions.shape[1] + 1)
        dropped = chance[:, 1:] < self.task.covariate_dropout
        dropped |= chance[:, :1] < self.task.condition_dropout
        return conditions.masked_fill(dropped, MISSING)

    def on_train_batch_end(self, *args: object) -> None:
        """Update the moving average of the weights."""
        self.average.update_parameters(self.model.network)

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Log the averaged network's loss at noise that is the same at every validation."""
        generators = draws(self.seed, -1, batch["index"])
        loss = self.loss(self.average.module, batch, generators, dropout=False)
        self.log("val/loss", loss.mean(), prog_bar=True)

    def on_train_end(self) -> None:
        """Hand the averaged weights to the model that is saved."""
        self.model.network.load_state_dict(self.average.module.state_dict())
