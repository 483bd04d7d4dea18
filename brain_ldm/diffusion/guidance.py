"""Classifier-free guidance: a denoiser made of two."""

from torch import Tensor

from brain_ldm.diffusion.config import Prediction
from brain_ldm.diffusion.parameterisation import to_epsilon, to_x0
from brain_ldm.diffusion.samplers import Denoiser


def guided(
    conditional: Denoiser,
    unconditional: Denoiser,
    scale: float,
    rescale: float = 0.0,
    alphas_cumprod: Tensor | None = None,
) -> Denoiser:
    """Push the conditional denoiser away from the unconditional one.

    epsilon = unconditional + scale (conditional - unconditional), which is equation 6 of Ho &
    Salimans 2022 (arXiv 2207.12598) with scale = 1 + w. So 0 is the unconditional model and 1 the
    conditional one: these are returned as they are, and the other is never called.

    A large scale makes the standard deviation of the predicted image too large, and contrast with
    it. `rescale` draws it back to the conditional prediction's (Lin et al. 2024, arXiv 2305.08891,
    section 3.4). It acts on x0: the paper's models predict v, which is -x0 where there is most
    noise and guidance errs most, whereas epsilon has one of about 1, guided or not.

    Args:
        conditional: `(x, t) -> epsilon` that sees the condition.
        unconditional: `(x, t) -> epsilon` that does not.
        scale: 0 unconditional, 1 conditional, above 1 guided beyond it.
        rescale: phi, 0 (leave x0 as it is) to 1 (give each row the standard deviation that its
            conditional prediction has).
        alphas_cumprod: the schedule, (T,), needed where `rescale` > 0.

    Returns:
        A denoiser.

    Raises:
        ValueError: `rescale` outside 0..1, or above 0 without `alphas_cumprod`.
    """
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale must lie within 0..1, got {rescale}")
    if rescale > 0 and alphas_cumprod is None:
        raise ValueError(f"rescale={rescale} acts on x0: give alphas_cumprod")
    if scale == 0:
        return unconditional
    if scale == 1:
        return conditional

    def denoise(x: Tensor, t: int) -> Tensor:
        without = unconditional(x, t)
        within = conditional(x, t)
        epsilon = without + scale * (within - without)
        if rescale == 0:
            return epsilon
        return _rescaled(epsilon, within, x, alphas_cumprod[t], rescale)

    return denoise


def _rescaled(
    epsilon: Tensor, conditional: Tensor, x: Tensor, alpha_bar: Tensor, phi: float
) -> Tensor:
    """Return the epsilon of an x0 whose standard deviation is drawn to the conditional one's."""
    x0 = to_x0(Prediction.epsilon, epsilon, x, alpha_bar)
    wanted = _spread(to_x0(Prediction.epsilon, conditional, x, alpha_bar))
    x0 = x0 * (1 - phi + phi * wanted / _spread(x0))
    return to_epsilon(Prediction.x0, x0, x, alpha_bar)


def _spread(x: Tensor) -> Tensor:
    """Return each row's standard deviation over channels and space, shaped to multiply a batch."""
    return x.std(dim=tuple(range(1, x.ndim)), keepdim=True)
