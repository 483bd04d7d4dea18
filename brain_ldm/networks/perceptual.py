"""Perceptual loss: distance between images in the feature space of a trained network."""

import torch.nn.functional as F
from monai.losses import PerceptualLoss
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

from brain_ldm.errors import InputError
from brain_ldm.networks.segmenter import encoder_features


class SegmenterPerceptualLoss(nn.Module):
    """Distance between the features of a trained segmenter at three scales.

    Features are scaled to unit length over channels before they are compared, as LPIPS does
    (Zhang et al. 2018, arXiv 1801.03924, equation 1, with all weights one); the squared distance is
    averaged over voxels and summed over scales.
    """

    def __init__(self, network: BasicUNet) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the mean distance of images from targets, both (B, 1, X, Y, Z)."""
        ours = encoder_features(self.network, images)
        theirs = encoder_features(self.network, targets)
        return sum(
            (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(dim=1).mean()
            for a, b in zip(ours, theirs, strict=True)
        )

    def train(self, mode: bool = True) -> "SegmenterPerceptualLoss":
        """Stay in evaluation mode: the network is a fixed ruler."""
        return super().train(False)


def hub_perceptual_loss(network: str, folder: str | None, slices: float) -> PerceptualLoss:
    """Return MONAI's PerceptualLoss, 2.5-D for 2-D networks and 3-D for MedicalNet's.

    Args:
        network: its name in MONAI, e.g. `radimagenet_resnet50`.
        folder: torch.hub folder that holds the network; None: the default one, filled from
            the net at the first use.
        slices: share of slices a plane that a 2-D network sees.

    Raises:
        InputError: there is no such network, or it can neither be found nor fetched.
    """
    medicalnet = network.startswith("medicalnet")
    try:
        loss = PerceptualLoss(
            spatial_dims=3,
            network_type=network,
            is_fake_3d=not medicalnet,
            fake_3d_ratio=slices,
            cache_dir=folder,
        )
    except ValueError as error:
        raise InputError(f"task.perceptual.network={network}: {error}") from None
    except ImportError as error:
        raise InputError(
            f"task.perceptual.network={network} needs another package ({error}); "
            "pip install 'brain-ldm[engines]'"
        ) from None
    except OSError as error:
        raise InputError(
            f"task.perceptual.network={network}: cannot be fetched ({error}); point "
            "task.perceptual.weights to a torch.hub folder that holds it"
        ) from None
    return loss.eval().requires_grad_(False)
