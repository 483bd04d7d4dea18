"""A model on disk: `config.yaml`, `weights.safetensors`, `MODEL_CARD.md`.

Opening one runs no code from it: the config is data, checked against the dataclasses below, and
the weights are safetensors. A diffusion model's folder holds its own copy of its autoencoder.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from brain_ldm.cohorts.covariates import MISSING as NO_VALUE
from brain_ldm.cohorts.covariates import CovariateEncoder
from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.diffusion.config import (
    DDIMConfig,
    DDPMConfig,
    DPMPP2MConfig,
    DPMPP2MSDEConfig,
    Prediction,
    SamplerConfig,
    ScheduleConfig,
)
from brain_ldm.diffusion.dpm_solver import dpmpp_2m, dpmpp_2m_sde
from brain_ldm.diffusion.grid import timesteps
from brain_ldm.diffusion.guidance import guided
from brain_ldm.diffusion.inversion import ddim_invert
from brain_ldm.diffusion.parameterisation import to_epsilon
from brain_ldm.diffusion.samplers import ddim, ddpm
from brain_ldm.diffusion.schedule import make_schedule
from brain_ldm.errors import InputError
from brain_ldm.networks.autoencoder import build_autoencoder, downsampling
from brain_ldm.networks.brain_age import BrainAgeNetwork
from brain_ldm.networks.config import (
    AutoencoderConfig,
    BrainAgeConfig,
    EmbeddingConfig,
    GeneratorConfig,
    SegmenterConfig,
    UNetConfig,
)
from brain_ldm.networks.embedding import EmbeddingNetwork
from brain_ldm.networks.generator import GeneratorNetwork
from brain_ldm.networks.segmenter import build_segmenter, standard_contrast
from brain_ldm.networks.unet import ConditionalUNet

CONFIG, WEIGHTS, CARD = "config.yaml", "weights.safetensors", "MODEL_CARD.md"


@dataclass
class GridConfig:
    """The voxel grid that a model works on, as plain data."""

    shape: list[int] = MISSING
    affine: list[list[float]] = MISSING  # voxel to MNI world, mm


@dataclass
class SavedModel:
    """What every model's config.yaml says."""

    kind: str = MISSING
    grid: GridConfig = field(default_factory=GridConfig)
    trained_on: dict[str, Any] = field(default_factory=dict)  # cohort, its hash, rows, steps


@dataclass
class SavedAutoencoder(SavedModel):
    """config.yaml of an autoencoder."""

    kind: str = "autoencoder"
    network: AutoencoderConfig = field(default_factory=AutoencoderConfig)


@dataclass
class SavedGenerator(SavedModel):
    """config.yaml of a GAN's generator."""

    kind: str = "generator"
    network: GeneratorConfig = field(default_factory=GeneratorConfig)


@dataclass
class SavedSegmenter(SavedModel):
    """config.yaml of a segmenter."""

    kind: str = "segmenter"
    network: SegmenterConfig = field(default_factory=SegmenterConfig)
    classes: list[str] = MISSING
    # By volume, offset in mm³ and slope of what is counted on what is true; {}: as it is counted.
    calibration: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class SavedBrainAge(SavedModel):
    """config.yaml of a brain-age network."""

    kind: str = "brain_age"
    network: BrainAgeConfig = field(default_factory=BrainAgeConfig)


@dataclass
class SavedEmbedding(SavedModel):
    """config.yaml of an embedding."""

    kind: str = "embedding"
    network: EmbeddingConfig = field(default_factory=EmbeddingConfig)


