# SPDX-License-Identifier: Apache-2.0
"""Draw a brain with the generator of a GAN, with torch alone.

`brain_ldm.convert` copies this file into every bundle that it writes of a generator, as
scripts/generator.py: MONAI has no such network.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn


def draw_noise(seed: int, latent_size: int) -> Tensor:
    """Standard normal noise (1, latent_size), drawn on the CPU from the seed alone."""
    return torch.randn(latent_size, generator=torch.Generator().manual_seed(seed))[None]


class Generator(nn.Module):
    """From noise (1, latent_size) to a T1w brain (1, 1, X, Y, Z) in 0..1.

    Args:
        latent_size: numbers of noise.
        channels: of the levels, from the finest to the coarsest; each halves every axis.
        norm_groups: groups of the group norms.
        shape: (X, Y, Z).
    """

    def __init__(
        self, latent_size: int, channels: Sequence[int], norm_groups: int, shape: Sequence[int]
    ) -> None:
        super().__init__()
        factor = 2 ** (len(channels) - 1)
        self.start = (channels[-1], *(axis // factor for axis in shape))
        self.first = nn.Linear(latent_size, math.prod(self.start))
        self.blocks = nn.Sequential(
            *(block(a, b, norm_groups, nn.Upsample(scale_factor=2))
              for a, b in pairwise(list(channels)[::-1])),
            block(channels[0], 1, norm_groups, nn.Identity()),
        )  # fmt: skip

    def load(self, folder: str) -> "Generator":
        """Read the weights of a bundle's models/ folder."""
        path = Path(folder) / "model.pt"
        self.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return self.eval()

    @torch.no_grad()
    def forward(self, noise: Tensor) -> Tensor:
        """Draw the brain that this noise leads to."""
        return self.blocks(self.first(noise).unflatten(1, self.start)).sigmoid()


def block(inputs: int, outputs: int, groups: int, resize: nn.Module) -> nn.Sequential:
    """Norm, LeakyReLU, `resize` and a convolution."""
    convolution = nn.Conv3d(inputs, outputs, 3, padding=1)
    return nn.Sequential(nn.GroupNorm(groups, inputs), nn.LeakyReLU(0.2), resize, convolution)
