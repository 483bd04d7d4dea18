"""What the GANs share: images, optimisers, and how the best step is told without a likelihood."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.errors import InputError
from brain_ldm.models import Generator, GridConfig, SavedGenerator
from brain_ldm.networks.generator import VolumeDiscriminator
from brain_ldm.training.averaging import AveragedModule
from brain_ldm.training.config import LSGANTask, TrainConfig, VAEGANTask
from brain_ldm.training.data import VALIDATION, CohortData, Rows
from brain_ldm.training.packed import Team, cache_folder, packed_images
from brain_ldm.training.randomness import draws, normal
from brain_ldm.training.schedules import make_schedule

BETAS = (0.5, 0.999)  # of Adam, as in DCGAN (Radford et al. 2016)
POOLED = (10, 14, 10)  # blocks of 16 mm on the paper's field of view


def build_gan(
    kind: type["GANTraining"], config: TrainConfig, cohort: Cohort
) -> tuple["GANTraining", CohortData]:
    """Return a module of this kind and the images that train `config.task` on `cohort`."""
    grid = GridConfig(**cohort.grid.to_dict())
    module = kind(
        Generator(SavedGenerator(grid=grid, network=config.task.network)),
        config.task,
        config.seed,
        config.trainer.max_steps,
        config.trainer.accumulate,
    )
    return module, gan_data(config, cohort)


def gan_data(config: TrainConfig, cohort: Cohort) -> CohortData:
    """Return the cohort's images, not augmented: a GAN draws all that it is shown.

    Raises:
        InputError: a single validation row, which the choice of the best step cannot do with.
    """
    if len(cohort.rows("val")) == 1:
        raise InputError(
            f"{cohort.root}: one validation row, but a distance of distributions (val/mmd) needs "
            "two: put more rows into split val, or none"
        )

    def rows(split: str, team: Team) -> Rows:
        folder = cache_folder(config.data.cache, cohort, f"images_{split}")
        images = packed_images(cohort, cohort.rows(split), folder, team, config.data.storage)
        return Rows({"image": images})

    return CohortData(config, len(cohort.rows("train")), rows, whole_steps=True)


class GANTraining(AveragedModule):
    """A generator and a discriminator of whole volumes.

    Of the generator the moving average of the weights is published, which is better and steadier
    than the weights of any step (Yazıcı et al. 2019, arXiv 1806.04498). Its optimiser steps through
    Lightning and the others beside it, so that `trainer.global_step` counts generator steps, as for
    the autoencoder. A batch holds all rows of one step; they go through in `parts` whose gradients
    add up.
    """

    judges: tuple[str, ...] = ("mmd",)

    def __init__(
        self,
        model: Generator,
        task: LSGANTask | VAEGANTask,
        seed: int,
        max_steps: int,
        parts: int = 1,
    ) -> None:
        super().__init__(model, task, seed, max_steps)
        self.automatic_optimization = False
        self.parts = parts
        self.discriminator = VolumeDiscriminator(task.discriminator, model.grid.shape)
        self.compared: list[tuple[Tensor, Tensor, Tensor]] = []

    def sides(self) -> dict[str, tuple[nn.Module, float]]:
        """Return the networks that train, each with its learning rate."""
        return {
            "generator": (self.model.network, self.task.lr),
            "discriminator": (self.discriminator, self.task.discriminator_lr),
        }

    @property
    def networks(self) -> list[nn.Module]:
        """The networks that train."""
        return [network for network, _ in self.sides().values()]

    def configure_optimizers(self) -> tuple[list, list]:
        """Return Adam for every side, with its schedule."""
        optimizers, schedules = [], []
        for name, (network, lr) in self.sides().items():
            optimizer = torch.optim.Adam(network.parameters(), lr, BETAS)
            schedule = make_schedule(optimizer, self.task.lr_schedule, self.max_steps)
            optimizers.append(optimizer)
            schedules.append({"scheduler": schedule, "name": name})
        return optimizers, schedules

    def update(self, name: str) -> None:
        """Step one side by the gradient that its parameters have."""
        number = list(self.sides()).index(name)
        network = self.networks[number]
        optimizer, schedule = self.optimizers()[number], self.lr_schedulers()[number]
        norm = nn.utils.clip_grad_norm_(network.parameters(), self.task.gradient_clip)
        if name == "generator":
            updates = self.global_step
            optimizer.step()
            self.update_average(updates)
        else:
            # The bare optimiser: a step through Lightning's wrapper would count as a global step.
            optimizer.optimizer.step()
        if name == "discriminator":
            self.discriminator.advance()
        optimizer.zero_grad()
        schedule.step()
        self.log(f"gradient/{name}", norm)

    def noise(self, generators: list[torch.Generator], network: nn.Module) -> Tensor:
        """Return noise (B, latent_size) in the format of `network`'s weights, a generator a row."""
        weight = next(network.parameters())
        return normal(generators, weight.new_empty(len(generators), self.model.latent_size))

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Draw a volume for each row, from noise that is the same at every validation."""
        z = self.noise(draws(self.seed, VALIDATION, batch["index"]), self.average)
        drawn = pooled(self.average(z))
        self.compared.append((batch["index"], pooled(batch["image"].unsqueeze(1)), drawn))

    def on_validation_epoch_end(self) -> None:
        """Log how far the volumes that were drawn are from those of the validation split."""
        real, drawn = self.gathered()
        self.log_validation({"mmd": squared_mmd(real, drawn)}, len(real))

    def gathered(self) -> tuple[Tensor, Tensor]:
        """Return the pooled volumes of all ranks, real and drawn, (N, D) each, and forget them."""
        rows = torch.cat([index for index, _, _ in self.compared]).to(self.device)
        real, drawn = (torch.cat(found) for found in list(zip(*self.compared, strict=True))[1:])
        self.compared = []
        # Ranks have other rows, or all have all: sums over ranks, and how many there are of each.
        whole = real.new_zeros(len(self.trainer.datamodule.rows["val"]), 2 * real.shape[1] + 1)
        whole[rows] = torch.cat([real, drawn, torch.ones_like(real[:, :1])], dim=1)
        whole = self.trainer.strategy.reduce(whole, reduce_op="sum")
        means = whole[:, :-1] / whole[:, -1:]
        return tuple(means.chunk(2, dim=1))


def pooled(images: Tensor) -> Tensor:
    """Return images (B, 1, X, Y, Z) as a few mean intensities each, (B, D)."""
    return F.adaptive_avg_pool3d(images.float(), POOLED).flatten(1)


def squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared maximum mean discrepancy of two samples, (N, D) and (M, D), unbiased.

    Its kernel is −‖x − y‖ (root mean square over D), which has no width to choose: the energy
    distance of Székely & Rizzo (Sejdinovic et al. 2013, Annals of Statistics 41). For samples of
    one distribution it is 0 on average, and so may be negative; it is well above 0 where all of y
    are alike and those of x are not.
    """
    x, y = x.double() / x.shape[1] ** 0.5, y.double() / y.shape[1] ** 0.5
    within = [torch.cdist(z, z).sum() / (len(z) * (len(z) - 1)) for z in (x, y)]
    return (2 * torch.cdist(x, y).mean() - sum(within)).float()
