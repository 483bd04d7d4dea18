"""The published model: what its MONAI bundle says of it, and what it leaves to the paper.

The bundle is `brain_image_synthesis_latent_diffusion_model` (Pinaya et al. 2022), as MONAI's model
zoo has it or, earlier, MONAI Generative Models. It holds networks, schedule, size and the order of
the covariates. Its files run code; here they are read as data, and an expression where a value is
needed is refused.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from brain_ldm.cohorts.covariates import COVARIATES, CovariateEncoder
from brain_ldm.cohorts.files import read_json
from brain_ldm.cohorts.grid import FIELD_OF_VIEW, LOW_EDGE
from brain_ldm.diffusion.config import Prediction, ScheduleConfig, ScheduleKind
from brain_ldm.errors import InputError
from brain_ldm.models import GridConfig, SavedAutoencoder, SavedDiffusion
from brain_ldm.networks.config import AutoencoderConfig, UNetConfig

INFERENCE, METADATA = Path("configs/inference.json"), Path("configs/metadata.json")

# The bundle's names for its covariates, and their ranges in the paper (mm³ but for age, years).
PAPER = {
    "gender": ("sex", (0.0, 1.0)),
    "age": ("age", (44.0, 82.0)),
    "ventricular volume": ("ventricular_volume", (6995.68, 171375.0)),
    "brain volume": ("brain_volume", (1144240.0, 1793910.0)),
}

UNSAID = (
    "Ranges of the covariates: the paper's. The bundle takes them scaled to 0..1.",
    "Sex: 0 female, 1 male, as in UK Biobank's field 31. Neither paper nor bundle says.",
    "Volumes: UK Biobank's ventricular CSF (field 25004) and brain volume normalised for head size "
    "(field 25009), as in the paper; not what `measure` counts.",
    "Latent scale: 1, since the bundle decodes what it has sampled as it is.",
    "Timesteps: MONAI's scheduler has changed its grid since; the paper's 50 steps are 980, 960, "
    "…, 0 (`sampler.grid=leading`, the default).",
    "Place in MNI space: voxels of 1 mm, centred as this package centres the paper's field of "
    "view; neither paper nor bundle says. The model zoo's bundle saves without an affine.",
    "Left and right: the header that the first release of the bundle wrote has the first axis run "
    "from right to left. Volumes are kept as the network makes them and stored from left to right, "
    "so that left may be right: draw no conclusions about sides.",
)

# Of MONAI's classes: what our model has that is no default of theirs; what a bundle may choose; and
# what is about how something is computed, not about what.
OURS = {
    AutoencoderKL: {
        "spatial_dims": 3,
        "with_encoder_nonlocal_attn": False,
        "with_decoder_nonlocal_attn": False,
    },
    DiffusionModelUNet: {"spatial_dims": 3, "resblock_updown": True, "with_conditioning": True},
    DDIMScheduler: {"clip_sample": False},
}
LEVELS = {"channels", "num_res_blocks", "attention_levels", "norm_num_groups"}
CHOSEN = {
    AutoencoderKL: {*LEVELS, "latent_channels"},
    DiffusionModelUNet: {
        *LEVELS,
        *("num_head_channels", "in_channels", "out_channels", "cross_attention_dim"),
    },
    DDIMScheduler: {
        *("num_train_timesteps", "schedule", "beta_start", "beta_end", "prediction_type"),
    },
}
HOW = {
    *("use_checkpoint", "use_flash_attention", "upcast_attention"),
    *("clip_sample_min", "clip_sample_max"),
}
# What MONAI's schedules begin and end with where nothing is said.
BETAS = {"beta_start": 1e-4, "beta_end": 2e-2}
SCHEDULES = {"scaled_linear_beta": ScheduleKind.scaled_linear, "linear_beta": ScheduleKind.linear}
PREDICTIONS = {
    "epsilon": Prediction.epsilon,
    "v_prediction": Prediction.v,
    "sample": Prediction.x0,
}


def read_published(folder: Path) -> tuple[SavedAutoencoder, SavedDiffusion, list[str]]:
    """The configs of a model folder for the published bundle's model.

    Returns:
        Of the autoencoder and of the diffusion model; and sentences about what the bundle does not
        say, and what stands in its place.

    Raises:
        InputError: a file or an entry is missing, or describes what our networks are not.
    """
    inference, metadata = _read(folder / INFERENCE), _read(folder / METADATA)
    unsaid = list(UNSAID)
    grid = _grid(metadata, unsaid)
    encoder = _encoder(metadata, unsaid)
    autoencoder = _autoencoder(inference)
    schedule, prediction = _process(inference)
    trained_on = {
        "cohort": "UK Biobank",
        "bundle": f"{folder.resolve().name} {metadata.content.get('version', '')}".strip(),
    }
    diffusion = SavedDiffusion(
        grid=grid,
        network=_unet(inference, autoencoder.latent_channels, len(encoder.names)),
        schedule=schedule,
        prediction=prediction,
        latent_scale=1.0,
        covariates=encoder.to_dict()["covariates"],
        trained_on=dict(trained_on),
    )
    compressor = SavedAutoencoder(grid=grid, network=autoencoder, trained_on=trained_on)
    return compressor, diffusion, unsaid


@dataclass
class _File:
    """A JSON object and where it came from."""

    path: Path
    content: dict

    def entry(self, key: str) -> Any:
        """What lies at `a.b.c`, None where nothing does."""
        node: Any = self.content
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node


def _read(path: Path) -> _File:
    if not path.exists():
        raise InputError(f"{path}: no such file; give the whole bundle")
    return _File(path, read_json(path))


def _grid(metadata: _File, unsaid: list[str]) -> GridConfig:
    """Voxels of 1 mm, centred as the paper's field of view is."""
    key = "network_data_format.outputs.pred.spatial_shape"
    said = metadata.entry(key)
    if said is None:
        unsaid.append(f"Size of a volume: the paper's, {'×'.join(map(str, FIELD_OF_VIEW))} voxels.")
        said = FIELD_OF_VIEW
    try:
        shape = [int(axis) for axis in said]  # the first release has texts
    except (TypeError, ValueError):
        shape = []
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(f"{metadata.path}: {key} must be three numbers of voxels")
    affine = np.eye(4)
    affine[:3, 3] = np.add(LOW_EDGE, np.subtract(FIELD_OF_VIEW, shape) / 2) + 0.5
    return GridConfig(shape=shape, affine=affine.tolist())