@dataclass
class SavedDiffusion(SavedModel):
    """config.yaml of a diffusion model."""

    kind: str = "diffusion"
    network: UNetConfig = field(default_factory=UNetConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    prediction: Prediction = Prediction.epsilon
    detail: float = 0.0  # for x0 prediction: variance of what goes past the network
    latent_scale: float = MISSING  # multiplies latents before diffusion
    covariates: list[dict[str, Any]] = MISSING  # as CovariateEncoder.to_dict gives them


class Model(nn.Module):
    """A network with what is needed to use it: its config and its voxel grid."""

    saved: ClassVar[type[SavedModel]]

    def __init__(self, config: SavedModel) -> None:
        super().__init__()
        self.config = config
        self.hash = ""  # sha256 of the weights file it was opened from

    @property
    def grid(self) -> VoxelGrid:
        """The voxel grid of its images."""
        return VoxelGrid.from_dict(vars(self.config.grid))

    def weights(self) -> dict[str, Tensor]:
        """Return what weights.safetensors holds."""
        return self.state_dict()


class Autoencoder(Model):
    """Images (B, 1, X, Y, Z) in 0..1 to latents (B, C, X/f, Y/f, Z/f) and back."""

    saved = SavedAutoencoder

    def __init__(self, config: SavedAutoencoder) -> None:
        super().__init__(config)
        factor = downsampling(config.network)
        if any(axis % factor for axis in config.grid.shape):
            raise InputError(
                f"the autoencoder shrinks each axis by {factor}, which does not divide the volume "
                f"{'×'.join(map(str, config.grid.shape))}: use another resolution or fewer levels"
            )
        self.network = build_autoencoder(config.network)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Channels and size of one latent."""
        factor = downsampling(self.config.network)
        return (self.config.network.latent_channels, *(s // factor for s in self.grid.shape))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the posterior of each image."""
        return self.network.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images of unscaled latents."""
        return self.network.decode(latents)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Return images decoded from their posterior means, clipped to 0..1."""
        return self.decode(self.encode(images)[0]).clamp(0, 1)


class Generator(Model):
    """Images from noise: what is left of a GAN once it is trained."""

    saved = SavedGenerator

    def __init__(self, config: SavedGenerator) -> None:
        super().__init__(config)
        self.network = GeneratorNetwork(config.network, tuple(config.grid.shape))

    @property
    def latent_size(self) -> int:
        """How many numbers of noise an image comes from."""
        return self.config.network.latent_size

    def generate(self, z: Tensor) -> Tensor:
        """Return images (B, 1, X, Y, Z) in 0..1 for standard normal noise (B, latent_size)."""
        return self.network(z)


class Segmenter(Model):
    """Tissue posteriors and the volumes that follow from them."""

    saved = SavedSegmenter

    def __init__(self, config: SavedSegmenter) -> None:
        super().__init__(config)
        self.network = build_segmenter(config.network, len(config.classes))

    @property
    def classes(self) -> list[str]:
        """Names of the channels of the posteriors."""
        return list(self.config.classes)

    def posteriors(self, images: Tensor) -> Tensor:
        """Return class probabilities (B, K, X, Y, Z) for images (B, 1, X, Y, Z).

        At a second look: the first one tells where tissues lie, and contrast is made standard.
        """
        first = self.network(images).float().softmax(dim=1)
        csf, grey, white, ventricle = (
            first[:, self.classes.index(name)] for name in ("csf", "grey", "white", "ventricle")
        )
        tissues = torch.stack([csf + ventricle, grey, white], dim=1)
        return self.network(standard_contrast(images, tissues)).float().softmax(dim=1)

    def volumes(self, images: Tensor) -> dict[str, Tensor]:
        """Return ventricular and brain (grey and white) volume in mm³, each (B,).

        Counted softly, as SynthSeg's: the sum of the posteriors times the volume of a voxel. Then
        calibrated: a network that is unsure of the border voxels counts small volumes too large and
        large ones too small, along a line that training has found on images of known volumes.
        """
        return {
            name: self._calibrated(name, counted).clamp(min=0)
            for name, counted in self.counted(images).items()
        }

    def _calibrated(self, name: str, counted: Tensor) -> Tensor:
        offset, slope = self.config.calibration.get(name, (0.0, 1.0))
        return (counted - offset) / slope

    def counted(self, images: Tensor) -> dict[str, Tensor]:
        """Return the volumes of `volumes`, not yet calibrated."""
        voxel = float(abs(torch.linalg.det(torch.tensor(self.config.grid.affine)[:3, :3])))
        sums = self.posteriors(images).double().sum(dim=(2, 3, 4)) * voxel
        by_class = dict(zip(self.classes, sums.unbind(1), strict=True))
        return {
            "ventricular_volume": by_class["ventricle"],
            "brain_volume": by_class["grey"] + by_class["white"],
        }


class BrainAge(Model):
    """Age in years from an image."""

    saved = SavedBrainAge

    def __init__(self, config: SavedBrainAge) -> None:
        super().__init__(config)
        self.network = BrainAgeNetwork(config.network, tuple(config.grid.shape))

    def predict(self, images: Tensor) -> Tensor:
        """Return age in years (B,) for images (B, 1, X, Y, Z)."""
        return self.network(images).float() * self.network.sd + self.network.mean


class Embedding(Model):
    """A short vector from an image, close to those of other views of the same brain."""

    saved = SavedEmbedding

    def __init__(self, config: SavedEmbedding) -> None:
        super().__init__(config)
        self.network = EmbeddingNetwork(config.network)

    def embed(self, images: Tensor) -> Tensor:
        """Return unit vectors (B, D) for images (B, 1, X, Y, Z)."""
        return nn.functional.normalize(self.network(images).float(), dim=1)


class Diffusion(Model):
    """The conditional latent diffusion model together with its autoencoder."""

    saved = SavedDiffusion

    def __init__(self, config: SavedDiffusion, autoencoder: Autoencoder) -> None:
        super().__init__(config)
        self.autoencoder = autoencoder
        self.encoder = CovariateEncoder.from_dict({"covariates": config.covariates})
        self.network = ConditionalUNet(
            config.network, autoencoder.latent_shape, len(self.encoder.names), NO_VALUE
        )
        # Subtracted from latents before they are scaled; zero unless training centred them.
        self.register_buffer("latent_mean", torch.zeros(autoencoder.latent_shape))
        self.alphas_cumprod = make_schedule(config.schedule)

    def weights(self) -> dict[str, Tensor]:
        """Return the U-Net's weights and the mean latent; the autoencoder has its own folder."""
        network = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        return {"latent_mean": self.latent_mean, **network}

    def denoiser(self, conditions: Tensor) -> Callable[[Tensor, int], Tensor]:
        """Return epsilon(x, t) given encoded covariates (B, N)."""

        def epsilon(x: Tensor, t: int) -> Tensor:
            steps = torch.full((len(x),), t, device=x.device)
            output = self.network(x, steps, conditions).to(x.dtype)
            prediction, detail = self.config.prediction, self.config.detail
            return to_epsilon(prediction, output, x, self.alphas_cumprod[t], detail)

        return epsilon

    def guided_denoiser(
        self, conditions: Tensor, guidance: float, rescale: float
    ) -> Callable[[Tensor, int], Tensor]:
        """Return epsilon(x, t) under guidance away from no conditions at all."""
        nothing = torch.full_like(conditions, NO_VALUE)
        return guided(
            self.denoiser(conditions),
            self.denoiser(nothing),
            guidance,
            rescale,
            self.alphas_cumprod,
        )

    def sample(
        self,
        conditions: Tensor,
        noise: Tensor,
        sampler: SamplerConfig,
        guidance: float = 1.0,
        draw: Callable[[Tensor], Tensor] | None = None,
        rescale: float = 0.0,
    ) -> Tensor:
        """Return unscaled latents, to be decoded.

        Args:
            conditions: (B, N), covariates as `self.encoder` encodes them.
            noise: (B, C, x, y, z), standard normal.
            sampler: which sampler, how many steps, on which grid.
            guidance: 1 conditional, 0 unconditional, above 1 exaggerated (Ho & Salimans 2022).
            draw: further noise for stochastic samplers, shaped as its argument.
            rescale: 0 to 1, how much of the contrast that guidance adds is taken back (Lin et al.
                2024, section 3.4).
        """
        denoiser = self.guided_denoiser(conditions, guidance, rescale)
        steps = timesteps(sampler.grid, sampler.steps, len(self.alphas_cumprod))
        if isinstance(sampler, DDPMConfig):
            latents = ddpm(denoiser, noise, self.alphas_cumprod, steps, draw)
        elif isinstance(sampler, DDIMConfig):
            latents = ddim(denoiser, noise, self.alphas_cumprod, steps, sampler.eta, draw)
        elif isinstance(sampler, DPMPP2MConfig):
            latents = dpmpp_2m(denoiser, noise, self.alphas_cumprod, steps)
        elif isinstance(sampler, DPMPP2MSDEConfig):
            latents = dpmpp_2m_sde(denoiser, noise, self.alphas_cumprod, steps, draw)
        else:
            raise TypeError(f"no sampler for {type(sampler).__name__}")
        return self._unscaled(latents)

    def invert(
        self,
        latents: Tensor,
        conditions: Tensor,
        sampler: DDIMConfig,
        guidance: float = 1.0,
        rescale: float = 0.0,
        iterations: int = 5,
    ) -> Tensor:
        """Return the noise from which `sample` with the same options gives `latents` back.

        Args:
            latents: (B, C, x, y, z), unscaled, as `sample` returns and the autoencoder encodes
                them.
            conditions: (B, N), what is known of these brains, as `self.encoder` encodes it.
            sampler: how many steps, on which grid; its eta is 0.
            guidance: as in `sample`; iterations converge less well the larger it is.
            rescale: as in `sample`.
            iterations: denoiser calls a step; more give `latents` back more closely.

        Raises:
            ValueError: `sampler.eta` is not 0: noise drawn on the way cannot be found again.
        """
        if sampler.eta != 0:
            raise ValueError(f"only eta=0 can be inverted, got {sampler.eta}")
        steps = timesteps(sampler.grid, sampler.steps, len(self.alphas_cumprod))
        denoiser = self.guided_denoiser(conditions, guidance, rescale)
        return ddim_invert(denoiser, self._scaled(latents), self.alphas_cumprod, steps, iterations)

    def edit(
        self,
        latents: Tensor,
        conditions: Tensor,
        wanted: Tensor,
        sampler: DDIMConfig,
        guidance: float = 1.0,
        rescale: float = 0.0,
        iterations: int = 3,
    ) -> Tensor:
        """Return latents of the same brains under other conditions.

        The brains' own and the wanted conditions are sampled from the brains' own noise, and what
        differs between the two samples is added to `latents`. So detail that the model does not
        draw stays as it is, and conditions that do not change change nothing.

        The noise is not found from `latents` but from what the model makes of them in its last
        step. Detail that it takes for noise would have to come from noise of many standard
        deviations, among which conditions count for little.

        Args:
            latents: (B, C, x, y, z), unscaled, as the autoencoder encodes them.
            conditions: (B, N), what is known of these brains, as `self.encoder` encodes it.
            wanted: (B, N), what they shall have instead.
            sampler: how many steps, on which grid; its eta is 0.
            guidance: as in `sample`.
            rescale: as in `sample`.
            iterations: of the inversion, see `invert`.

        Raises:
            ValueError: `sampler.eta` is not 0.
        """
        last = timesteps(sampler.grid, sampler.steps, len(self.alphas_cumprod))[-1:]
        denoiser = self.guided_denoiser(conditions, guidance, rescale)
        noised = self.alphas_cumprod[last].sqrt().item() * self._scaled(latents)
        drawn = self._unscaled(ddim(denoiser, noised, self.alphas_cumprod, last))
        noise = self.invert(drawn, conditions, sampler, guidance, rescale, iterations)
        own, other = (
            self.sample(asked, noise, sampler, guidance, rescale=rescale)
            for asked in (conditions, wanted)
        )
        return latents + (other - own)

    def _scaled(self, latents: Tensor) -> Tensor:
        return (latents - self.latent_mean) * self.config.latent_scale

    def _unscaled(self, latents: Tensor) -> Tensor:
        return latents / self.config.latent_scale + self.latent_mean

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 1, X, Y, Z) in 0..1 of unscaled latents."""
        return self.autoencoder.decode(latents).clamp(0, 1)


AnyModel = TypeVar("AnyModel", bound=Model)


def save_model(model: Model, folder: Path, card: str) -> None:
    """Write the model folder; the weights come last, so a folder with weights is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, Diffusion):
        copy = folder / "autoencoder"
        _write(model.autoencoder, copy, (copy / CARD).read_text() if copy.exists() else "")
    _write(model, folder, card)


