"""DPM-Solver++(2M) and its stochastic sister beside diffusers, and their order of convergence."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.schedulers import scheduling_dpmsolver_multistep

from brain_ldm.diffusion.config import Grid, Prediction
from brain_ldm.diffusion.dpm_solver import dpmpp_2m, dpmpp_2m_sde
from brain_ldm.diffusion.grid import timesteps
from brain_ldm.diffusion.samplers import ddim, ddpm
from tests.diffusion.toys import (
    ALPHA_BAR,
    Gaussian,
    diffusers_name,
    drawer,
    exact_moments,
    network,
    recording,
    start,
)


@pytest.fixture
def in_64_bits(monkeypatch):
    """Let diffusers compute in them; its step() brings everything to torch.float32."""
    wide = SimpleNamespace(**{**vars(torch), "float32": torch.float64})
    monkeypatch.setattr(scheduling_dpmsolver_multistep, "torch", wide)


def scheduler(algorithm, prediction, grid, steps):
    """diffusers' scheduler with its timesteps set, on our schedule."""
    made = DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.0015,
        beta_end=0.0205,
        algorithm_type=algorithm,
        prediction_type=diffusers_name(prediction),
        timestep_spacing=grid.value,
    )
    assert made.config.solver_order == 2 and made.config.final_sigmas_type == "zero"
    made.alphas_cumprod = ALPHA_BAR
    if isinstance(steps, int):
        made.set_timesteps(steps)
    else:
        made.set_timesteps(timesteps=steps.tolist())
    sigmas = ((1 - ALPHA_BAR) / ALPHA_BAR).sqrt()[made.timesteps]
    made.sigmas = torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])
    return made


def theirs(made, prediction):
    """All x on a scheduler's way, the last one being the sample."""
    draw, x, seen = drawer(), start(torch.float64), []
    for t in made.timesteps.tolist():
        seen.append(x)
        noise = draw(x) if made.config.algorithm_type.startswith("sde") else None
        x = made.step(network(x, t, prediction), t, x, variance_noise=noise).prev_sample
    return [*seen, x]


def ours(algorithm, prediction, visited):
    seen = []
    denoiser, x = recording(prediction, seen), start(torch.float64)
    if algorithm == "dpmsolver++":
        end = dpmpp_2m(denoiser, x, ALPHA_BAR, visited)
    else:
        end = dpmpp_2m_sde(denoiser, x, ALPHA_BAR, visited, drawer())
    return [*seen, end]


EACH_ALGORITHM = pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])


@EACH_ALGORITHM
@pytest.mark.parametrize("steps", [2, 3, 10, 50])
@pytest.mark.parametrize("prediction", Prediction)
@pytest.mark.parametrize("grid", Grid)
def test_agrees_with_diffusers_on_our_grids(grid, prediction, steps, algorithm, in_64_bits):
    """diffusers takes timesteps that it is given."""
    visited = timesteps(grid, steps, 1000)
    made = scheduler(algorithm, prediction, grid, visited)

    pairs = zip(ours(algorithm, prediction, visited), theirs(made, prediction), strict=True)
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-9)


