"""Age from a T1w volume: the 3-D convolutional network of Cole et al. 2017."""

import math

import torch
from torch import Tensor, nn

from brain_ldm.networks.config import BrainAgeConfig


class BrainAgeNetwork(nn.Module):
    """Blocks of [conv, ReLU, conv, batch norm, ReLU, max pool], then one linear layer.

    It works on standardised ages inside; `mean` and `sd` (years) travel with the weights.
    """

    def __init__(self, config: BrainAgeConfig, shape: tuple[int, int, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 1
        for channels in config.channels:
            layers += [
                nn.Conv3d(inputs, channels, 3, padding=1),
                nn.ReLU(),
                nn.Conv3d(channels, channels, 3, padding=1),
                nn.BatchNorm3d(channels),
                nn.ReLU(),
                nn.MaxPool3d(2),
            ]
            inputs = channels
        size = math.prod(axis // 2 ** len(config.channels) for axis in shape)
        if size == 0:
            raise ValueError(f"a volume of {shape} is too small for {len(config.channels)} blocks")
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(inputs * size, 1)
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("sd", torch.tensor(1.0))

    def forward(self, images: Tensor) -> Tensor:
        """Return standardised age (B,) for images (B, 1, X, Y, Z)."""
        return self.head(self.blocks(images).flatten(1)).squeeze(1)
