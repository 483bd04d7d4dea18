"""Train the autoencoder: a GAN under manual optimisation."""

from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from monai.losses import PatchAdversarialLoss
from torch import Tensor, nn

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.errors import InputError
from brain_ldm.models import Autoencoder, GridConfig, SavedAutoencoder, Segmenter, open_model
from brain_ldm.networks.discriminator import build_discriminator
from brain_ldm.networks.perceptual import SegmenterPerceptualLoss, hub_perceptual_loss
from brain_ldm.training.config import AutoencoderTask, PerceptualConfig, TrainConfig
from brain_ldm.training.data import CohortData
from brain_ldm.training.packed import packed_images
from brain_ldm.training.randomness import draws, normal
from brain_ldm.training.schedules import make_schedule


def build(config: TrainConfig, cohort: Cohort, run: Path) -> tuple[L.LightningModule, CohortData]:
    """Return the module and the images that train `config.task` on `cohort`."""
    task = config.task
    saved = SavedAutoencoder(grid=GridConfig(**cohort.grid.to_dict()), network=task.network)
    perceptual = build_perceptual(task.perceptual, cohort)
    module = AutoencoderTraining(
        Autoencoder(saved), task, perceptual, config.seed, config.trainer.max_steps
    )
    data = CohortData(
        config.data,
        lambda split: {"image": packed_images(cohort, cohort.rows(split), run / f"images_{split}")},
    )
    return module, data


def build_perceptual(config: PerceptualConfig, cohort: Cohort) -> nn.Module:
    """Return the perceptual loss that the config names."""
    if config.network != "segmenter":
        return hub_perceptual_loss(config.network, config.weights, config.slices)
    if config.weights is None:
        raise InputError("task.perceptual.weights: give the segmenter's model folder")
    segmenter = open_model(config.weights, Segmenter)
    if not segmenter.grid.same_as(cohort.grid):
        raise InputError(
            f"{config.weights}: a segmenter for {segmenter.grid}, but {cohort.root} has "
            f"{cohort.grid}"
        )
    return SegmenterPerceptualLoss(segmenter.network)


def kl_divergence(mu: Tensor, sigma: Tensor) -> Tensor:
    """Return KL(N(mu, sigma²) ‖ N(0, 1)): summed over the latent, mean over the batch."""
    kl = 0.5 * (mu.square() + sigma.square() - 2 * sigma.log() - 1)
    return kl.flatten(1).sum(dim=1).mean()


def narrow_posterior(model: Autoencoder) -> None:
    """Let posteriors begin at a standard deviation of e⁻⁴ instead of 1 (ours).

    At 1 the first thousands of steps decode little but noise; the KL term widens them again as far
    as its weight asks for.
    """
    nn.init.constant_(model.network.quant_conv_log_sigma.conv.bias, -8.0)  # log variance


