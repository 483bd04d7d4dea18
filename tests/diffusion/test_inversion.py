"""Inversion beside the sampler that it inverts, the closed form, and diffusers."""

import pytest
import torch
from diffusers import DDIMInverseScheduler
from torch import nn

from brain_ldm.diffusion.config import Grid
from brain_ldm.diffusion.grid import timesteps
from brain_ldm.diffusion.inversion import ddim_invert
from brain_ldm.diffusion.samplers import ddim, transitions
from tests.diffusion.toys import ALPHA_BAR, OPTIONS, Gaussian, network, start

# Iterations converge slowly for a component that is narrow, since noise is most of what is in it.
TOY = Gaussian(ALPHA_BAR, sd=(0.3, 0.5, 1.5))


def random_network():
    """A small convolutional network with random weights, as a denoiser."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv3d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv3d(8, 3, 3, padding=1)
    ).double()

    def denoise(x, t):
        return (1 - ALPHA_BAR[t]).sqrt() * x + layers(x + t / 1000)

    return denoise


@pytest.mark.parametrize("grid", Grid)
@pytest.mark.parametrize("steps", [10, 25])
def test_the_gaussian_toy_is_inverted_exactly(grid, steps):
    """A step is affine there, so its inverse is known: y = k x + c."""
    visited = timesteps(grid, steps, 1000)
    x0 = TOY.mean + TOY.sd * start(torch.float64, (10, 3))
    expected = x0
    zero = torch.zeros(1, 3, dtype=torch.float64)
    for t, alpha_bar, alpha_bar_prev in reversed([*transitions(ALPHA_BAR, visited)]):
        c, k_plus_c = (step(x, t, alpha_bar, alpha_bar_prev) for x in (zero, zero + 1))
        expected = (expected - c) / (k_plus_c - c)

    found = ddim_invert(TOY.denoiser, x0, ALPHA_BAR, visited, iterations=100)

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    again = ddim(TOY.denoiser, found, ALPHA_BAR, visited)
    torch.testing.assert_close(again, x0, rtol=0, atol=1e-8)


def step(x, t, alpha_bar, alpha_bar_prev):
    """Equation 12 of Song et al. 2021."""
    epsilon = TOY.denoiser(x, t)
    x0 = (x - (1 - alpha_bar) ** 0.5 * epsilon) / alpha_bar**0.5
    return alpha_bar_prev**0.5 * x0 + (1 - alpha_bar_prev) ** 0.5 * epsilon


def test_many_steps_go_back_along_the_probability_flow():
    x0 = TOY.mean + TOY.sd * start(torch.float64, (10, 3))
    errors = []
    for steps in (25, 100, 400):
        visited = timesteps(Grid.leading, steps, 1000)
        found = ddim_invert(TOY.denoiser, x0, ALPHA_BAR, visited, iterations=5)
        errors.append((found - TOY.flow_back(x0, visited[0])).abs().max().item())
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.06


@pytest.mark.parametrize(
    ("denoise", "grid", "most"),
    [(network, Grid.leading, 300), *((random_network(), grid, 25) for grid in Grid)],
)
def test_inversion_and_sampling_are_each_others_inverse(denoise, grid, most):
    visited = timesteps(grid, 20, 1000)
    noise = start(torch.float64)
    x0 = ddim(denoise, noise, ALPHA_BAR, visited)
    away, back = [], []
    for iterations in (1, 5, most):
        found = ddim_invert(denoise, x0, ALPHA_BAR, visited, iterations)
        again = ddim(denoise, found, ALPHA_BAR, visited)
        away.append((found - noise).abs().max().item())
        back.append((again - x0).abs().max().item())
    assert away == sorted(away, reverse=True) and back == sorted(back, reverse=True)
    assert away[-1] < 1e-6 and back[-1] < 1e-6


@pytest.mark.parametrize("steps", [5, 50])
@pytest.mark.parametrize("grid", [Grid.leading, Grid.trailing])
def test_one_iteration_is_diffusers_inversion(grid, steps):
    options = {"beta_schedule": "scaled_linear", "timestep_spacing": grid.value, **OPTIONS}
    scheduler = DDIMInverseScheduler(**options)
    scheduler.alphas_cumprod = ALPHA_BAR
    scheduler.set_timesteps(steps)
    x = torch.tanh(start(torch.float64))
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(network(x, t), t, x).prev_sample

    visited = timesteps(grid, steps, 1000)
    found = ddim_invert(network, torch.tanh(start(torch.float64)), ALPHA_BAR, visited, 1)

    torch.testing.assert_close(found, x, rtol=0, atol=1e-9)


def test_keeps_no_graph_leaves_the_image_alone_and_its_dtype():
    weight, x0 = torch.ones(1, requires_grad=True), start(torch.float32)
    visited = timesteps(Grid.leading, 5, 1000)
    found = ddim_invert(lambda x, t: (weight * x).bfloat16(), x0, ALPHA_BAR, visited)
    assert not found.requires_grad and found.dtype == torch.float32
    assert torch.equal(x0, start(torch.float32))


def test_what_cannot_be_done_is_refused():
    x0 = start(torch.float32)
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        ddim_invert(network, x0, ALPHA_BAR, torch.tensor([500, 0]), 0)
    with pytest.raises(ValueError, match="timesteps"):
        ddim_invert(network, x0, ALPHA_BAR, torch.tensor([0, 500]))
