"""What the network predicts, and what that says about the noise and the clean image.

With a = sqrt(alpha_bar) and s = sqrt(1 - alpha_bar), a noised image is x = a x0 + s epsilon and its
velocity is v = a epsilon - s x0 (Salimans & Ho 2022, arXiv 2202.00512, section 4 and appendix D).
(x, v) is (x0, epsilon) turned by an angle, so that x0 = a x - s v and epsilon = s x + a v.

A network that is too narrow to carry all detail of a latent cannot return it either, even where
there is hardly any noise. Where it predicts x0, `detail` is the variance of what it cannot carry,
of latents scaled to variance 1. An image of that variance would best be estimated as detail a / r^2
x, r = sqrt(detail a^2 + s^2): so much is taken from x itself, and the network answers with the
rest, f, as Karras et al. 2022 (arXiv 2206.00364, section 5) have it with sigma_data^2 = detail, but
for the factor sqrt(detail):

    f = (s x0 - detail a epsilon) / r
    x0 = detail a / r^2 x + s / r f
    epsilon = s / r^2 x - a / r f

f is x0 for detail = 0 (where alpha_bar must be below 1) and -v for detail = 1. Its squared error is
that of x0 times r^2 / s^2 = 1 + detail a^2 / s^2.
"""

import torch
from torch import Tensor

from brain_ldm.diffusion.config import Prediction
from brain_ldm.diffusion.schedule import signal_and_noise


def training_target(
    prediction: Prediction,
    x0: Tensor,
    noise: Tensor,
    alpha_bar: Tensor | float,
    detail: float = 0.0,
) -> Tensor:
    """Compute what the network should answer to `add_noise(x0, noise, alpha_bar)`.

    Args:
        prediction: epsilon (Ho et al. 2020, equation 14), v or x0.
        x0: clean images or latents, (B, ...).
        noise: the noise that was added, shaped as `x0`.
        alpha_bar: `alphas_cumprod[t]`, one value or (B,).
        detail: 0 to 1, for x0 alone; see above.

    Returns:
        The target of a mean squared error, shaped as `x0`.

    Raises:
        ValueError: `alpha_bar` is neither one value nor one for each row.
    """
    if prediction is Prediction.epsilon:
        return noise
    a, s = signal_and_noise(alpha_bar, x0)
    if prediction is Prediction.x0:
        return (s * x0 - detail * a * noise) / _length(a, s, detail)
    return a * noise - s * x0


def to_epsilon(
    prediction: Prediction,
    output: Tensor,
    x: Tensor,
    alpha_bar: Tensor | float,
    detail: float = 0.0,
) -> Tensor:
    """Turn the network's output at `x` into the noise it implies.

    Args:
        prediction: what `output` is.
        output: the network's answer, shaped as `x`.
        x: the noised images, (B, ...).
        alpha_bar: `alphas_cumprod[t]`, one value or (B,).
        detail: 0 to 1, for x0 alone; see above.

    Returns:
        epsilon, shaped as `x`.

    Raises:
        ValueError: `alpha_bar` is neither one value nor one for each row.
    """
    if prediction is Prediction.epsilon:
        return output
    a, s = signal_and_noise(alpha_bar, x)
    if prediction is Prediction.x0:
        r = _length(a, s, detail)
        return s / r**2 * x - a / r * output
    return s * x + a * output


def to_x0(
    prediction: Prediction,
    output: Tensor,
    x: Tensor,
    alpha_bar: Tensor | float,
    detail: float = 0.0,
) -> Tensor:
    """Turn the network's output at `x` into the clean image it implies.

    Args:
        prediction: what `output` is; for epsilon this is equation 15 of Ho et al. 2020.
        output: the network's answer, shaped as `x`.
        x: the noised images, (B, ...).
        alpha_bar: `alphas_cumprod[t]`, one value or (B,).
        detail: 0 to 1, for x0 alone; see above.

    Returns:
        The estimate of x0, shaped as `x`.

    Raises:
        ValueError: `alpha_bar` is neither one value nor one for each row.
    """
    a, s = signal_and_noise(alpha_bar, x)
    if prediction is Prediction.epsilon:
        return (x - s * output) / a
    if prediction is Prediction.x0:
        r = _length(a, s, detail)
        return detail * a / r**2 * x + s / r * output
    return a * x - s * output


def _length(a: Tensor, s: Tensor, detail: float) -> Tensor:
    """r, the standard deviation of noised detail."""
    return torch.sqrt(detail * a**2 + s**2)
