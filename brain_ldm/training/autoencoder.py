"""Train the autoencoder: a GAN under manual optimisation."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.losses import PatchAdversarialLoss
from torch import Tensor, nn

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.errors import InputError
from brain_ldm.models import Autoencoder, GridConfig, SavedAutoencoder, Segmenter, open_model
from brain_ldm.networks.discriminator import build_discriminator
from brain_ldm.networks.perceptual import SegmenterPerceptualLoss, hub_perceptual_loss
from brain_ldm.training.augmentation import augment, check_augmentation
from brain_ldm.training.config import AutoencoderTask, PerceptualConfig, TrainConfig
from brain_ldm.training.data import VALIDATION, CohortData, Rows
from brain_ldm.training.finetune import start_autoencoder
from brain_ldm.training.module import TaskModule
from brain_ldm.training.packed import Team, cache_folder, packed_images
from brain_ldm.training.randomness import draws, generator, normal
from brain_ldm.training.schedules import make_schedule


def build(config: TrainConfig, cohort: Cohort) -> tuple[TaskModule, CohortData]:
    """Return the module and the images that train `config.task` on `cohort`."""
    task = config.task
    saved = SavedAutoencoder(grid=GridConfig(**cohort.grid.to_dict()), network=task.network)
    perceptual = build_perceptual(task.perceptual, cohort)
    model = Autoencoder(saved)
    narrow_posterior(model)
    check_augmentation(task.augmentation)
    if task.start_from is not None:
        start_autoencoder(model, task.start_from)
    module = AutoencoderTraining(
        model, task, perceptual, config.seed, config.trainer.max_steps, config.trainer.accumulate
    )

    def augmented(item: dict[str, Tensor], step: int, row: int) -> dict[str, Tensor]:
        draw = generator(config.seed, "augmentation", step, row)
        return {"image": augment(item["image"].float(), task.augmentation, draw)}

    def rows(split: str, team: Team) -> Rows:
        folder = cache_folder(config.data.cache, cohort, f"images_{split}")
        images = packed_images(cohort, cohort.rows(split), folder, team, config.data.storage)
        return Rows({"image": images}, augmented if split == "train" else None)

    return module, CohortData(config, len(cohort.rows("train")), rows, whole_steps=True)


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


class AutoencoderTraining(TaskModule):
    """L1 + perceptual + patch-adversarial (least squares) + KL (Pinaya et al. 2022).

    The generator's optimiser steps through Lightning and the discriminator's beside it, so that
    `trainer.global_step`, which Lightning persists in checkpoints, counts generator steps:
    max_steps, validation, logs and the adversarial warm-up all mean those. A batch holds all rows
    of one step; they go through in `parts` whose gradients add up.
    """

    judges = ("reconstruction", "l1", "perceptual")
    frozen = ("perceptual.",)

    def __init__(
        self,
        model: Autoencoder,
        task: AutoencoderTask,
        perceptual: nn.Module,
        seed: int,
        max_steps: int,
        parts: int = 1,
    ) -> None:
        super().__init__(model, task, seed, max_steps)
        self.automatic_optimization = False
        self.parts = parts
        self.discriminator = build_discriminator(task.discriminator)
        self.perceptual = perceptual
        self.adversarial = PatchAdversarialLoss(criterion="least_squares")

    @property
    def networks(self) -> list[nn.Module]:
        """The generator and the discriminator."""
        return [self.model.network, self.discriminator]

    def configure_optimizers(self) -> tuple[list, list]:
        """Return Adam for the generator and Adam for the discriminator, with their schedules."""
        optimizers = [
            torch.optim.Adam(self.model.parameters(), self.task.lr),
            torch.optim.Adam(self.discriminator.parameters(), self.task.discriminator_lr),
        ]
        # The discriminator begins later, so its schedule is as much shorter.
        steps = [self.max_steps, max(self.max_steps - self.task.loss.adversarial_start, 1)]
        names = ["generator", "discriminator"]
        schedules = [
            {"scheduler": make_schedule(optimizer, self.task.lr_schedule, count), "name": name}
            for optimizer, count, name in zip(optimizers, steps, names, strict=True)
        ]
        return optimizers, schedules

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Step the generator; once the warm-up is over, step the discriminator too."""
        images = self.fed(batch["image"]).chunk(self.parts)
        generators = [
            draws(self.seed, self.global_step, rows) for rows in batch["index"].chunk(self.parts)
        ]
        adversarial = self.global_step >= self.task.loss.adversarial_start
        reconstructions = self.step_generator(images, generators, adversarial)
        if adversarial:
            self.step_discriminator(images, reconstructions)

    def step_generator(
        self,
        images: Sequence[Tensor],
        generators: Sequence[list[torch.Generator]],
        adversarial: bool,
    ) -> list[Tensor]:
        """Step the generator on all parts of a batch; return their reconstructions."""
        optimizer, schedule = self.optimizers()[0], self.lr_schedulers()[0]
        reconstructions, logged = [], []
        for part, (image, draw) in enumerate(zip(images, generators, strict=True)):
            # Only this side's parameters require gradients; ranks meet at the last part.
            with optimizer.toggle_model(sync_grad=part == len(images) - 1):
                mu, sigma = self.model.encode(image)
                output = self.model.decode(mu + sigma * normal(draw, mu))
                terms = self.generator_terms(image, output, mu, sigma, draw, adversarial)
                weights = self.term_weights(terms)
                loss = sum(weights[name] * value for name, value in terms.items())
                self.manual_backward(loss / len(images))
            reconstructions.append(output.detach())
            logged.append({**terms, "generator": loss})
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.task.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        self.log_step(logged, shown="l1")
        if self.global_step % self.trainer.log_every_n_steps == 0:
            self.log_dict({f"weight/{name}": value for name, value in weights.items()})
        self.log("gradient/generator", norm)
        return reconstructions

    def step_discriminator(
        self, images: Sequence[Tensor], reconstructions: Sequence[Tensor]
    ) -> None:
        """Step the discriminator on all parts of a batch."""
        optimizer, schedule = self.optimizers()[1], self.lr_schedulers()[1]
        logged = []
        for part, (image, output) in enumerate(zip(images, reconstructions, strict=True)):
            with optimizer.toggle_model(sync_grad=part == len(images) - 1):
                loss, accuracy = self.discriminator_loss(image, output)
                self.manual_backward(loss / len(images))
            logged.append({"discriminator": loss, "discriminator_accuracy": accuracy})
        norm = nn.utils.clip_grad_norm_(self.discriminator.parameters(), self.task.gradient_clip)
        # The bare optimiser: a step through Lightning's wrapper would count as a global step.
        optimizer.optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        self.log_step(logged)
        self.log("gradient/discriminator", norm)

    def generator_terms(
        self,
        images: Tensor,
        reconstructions: Tensor,
        mu: Tensor,
        sigma: Tensor,
        generators: list[torch.Generator],
        adversarial: bool,
    ) -> dict[str, Tensor]:
        """Return the unweighted terms of the generator's loss by name."""
        terms = {
            "l1": F.l1_loss(reconstructions.float(), images.float()),
            "perceptual": self.perceptual(reconstructions, images, generators).float().mean(),
            "kl": kl_divergence(mu.float(), sigma.float()),
        }
        if adversarial:
            logits = self.discriminator(reconstructions)[-1].float()
            terms["adversarial"] = self.adversarial(
                logits, target_is_real=True, for_discriminator=False
            )
        return terms

    def term_weights(self, terms: dict[str, Tensor]) -> dict[str, Tensor | float]:
        """Return the weight of each term; the adversarial one's may adapt."""
        weights = {name: getattr(self.task.loss, name) for name in terms}
        if self.task.loss.adaptive and "adversarial" in terms:
            others = sum(weights[name] * terms[name] for name in ("l1", "perceptual"))
            weights["adversarial"] *= self.gradient_ratio(others, terms["adversarial"])
        return weights

    def gradient_ratio(self, reconstruction: Tensor, adversarial: Tensor) -> Tensor:
        """Return ‖∇reconstruction‖ / ‖∇adversarial‖ at the decoder's last layer, at most 10⁴.

        Equation 7 of Esser et al. 2021 (arXiv 2012.09841). The gradients are averaged over ranks
        first, so that all use one weight.
        """
        last = self.model.network.decoder.blocks[-1].conv.weight
        norms = []
        for loss in (reconstruction, adversarial):
            gradient = torch.autograd.grad(loss, last, retain_graph=True)[0].detach().float()
            norms.append(self.trainer.strategy.reduce(gradient, reduce_op="mean").norm())
        return (norms[0] / (norms[1] + 1e-6)).clamp(max=1e4)

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
        """Log how good reconstructions from the posterior mean are.

        `reconstruction` is the weighted sum of L1 and perceptual distance: the generator's loss
        without the terms that do not speak of likeness.
        """
        output = self.model.reconstruct(self.fed(batch["image"])).float()
        images = batch["image"].float().unsqueeze(1)
        generators = draws(self.seed, VALIDATION, batch["index"])
        mse = (output - images).square().flatten(1).mean(dim=1)
        values = {
            "l1": F.l1_loss(output, images),
            "perceptual": self.perceptual(output, images, generators).float().mean(),
            "psnr": (-10 * mse.log10()).mean(),
        }
        weights = self.task.loss
        values["reconstruction"] = (
            weights.l1 * values["l1"] + weights.perceptual * values["perceptual"]
        )
        self.log_validation(values, len(images))
