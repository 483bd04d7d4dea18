"""The tissue segmenter: a 3-D U-Net from an image of any T1-like contrast to class logits."""

from itertools import pairwise

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor

from brain_ldm.networks.config import SegmenterConfig

# Where CSF, grey and white matter lie in an image of standard contrast: about where SynthSeg's T1
# priors have them. The choice is ours.
STANDARD = (0.22, 0.50, 0.75)
SURE = 0.95  # posterior of a voxel that a tissue fills
FEWEST = 50  # such voxels that tell where a tissue lies
LEAST_STEP = 0.02  # between tissues that can be told apart


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


@torch.no_grad()
def standard_contrast(images: Tensor, tissues: Tensor) -> Tensor:
    """Return images whose CSF, grey and white matter lie at `STANDARD`.

    Cortex is hardly thicker than a voxel of 2 mm, so a bright thin one looks like a dark thick one,
    and a network that sees one image alone counts brighter grey matter as more of it. Where a
    tissue lies is the median of the voxels that it surely fills; intensities between two tissues
    stay between them, in proportion, and so do shares of a voxel.

    Args:
        images: (B, 1, X, Y, Z) in 0..1.
        tissues: posteriors (B, 3, X, Y, Z) of CSF (ventricles included), grey and white matter, as
            a first look at the images has them.

    Returns:
        (B, 1, X, Y, Z) in 0..1. An image whose tissues cannot be told, or do not come in this
        order, stays as it is.
    """
    changed = []
    for image, posteriors in zip(images, tissues, strict=True):
        sure = [image[0][posterior > SURE] for posterior in posteriors]
        places = [float(values.median()) if len(values) >= FEWEST else -1.0 for values in sure]
        knots = [0.0, *places, 1.0]
        steps = [high - low for low, high in pairwise(knots)]
        if min(steps) >= LEAST_STEP:
            wanted = [0.0, *STANDARD, 1.0]
            image = sum(
                (wanted[i + 1] - wanted[i]) * ((image - knots[i]) / steps[i]).clamp(0, 1)
                for i in range(4)
            )
        changed.append(image)
    return torch.stack(changed)
