import pytest
import torch
from diffusers.guiders.guider_utils import rescale_noise_cfg

from brain_ldm.diffusion.guidance import guided
from brain_ldm.diffusion.samplers import ddim


class Model:
    """A denoiser that remembers when it was called."""

    def __init__(self, shift):
        self.shift, self.calls = shift, []

    def __call__(self, x, t):
        self.calls.append(t)
        return torch.sin(x + self.shift) / (1 + t)


@pytest.fixture
def models():
    return Model(shift=0.3), Model(shift=-1.1)


@pytest.fixture
def x():
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scale", [0, 1, 0.0, 1.0])
def test_0_and_1_are_one_model_exactly_and_never_call_the_other(scale, models, x):
    conditional, unconditional = models
    used, unused = (conditional, unconditional) if scale else (unconditional, conditional)
    schedule, grid = torch.tensor([0.9, 0.5, 0.1]), torch.tensor([2, 1, 0])

    sample = ddim(guided(conditional, unconditional, scale), x, schedule, grid)

    assert used.calls == [2, 1, 0] and unused.calls == []
    assert torch.equal(sample, ddim(Model(used.shift), x, schedule, grid))


@pytest.mark.parametrize("scale", [-1.0, 0.5, 3.0])
def test_other_scales_lie_on_the_line_through_both_models(scale, models, x):
    conditional, unconditional = models
    epsilon = guided(conditional, unconditional, scale)(x, 3)

    assert conditional.calls == unconditional.calls == [3]
    # Equation 6 of Ho & Salimans 2022, w = scale - 1.
    expected = scale * conditional(x, 3) - (scale - 1) * unconditional(x, 3)
    torch.testing.assert_close(epsilon, expected, rtol=0, atol=1e-6)


SCHEDULE = torch.tensor([0.97, 0.6, 0.2, 0.02], dtype=torch.float64)


def predicted(denoiser, x, t):
    """The x0 that a denoiser means."""
    return (x - (1 - SCHEDULE[t]).sqrt() * denoiser(x, t)) / SCHEDULE[t].sqrt()


@pytest.mark.parametrize("t", [0, 3])
@pytest.mark.parametrize("phi", [0.3, 1.0])
def test_rescale_is_diffusers_of_the_predicted_images(phi, t, models, x):
    x = x.double()
    plain = predicted(guided(*models, 3.0), x, t)
    expected = rescale_noise_cfg(plain, predicted(models[0], x, t), guidance_rescale=phi)

    found = predicted(guided(*models, 3.0, phi, SCHEDULE), x, t)

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(found, plain)


def test_a_full_rescale_leaves_each_row_the_spread_of_its_conditional_prediction(models, x):
    found = predicted(guided(*models, 5.0, 1.0, SCHEDULE), x.double(), 2)
    wanted = predicted(models[0], x.double(), 2)
    assert wanted[0].std() != wanted[1].std()
    torch.testing.assert_close(found.std(dim=(1, 2)), wanted.std(dim=(1, 2)))
    alone = predicted(guided(*models, 5.0, 1.0, SCHEDULE), x[1:].double(), 2)
    torch.testing.assert_close(alone, found[1:], rtol=0, atol=1e-12)


def test_rescale_leaves_the_conditional_model_and_the_dtype_alone(models, x):
    conditional, _ = models
    assert guided(*models, 1.0, 0.7, SCHEDULE) is conditional
    assert guided(*models, 3.0, 0.7, SCHEDULE)(x, 1).dtype == x.dtype == torch.float32
    unscaled = guided(*models, 3.0, 0.0, SCHEDULE)
    assert torch.equal(unscaled(x, 1), guided(*models, 3.0)(x, 1))


def test_a_rescale_that_cannot_be_is_refused(models):
    with pytest.raises(ValueError, match=r"rescale must lie within 0\.\.1, got 1\.5"):
        guided(*models, 3.0, 1.5, SCHEDULE)
    with pytest.raises(ValueError, match="give alphas_cumprod"):
        guided(*models, 3.0, 0.5)