def _encoder(metadata: _File, unsaid: list[str]) -> CovariateEncoder:
    """The covariates in the bundle's order, with the paper's ranges."""
    key = "network_data_format.inputs.image.channel_def"
    channels = metadata.entry(key)
    if channels is None:
        unsaid.append(f"Order of the covariates: as in the published bundle, {', '.join(PAPER)}.")
        channels = {str(i): name for i, name in enumerate(PAPER)}
    if not isinstance(channels, dict) or not all(str(i) in channels for i in range(len(channels))):
        raise InputError(f"{metadata.path}: {key} must name the covariates by number from 0")
    named = [str(channels[str(i)]) for i in range(len(channels))]
    for name in named:
        if name.lower() not in PAPER:
            raise InputError(
                f"{metadata.path}: {key} has '{name}', of which the paper gives no range; "
                f"it knows {', '.join(PAPER)}"
            )
    found = [PAPER[name.lower()] for name in named]
    return CovariateEncoder(
        names=[name for name, _ in found],
        low=[low for _, (low, _) in found],
        high=[high for _, (_, high) in found],
        units=[COVARIATES[name].unit for name, _ in found],
    )


def _autoencoder(inference: _File) -> AutoencoderConfig:
    name = "autoencoder_def"
    arguments = _arguments(inference, name, AutoencoderKL)
    attention = arguments["attention_levels"]
    if not isinstance(attention, list) or any(attention):
        raise InputError(f"{inference.path}: {name}.attention_levels: our model has no attention")
    values = {
        "channels": arguments["channels"],
        "res_blocks": _one_for_all(inference, name, arguments["num_res_blocks"]),
        "latent_channels": arguments["latent_channels"],
        "norm_groups": arguments["norm_num_groups"],
    }
    return _typed(inference, name, AutoencoderConfig, values)


