"""The forward process: how much of an image is left, and how much noise is there, at a timestep.

Timesteps count from 0 to T - 1, in training and in sampling: `alphas_cumprod[t]` is the alpha-bar
of Ho et al.'s step t + 1.
"""

import torch
from torch import Tensor

from brain_ldm.diffusion.config import ScheduleConfig, ScheduleKind


def make_schedule(config: ScheduleConfig) -> Tensor:
    """Compute alpha-bar, the share of the image's variance that is left at each timestep.

    Args:
        config: number of timesteps T, kind of schedule, first and last beta.

    Returns:
        float64 (T,), falling, within (0, 1): the running product of 1 - beta
        (Ho et al. 2020, arXiv 2006.11239, below equation 4).

    Raises:
        ValueError: no timestep, or betas that are not 0 < beta_start <= beta_end < 1.
    """
    if config.timesteps < 1:
        raise ValueError(f"timesteps must be at least 1, got {config.timesteps}")
    if not 0 < config.beta_start <= config.beta_end < 1:
        raise ValueError(
            "betas must satisfy 0 < beta_start <= beta_end < 1, got "
            f"beta_start={config.beta_start}, beta_end={config.beta_end}"
        )
    start, end = config.beta_start, config.beta_end
    if config.kind is ScheduleKind.scaled_linear:
        betas = torch.linspace(start**0.5, end**0.5, config.timesteps, dtype=torch.float64) ** 2
    else:
        betas = torch.linspace(start, end, config.timesteps, dtype=torch.float64)
    return torch.cumprod(1 - betas, dim=0)


def signal_and_noise(alpha_bar: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Compute sqrt(alpha_bar) and sqrt(1 - alpha_bar), shaped to multiply a batch.

    The roots are taken in float64 and only then rounded to the batch's dtype.

    Args:
        alpha_bar: one value for the whole batch, or (B,) with one for each row.
        like: the batch, (B, ...).

    Returns:
        Two tensors of `like`'s dtype and device, (1, 1, ...) or (B, 1, ...).

    Raises:
        ValueError: `alpha_bar` is neither one value nor one for each row.
    """
    alpha_bar = torch.as_tensor(alpha_bar, dtype=torch.float64)
    if alpha_bar.ndim and alpha_bar.shape != like.shape[:1]:
        raise ValueError(
            f"alpha_bar has shape {tuple(alpha_bar.shape)}; a batch of {len(like)} rows needs "
            f"one value or ({len(like)},)"
        )
    alpha_bar = alpha_bar.reshape(-1, *[1] * (like.ndim - 1))
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    return signal.to(like), noise.to(like)


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: Tensor | float) -> Tensor:
    """Take images to a timestep in one go: equation 4 of Ho et al. 2020.

    Args:
        x0: images or latents, (B, ...).
        noise: standard normal, shaped as `x0`.
        alpha_bar: `alphas_cumprod[t]`, one value or (B,).

    Returns:
        x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise, shaped as `x0`.

    Raises:
        ValueError: `alpha_bar` is neither one value nor one for each row.
    """
    a, s = signal_and_noise(alpha_bar, x0)
    return a * x0 + s * noise
