"""Train the conditional diffusion model on cached latents."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.cohorts.covariates import MISSING, CovariateEncoder
from brain_ldm.diffusion.config import Prediction
from brain_ldm.diffusion.parameterisation import training_target
from brain_ldm.diffusion.schedule import add_noise
from brain_ldm.errors import InputError
from brain_ldm.models import Autoencoder, Diffusion, GridConfig, SavedDiffusion, open_model
from brain_ldm.training.averaging import AveragedModule
from brain_ldm.training.config import DiffusionTask, TrainConfig
from brain_ldm.training.data import VALIDATION, CohortData, Rows
from brain_ldm.training.finetune import start_diffusion, start_encoder
from brain_ldm.training.latents import cached_latents, check_grid, latent_scale
from brain_ldm.training.module import TaskModule
from brain_ldm.training.packed import Team, cache_folder, slug
from brain_ldm.training.randomness import draws, normal, stack, uniform
from brain_ldm.training.schedules import make_schedule


def build(config: TrainConfig, cohort: Cohort) -> tuple[TaskModule, CohortData]:
    """Return the module, and the latents with conditions, that train `config.task`."""
    task = config.task
    if not 0 <= task.detail <= 1:
        raise InputError(f"task.detail is {task.detail:g}: it is a variance, give 0 to 1")
    if task.detail and task.prediction is not Prediction.x0:
        raise InputError(
            f"task.detail is for task.prediction=x0, not {task.prediction.value}: leave it at 0"
        )
    if task.encodings < 1:
        raise InputError(f"task.encodings is {task.encodings}: give 1 or more")
    if task.renamed and task.start_from is None:
        raise InputError("task.renamed names covariates of task.start_from: give that too")
    encoder = CovariateEncoder.fit(cohort.rows("train"), task.covariates)
    if task.start_from is not None:
        encoder = start_encoder(encoder, task.start_from, task.renamed)
    autoencoder = open_model(task.autoencoder, Autoencoder)
    check_grid(autoencoder, cohort)
    saved = SavedDiffusion(
        grid=GridConfig(**cohort.grid.to_dict()),
        network=task.network,
        schedule=task.schedule,
        prediction=task.prediction,
        detail=task.detail,
        latent_scale=task.latent_scale or 1.0,
        covariates=encoder.to_dict()["covariates"],
    )
    model = Diffusion(saved, autoencoder)
    if task.start_from is not None:
        start_diffusion(model, task.start_from, task.renamed)
        if task.latent_scale not in (None, model.config.latent_scale):
            raise InputError(
                f"task.latent_scale is {task.latent_scale:g}, but {task.start_from} has "
                f"{model.config.latent_scale:g}: leave it out"
            )

    def rows(split: str, team: Team) -> Rows:
        table = cohort.rows(split)
        encodings = task.encodings if split == "train" else 1
        kind = f"_{encodings}x{task.encoding_shift}" if encodings > 1 else ""
        content = f"latents_{slug(task.autoencoder)}_{split}{kind}"
        folder = cache_folder(config.data.cache, cohort, content)
        latents = cached_latents(
            autoencoder, cohort, table, folder, team, encodings, task.encoding_shift
        )
        return Rows({**latents, "conditions": encoder.encode(table)})

    module = DiffusionTraining(model, task, config.seed, config.trainer.max_steps)
    return module, CohortData(config, len(cohort.rows("train")), rows)


class DiffusionTraining(AveragedModule):
    """Mean squared error of epsilon, v or x0 at a random timestep (Ho et al. 2020, equation 14)."""

    judges = ("loss",)
    frozen = ("model.autoencoder.",)

    def __init__(self, model: Diffusion, task: DiffusionTask, seed: int, max_steps: int) -> None:
        super().__init__(model, task, seed, max_steps)
        model.autoencoder.requires_grad_(False)

    def setup(self, stage: str) -> None:
        """Fit scale and mean of the latents to the training split, unless a model gave them."""
        data = self.trainer.datamodule
        if data is None or self.task.start_from is not None:
            return
        latents = data.rows["train"].arrays
        if self.task.centre_latents:
            mean = latents["mu"].mean(axis=(0, 1), dtype=np.float64)
            self.model.latent_mean.copy_(torch.from_numpy(mean))
        if self.task.latent_scale is None:
            mean = self.model.latent_mean.float().numpy()
            self.model.config.latent_scale = latent_scale(latents["mu"], latents["sigma"], mean)

    def configure_optimizers(self) -> dict:
        """Return AdamW with its schedule."""
        optimizer = torch.optim.AdamW(self.model.network.parameters(), self.task.lr)
        schedule = make_schedule(optimizer, self.task.lr_schedule, self.max_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, **_: object) -> None:
        """Clip the norm of the gradient, which is logged as it was before."""
        whole = self.trainer.strategy.model
        if isinstance(whole, FullyShardedDataParallel):  # each rank has but a shard of it
            norm = whole.clip_grad_norm_(self.task.gradient_clip)
        else:
            norm = nn.utils.clip_grad_norm_(
                self.model.network.parameters(), self.task.gradient_clip
            )
        self.log("gradient/norm", norm)

    def optimizer_step(self, *args: object, **options: object) -> None:
        """Step, then update the moving average of the weights."""
        updates = self.global_step
        super().optimizer_step(*args, **options)
        self.update_average(updates)

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Return the loss with fresh posterior noise, timesteps and condition dropout."""
        generators = draws(self.seed, self.global_step, batch["index"])
        loss = self.loss(self.model.network, batch, generators, dropout=True).mean()
        self.note({"loss": loss})
        return loss

    def loss(
        self,
        network: torch.nn.Module,
        batch: dict[str, Tensor],
        generators: list[torch.Generator],
        dropout: bool,
    ) -> Tensor:
        """Return the squared error of each row of the batch, (B,)."""
        mu, sigma = pick_encoding(batch, generators)
        latents = mu + sigma * normal(generators, mu)
        x0 = (latents - self.model.latent_mean) * self.model.config.latent_scale
        noise = normal(generators, x0)
        steps = len(self.model.alphas_cumprod)
        t = stack(generators, lambda g: torch.randint(steps, (), generator=g))
        alpha_bar = self.model.alphas_cumprod[t]
        conditions = batch["conditions"]
        if dropout:
            conditions = self.drop(conditions, generators)
        noisy = add_noise(x0, noise, alpha_bar).to(next(network.parameters()).dtype)
        output = network(noisy, t.to(x0.device), conditions).float()
        saved = self.model.config
        target = training_target(saved.prediction, x0, noise, alpha_bar, saved.detail)
        return F.mse_loss(output, target, reduction="none").flatten(1).mean(dim=1)

    def drop(self, conditions: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Return conditions (B, N) with some covariates, or all of a row's, set to missing."""
        chance = uniform(generators, conditions, conditions.shape[1] + 1)
        dropped = chance[:, 1:] < self.task.covariate_dropout
        dropped |= chance[:, :1] < self.task.condition_dropout
        return conditions.masked_fill(dropped, MISSING)

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Log the averaged network's loss at noise that is the same at every validation."""
        generators = draws(self.seed, VALIDATION, batch["index"])
        loss = self.loss(self.average, batch, generators, dropout=False)
        self.log_validation({"loss": loss.mean()}, len(loss))


def pick_encoding(
    batch: dict[str, Tensor], generators: list[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """Return mu and sigma (B, C, x, y, z), those of one of the E encodings of each row."""
    mu, sigma = batch["mu"].float(), batch["sigma"].float()
    count = mu.shape[1]
    if count == 1:
        return mu[:, 0], sigma[:, 0]
    chosen = stack(generators, lambda g: torch.randint(count, (), generator=g)).to(mu.device)
    rows = torch.arange(len(mu), device=mu.device)
    return mu[rows, chosen], sigma[rows, chosen]
