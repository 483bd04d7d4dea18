"""Features of whole volumes, in which sets of brains are compared.

MedicalNet's are those that others publish FIDs of. The stand-ins are networks of ours, where its
weights cannot be had: their values compare with one another under the same network and with
nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brain_ldm.models import BrainAge, Segmenter
from brain_ldm.networks.medicalnet import build_medicalnet
from brain_ldm.networks.segmenter import encoder_features


@dataclass(frozen=True)
class Extractor:
    """A fixed network that turns volumes into features."""

    name: str  # as it is printed
    hash: str  # sha256 of its file of weights
    stand_in: bool  # whether it stands in for MedicalNet
    # Images (B, 1, X, Y, Z) in 0..1, on the network's device, to features (B, d), float32.
    features: Callable[[Tensor], Tensor]


def medicalnet(weights: str | None, device: str = "cpu") -> Extractor:
    """MedicalNet's 2048 features of volumes standardised over all their voxels.

    As the paper's author has it in his later code: the average over space of the last layer.

    Raises:
        InputError: the weights can neither be read nor fetched.
    """
    network, digest = build_medicalnet(weights)
    network.to(device)

    @torch.inference_mode()
    def features(images: Tensor) -> Tensor:
        sd, mean = torch.std_mean(images.float(), dim=(1, 2, 3, 4), correction=0, keepdim=True)
        return network((images - mean) / sd.clamp_min(1e-6))

    return Extractor("MedicalNet ResNet-50 (23 datasets)", digest, False, features)


def segmenter_features(model: Segmenter, folder: str) -> Extractor:
    """Stand-in: mean and standard deviation over space of each channel of the encoder's scales."""
    network = model.network

    @torch.inference_mode()
    def features(images: Tensor) -> Tensor:
        scales = encoder_features(network, images)
        for layer in (network.down_3, network.down_4):
            scales.append(layer(scales[-1]))
        pooled = [torch.std_mean(scale.flatten(2), dim=2, correction=0) for scale in scales]
        return torch.cat([part for pair in pooled for part in pair], dim=1).float()

    return Extractor(f"stand-in: encoder of the segmenter {folder}", model.hash, True, features)


def brain_age_features(model: BrainAge, folder: str) -> Extractor:
    """Stand-in: mean over space of each channel of each block."""

    @torch.inference_mode()
    def features(images: Tensor) -> Tensor:
        pooled = []
        for layer in model.network.blocks:
            images = layer(images)
            if isinstance(layer, nn.MaxPool3d):  # ends a block
                pooled.append(images.mean(dim=(2, 3, 4)))
        return torch.cat(pooled, dim=1).float()

    name = f"stand-in: blocks of the brain-age network {folder}"
    return Extractor(name, model.hash, True, features)
