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


@pytest.mark.parametrize("prediction", Prediction)
def test_a_network_that_meets_its_target_gives_back_noise_and_image(prediction, noised):
    x0, noise, alpha_bar, x = noised
    output = training_target(prediction, x0, noise, alpha_bar)

    torch.testing.assert_close(
        to_epsilon(prediction, output, x, alpha_bar), noise, atol=1e-12, rtol=0
    )
    torch.testing.assert_close(to_x0(prediction, output, x, alpha_bar), x0, atol=1e-12, rtol=0)


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
