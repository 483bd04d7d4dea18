"""Random changes of images: of training images by TorchIO, and of the images that are encoded.

All draws come from a generator that is passed in or made here, never from torch's global one: an
image's changes depend on its keys alone, wherever its batch was cut. Images are RAS+, so that a
flip along the first axis is left-right.
"""

import numpy as np
import torch
import torch.nn.functional as F
import torchio as tio
from torch import Tensor

from brain_ldm.errors import InputError
from brain_ldm.training import randomness
from brain_ldm.training.config import AugmentationConfig

ENCODING = "encoding"  # keeps the draws of encodings apart from those of training steps


def check_augmentation(config: AugmentationConfig) -> None:
    """Refuse numbers that mean nothing.

    Raises:
        InputError: a probability is not in 0..1, or a reach is negative or would turn the image
            inside out.
    """
    limits = {"translation": np.inf, "scale": 1, "shift": 1, "gamma": 1}
    for name in ("flip", "affine", "intensity"):
        if not 0 <= (value := getattr(config, name)) <= 1:
            raise InputError(f"task.augmentation.{name} is {value:g}: give a probability, 0 to 1")
    for name, limit in limits.items():
        if not 0 <= (value := getattr(config, name)) < limit:
            below = f" and below {limit}" if np.isfinite(limit) else ""
            raise InputError(f"task.augmentation.{name} is {value:g}: give 0 or more{below}")


def augment(
    image: np.ndarray | Tensor, config: AugmentationConfig, generator: torch.Generator
) -> Tensor:
    """Flip, move, scale and re-colour one image at random.

    Args:
        image: (X, Y, Z) in 0..1.
        config: how often and how far.
        generator: of all draws, on the CPU.

    Returns:
        (X, Y, Z) float32 in 0..1; empty where it was outside. Where nothing is drawn, it is the
        image itself and may share its memory.
    """
    image = _tensor(image)
    transforms = draw_transforms(config, generator)
    if not transforms:
        return image
    # The identity makes a voxel TorchIO's millimetre, whatever the resolution.
    subject = tio.Subject(image=tio.ScalarImage(tensor=image[None], affine=np.eye(4)))
    for transform in transforms:
        # Not transform(subject): even a fixed one would draw from the global generator.
        subject = transform.apply_transform(subject)
    return subject["image"].data[0].clamp_(0, 1)


def draw_transforms(config: AugmentationConfig, generator: torch.Generator) -> list[tio.Transform]:
    """Draw which of TorchIO's fixed transforms to apply, with which parameters, in their order.

    Always as many draws, so that one probability does not change what another one gives.
    """
    flip, affine, intensity = torch.rand(3, generator=generator).tolist()
    reach = torch.empty(8).uniform_(-1, 1, generator=generator).tolist()
    transforms = []
    if flip < config.flip:
        transforms.append(tio.Flip(axes=0))
    if affine < config.affine:
        # Moved first, then scaled about the centre of the image.
        transforms.append(
            tio.Affine(
                scales=[1 + config.scale * r for r in reach[:3]],
                degrees=(0, 0, 0),
                translation=[config.translation * r for r in reach[3:6]],
                default_pad_value=0,
            )
        )
    if intensity < config.intensity:
        shift = config.shift * reach[6]
        # What the shift takes below zero keeps its sign under the power and is cut off at the end.
        transforms += [tio.Lambda(lambda x: x + shift), tio.Gamma(1 + config.gamma * reach[7])]
    return transforms


def flip_and_shift(image: np.ndarray | Tensor, encoding: int, sample: int, reach: int) -> Tensor:
    """Return what encoding number `encoding` of an image encodes.

    Encoding 0 is the image itself. Further ones are flipped left-right with probability 1/2 and
    shifted by whole voxels, uniform in -reach..reach along every axis; what enters is 0. Whole
    voxels, since interpolation would blur what the diffusion model learns from. A function of
    (sample, encoding, reach) alone.

    Args:
        image: (X, Y, Z) in 0..1.
        encoding: 0, 1, ...
        sample: the image's row number.
        reach: voxels.

    Returns:
        (X, Y, Z) float32.

    Raises:
        InputError: the reach is negative, or so wide that a shift could leave nothing.
    """
    image = _tensor(image)
    if encoding == 0:
        return image
    if not 0 <= reach < min(image.shape):
        raise InputError(
            f"task.encoding_shift is {reach}: give 0 to {min(image.shape) - 1} voxels for images "
            f"of {'×'.join(map(str, image.shape))}"
        )
    generator = randomness.generator(ENCODING, sample, encoding)
    if torch.rand(1, generator=generator) < 0.5:
        image = image.flip(0)
    x, y, z = torch.randint(-reach, reach + 1, (3,), generator=generator).tolist()
    return F.pad(image, (z, -z, y, -y, x, -x))  # the last axis comes first


def _tensor(image: np.ndarray | Tensor) -> Tensor:
    if isinstance(image, np.ndarray):
        # A copy only of what torch cannot share: another type, flipped, or read-only from a cache.
        image = torch.from_numpy(np.require(image, np.float32, ["C", "W"]))
    return image.float()
