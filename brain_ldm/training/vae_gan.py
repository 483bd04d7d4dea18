"""Train a VAE-GAN (Larsen et al. 2016, arXiv 1512.09300), a baseline of the paper."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.errors import InputError
from brain_ldm.models import Generator
from brain_ldm.networks.generator import EncoderNetwork
from brain_ldm.training.autoencoder import kl_divergence
from brain_ldm.training.config import TrainConfig, VAEGANTask
from brain_ldm.training.data import CohortData
from brain_ldm.training.gan import GANTraining, build_gan
from brain_ldm.training.module import TaskModule
from brain_ldm.training.randomness import draws, normal


def build(config: TrainConfig, cohort: Cohort) -> tuple[TaskModule, CohortData]:
    """Return the module and the images that train `config.task` on `cohort`."""
    return build_gan(VAEGANTraining, config, cohort)


class VAEGANTraining(GANTraining):
    """Algorithm 1 of the paper: three losses, each for the parameters of one network alone.

    The encoder learns from the prior and from the likelihood of the discriminator's features; the
    decoder from that likelihood, `gamma` times, and from the GAN; the discriminator from the GAN.
    The decoder's part in the GAN is −log D instead of log(1 − D), whose gradient vanishes where the
    discriminator is sure (Goodfellow et al. 2014, section 3).
    """

    judges = ("mmd", "l1")

    def __init__(
        self, model: Generator, task: VAEGANTask, seed: int, max_steps: int, parts: int = 1
    ) -> None:
        super().__init__(model, task, seed, max_steps, parts)
        layers = len(task.discriminator.channels)
        if not 1 <= task.feature_layer <= layers:
            raise InputError(
                f"task.feature_layer is {task.feature_layer}; give 1 to {layers}, a layer of the "
                "discriminator"
            )
        self.encoder = EncoderNetwork(task.network, model.grid.shape)

    def sides(self) -> dict[str, tuple[nn.Module, float]]:
        """Return the networks that train, each with its learning rate."""
        return {**super().sides(), "encoder": (self.encoder, self.task.encoder_lr)}

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Take the gradients of all three losses, then step."""
        decoder, discriminator, encoder = self.optimizers()
        logged = []
        rows = batch["index"].chunk(self.parts)
        for part, image in enumerate(self.fed(batch["image"]).chunk(self.parts)):
            draw = draws(self.seed, self.global_step, rows[part])
            last = part == self.parts - 1  # where ranks meet
            # Each backward pass reaches the parameters of its own side alone.
            with encoder.toggle_model(sync_grad=last):
                target = self.features(image)
                z, terms = self.encoder_terms(image, target, draw)
                self.manual_backward((terms["kl"] + terms["features"]) / self.parts)
            with decoder.toggle_model(sync_grad=last):
                prior = self.noise(draw, self.model.network)
                volumes, loss, adversarial = self.decoder_loss(target, z.detach(), prior)
                self.manual_backward(loss / self.parts)
            with discriminator.toggle_model(sync_grad=last):
                against, right = self.discriminator_loss(image, [v.detach() for v in volumes])
                self.manual_backward(against / self.parts)
            logged.append(
                {
                    **terms,
                    "adversarial": adversarial,
                    "generator": loss,
                    "discriminator": against,
                    "discriminator_accuracy": right,
                }
            )
        for name in ("encoder", "discriminator", "generator"):
            self.update(name)
        self.log_step(logged, shown="features")

    def encoder_terms(
        self, images: Tensor, target: Tensor, generators: list[torch.Generator]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a draw from each posterior (B, latent_size), and the terms of the encoder's loss.

        Args:
            images: (B, 1, X, Y, Z).
            target: their features.
            generators: of the draws.
        """
        mu, log_variance = self.encoder(images)
        sigma = (0.5 * log_variance.float()).exp()
        z = mu + sigma.to(mu.dtype) * normal(generators, mu)
        features = self.features(self.model.network(z))
        return z, {
            "kl": kl_divergence(mu.float(), sigma),
            "features": negative_log_likelihood(target, features),
        }

    def decoder_loss(
        self, target: Tensor, z: Tensor, prior: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return what is decoded of z and of the prior's noise, the loss, and the GAN's part in it.

        Args:
            target: features of the images that z encodes.
            z: (B, latent_size) of the posterior.
            prior: (B, latent_size) of N(0, 1).
        """
        volumes = [self.model.network(noise) for noise in (z, prior)]
        outputs = [self.discriminator(volume) for volume in volumes]
        features = outputs[0][self.task.feature_layer - 1]
        adversarial = sum(F.softplus(-output[-1].float()).mean() for output in outputs)
        likeness = negative_log_likelihood(target, features)
        return volumes, self.task.gamma * likeness + adversarial, adversarial

    def discriminator_loss(self, images: Tensor, volumes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return −log D(image) − Σ log(1 − D(volume)), and the share of all that is told right."""
        real = self.discriminator(images)[-1].float()
        decoded = [self.discriminator(volume)[-1].float() for volume in volumes]
        loss = F.softplus(-real).mean() + sum(F.softplus(fake).mean() for fake in decoded)
        wrong = torch.cat([real <= 0, *(fake >= 0 for fake in decoded)]).float().mean()
        return loss, 1 - wrong

    def features(self, images: Tensor) -> Tensor:
        """Return what the discriminator's layer `feature_layer` says of images."""
        return self.discriminator(images)[self.task.feature_layer - 1]

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Draw a volume for each row, and log how close reconstructions come to it."""
        super().validation_step(batch, batch_index)
        mu, _ = self.encoder(self.fed(batch["image"]))
        output = self.average(mu.to(next(self.average.parameters()).dtype)).float()
        l1 = F.l1_loss(output, batch["image"].float().unsqueeze(1))
        self.log_validation({"l1": l1}, len(output))


def negative_log_likelihood(target: Tensor, features: Tensor) -> Tensor:
    """Return −log N(target | features, 1), summed over features, mean over the batch.

    But for the constant; in nats an image.
    """
    return 0.5 * (target.float() - features.float()).square().flatten(1).sum(dim=1).mean()
