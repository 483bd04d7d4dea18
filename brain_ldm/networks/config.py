"""Options of the networks; defaults are the published model's unless a comment says otherwise."""

from dataclasses import dataclass, field


@dataclass
class AutoencoderConfig:
    """MONAI's AutoencoderKL in 3-D, without attention anywhere (published model)."""

    channels: list[int] = field(default_factory=lambda: [64, 128, 128, 128])
    res_blocks: int = 2  # a level
    latent_channels: int = 3
    norm_groups: int = 32


@dataclass
class UNetConfig:
    """MONAI's DiffusionModelUNet with the paper's hybrid conditioning (published model)."""

    channels: list[int] = field(default_factory=lambda: [256, 512, 768])
    res_blocks: int = 2  # a level
    attention_levels: list[bool] = field(default_factory=lambda: [False, True, True])
    head_channels: list[int] = field(default_factory=lambda: [0, 512, 768])  # one head a level
    norm_groups: int = 32
    # For small networks trained in minutes (ours; the paper's has neither).
    patch: int = 1  # edge of the blocks of latent voxels that enter as one
    condition_maps: int = 0  # further latent channels, linear in the covariates at every voxel


@dataclass
class DiscriminatorConfig:
    """MONAI's PatchDiscriminator. Not stated in the paper; sizes from the author's later code."""

    channels: int = 96
    layers: int = 3


@dataclass
class SegmenterConfig:
    """MONAI's BasicUNet, five levels; widths are ours."""

    features: list[int] = field(default_factory=lambda: [24, 24, 48, 96, 192, 24])


@dataclass
class BrainAgeConfig:
    """The 3-D CNN of Cole et al. 2017: a block a number, each halving the volume."""

    channels: list[int] = field(default_factory=lambda: [8, 16, 32, 64, 128])
