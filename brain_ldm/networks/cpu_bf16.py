"""A way round wrong gradients of bf16 convolutions on the CPU.

oneDNN 3.12, which torch 2.13 uses, computes the weight gradient of a padded 3³ convolution wrongly
in bf16 (off by its own size, infinite or NaN; seen on a CPU with AVX512-BF16) where the first
spatial axis has two voxels and there are about 32 channels or more: as in the deepest level of a
U-Net on a 4 mm brain.
"""

import torch
from torch import Tensor, nn


class SafeConv3d(nn.Conv3d):
    """A convolution that computes in 32 bits where bf16 would go wrong."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what nn.Conv3d does for x (B, C, X, Y, Z)."""
        if x.device.type != "cpu" or x.shape[2] != 2:
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return self._conv_forward(x.float(), self.weight.float(), bias).to(x.dtype)


def make_safe(network: nn.Module) -> None:
    """Let every convolution of `network` avoid what is wrong in bf16, in place."""
    for module in network.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = SafeConv3d
