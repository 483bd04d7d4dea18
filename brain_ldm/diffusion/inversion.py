"""From a clean image back to the noise that it is sampled from."""

import torch
from torch import Tensor

from brain_ldm.diffusion.samplers import Denoiser, transitions


@torch.no_grad()
def ddim_invert(
    denoiser: Denoiser,
    x0: Tensor,
    alphas_cumprod: Tensor,
    timesteps: Tensor,
    iterations: int = 5,
) -> Tensor:
    """Find the noise from which `ddim` with eta = 0 on the same timesteps gives `x0` back.

    A step of DDIM takes x at a timestep to y = (a' / a) (x - s epsilon(x, t)) + s' epsilon(x, t),
    a and a' being sqrt(alpha_bar) before and after, s and s' sqrt(1 - alpha_bar). Steps are undone
    from the last one, where y is the image, to the first. Each is an equation for x,
    x = (a / a') y + (s - s' a / a') epsilon(x, t), whose right-hand side is iterated from x = y
    (Pan et al. 2023, arXiv 2309.04907). One iteration asks for epsilon at y, which is the inversion
    of Song et al. 2021; the more there are, the closer `ddim` comes back.

    What converges slowest is the last step's equation for whatever the denoiser takes for noise,
    fine detail of the image among it. It is better the less noise that step removes: on grids that
    end at timestep 0 (leading, linspace).

    Args:
        denoiser: `(x, t) -> epsilon`.
        x0: clean images, (B, ...).
        alphas_cumprod: the schedule, (T,).
        timesteps: strictly falling, as the sampler will visit them.
        iterations: denoiser calls a step, at least 1.

    Returns:
        The noise, shaped and typed as `x0`.

    Raises:
        ValueError: no iterations; timesteps that do not fall strictly or lie outside the schedule.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    x = x0
    for t, alpha_bar, alpha_bar_prev in reversed([*transitions(alphas_cumprod, timesteps)]):
        y = x
        kept = (alpha_bar / alpha_bar_prev) ** 0.5
        added = (1 - alpha_bar) ** 0.5 - (1 - alpha_bar_prev) ** 0.5 * kept
        for _ in range(iterations):
            x = kept * y + added * denoiser(x, t).to(y.dtype)
    return x
