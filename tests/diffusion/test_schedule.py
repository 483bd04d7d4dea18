import pytest
import torch
from diffusers import DDIMScheduler as DiffusersDDIM
from diffusers import DDPMScheduler as DiffusersDDPM
from monai.networks.schedulers import DDIMScheduler as MonaiDDIM

from brain_ldm.diffusion.config import ScheduleConfig, ScheduleKind
from brain_ldm.diffusion.schedule import add_noise, make_schedule


@pytest.mark.parametrize("kind", ScheduleKind)
def test_alphas_cumprod_equal_diffusers_and_monai(kind):
    ours = make_schedule(ScheduleConfig(kind=kind))
    diffusers = DiffusersDDIM(beta_schedule=kind.value, beta_start=0.0015, beta_end=0.0205)
    monai = MonaiDDIM(1000, schedule=f"{kind.value}_beta", beta_start=0.0015, beta_end=0.0205)

    assert ours.dtype == torch.float64 and ours.shape == (1000,)
    # They multiply a thousand factors in float32; both are right to about 1e-5 of the value.
    torch.testing.assert_close(diffusers.alphas_cumprod.double(), ours, rtol=2e-5, atol=0)
    torch.testing.assert_close(monai.alphas_cumprod.double(), ours, rtol=2e-5, atol=0)


def test_the_first_and_last_timestep_have_the_configured_betas():
    alpha_bar = make_schedule(ScheduleConfig())
    assert alpha_bar[0].item() == pytest.approx(1 - 0.0015, abs=1e-15)
    assert (1 - alpha_bar[-1] / alpha_bar[-2]).item() == pytest.approx(0.0205, abs=1e-13)


def test_add_noise_takes_each_row_to_its_own_timestep():
    schedule = DiffusersDDPM(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0205)
    alpha_bar = make_schedule(ScheduleConfig())
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 4, 3, 5, 6, 7, generator=generator)
    t = torch.tensor([0, 17, 500, 999])

    noised = add_noise(x0, noise, alpha_bar[t])

    assert noised.dtype == torch.float32
    torch.testing.assert_close(noised, schedule.add_noise(x0, noise, t), rtol=0, atol=1e-5)
    for row in range(4):
        alone = add_noise(x0[row : row + 1], noise[row : row + 1], alpha_bar[t[row]].item())
        assert torch.equal(alone, noised[row : row + 1])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_add_noise_refuses_timesteps_that_are_not_one_a_row(count):
    x0 = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"needs one value or \(4,\)"):
        add_noise(x0, x0, torch.full((count,), 0.5))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"timesteps": 0}, "timesteps"),
        ({"beta_start": 0.0}, "beta_start"),
        ({"beta_start": 0.03}, "beta_start"),
        ({"beta_end": 1.0}, "beta_end"),
    ],
)
def test_impossible_schedules_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        make_schedule(ScheduleConfig(**options))