def _write(model: Model, folder: Path, card: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).unlink(missing_ok=True)
    data = OmegaConf.to_container(OmegaConf.structured(model.config), enum_to_str=True)
    _replace(folder / CONFIG, lambda p: p.write_text(yaml.safe_dump(data, sort_keys=False)))
    _replace(folder / CARD, lambda p: p.write_text(card))
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.weights().items()}
    _replace(folder / WEIGHTS, lambda p: save_file(tensors, p))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    temporary.replace(path)


def open_model(folder: str | Path, *kinds: type[AnyModel]) -> AnyModel:
    """Open a model folder as the one of `kinds` that it holds, to be used and not trained.

    In evaluation mode and without gradients.

    Raises:
        InputError: a file is missing or damaged, or the folder holds another kind of model.
    """
    folder = Path(folder)
    kind, config = read_config(folder, kinds)
    parts = [open_model(folder / "autoencoder", Autoencoder)] if kind is Diffusion else []
    try:
        model = kind(config, *parts)
    except ValueError as error:  # MONAI's, of channels that do not fit
        raise InputError(f"{folder / CONFIG}: {str(error).splitlines()[0]}") from None
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"{folder}: no {WEIGHTS}; train the model, or copy the whole folder")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: damaged ({error}); copy it again") from None
    wanted = model.weights()
    differing = wanted.keys() ^ tensors.keys() | {
        name for name in wanted.keys() & tensors.keys() if wanted[name].shape != tensors[name].shape
    }
    if differing:
        raise InputError(
            f"{path}: '{min(differing)}' does not fit the network that {CONFIG} describes"
        )
    model.load_state_dict(tensors, strict=False)
    model.hash = hashlib.sha256(path.read_bytes()).hexdigest()
    return model.eval().requires_grad_(False)


def config_hash(model: Model) -> str:
    """Return the sha256 of how a model is built, its autoencoder's included.

    Latent scale, ranges and schedule decide what it draws as much as its weights do.
    """
    parts = [model.config, *([model.autoencoder.config] if isinstance(model, Diffusion) else [])]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def read_config(folder: Path, kinds: Sequence[type[AnyModel]]) -> tuple[type[AnyModel], SavedModel]:
    """Read the config.yaml of the one of `kinds` that a folder describes.

    Raises:
        InputError: there is none, it is damaged, or of another kind of model.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{folder}: no model there ({CONFIG} is missing)")
    try:
        data = yaml.safe_load(path.read_text())
        found = data["kind"]
        kind = next((kind for kind in kinds if kind.saved.kind == found), None)
        if kind is None:
            wanted = "' or '".join(kind.saved.kind for kind in kinds)
            raise InputError(f"{folder}: a model of kind '{found}', not '{wanted}'")
        return kind, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind.saved), data))
    except (yaml.YAMLError, TypeError, KeyError, UnicodeError) as error:
        raise InputError(f"{path}: not a model's config ({str(error).splitlines()[0]})") from None
    except OmegaConfBaseException as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}") from None
