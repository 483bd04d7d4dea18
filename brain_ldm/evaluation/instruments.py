"""The networks that measure brains, and what they say of a batch of images."""

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from brain_ldm.errors import InputError
from brain_ldm.evaluation.config import EvaluateConfig, Features
from brain_ldm.evaluation.features import (
    Extractor,
    brain_age_features,
    medicalnet,
    segmenter_features,
)
from brain_ldm.models import Autoencoder, BrainAge, Embedding, Model, Segmenter, open_model
from brain_ldm.precision import resolve

# Edge in mm of the voxels that neighbours are looked for among: finer ones differ by how brains
# are folded and shifted even where one is a copy of the other.
PIXEL = 8.0


@dataclass(frozen=True)
class Instruments:
    """The networks that measure, all on `device`; None where it is not wanted.

    Attributes:
        segmenter: volumes.
        brain_age: age.
        autoencoder: latents, and what is lost between image and latent.
        embedding: who is like whom.
        extractor: features for distances between cohorts.
        device: of all of them.
        precision: of volumes and latents, `32-true` or `bf16-mixed`.
    """

    segmenter: Segmenter | None = None
    brain_age: BrainAge | None = None
    autoencoder: Autoencoder | None = None
    embedding: Embedding | None = None
    extractor: Extractor | None = None
    device: str = "cpu"
    precision: str = "32-true"

    def autocast(self) -> torch.autocast:
        """The precision of volumes and latents, as a context."""
        fast = self.precision == "bf16-mixed"
        return torch.autocast(self.device, torch.bfloat16, enabled=fast)

    @torch.inference_mode()
    def reconstruct(self, images: Tensor) -> Tensor:
        """What the autoencoder makes of images (B, 1, X, Y, Z)."""
        with self.autocast():
            return self.autoencoder.reconstruct(images).float()

    def named(self) -> dict[str, Model]:
        """The models by their names in the config; those that are wanted."""
        names = ("segmenter", "brain_age", "autoencoder", "embedding")
        return {name: model for name in names if (model := getattr(self, name)) is not None}

    def hashes(self) -> dict[str, str]:
        """What measurements depend on: weights and config.yaml of each network."""
        found = {name: identity(model) for name, model in self.named().items()}
        if self.extractor is not None:
            found["extractor"] = f"{self.extractor.name} {self.extractor.hash}"
        return found | {"precision": self.precision}

    @torch.inference_mode()
    def measure(self, images: Tensor) -> dict[str, Tensor]:
        """Measure images (B, 1, X, Y, Z) in 0..1, on `device`.

        Returns:
            measured_ventricular_volume and measured_brain_volume in mm³, measured_age in years,
            (B,) each, and features (B, d), of those that there are networks for.
        """
        found = {}
        if self.segmenter is not None:
            with self.autocast():
                volumes = self.segmenter.volumes(images)
            found |= {f"measured_{name}": value.double() for name, value in volumes.items()}
        if self.brain_age is not None:
            found["measured_age"] = self.brain_age.predict(images).double()
        if self.extractor is not None:
            found["features"] = self.extractor.features(images)
        return found

    @torch.inference_mode()
    def likeness(self, images: Tensor, resolution: float, real: bool) -> dict[str, Tensor]:
        """Vectors of images (B, 1, X, Y, Z) by which a brain is recognised.

        Real ones are reconstructed first, where there is an autoencoder: a decoder's softness
        would otherwise keep even exact copies away from the brains that they copy.

        Args:
            images: in 0..1, on `device`.
            resolution: edge of a voxel in mm.
            real: whether no decoder has made them.

        Returns:
            embedding, latent and pixels, (B, numbers) each, of those that there are networks for.
        """
        if real and self.autoencoder is not None:
            images = self.reconstruct(images)
        found = {}
        if self.embedding is not None:
            found["embedding"] = self.embedding.embed(images)
        if self.autoencoder is not None:
            with self.autocast():
                latents = self.autoencoder.encode(images)[0]
            found["latent"] = latents.flatten(1).half()
        edge = max(1, round(PIXEL / resolution))
        found["pixels"] = F.avg_pool3d(images, edge).flatten(1).half()
        return found


def identity(model: Model) -> str:
    """What a model computes follows from: its weights, and how it is built and calibrated."""
    return f"{model.hash} {hashlib.sha256(repr(model.config).encode()).hexdigest()[:16]}"


def open_instruments(config: EvaluateConfig) -> Instruments:
    """Open the networks that `config` names.

    Raises:
        InputError: one is missing or damaged, or is another kind of model.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kinds = {
        "segmenter": Segmenter,
        "brain_age": BrainAge,
        "autoencoder": Autoencoder,
        "embedding": Embedding,
    }
    models = {}
    for name, kind in kinds.items():
        folder = getattr(config, name)
        if folder is None:
            continue
        try:
            models[name] = open_model(folder, kind).to(device)
        except InputError as error:
            raise InputError(f"{name}: {error}; {name}=null does without it") from None
        if device == "cpu":  # on which convolutions are faster like this
            models[name].to(memory_format=torch.channels_last_3d)
    return Instruments(
        **models,
        extractor=_open_extractor(config, models, device),
        device=device,
        precision=resolve(config.precision, device),
    )


def _open_extractor(
    config: EvaluateConfig, models: dict[str, Model], device: str
) -> Extractor | None:
    if config.features is None:
        return None
    if config.features is Features.medicalnet:
        try:
            return medicalnet(config.medicalnet, device)
        except InputError as error:
            raise InputError(
                f"features=medicalnet: {error}; features=segmenter stands in without a download, "
                "features=null does without FID"
            ) from None
    name = config.features.value
    if name not in models:
        raise InputError(f"features={name}: there is no {name}, since it is null; give {name}=…")
    kinds = {Features.segmenter: segmenter_features, Features.brain_age: brain_age_features}
    return kinds[config.features](models[name], getattr(config, name))
