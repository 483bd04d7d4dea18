"""DPM-Solver++(2M): samplers of second order that ask the denoiser once a step.

Lu et al. 2022 (arXiv 2211.01095). With a = sqrt(alpha_bar), s = sqrt(1 - alpha_bar) and lambda =
log(a / s), the exact step from one timestep to the next is an integral of the predicted x0 over
lambda. DDIM holds x0 still within a step; here it goes on along the line through its last two
values, up to the middle of the step.

Two steps hold it still as DDIM does. The first has no value before it. The last one ends at
alpha_bar = 1, where lambda is infinite and so is the middle: a line has no limit there, x0 has, and
the step is then x = x0 exactly. No other step is of lower order.
"""

from math import log, sqrt

import torch
from torch import Tensor

from brain_ldm.diffusion.samplers import Denoiser, Draw, transitions


def dpmpp_2m(denoiser: Denoiser, x: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """Sample by DPM-Solver++(2M), Lu et al. 2022, algorithm 2; x fixes the sample, as in DDIM.

    Args:
        denoiser: `(x, t) -> epsilon`.
        x: starting noise, (B, ...), standard normal.
        alphas_cumprod: the schedule, (T,).
        timesteps: strictly falling, see `brain_ldm.diffusion.grid.timesteps`.

    Returns:
        The samples, shaped and typed as `x`.

    Raises:
        ValueError: timesteps that do not fall strictly or lie outside the schedule.
    """
    return _sample(denoiser, x, alphas_cumprod, timesteps, None)


def dpmpp_2m_sde(
    denoiser: Denoiser, x: Tensor, alphas_cumprod: Tensor, timesteps: Tensor, draw: Draw
) -> Tensor:
    """Sample by SDE-DPM-Solver++(2M), Lu et al. 2022, which adds noise on the way, as DDPM.

    It follows the reverse diffusion of which `dpmpp_2m` follows the probability flow.

    Args:
        denoiser: `(x, t) -> epsilon`.
        x: starting noise, (B, ...), standard normal.
        alphas_cumprod: the schedule, (T,).
        timesteps: strictly falling, see `brain_ldm.diffusion.grid.timesteps`.
        draw: `like -> noise`; called once after each timestep but the last.

    Returns:
        The samples, shaped and typed as `x`.

    Raises:
        ValueError: no `draw`; timesteps that do not fall strictly or lie outside the schedule.
    """
    if draw is None:
        raise ValueError("dpmpp_2m_sde adds noise on the way: give draw")
    return _sample(denoiser, x, alphas_cumprod, timesteps, draw)


@torch.no_grad()
def _sample(
    denoiser: Denoiser, x: Tensor, alphas_cumprod: Tensor, timesteps: Tensor, draw: Draw | None
) -> Tensor:
    """Sample, with noise on the way if there is a `draw`."""
    before = None  # x0 at the timestep before, and how far that was in lambda
    for t, alpha_bar, alpha_bar_prev in transitions(alphas_cumprod, timesteps):
        a, s = sqrt(alpha_bar), sqrt(1 - alpha_bar)
        a_prev, s_prev = sqrt(alpha_bar_prev), sqrt(1 - alpha_bar_prev)
        x0 = (x - s * denoiser(x, t).to(x.dtype)) / a
        ahead = x0
        if s_prev > 0:
            h = log(a_prev / s_prev) - log(a / s)
            if before is not None:
                x0_before, h_before = before
                ahead = x0 + h / (2 * h_before) * (x0 - x0_before)
            before = x0, h
        # exp(-h), written so that it is 0 in the last step. A stochastic step shrinks the noise in
        # x by this factor once more than the flow does, and draws as much anew.
        decay = a * s_prev / (s * a_prev)
        kept = 1.0 if draw is None else decay
        x = s_prev / s * kept * x + a_prev * (1 - decay * kept) * ahead
        if draw is not None and s_prev > 0:
            x = x + s_prev * sqrt(1 - decay**2) * draw(x)
    return x
