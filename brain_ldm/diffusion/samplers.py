"""Samplers: plain functions that take noise to images by asking a denoiser.

Here are DDPM and DDIM; `dpm_solver` has those of second order, `inversion` the way back.

A denoiser is any function `(x, t) -> epsilon`, where x is (B, ...), t an int for the whole batch
and epsilon is shaped as x; conditions, guidance and parameterisation are inside it.

A draw is any function `like -> noise` that gives standard normal noise of `like`'s shape, dtype and
device. It is handed in so that the caller can keep one generator a row, and a row of a batch then
comes out the same whatever the other rows are.

The step after the grid's last timestep is the clean image, alpha_bar = 1, on every grid. Song et
al. define alpha_0 := 1 likewise; in diffusers it is `set_alpha_to_one=True` for DDIM and the only
behaviour of DDPM. Predictions of x0 are not clipped, since latents have no bounds.

Coefficients are computed in float64, images stay in the dtype of the noise.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, int], Tensor]
Draw = Callable[[Tensor], Tensor]


def transitions(alphas_cumprod: Tensor, timesteps: Tensor) -> Iterator[tuple[int, float, float]]:
    """Yield each timestep, its alpha_bar and the alpha_bar it steps to, as Python floats.

    Args:
        alphas_cumprod: the schedule, (T,).
        timesteps: strictly falling, see `brain_ldm.diffusion.grid.timesteps`.

    Raises:
        ValueError: timesteps that do not fall strictly or lie outside the schedule.
    """
    alpha_bars, ts = alphas_cumprod.double().tolist(), timesteps.tolist()
    if not ts:
        raise ValueError("timesteps are empty")
    if ts[0] >= len(alpha_bars) or ts[-1] < 0 or any(a <= b for a, b in pairwise(ts)):
        raise ValueError(f"timesteps must fall strictly and lie within 0..{len(alpha_bars) - 1}")
    for i, t in enumerate(ts):
        is_last = i + 1 == len(ts)
        yield t, alpha_bars[t], 1.0 if is_last else alpha_bars[ts[i + 1]]


@torch.no_grad()
def ddpm(
    denoiser: Denoiser, x: Tensor, alphas_cumprod: Tensor, timesteps: Tensor, draw: Draw
) -> Tensor:
    """Sample by ancestral sampling, Ho et al. 2020 (arXiv 2006.11239), algorithm 2.

    The mean is equation 11, the variance the posterior's of equation 7 (the smaller of the two
    choices). On fewer than T timesteps the chain is re-spaced: beta = 1 - alpha_bar_t /
    alpha_bar_prev (Nichol & Dhariwal 2021, arXiv 2102.09672, section 4).

    Args:
        denoiser: `(x, t) -> epsilon`.
        x: starting noise, (B, ...), standard normal.
        alphas_cumprod: the schedule, (T,).
        timesteps: strictly falling, see `brain_ldm.diffusion.grid.timesteps`.
        draw: `like -> noise`; called once after each timestep but the last.

    Returns:
        The samples, shaped and typed as `x`.

    Raises:
        ValueError: timesteps that do not fall strictly or lie outside the schedule.
    """
    for t, alpha_bar, alpha_bar_prev in transitions(alphas_cumprod, timesteps):
        alpha = alpha_bar / alpha_bar_prev
        beta = 1 - alpha
        epsilon = denoiser(x, t).to(x.dtype)
        x = (x - beta / (1 - alpha_bar) ** 0.5 * epsilon) / alpha**0.5
        variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * beta
        if variance > 0:
            x = x + variance**0.5 * draw(x)
    return x


@torch.no_grad()
def ddim(
    denoiser: Denoiser,
    x: Tensor,
    alphas_cumprod: Tensor,
    timesteps: Tensor,
    eta: float = 0.0,
    draw: Draw | None = None,
) -> Tensor:
    """Sample by implicit sampling, Song et al. 2021 (arXiv 2010.02502), equations 12 and 16.

    Their alpha is alpha_bar here.

    Args:
        denoiser: `(x, t) -> epsilon`.
        x: starting noise, (B, ...), standard normal.
        alphas_cumprod: the schedule, (T,).
        timesteps: strictly falling, see `brain_ldm.diffusion.grid.timesteps`.
        eta: noise added on the way, 0 (none: `x` fixes the sample) to 1 (as DDPM).
        draw: `like -> noise`, needed where `eta` > 0; called once after each timestep but the last.

    Returns:
        The samples, shaped and typed as `x`.

    Raises:
        ValueError: `eta` outside 0..1, or above 0 without `draw`; timesteps that do not fall
            strictly or lie outside the schedule.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie within 0..1, got {eta}")
    if eta > 0 and draw is None:
        raise ValueError(f"eta={eta} adds noise on the way: give draw")
    for t, alpha_bar, alpha_bar_prev in transitions(alphas_cumprod, timesteps):
        variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
        sigma = eta * variance**0.5
        epsilon = denoiser(x, t).to(x.dtype)
        x0 = (x - (1 - alpha_bar) ** 0.5 * epsilon) / alpha_bar**0.5
        x = alpha_bar_prev**0.5 * x0 + (1 - alpha_bar_prev - sigma**2) ** 0.5 * epsilon
        if sigma > 0:
            x = x + sigma * draw(x)
    return x
