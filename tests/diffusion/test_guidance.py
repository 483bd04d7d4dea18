import pytest
import torch

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
