"""Perceptual loss: distance between images in the feature space of a trained network.

Each loss is called as `loss(images, targets, generators)`, with one generator a sample, of which a
sample's random choices depend alone; each is the mean over the samples of what it would be for
them one by one.
"""

import fcntl
import os
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from monai.losses import PerceptualLoss
from monai.networks.nets import BasicUNet
from torch import Generator, Tensor, nn

from brain_ldm.errors import InputError
from brain_ldm.networks.checkpointing import recompute
from brain_ldm.networks.segmenter import encoder_features


class FixedRuler(nn.Module):
    """A trained network that measures: it neither learns nor leaves evaluation mode."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        """The format of the network's weights, in which it wants its input."""
        return next(self.network.parameters()).dtype

    def train(self, mode: bool = True) -> "FixedRuler":
        """Stay in evaluation mode."""
        return super().train(False)


class SegmenterPerceptualLoss(FixedRuler):
    """Distance between the features of a trained segmenter at three scales.

    Features are scaled to unit length over channels before they are compared, as LPIPS does
    (Zhang et al. 2018, arXiv 1801.03924, equation 1, with all weights one); the squared distance is
    averaged over voxels and summed over scales.
    """

    network: BasicUNet

    def forward(self, images: Tensor, targets: Tensor, generators: list[Generator]) -> Tensor:
        """Return the mean distance of images from targets, both (B, 1, X, Y, Z); draws nothing."""
        ours = encoder_features(self.network, images.to(self.dtype))
        with torch.no_grad():
            theirs = encoder_features(self.network, targets.to(self.dtype))
        return sum(
            (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(dim=1).mean()
            for a, b in zip(ours, theirs, strict=True)
        )


class SlicePerceptualLoss(FixedRuler):
    """Distance of slices along each of the three axes by a 2-D network, summed over axes (2.5-D).

    What MONAI's PerceptualLoss(is_fake_3d=True) computes, but for the draw: which slices is chosen
    for each sample by its own generator, and before anything is copied. Slices go through the
    network a few at a time, and again in the backward pass.
    """

    CHUNK = 16  # slices

    def __init__(self, network: nn.Module, share: float) -> None:
        """Take a network that gives the distances (N, 1, 1, 1) of slices (N, 1, H, W)."""
        super().__init__(network)
        self.share = share

    def forward(self, images: Tensor, targets: Tensor, generators: list[Generator]) -> Tensor:
        """Return the mean distance of images from targets, both (B, 1, X, Y, Z)."""
        return sum(self.along(axis, images, targets, generators) for axis in (2, 3, 4))

    def along(
        self, axis: int, images: Tensor, targets: Tensor, generators: list[Generator]
    ) -> Tensor:
        """Return the mean distance of the slices that are drawn along one axis."""
        size = images.shape[axis]
        count = max(int(size * self.share), 1)
        chosen = [torch.randperm(size, generator=g)[:count].to(images.device) for g in generators]
        ours, theirs = (
            slices(volumes, axis, chosen).to(self.dtype).split(self.CHUNK)
            for volumes in (images, targets.detach())
        )
        distances = [
            recompute(self.network, a, b).flatten() for a, b in zip(ours, theirs, strict=True)
        ]
        return torch.cat(distances).mean()


def slices(volumes: Tensor, axis: int, chosen: list[Tensor]) -> Tensor:
    """Return (B·K, C, H, W): of each volume (B, C, X, Y, Z) the K slices along `axis` chosen."""
    picked = [v.movedim(axis - 1, 0)[i] for v, i in zip(volumes, chosen, strict=True)]
    return torch.cat(picked)


class VolumePerceptualLoss(FixedRuler):
    """Distance of whole volumes by a 3-D network."""

    def forward(self, images: Tensor, targets: Tensor, generators: list[Generator]) -> Tensor:
        """Return the mean distance of images from targets, both (B, 1, X, Y, Z); draws nothing."""
        # One by one: MONAI standardises intensities over all that it is given at once.
        pairs = zip(images.to(self.dtype).split(1), targets.to(self.dtype).split(1), strict=True)
        return torch.stack([recompute(self.network, a, b.detach()).mean() for a, b in pairs]).mean()


def hub_perceptual_loss(
    network: str, folder: str | None, slices: float
) -> SlicePerceptualLoss | VolumePerceptualLoss:
    """Return the loss by a network of MONAI's PerceptualLoss: 3-D for MedicalNet's, else 2.5-D.

    Args:
        network: its name in MONAI, e.g. `radimagenet_resnet50`.
        folder: torch.hub folder that holds the network; None: the default one, filled from
            the net at the first use.
        slices: share of slices an axis that a 2-D network sees, in (0, 1].

    Raises:
        InputError: there is no such network, or it can neither be found nor fetched; or no such
            share.
    """
    if not 0 < slices <= 1:
        raise InputError(f"task.perceptual.slices is {slices}; give more than 0 and at most 1")
    medicalnet = network.startswith("medicalnet")
    try:
        # Ranks that start together would fetch into the same folder.
        lock = Path(tempfile.gettempdir()) / f"brain_ldm_hub_{os.getuid()}.lock"
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            loss = PerceptualLoss(
                spatial_dims=3 if medicalnet else 2,
                network_type=network,
                is_fake_3d=False,
                cache_dir=folder,
            )
    except ValueError as error:
        raise InputError(f"task.perceptual.network={network}: {error}") from None
    except ImportError as error:
        raise InputError(
            f"task.perceptual.network={network} needs another package ({error}); "
            "pip install -e '.[engines]' in the checkout"
        ) from None
    except OSError as error:
        raise InputError(
            f"task.perceptual.network={network}: cannot be fetched ({error}); point "
            "task.perceptual.weights to a torch.hub folder that holds it"
        ) from None
    distance = loss.perceptual_function
    return VolumePerceptualLoss(distance) if medicalnet else SlicePerceptualLoss(distance, slices)