def _unet(inference: _File, latent_channels: int, covariates: int) -> UNetConfig:
    name = "diffusion_def"
    arguments = _arguments(inference, name, DiffusionModelUNet)
    for key, expected in {
        "in_channels": latent_channels + covariates,
        "out_channels": latent_channels,
        "cross_attention_dim": covariates,
    }.items():
        if arguments[key] != expected:
            raise InputError(
                f"{inference.path}: {name}.{key} is {arguments[key]}, not {expected}, as for "
                f"{latent_channels} latent channels and {covariates} covariates that enter by "
                "concatenation and by cross-attention"
            )
    values = {
        "channels": arguments["channels"],
        "res_blocks": _one_for_all(inference, name, arguments["num_res_blocks"]),
        "attention_levels": arguments["attention_levels"],
        "head_channels": arguments["num_head_channels"],
        "norm_groups": arguments["norm_num_groups"],
    }
    return _typed(inference, name, UNetConfig, values)


def _process(inference: _File) -> tuple[ScheduleConfig, Prediction]:
    name = "scheduler"
    arguments = _arguments(inference, name, DDIMScheduler)
    for key, known in (("schedule", SCHEDULES), ("prediction_type", PREDICTIONS)):
        if str(arguments[key]) not in known:
            raise InputError(
                f"{inference.path}: {name}.{key} is {arguments[key]}; known are {', '.join(known)}"
            )
    values = {
        "timesteps": arguments["num_train_timesteps"],
        "kind": SCHEDULES[str(arguments["schedule"])],
        "beta_start": arguments["beta_start"],
        "beta_end": arguments["beta_end"],
    }
    schedule = _typed(inference, name, ScheduleConfig, values)
    return schedule, PREDICTIONS[str(arguments["prediction_type"])]


def _arguments(inference: _File, name: str, made: type) -> dict[str, Any]:
    """The arguments that entry `name` makes one of MONAI's classes with, defaults among them."""
    section, target = inference.entry(name), inference.entry(f"{name}._target_")
    if str(target).rpartition(".")[2] != made.__name__:
        raise InputError(f"{inference.path}: {name} makes no {made.__name__}, which our model has")
    given = {key: value for key, value in section.items() if not key.startswith("_")}
    if "num_channels" in given:  # the name in MONAI Generative Models
        given["channels"] = given.pop("num_channels")
    if "beta_schedule" in given:  # its name there at first, without the ending
        given["schedule"] = f"{given.pop('beta_schedule')}_beta"
    defaults = {
        parameter.name: None if parameter.default is parameter.empty else parameter.default
        for parameter in inspect.signature(made).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    defaults |= BETAS if made is DDIMScheduler else {}
    unknown = sorted(given.keys() - defaults.keys())
    if unknown:
        raise InputError(f"{inference.path}: {name}.{unknown[0]} is no argument of {target}")
    arguments, needed = defaults | given, defaults | OURS[made]
    for key in sorted(defaults.keys() - CHOSEN[made] - HOW):
        if arguments[key] != needed[key]:
            raise InputError(
                f"{inference.path}: {name}.{key} is {arguments[key]}; our model has {needed[key]}"
            )
    return arguments


def _one_for_all(inference: _File, name: str, blocks: Any) -> Any:
    """The number of residual blocks of every level."""
    if isinstance(blocks, list | tuple) and len(set(blocks)) == 1:
        return blocks[0]
    if isinstance(blocks, list | tuple):
        raise InputError(
            f"{inference.path}: {name}.num_res_blocks differs by level; ours has one for all"
        )
    return blocks


def _typed(inference: _File, name: str, schema: type, values: dict) -> Any:
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except OmegaConfBaseException as error:
        key = f"{name}: {error.full_key}" if error.full_key else name
        raise InputError(f"{inference.path}: {key}: {str(error).splitlines()[0]}") from None
