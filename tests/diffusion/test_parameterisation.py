import pytest
import torch

from brain_ldm.diffusion.config import Prediction, ScheduleConfig
from brain_ldm.diffusion.parameterisation import to_epsilon, to_x0, training_target
from brain_ldm.diffusion.schedule import add_noise, make_schedule


@pytest.fixture
def noised():
    alpha_bar = make_schedule(ScheduleConfig())[torch.tensor([0, 300, 999])]
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 3, 2, 4, 4, 4, dtype=torch.float64, generator=generator)
    return x0, noise, alpha_bar, add_noise(x0, noise, alpha_bar)


@pytest.mark.parametrize(
    ("prediction", "detail"), [*((each, 0.0) for each in Prediction), (Prediction.x0, 0.12)]
)
def test_a_network_that_meets_its_target_gives_back_noise_and_image(prediction, detail, noised):
    x0, noise, alpha_bar, x = noised
    output = training_target(prediction, x0, noise, alpha_bar, detail)

    found = to_epsilon(prediction, output, x, alpha_bar, detail)
    torch.testing.assert_close(found, noise, atol=1e-12, rtol=0)
    found = to_x0(prediction, output, x, alpha_bar, detail)
    torch.testing.assert_close(found, x0, atol=1e-12, rtol=0)


def test_no_detail_leaves_x0_and_all_of_it_leaves_v(noised):
    x0, noise, alpha_bar, _ = noised

    plain = training_target(Prediction.x0, x0, noise, alpha_bar)
    torch.testing.assert_close(plain, x0, atol=1e-12, rtol=0)
    whole = training_target(Prediction.x0, x0, noise, alpha_bar, detail=1.0)
    v = training_target(Prediction.v, x0, noise, alpha_bar)
    torch.testing.assert_close(whole, -v, atol=1e-12, rtol=0)


def test_a_silent_network_leaves_the_best_linear_estimate_of_detail():
    """Against least squares on draws of detail of that variance."""
    generator = torch.Generator().manual_seed(0)
    x0 = 0.3 * torch.randn(1, 200_000, dtype=torch.float64, generator=generator)
    x = add_noise(x0, torch.randn(x0.shape, dtype=x0.dtype, generator=generator), 0.8)

    slope = (x * x0).sum() / (x * x).sum()
    found = to_x0(Prediction.x0, torch.zeros_like(x), x, 0.8, detail=0.09)

    torch.testing.assert_close(found, slope * x, atol=0.01, rtol=0)


def test_v_is_made_of_its_own_x0_and_epsilon(noised):
    _, _, alpha_bar, x = noised
    v = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    epsilon = to_epsilon(Prediction.v, v, x, alpha_bar)
    x0 = to_x0(Prediction.v, v, x, alpha_bar)

    torch.testing.assert_close(add_noise(x0, epsilon, alpha_bar), x, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        training_target(Prediction.v, x0, epsilon, alpha_bar), v, atol=1e-12, rtol=0
    )
    # x0 does not depend on the road: directly, or over epsilon.
    torch.testing.assert_close(
        to_x0(Prediction.epsilon, epsilon, x, alpha_bar), x0, atol=1e-12, rtol=0
    )


def test_the_target_is_noise_for_epsilon_and_the_negative_image_for_v_where_only_noise_is_left():
    x0, noise = torch.full((1, 2), 3.0), torch.full((1, 2), 5.0)

    assert torch.equal(training_target(Prediction.epsilon, x0, noise, 0.0), noise)
    assert torch.equal(training_target(Prediction.v, x0, noise, 0.0), -x0)
    assert torch.equal(training_target(Prediction.v, x0, noise, 1.0), noise)
