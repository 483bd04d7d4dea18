"""Options of the networks; defaults are the published model's unless a comment says otherwise."""

from dataclasses import dataclass, field
from enum import Enum


@dataclass
class AutoencoderConfig:
    """MONAI's AutoencoderKL in 3-D, without attention anywhere (published model)."""

    channels: list[int] = field(default_factory=lambda: [64, 128, 128, 128])
    res_blocks: int = 2  # a level
    latent_channels: int = 3
    norm_groups: int = 32


class Conditioning(Enum):
    """How covariates enter the U-Net."""

    both = "both"  # Pinaya et al. 2022
    concatenation = "concatenation"  # broadcast over the latent as further channels
    cross_attention = "cross_attention"  # as the one token that the latent attends to


@dataclass
class UNetConfig:
    """MONAI's DiffusionModelUNet with the paper's hybrid conditioning (published model)."""

    channels: list[int] = field(default_factory=lambda: [256, 512, 768])
    res_blocks: int = 2  # a level
    attention_levels: list[bool] = field(default_factory=lambda: [False, True, True])
    head_channels: list[int] = field(default_factory=lambda: [0, 512, 768])  # one head a level
    norm_groups: int = 32
    conditioning: Conditioning = Conditioning.both  # the others answer whether both are needed
    # For small networks trained in minutes (ours; the paper's has neither).
    patch: int = 1  # edge of the blocks of latent voxels that enter as one
    condition_maps: int = 0  # further latent channels, linear in the covariates at every voxel


@dataclass
class DiscriminatorConfig:
    """MONAI's PatchDiscriminator. Not stated in the paper; sizes from the author's later code."""

    channels: int = 96
    layers: int = 3


@dataclass
class GeneratorConfig:
    """From noise to an image: a GAN's generator, whose mirror image a VAE-GAN encodes with.

    Not stated in the paper; sizes are ours.
    """

    latent_size: int = 512  # numbers of noise
    # From the finest level, which has the image's grid, to the coarsest; each halves every axis.
    channels: list[int] = field(default_factory=lambda: [16, 32, 64, 128, 256, 256])
    norm_groups: int = 8


@dataclass
class VolumeDiscriminatorConfig:
    """Strided convolutions from an image to one logit. Not stated in the paper; sizes are ours."""

    channels: list[int] = field(default_factory=lambda: [32, 64, 128, 256, 256])  # a layer a number


@dataclass
class SegmenterConfig:
    """MONAI's BasicUNet, five levels; widths are ours."""

    features: list[int] = field(default_factory=lambda: [24, 24, 48, 96, 192, 24])


@dataclass
class BrainAgeConfig:
    """The 3-D CNN of Cole et al. 2017: a block a number, each halving the volume."""

    channels: list[int] = field(default_factory=lambda: [8, 16, 32, 64, 128])


@dataclass
class EmbeddingConfig:
    """A small 3-D CNN (ours): a block a number, each halving the volume, then one vector."""

    channels: list[int] = field(default_factory=lambda: [16, 32, 64, 128])
    norm_groups: int = 8
    features: int = 64  # numbers in an embedding
