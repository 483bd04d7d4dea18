"""What the tests of samplers share: the paper's schedule, a network, noise, exact moments."""

import torch

from brain_ldm.diffusion.config import Prediction, ScheduleConfig
from brain_ldm.diffusion.parameterisation import to_epsilon
from brain_ldm.diffusion.schedule import make_schedule

SHAPE = (2, 3, 4, 3, 2)
OPTIONS = {"beta_start": 0.0015, "beta_end": 0.0205, "clip_sample": False}
ALPHA_BAR = make_schedule(ScheduleConfig())


def network(x, t, prediction=Prediction.epsilon):
    """A fixed nonlinear denoiser: it takes x for a noised version of a bounded image."""
    a, s = ALPHA_BAR[t].item() ** 0.5, (1 - ALPHA_BAR[t].item()) ** 0.5
    x0 = torch.tanh(1.5 * x + 0.4 * x.roll(1, dims=-2) + 0.1)
    epsilon = (x - a * x0) / s
    answers = {Prediction.epsilon: epsilon, Prediction.v: a * epsilon - s * x0, Prediction.x0: x0}
    return answers[prediction]


def start(dtype, shape=SHAPE):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def drawer(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return lambda like: torch.randn(like.shape, dtype=like.dtype, generator=generator)


def recording(prediction, seen):
    """Our denoiser around `network`, which keeps every x it was asked about."""

    def denoise(x, t):
        seen.append(x)
        return to_epsilon(prediction, network(x, t, prediction), x, ALPHA_BAR[t])

    return denoise


def diffusers_name(prediction):
    names = {Prediction.epsilon: "epsilon", Prediction.v: "v_prediction", Prediction.x0: "sample"}
    return names[prediction]


def exact_moments(sample, draws, components=1):
    """Mean and variance of a chain that is affine in its start and its draws, without chance.

    Row 0 gets zeros for everything: the mean. Row i gets 1 for the i-th of them and zeros for the
    rest, so that its distance from row 0 is what that normal variable is multiplied by.
    """
    ones = iter(torch.eye(1 + draws, dtype=torch.float64))

    def unit(like):
        return torch.cat([torch.zeros(1, dtype=like.dtype), next(ones)])[:, None].expand_as(like)

    x = sample(unit(torch.zeros(2 + draws, components, dtype=torch.float64)), unit)
    assert next(ones, None) is None, "the sampler drew less often than expected"
    return x[0], (x[1:] - x[0]).square().sum(dim=0)


class Gaussian:
    """Data N(mean, sd^2) in each component: all that a sampler tends to is known.

    x_t is N(a mean, v), v = a^2 sd^2 + s^2, with a^2 = alpha_bar and s^2 = 1 - alpha_bar.
    """

    def __init__(self, alphas_cumprod, sd=(0.05, 0.5, 1.5)):
        self.alphas_cumprod = alphas_cumprod
        self.mean = torch.tensor([0.7, -1.1, 0.2], dtype=torch.float64)
        self.sd = torch.tensor(sd, dtype=torch.float64)

    def moments(self, t):
        a, s2 = self.alphas_cumprod[t].sqrt(), 1 - self.alphas_cumprod[t]
        return a, a * self.mean, a**2 * self.sd**2 + s2

    def denoiser(self, x, t):
        """E[epsilon | x_t]."""
        _, mean, v = self.moments(t)
        return (1 - self.alphas_cumprod[t]).sqrt() / v * (x - mean)

    def flow(self, x, t):
        """Where the probability flow takes x_t: to the clean image of the same quantile."""
        _, mean, v = self.moments(t)
        return self.mean + self.sd / v.sqrt() * (x - mean)

    def flow_back(self, x0, t):
        """Where the probability flow comes from."""
        _, mean, v = self.moments(t)
        return mean + v.sqrt() / self.sd * (x0 - self.mean)

    def reverse_diffusion(self, t):
        """Mean and variance of x0 where x_t is N(0, 1), and x0 follows p(x0 | x_t)."""
        a, mean, v = self.moments(t)
        gain = a * self.sd**2 / v
        return self.mean - gain * mean, gain**2 + self.sd**2 * (1 - self.alphas_cumprod[t]) / v
