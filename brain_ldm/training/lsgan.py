"""Train an LSGAN (Mao et al. 2017, arXiv 1611.04076), a baseline of the paper."""

from collections.abc import Sequence

import torch
from torch import Tensor

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.training.config import TrainConfig
from brain_ldm.training.data import CohortData
from brain_ldm.training.gan import GANTraining, build_gan
from brain_ldm.training.module import TaskModule
from brain_ldm.training.randomness import draws


def build(config: TrainConfig, cohort: Cohort) -> tuple[TaskModule, CohortData]:
    """Return the module and the images that train `config.task` on `cohort`."""
    return build_gan(LSGANTraining, config, cohort)


def generator_loss(logits: Tensor) -> Tensor:
    """Return the generator's loss on logits of drawn volumes: equation 9, c = 1."""
    return 0.5 * (logits.float() - 1).square().mean()


def discriminator_loss(real: Tensor, drawn: Tensor) -> Tensor:
    """Return the discriminator's loss on logits: equation 9, a = 0 for drawn and b = 1 for real."""
    return 0.5 * (real.float() - 1).square().mean() + 0.5 * drawn.float().square().mean()


class LSGANTraining(GANTraining):
    """Least squares on both sides."""

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Step the generator, then the discriminator on the same volumes that were drawn."""
        images = self.fed(batch["image"]).chunk(self.parts)
        generators = [
            draws(self.seed, self.global_step, rows) for rows in batch["index"].chunk(self.parts)
        ]
        self.step_discriminator(images, self.step_generator(generators))

    def step_generator(self, generators: Sequence[list[torch.Generator]]) -> list[Tensor]:
        """Step the generator on all parts of a batch; return what it drew."""
        volumes, logged = [], []
        for part, draw in enumerate(generators):
            # Only this side's parameters require gradients; ranks meet at the last part.
            with self.optimizers()[0].toggle_model(sync_grad=part == len(generators) - 1):
                drawn = self.model.network(self.noise(draw, self.model.network))
                loss = generator_loss(self.discriminator(drawn)[-1])
                self.manual_backward(loss / len(generators))
            volumes.append(drawn.detach())
            logged.append({"generator": loss})
        self.update("generator")
        self.log_step(logged, shown="generator")
        return volumes

    def step_discriminator(self, images: Sequence[Tensor], volumes: Sequence[Tensor]) -> None:
        """Step the discriminator on all parts of a batch."""
        logged = []
        for part, (image, drawn) in enumerate(zip(images, volumes, strict=True)):
            with self.optimizers()[1].toggle_model(sync_grad=part == len(images) - 1):
                real, fake = (self.discriminator(x)[-1] for x in (image, drawn))
                loss = discriminator_loss(real, fake)
                self.manual_backward(loss / len(images))
            right = ((real > 0.5).float().mean() + (fake < 0.5).float().mean()) / 2
            logged.append({"discriminator": loss, "discriminator_accuracy": right})
        self.update("discriminator")
        self.log_step(logged, shown="discriminator")
