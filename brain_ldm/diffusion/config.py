"""Options of the diffusion process and of the samplers."""

from dataclasses import dataclass
from enum import Enum


class ScheduleKind(Enum):
    """How beta grows from the first timestep to the last."""

    scaled_linear = "scaled_linear"  # sqrt(beta) is linear, as latent diffusion models have it
    linear = "linear"  # beta is linear, Ho et al. 2020


class Prediction(Enum):
    """What the network predicts."""

    epsilon = "epsilon"  # the noise, Ho et al. 2020
    v = "v"  # the velocity, Salimans & Ho 2022
    x0 = "x0"  # the clean latent itself, or what is left of it past `detail` (parameterisation.py)


class Grid(Enum):
    """Which timesteps a sampler visits; see `brain_ldm.diffusion.grid`."""

    leading = "leading"  # 50 steps of 1000: 980, 960, ..., 0
    trailing = "trailing"  # 50 steps of 1000: 999, 979, ..., 19
    linspace = "linspace"  # 50 steps of 1000: 999, 979, ..., 20, 0


@dataclass
class ScheduleConfig:
    """The forward process: how much noise each timestep holds."""

    timesteps: int = 1000  # T, Pinaya et al. 2022
    kind: ScheduleKind = ScheduleKind.scaled_linear  # Pinaya et al. 2022
    beta_start: float = 0.0015  # variance added by the first timestep, Pinaya et al. 2022
    beta_end: float = 0.0205  # variance added by the last timestep, Pinaya et al. 2022


@dataclass
class SamplerConfig:
    """What every sampler needs."""

    steps: int = 50  # denoiser calls a sample (twice that under guidance)
    grid: Grid = Grid.leading  # the grid that MONAI had when Pinaya et al. 2022 used it


@dataclass
class DDPMConfig(SamplerConfig):
    """Ancestral sampling, Ho et al. 2020."""

    steps: int = 1000  # Pinaya et al. 2022


@dataclass
class DDIMConfig(SamplerConfig):
    """Implicit sampling, Song et al. 2021."""

    eta: float = 0.0  # 0 adds no noise on the way (Pinaya et al. 2022), 1 as much as DDPM


@dataclass
class DPMPP2MConfig(SamplerConfig):
    """DPM-Solver++(2M), Lu et al. 2022."""

    steps: int = 20  # Lu et al. 2022 need 15 to 20


@dataclass
class DPMPP2MSDEConfig(SamplerConfig):
    """SDE-DPM-Solver++(2M), Lu et al. 2022."""

    # Ours: on the other grids the step to timestep 0 is so long that it would carry noise too far.
    grid: Grid = Grid.trailing
