"""Networks of the GANs on whole volumes: generator, encoder and discriminator."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from brain_ldm.errors import InputError
from brain_ldm.networks.config import GeneratorConfig, VolumeDiscriminatorConfig
from brain_ldm.networks.cpu_bf16 import SafeConv3d

SLOPE = 0.2  # of LeakyReLU below zero, as in DCGAN (Radford et al. 2016)


class GeneratorNetwork(nn.Module):
    """Images from noise: a linear layer to a small volume, and blocks that each double it.

    Group norm, since batch statistics of one or two volumes a device are noise, and since a moving
    average of the weights would not have statistics of its own.

    Raises:
        InputError: the levels do not divide the volume, or the norm's groups the channels.
    """

    def __init__(self, config: GeneratorConfig, shape: tuple[int, int, int]) -> None:
        super().__init__()
        check_sizes(config, shape)
        self.start = coarsest(config, shape)
        self.first = nn.Linear(config.latent_size, math.prod(self.start))
        self.blocks = nn.Sequential(
            *(Block(a, b, config.norm_groups, 2) for a, b in pairwise(config.channels[::-1])),
            Block(config.channels[0], 1, config.norm_groups, 1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Return images (B, 1, X, Y, Z) in 0..1 for noise (B, latent_size)."""
        return self.blocks(self.first(z).unflatten(1, self.start)).sigmoid()


class Block(nn.Sequential):
    """Norm, LeakyReLU, nearest-neighbour upsampling and a convolution."""

    def __init__(self, inputs: int, outputs: int, groups: int, scale: int) -> None:
        super().__init__(
            nn.GroupNorm(groups, inputs),
            nn.LeakyReLU(SLOPE),
            nn.Upsample(scale_factor=scale) if scale > 1 else nn.Identity(),
            nn.Conv3d(inputs, outputs, 3, padding=1),
        )


class EncoderNetwork(nn.Module):
    """Mean and log-variance of the noise that an image may come from: the generator's mirror."""

    def __init__(self, config: GeneratorConfig, shape: tuple[int, int, int]) -> None:
        super().__init__()
        check_sizes(config, shape)
        widths = config.channels[1:]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([1, *widths]):
            layers += [
                nn.Conv3d(inputs, outputs, 4, stride=2, padding=1),
                nn.GroupNorm(config.norm_groups, outputs),
                nn.LeakyReLU(SLOPE),
            ]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(math.prod(coarsest(config, shape)), 2 * config.latent_size)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance, (B, latent_size) each, of images (B, 1, X, Y, Z)."""
        mu, log_variance = self.last(self.layers(images).flatten(1)).chunk(2, dim=1)
        return mu, log_variance


class VolumeDiscriminator(nn.Module):
    """One logit an image, from strided convolutions with spectral norm (Miyato et al. 2018).

    Spectral norm and not instance norm, which divides out how bright and how frequent a feature is
    in a volume, and so most of what a brain's size and contrast are told by; nor batch norm, of
    one or two volumes a device.
    """

    def __init__(self, config: VolumeDiscriminatorConfig, shape: tuple[int, int, int]) -> None:
        super().__init__()
        size = [axis // 2 ** len(config.channels) for axis in shape]
        if not all(size):
            raise InputError(
                f"task.discriminator.channels: {len(config.channels)} layers, which halve each "
                f"axis, are too many for the volume {'×'.join(map(str, shape))}: give fewer"
            )
        self.layers = nn.ModuleList(
            SafeConv3d(inputs, outputs, 4, stride=2, padding=1)
            for inputs, outputs in pairwise([1, *config.channels])
        )
        self.head = nn.Linear(config.channels[-1] * math.prod(size), 1)
        for layer in (*self.layers, self.head):
            parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features of every layer, and last the logits (B, 1)."""
        outputs = [images]
        for layer in self.layers:
            outputs.append(F.leaky_relu(layer(outputs[-1]), SLOPE))
        return [*outputs[1:], self.head(outputs[-1].flatten(1))]

    def advance(self) -> None:
        """Let spectral norms follow their weights: to be called once a step."""
        for layer in (*self.layers, self.head):
            weight = layer.parametrizations.weight
            weight[0].advance(weight.original)


class SpectralNorm(nn.Module):
    """Divide a weight by its largest singular value, found by power iteration.

    torch's own iterates with every forward pass. Here a step has one weight, however many passes it
    takes: for parts of a batch, on other ranks, or again in the backward pass.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("left", F.normalize(torch.randn(len(weight)), dim=0))
        for _ in range(15):  # as torch's
            self.advance(weight)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight (outputs, ...) divided by the norm of its matrix (outputs, -1)."""
        return weight / self.times_left(weight.flatten(1)).norm()

    @torch.no_grad()
    def advance(self, weight: Tensor) -> None:
        """Take the singular vector a step nearer to that of `weight`, in place."""
        matrix = weight.flatten(1)
        right = F.normalize(self.times_left(matrix), dim=0)
        self.left.copy_(F.normalize((matrix * right).sum(dim=1), dim=0))

    def times_left(self, matrix: Tensor) -> Tensor:
        """Return the product of the left singular vector and a matrix.

        By a sum, since autocast would multiply matrices in 16 bits.
        """
        return (self.left[:, None] * matrix).sum(dim=0)


def coarsest(config: GeneratorConfig, shape: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Return channels and size of the coarsest level."""
    return (config.channels[-1], *(axis // 2 ** (len(config.channels) - 1) for axis in shape))


def check_sizes(config: GeneratorConfig, shape: tuple[int, int, int]) -> None:
    """Refuse levels that do not divide the volume, and groups that do not divide the channels."""
    factor = 2 ** (len(config.channels) - 1)
    if any(axis % factor for axis in shape):
        raise InputError(
            f"the generator enlarges each axis by {factor}, which does not divide the volume "
            f"{'×'.join(map(str, shape))}: use another resolution or fewer levels"
        )
    for width in config.channels:
        if width % config.norm_groups:
            raise InputError(
                f"task.network.norm_groups is {config.norm_groups}, which does not divide "
                f"{width} of task.network.channels: give another number"
            )
