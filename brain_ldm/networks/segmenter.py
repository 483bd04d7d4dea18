"""The tissue segmenter: a 3-D U-Net from an image of any T1-like contrast to class logits."""

from monai.networks.nets import BasicUNet
from torch import Tensor

from brain_ldm.networks.config import SegmenterConfig


def build_segmenter(config: SegmenterConfig, classes: int) -> BasicUNet:
    """Return MONAI's BasicUNet with one output channel a class."""
    return BasicUNet(spatial_dims=3, in_channels=1, out_channels=classes, features=config.features)


def encoder_features(network: BasicUNet, images: Tensor) -> list[Tensor]:
    """Return the encoder's activations at its first three scales, for images (B, 1, X, Y, Z)."""
    features = []
    for layer in (network.conv_0, network.down_1, network.down_2):
        images = layer(images)
        features.append(images)
    return features
