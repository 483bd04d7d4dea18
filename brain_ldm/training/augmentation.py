"""Random changes of images: TorchIO's of training images, and those of images that are encoded.

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
    for transform in transforms:
        image = applied(transform, image)
    return image.clamp_(0, 1) if transforms else image


def applied(transform: tio.Transform, image: Tensor) -> Tensor:
    """Return what one of the drawn transforms makes of an image (X, Y, Z), in 32 bits.

    TorchIO's result, but that a power makes values below zero zero; without its copies, and an
    affine map in a sixth of the time. A voxel counts as its millimetre, whatever the resolution.
    """
    match transform:
        case tio.Flip():
            return image.flip(transform.axes)
        case tio.Affine():  # it turns nothing, so that one axis after the other is interpolated
            for axis in range(3):
                scale, moved = transform.scales[axis], transform.translation[axis]
                image = _stretched(image, axis, float(scale), float(moved))
            return image
        case tio.Gamma():
            return image.clamp(min=0).pow_(transform.gamma)
    return transform.function(image)


def _stretched(image: Tensor, axis: int, scale: float, moved: float) -> Tensor:
    """Move an image along one axis, then scale it about its centre; linear, and empty outside."""
    count = image.shape[axis]
    numbers = torch.arange(count, dtype=torch.float64)
    centre = (count - 1) / 2
    origin = (numbers - centre) / scale + centre - moved  # where each voxel comes from
    # Half a voxel beyond the outermost centres belongs to them, as in ITK.
    inside = (origin >= -0.5) & (origin < count - 0.5)
    origin = origin.clamp(0, count - 1)
    before = origin.floor().clamp(max=count - 2)
    shape = [count if a == axis else 1 for a in range(3)]
    far = ((origin - before) * inside).float().view(shape)
    near = ((1 - origin + before) * inside).float().view(shape)
    result = torch.empty_like(image, memory_format=torch.contiguous_format)
    # Whole runs of voxels come from equally far away: far faster than index by index.
    offsets, lengths = torch.unique_consecutive((before - numbers).long(), return_counts=True)
    start = 0
    for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
        run, first = (axis, start, length), start + offset
        part = result.narrow(*run)
        torch.mul(image.narrow(axis, first, length), near.narrow(*run), out=part)
        part.addcmul_(image.narrow(axis, first + 1, length), far.narrow(*run))
        start += length
    return result


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
