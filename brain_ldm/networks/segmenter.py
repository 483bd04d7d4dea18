"""The tissue segmenter: a 3-D U-Net from an image of any T1-like contrast to class logits."""

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor

from brain_ldm.networks.config import SegmenterConfig


class TissueUNet(BasicUNet):
    """MONAI's BasicUNet that is told where it looks.

    Images lie in MNI space and show one field of view, so where a voxel is says much about its
    tissue, at any voxel size: a dark cleft is a ventricle here and a sulcus there.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K, X, Y, Z) for images (B, 1, X, Y, Z)."""
        return super().forward(located(images))


def build_segmenter(config: SegmenterConfig, classes: int) -> TissueUNet:
    """Return the U-Net with one output channel a class."""
    return TissueUNet(spatial_dims=3, in_channels=4, out_channels=classes, features=config.features)


def located(images: Tensor) -> Tensor:
    """Append where voxels lie in the field of view, -1..1; x as distance from the midline."""
    axes = [
        torch.linspace(-1, 1, size, device=images.device, dtype=images.dtype)
        for size in images.shape[2:]
    ]
    places = torch.stack(torch.meshgrid(axes[0].abs(), axes[1], axes[2], indexing="ij"))
    return torch.cat([images, places.expand(len(images), -1, -1, -1, -1)], dim=1)


def encoder_features(network: TissueUNet, images: Tensor) -> list[Tensor]:
    """Return the encoder's activations at its first three scales, for images (B, 1, X, Y, Z)."""
    features = []
    images = located(images)
    for layer in (network.conv_0, network.down_1, network.down_2):
        images = layer(images)
        features.append(images)
    return features