class AutoencoderTraining(L.LightningModule):
    """L1 + perceptual + patch-adversarial (least squares) + KL (Pinaya et al. 2022).

    The generator's optimiser steps through Lightning and the discriminator's beside it, so that
    `trainer.global_step`, which Lightning persists in checkpoints, counts generator steps:
    max_steps, validation, logs and the adversarial warm-up all mean those.
    """

    def __init__(
        self,
        model: Autoencoder,
        task: AutoencoderTask,
        perceptual: nn.Module,
        seed: int,
        max_steps: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.task = task
        self.seed = seed
        self.max_steps = max_steps
        narrow_posterior(model)
        self.discriminator = build_discriminator(task.discriminator)
        self.perceptual = perceptual
        self.adversarial = PatchAdversarialLoss(criterion="least_squares")

    def configure_optimizers(self) -> tuple[list, list]:
        """Return Adam for the generator and Adam for the discriminator, with their schedules."""
        optimizers = [
            torch.optim.Adam(self.model.parameters(), self.task.lr),
            torch.optim.Adam(self.discriminator.parameters(), self.task.discriminator_lr),
        ]
        # The discriminator begins later, so its schedule is as much shorter.
        steps = [self.max_steps, max(self.max_steps - self.task.loss.adversarial_start, 1)]
        schedules = [
            make_schedule(optimizer, self.task.lr_schedule, count)
            for optimizer, count in zip(optimizers, steps, strict=True)
        ]
        return optimizers, schedules

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Step the generator; once the warm-up is over, step the discriminator too."""
        images = batch["image"].float().unsqueeze(1)
        generators = draws(self.seed, self.global_step, batch["index"])
        adversarial = self.global_step >= self.task.loss.adversarial_start
        generator_optimizer, discriminator_optimizer = self.optimizers()
        generator_schedule, discriminator_schedule = self.lr_schedulers()

        self.toggle_optimizer(generator_optimizer)
        mu, sigma = self.model.encode(images)
        reconstructions = self.model.decode(mu + sigma * normal(generators, mu))
        terms = self.generator_terms(images, reconstructions, mu, sigma, adversarial)
        weights = self.task.loss
        loss = sum(getattr(weights, name) * value for name, value in terms.items())
        generator_optimizer.zero_grad()
        self.manual_backward(loss)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.task.gradient_clip)
        generator_optimizer.step()
        generator_schedule.step()
        self.untoggle_optimizer(generator_optimizer)
        for name, value in terms.items():
            self.log(f"train/{name}", value.detach(), prog_bar=name == "l1")
            self.log(f"weight/{name}", getattr(weights, name))
        self.log_dict({"train/generator": loss.detach(), "gradient/generator": norm})

        if adversarial:
            self.toggle_optimizer(discriminator_optimizer)
            loss, accuracy = self.discriminator_loss(images, reconstructions.detach())
            discriminator_optimizer.zero_grad()
            self.manual_backward(loss)
            norm = nn.utils.clip_grad_norm_(
                self.discriminator.parameters(), self.task.gradient_clip
            )
            # The bare optimiser: a step through Lightning's wrapper would count as a global step.
            discriminator_optimizer.optimizer.step()
            discriminator_schedule.step()
            self.untoggle_optimizer(discriminator_optimizer)
            self.log_dict(
                {
                    "train/discriminator": loss.detach(),
                    "train/discriminator_accuracy": accuracy,
                    "gradient/discriminator": norm,
                }
            )

    def generator_terms(
        self, images: Tensor, reconstructions: Tensor, mu: Tensor, sigma: Tensor, adversarial: bool
    ) -> dict[str, Tensor]:
        """Return the unweighted terms of the generator's loss by name."""
        terms = {
            "l1": F.l1_loss(reconstructions.float(), images),
            "perceptual": self.perceptual(reconstructions, images).float().mean(),
            "kl": kl_divergence(mu.float(), sigma.float()),
        }
        if adversarial:
            logits = self.discriminator(reconstructions)[-1].float()
            terms["adversarial"] = self.adversarial(
                logits, target_is_real=True, for_discriminator=False
            )
        return terms

    def discriminator_loss(self, images: Tensor, reconstructions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least-squares loss, and the share of patches that were told right."""
        fake = self.discriminator(reconstructions)[-1].float()
        real = self.discriminator(images)[-1].float()
        losses = [
            self.adversarial(logits, target_is_real=is_real, for_discriminator=True)
            for logits, is_real in ((fake, False), (real, True))
        ]
        accuracy = ((fake < 0.5).float().mean() + (real > 0.5).float().mean()) / 2
        return 0.5 * (losses[0] + losses[1]), accuracy

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Log L1 and PSNR of the reconstructions from the posterior mean."""
        images = batch["image"].float().unsqueeze(1)
        reconstructions = self.model.reconstruct(images).float()
        mse = (reconstructions - images).square().flatten(1).mean(dim=1)
        self.log("val/l1", F.l1_loss(reconstructions, images))
        self.log("val/psnr", (-10 * mse.log10()).mean(), prog_bar=True)
