"""Gradients of bf16 convolutions on the CPU are those of 32 bits, to rounding."""

import pytest
import torch
from torch import nn

from brain_ldm.networks.cpu_bf16 import make_safe


@pytest.mark.parametrize("size", [(2, 3, 2), (2, 14, 10), (4, 6, 4)])
@pytest.mark.parametrize("whole", [False, True])  # autocast, or a network that is bf16 throughout
def test_weight_gradients_are_right(size, whole):
    torch.manual_seed(0)
    exact = nn.Conv3d(64, 64, 3, padding=1)
    network = nn.Sequential(nn.Conv3d(64, 64, 3, padding=1))
    network.load_state_dict({f"0.{name}": value for name, value in exact.state_dict().items()})
    make_safe(network)
    x = torch.randn(1, 64, *size)
    exact(x).square().mean().backward()
    if whole:
        output = network.bfloat16()(x.bfloat16())
    else:
        with torch.autocast("cpu", torch.bfloat16):
            output = network(x)
    output.float().square().mean().backward()
    for one, other in zip(network.parameters(), exact.parameters(), strict=True):
        assert (one.grad.float() - other.grad).norm() < 0.02 * other.grad.norm()
    assert set(network.state_dict()) == {"0.weight", "0.bias"}
