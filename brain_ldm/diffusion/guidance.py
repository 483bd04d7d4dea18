"""Classifier-free guidance: a denoiser made of two."""

from torch import Tensor

from brain_ldm.diffusion.samplers import Denoiser


def guided(conditional: Denoiser, unconditional: Denoiser, scale: float) -> Denoiser:
    """Push the conditional denoiser away from the unconditional one.

    epsilon = unconditional + scale (conditional - unconditional), which is equation 6 of Ho &
    Salimans 2022 (arXiv 2207.12598) with scale = 1 + w. So 0 is the unconditional model and 1 the
    conditional one: these are returned as they are, and the other is never called.

    Args:
        conditional: `(x, t) -> epsilon` that sees the condition.
        unconditional: `(x, t) -> epsilon` that does not.
        scale: 0 unconditional, 1 conditional, above 1 guided beyond it.

    Returns:
        A denoiser.
    """
    if scale == 0:
        return unconditional
    if scale == 1:
        return conditional

    def denoise(x: Tensor, t: int) -> Tensor:
        without = unconditional(x, t)
        return without + scale * (conditional(x, t) - without)

    return denoise
