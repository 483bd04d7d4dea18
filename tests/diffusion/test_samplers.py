"""Samplers beside diffusers' schedulers and MONAI's, and against what can be computed by hand."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler as DiffusersDDIM
from diffusers import DDPMScheduler as DiffusersDDPM
from monai.networks.schedulers import DDIMScheduler as MonaiDDIM
from monai.networks.schedulers import DDPMScheduler as MonaiDDPM

from brain_ldm.diffusion.config import Grid, Prediction
from brain_ldm.diffusion.dpm_solver import dpmpp_2m, dpmpp_2m_sde
from brain_ldm.diffusion.grid import timesteps
from brain_ldm.diffusion.samplers import ddim, ddpm
from tests.diffusion.toys import (
    ALPHA_BAR,
    OPTIONS,
    diffusers_name,
    drawer,
    exact_moments,
    network,
    recording,
    start,
)

# Every sampler as a function of a denoiser, noise, timesteps and a draw.
SAMPLERS = {
    "ddpm": lambda denoise, x, grid, draw: ddpm(denoise, x, ALPHA_BAR, grid, draw),
    "ddim": lambda denoise, x, grid, draw: ddim(denoise, x, ALPHA_BAR, grid),
    "ddim-1": lambda denoise, x, grid, draw: ddim(denoise, x, ALPHA_BAR, grid, 1.0, draw),
    "dpmpp_2m": lambda denoise, x, grid, draw: dpmpp_2m(denoise, x, ALPHA_BAR, grid),
    "dpmpp_2m_sde": lambda denoise, x, grid, draw: dpmpp_2m_sde(denoise, x, ALPHA_BAR, grid, draw),
}
EACH_SAMPLER = pytest.mark.parametrize("name", SAMPLERS)


def assert_same_trajectory(ours, theirs):
    """In float64, on one schedule, only the order of the operations is left.

    (And noise of 1e-10, which diffusers' DDPM adds at the end of the trailing grid.)
    """
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [2, 5, 10, 50, 300])
@pytest.mark.parametrize("prediction", Prediction)
@pytest.mark.parametrize("grid", Grid)
def test_ddpm_agrees_with_diffusers(grid, prediction, steps):
    scheduler = DiffusersDDPM(
        beta_schedule="scaled_linear",
        timestep_spacing=grid.value,
        prediction_type=diffusers_name(prediction),
        **OPTIONS,
    )
    scheduler.alphas_cumprod = ALPHA_BAR
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(1)
    x, theirs = start(torch.float64), []
    for t in scheduler.timesteps.tolist():
        theirs.append(x)
        answer = network(x, t, prediction)
        x = scheduler.step(answer, t, x, generator=generator).prev_sample
    theirs.append(x)

    ours = []
    denoiser = recording(prediction, ours)
    ours.append(
        ddpm(denoiser, start(torch.float64), ALPHA_BAR, timesteps(grid, steps, 1000), draw=drawer())
    )

    assert_same_trajectory(ours, theirs)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("steps", [2, 5, 10, 50, 300])
@pytest.mark.parametrize("prediction", Prediction)
@pytest.mark.parametrize("grid", Grid)
def test_ddim_agrees_with_diffusers(grid, prediction, steps, eta):
    """The last step goes to alpha_bar = 1, as diffusers does under set_alpha_to_one=True."""
    scheduler = DiffusersDDIM(
        beta_schedule="scaled_linear",
        timestep_spacing=grid.value,
        prediction_type=diffusers_name(prediction),
        set_alpha_to_one=True,
        **OPTIONS,
    )
    scheduler.alphas_cumprod = ALPHA_BAR
    scheduler.set_timesteps(steps)
    visited = scheduler.timesteps.tolist()
    draw, x, theirs = drawer(), start(torch.float64), []
    for i, t in enumerate(visited):
        gap = t - visited[i + 1] if i + 1 < len(visited) else t + 1
        # step() goes back by 1000 // num_inference_steps, which is beside its own grid wherever
        # gaps differ from that; this makes it the gap of the grid.
        scheduler.num_inference_steps = Fraction(1000, gap)
        theirs.append(x)
        noise = draw(x) if eta > 0 else None
        answer = network(x, t, prediction)
        x = scheduler.step(answer, t, x, eta=eta, variance_noise=noise).prev_sample
    theirs.append(x)

    ours = []
    denoiser, grid_ours = recording(prediction, ours), timesteps(grid, steps, 1000)
    ours.append(ddim(denoiser, start(torch.float64), ALPHA_BAR, grid_ours, eta=eta, draw=drawer()))

    assert_same_trajectory(ours, theirs)


@pytest.mark.parametrize("steps", [5, 50])
@pytest.mark.parametrize("grid", [Grid.leading, Grid.trailing])
@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_both_agree_with_diffusers_as_it_comes(name, grid, steps):
    """In float32, on its own schedule, where the gaps of its step are those of its grid."""
    options = {"beta_schedule": "scaled_linear", "timestep_spacing": grid.value, **OPTIONS}
    scheduler = {"ddpm": DiffusersDDPM, "ddim": DiffusersDDIM}[name](**options)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(1)
    x = start(torch.float32)
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(network(x, t), t, x, generator=generator).prev_sample

    visited = timesteps(grid, steps, 1000)
    if name == "ddpm":
        ours = ddpm(network, start(torch.float32), ALPHA_BAR, visited, draw=drawer())
    else:
        ours = ddim(network, start(torch.float32), ALPHA_BAR, visited)

    torch.testing.assert_close(ours, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_the_full_chain_agrees_with_monai(name):
    """All T steps is the one grid on which MONAI steps from entry to entry."""
    options = {"schedule": "scaled_linear_beta", **OPTIONS}
    scheduler = {"ddpm": MonaiDDPM, "ddim": MonaiDDIM}[name](1000, **options)
    scheduler.alphas_cumprod = ALPHA_BAR
    scheduler.alphas = torch.cat([ALPHA_BAR[:1], ALPHA_BAR[1:] / ALPHA_BAR[:-1]])
    scheduler.betas = 1 - scheduler.alphas
    scheduler.set_timesteps(1000)
    generator = torch.Generator().manual_seed(1)
    x = start(torch.float64)
    for t in scheduler.timesteps.tolist():
        noise = {"generator": generator} if name == "ddpm" else {}
        x = scheduler.step(network(x, t), t, x, **noise)[0]

    visited = timesteps(Grid.leading, 1000, 1000)
    if name == "ddpm":
        ours = ddpm(network, start(torch.float64), ALPHA_BAR, visited, draw=drawer())
    else:
        ours = ddim(network, start(torch.float64), ALPHA_BAR, visited)

    torch.testing.assert_close(ours, x, rtol=0, atol=1e-9)


# A Gaussian toy. Data are N(M, S^2), so x_t is N(sqrt(ab) M, V_t) with V_t = ab S^2 + 1 - ab, and
# the best denoiser is known: E[epsilon | x_t] = sqrt(1 - ab) / V_t (x_t - sqrt(ab) M).
M, S = 0.7, 0.5


def best_denoiser(x, t):
    alpha_bar = ALPHA_BAR[t].item()
    v = alpha_bar * S**2 + 1 - alpha_bar
    return (1 - alpha_bar) ** 0.5 / v * (x - alpha_bar**0.5 * M)


def closed_form(visited, eta=None):
    """Mean and variance at the end of a chain from N(0, 1): DDPM's, or DDIM's where eta is given.

    Let y = x_t - sqrt(ab) M. The best estimate of x0 - M is sqrt(ab) S^2 / V_t y, and each sampler
    takes y to k y + sigma z with one number k, so that the mean is multiplied by k and the variance
    goes to k^2 variance + sigma^2. DDPM draws from the posterior q(x_prev | x_t, x0) with that
    estimate for x0 (Ho et al. 2020, equations 6 and 7). DDIM goes on to
    sqrt(ab_prev) x0 + sqrt(1 - ab_prev - sigma^2) epsilon + sigma z, sigma = eta times DDPM's.
    """
    alpha_bars = [ALPHA_BAR[t].item() for t in visited] + [1.0]
    mean, variance = -(alpha_bars[0] ** 0.5) * M, 1.0  # of y at the start
    for ab, ab_prev in pairwise(alpha_bars):
        v = ab * S**2 + 1 - ab
        x0 = ab**0.5 * S**2 / v
        alpha = ab / ab_prev
        sigma2 = (1 - ab_prev) / (1 - ab) * (1 - alpha)
        if eta is None:
            k = ab_prev**0.5 * (1 - alpha) / (1 - ab) * x0
            k += alpha**0.5 * (1 - ab_prev) / (1 - ab)
        else:
            sigma2 *= eta**2
            epsilon = (1 - ab) ** 0.5 / v
            k = ab_prev**0.5 * x0 + (1 - ab_prev - sigma2) ** 0.5 * epsilon
        mean, variance = k * mean, k**2 * variance + sigma2
    return M + mean, variance


CHAINS = {
    "ddpm": (None, lambda x, grid, draw: ddpm(best_denoiser, x, ALPHA_BAR, grid, draw)),
    "ddim": (0.0, lambda x, grid, draw: ddim(best_denoiser, x, ALPHA_BAR, grid)),
    "ddim-0.5": (0.5, lambda x, grid, draw: ddim(best_denoiser, x, ALPHA_BAR, grid, 0.5, draw)),
    "ddim-1": (1.0, lambda x, grid, draw: ddim(best_denoiser, x, ALPHA_BAR, grid, 1.0, draw)),
}
EACH_CHAIN = pytest.mark.parametrize("chain", CHAINS)


def sampled_moments(chain, grid):
    eta, sample = CHAINS[chain]
    draws = 0 if eta == 0 else len(grid) - 1
    mean, variance = exact_moments(lambda x, draw: sample(x, grid, draw), draws)
    return mean.item(), variance.item()


@EACH_CHAIN
@pytest.mark.parametrize("steps", [2, 7, 50])
@pytest.mark.parametrize("grid", Grid)
def test_gaussian_toy_reaches_the_closed_form_mean_and_variance(grid, steps, chain):
    visited = timesteps(grid, steps, 1000)
    mean, variance = sampled_moments(chain, visited)
    expected_mean, expected_variance = closed_form(visited.tolist(), eta=CHAINS[chain][0])
    assert mean == pytest.approx(expected_mean, abs=1e-12)
    assert variance == pytest.approx(expected_variance, abs=1e-12)


@EACH_CHAIN
def test_gaussian_toy_converges_to_the_data_as_steps_grow(chain):
    """At first order in 1 / steps, down to what the thousand betas themselves leave: 3 %."""
    errors = []
    for steps in [10, 50, 250, 1000]:
        mean, variance = sampled_moments(chain, timesteps(Grid.trailing, steps, 1000))
        errors.append(abs(variance - S**2))
        mean_error = abs(mean - M)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.03 * S**2
    # Noise at the start lacks the sqrt(alpha_bar) = 1 % of the image that should be left in it.
    assert mean_error < 0.01 * M


@pytest.mark.parametrize("chain", ["ddpm", "ddim-1"])
def test_gaussian_toy_with_real_noise(chain):
    eta, sample = CHAINS[chain]
    visited = timesteps(Grid.leading, 20, 1000)
    n = 40_000
    x = sample(start(torch.float32, (n, 1)), visited, drawer())

    mean, variance = closed_form(visited.tolist(), eta=eta)
    assert x.mean().item() == pytest.approx(mean, abs=4 * (variance / n) ** 0.5)
    assert x.var().item() == pytest.approx(variance, abs=4 * variance * (2 / n) ** 0.5)


def test_ddim_with_eta_1_is_ddpm():
    grid = timesteps(Grid.linspace, 13, 1000)
    x = start(torch.float64)
    torch.testing.assert_close(
        ddim(network, x, ALPHA_BAR, grid, eta=1.0, draw=drawer()),
        ddpm(network, x, ALPHA_BAR, grid, draw=drawer()),
        rtol=0,
        atol=1e-12,
    )


@EACH_SAMPLER
@pytest.mark.parametrize("steps", [2, 9, 50])
@pytest.mark.parametrize("grid", Grid)
def test_the_last_step_of_every_grid_ends_at_the_clean_image(grid, steps, name):
    """Where all data are one image, every sampler must end at it, with no noise left."""
    image = start(torch.float64)

    def denoise(x, t):
        return (x - ALPHA_BAR[t].sqrt() * image) / (1 - ALPHA_BAR[t]).sqrt()

    x, visited = start(torch.float64).flip(0), timesteps(grid, steps, 1000)
    sample = SAMPLERS[name](denoise, x, visited, drawer())
    torch.testing.assert_close(sample, image, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["ddpm", "ddim-1", "dpmpp_2m_sde"])
def test_a_row_is_the_same_whatever_the_batch(name):
    def sample(seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def draw(like):
            rows = [torch.randn(like.shape[1:], dtype=like.dtype, generator=g) for g in generators]
            return torch.stack(rows)

        x = draw(torch.empty(len(seeds), 3, 4, 5))
        return SAMPLERS[name](network, x, timesteps(Grid.leading, 10, 1000), draw)

    together = sample([11, 22, 33])
    assert torch.equal(sample([22]), together[1:2])
    assert torch.equal(sample([33, 11]), together[[2, 0]])
    assert not torch.equal(together[0], together[1])


@EACH_SAMPLER
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_in_bfloat16_does_not_pull_the_image_down_to_it(name, dtype):
    def coarse(x, t):
        return torch.tanh(x).bfloat16()

    def sample(denoise):
        grid = timesteps(Grid.leading, 5, 1000)
        return SAMPLERS[name](denoise, start(dtype), grid, drawer())

    sampled = sample(coarse)
    assert sampled.dtype == dtype
    assert torch.equal(sampled, sample(lambda x, t: coarse(x, t).to(dtype)))


@EACH_SAMPLER
def test_sampling_keeps_no_graph_and_leaves_the_starting_noise_alone(name):
    weight = torch.ones(1, requires_grad=True)
    x, grid = start(torch.float32), timesteps(Grid.leading, 5, 1000)
    assert not SAMPLERS[name](lambda x, t: weight * x, x, grid, drawer()).requires_grad
    assert torch.equal(x, start(torch.float32))


def test_ddim_without_eta_draws_nothing():
    def draw(like):
        raise AssertionError("drew")

    ddim(network, start(torch.float32), ALPHA_BAR, torch.tensor([500, 0]), 0.0, draw)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_outside_0_to_1_is_refused(eta):
    with pytest.raises(ValueError, match=r"eta must lie within 0\.\.1"):
        ddim(network, start(torch.float32), ALPHA_BAR, torch.tensor([500, 0]), eta, drawer())


def test_eta_without_draw_is_refused():
    with pytest.raises(ValueError, match="give draw"):
        ddim(network, start(torch.float32), ALPHA_BAR, torch.tensor([500, 0]), eta=0.5)


@EACH_SAMPLER
@pytest.mark.parametrize("visited", [[], [0, 500], [500, 500, 0], [1000, 0], [500, -1]])
def test_timesteps_that_are_no_descent_through_the_schedule_are_refused(visited, name):
    visited = torch.tensor(visited, dtype=torch.int64)
    with pytest.raises(ValueError, match="timesteps"):
        SAMPLERS[name](network, start(torch.float32), visited, drawer())