@EACH_ALGORITHM
@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("grid", Grid)
def test_agrees_with_diffusers_on_its_own_grids(grid, steps, algorithm, in_64_bits):
    """They are ours if trailing; its other two leave timestep 0 out in this scheduler."""
    made = scheduler(algorithm, Prediction.epsilon, grid, steps)
    if grid is Grid.trailing:
        assert made.timesteps.tolist() == timesteps(grid, steps, 1000).tolist()

    end = ours(algorithm, Prediction.epsilon, made.timesteps)[-1]
    torch.testing.assert_close(end, theirs(made, Prediction.epsilon)[-1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("visited", [[999], [999, 300]])
def test_first_and_last_step_are_those_of_first_order(visited):
    x, grid = start(torch.float64), torch.tensor(visited)
    flow = dpmpp_2m(network, x, ALPHA_BAR, grid)
    torch.testing.assert_close(flow, ddim(network, x, ALPHA_BAR, grid), rtol=0, atol=1e-12)
    noisy = dpmpp_2m_sde(network, x, ALPHA_BAR, grid, drawer())
    expected = ddpm(network, x, ALPHA_BAR, grid, drawer())
    torch.testing.assert_close(noisy, expected, rtol=0, atol=1e-12)


def test_noise_on_the_way_without_draw_is_refused():
    with pytest.raises(ValueError, match="give draw"):
        dpmpp_2m_sde(network, start(torch.float32), ALPHA_BAR, torch.tensor([500, 0]), None)


# A schedule whose lambda falls evenly from 10 to -2 in so many timesteps that those a grid chooses
# lie evenly, too; at lambda = 10 the last step, always of first order, errs by less than 1e-7.
TOY = Gaussian(torch.sigmoid(2 * torch.linspace(10, -2, 102_401, dtype=torch.float64)))
STEPS = [65, 129, 257, 513]


def order(errors):
    """Fit the power of 1 / steps that errors fall with."""
    return -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]


def flow_error(steps, sample):
    """Largest distance from the probability flow's end among some starts."""
    grid = timesteps(Grid.linspace, steps, len(TOY.alphas_cumprod))
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None].expand(-1, 3)
    found = sample(TOY.denoiser, x, TOY.alphas_cumprod, grid)
    return (found - TOY.flow(x, grid[0])).abs().max().item()


def moments(steps, sample):
    """Mean and variance of what a sampler ends at."""
    grid = timesteps(Grid.linspace, steps, len(TOY.alphas_cumprod))
    return exact_moments(
        lambda x, draw: sample(TOY.denoiser, x, TOY.alphas_cumprod, grid, draw), steps - 1, 3
    )


@pytest.mark.parametrize(("sample", "expected"), [(ddim, 1), (dpmpp_2m, 2)])
def test_order_of_the_probability_flow(sample, expected):
    errors = [flow_error(steps, sample) for steps in STEPS]
    assert errors[-1] < 0.1**expected
    assert order(errors) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize(("sample", "expected"), [(ddpm, 1), (dpmpp_2m_sde, 2)])
def test_weak_order_of_the_reverse_diffusion(sample, expected):
    """Of the variance. The mean is exact: on its way down the predicted x0 is a martingale."""
    true_mean, true_variance = TOY.reverse_diffusion(-1)
    errors = []
    for steps in STEPS:
        mean, variance = moments(steps, sample)
        torch.testing.assert_close(mean, true_mean, rtol=0, atol=1e-12)
        errors.append((variance - true_variance).abs().max().item())
    assert errors[-1] < 0.1**expected
    assert order(errors) == pytest.approx(expected, abs=0.15)


def test_mean_and_variance_with_real_noise():
    n, steps = 20_000, 33
    grid = timesteps(Grid.linspace, steps, len(TOY.alphas_cumprod))
    x = start(torch.float64, (n, 3))
    found = dpmpp_2m_sde(TOY.denoiser, x, TOY.alphas_cumprod, grid, drawer())
    mean, variance = moments(steps, dpmpp_2m_sde)
    assert ((found.mean(0) - mean).abs() < 4 * (variance / n).sqrt()).all()
    assert ((found.var(0) - variance).abs() < 4 * variance * (2 / n) ** 0.5).all()


@pytest.mark.parametrize(("first", "second"), [(ddim, dpmpp_2m), (ddpm, dpmpp_2m_sde)])
def test_twenty_steps_of_the_papers_schedule_go_further_than_those_of_first_order(first, second):
    """On the trailing grid, which starts from the same x for all; the sum over the components."""
    toy, grid = Gaussian(ALPHA_BAR), timesteps(Grid.trailing, 20, 1000)
    draws = 0 if first is ddim else 19
    x = torch.zeros(1, dtype=torch.float64)
    flow_sd = toy.flow(x + 1, -1) - toy.flow(x, -1)
    true = flow_sd if first is ddim else toy.reverse_diffusion(-1)[1].sqrt()

    def sd_error(sample):
        def chain(x, draw):
            further = [draw] if draws else []
            return sample(toy.denoiser, x, ALPHA_BAR, grid, *further)

        return (exact_moments(chain, draws, 3)[1].sqrt() - true).abs().sum()

    assert sd_error(second) < 0.7 * sd_error(first)
