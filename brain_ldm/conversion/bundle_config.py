"""The configs of a MONAI bundle: how it draws a brain, and what it says of itself."""

from importlib.metadata import version
from typing import Any

import monai
import numpy as np
import torch

import brain_ldm
from brain_ldm.cohorts.covariates import COVARIATES
from brain_ldm.conversion.config import ConvertConfig
from brain_ldm.models import Diffusion, Generator

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
PAPER = (
    "Pinaya et al. Brain Imaging Generation with Latent Diffusion Models. MICCAI Workshop on Deep "
    "Generative Models, 2022. arXiv 2209.07162"
)
# MONAI asks an inference bundle for these; a bundle that draws from nothing has none of them.
NOT_THERE = {"dataset_dir": "", "dataset": "", "evaluator": "", "inferer": ""}


def inference(model: Diffusion | Generator) -> dict[str, Any]:
    """Return configs/inference.json."""
    # Every text in it is a constant or checked: MONAI executes texts that begin with $.
    return {
        "imports": ["$import torch", "$from monai.data import MetaTensor"],
        "bundle_root": ".",
        **NOT_THERE,
        "model_dir": "$@bundle_root + '/models'",
        "output_dir": "$@bundle_root + '/output'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "seed": 0,
        **(_diffusion(model) if isinstance(model, Diffusion) else _generator(model)),
        "network": "$@network_def.load(@model_dir).to(@device)",
        "sample": "$@network(@noise.to(@device))",
        "affine": model.config.grid.affine,
        "volume": (
            "$MetaTensor(@sample[0].cpu(), affine=torch.tensor(@affine, dtype=torch.float64), "
            "meta={'filename_or_obj': 'brain'})"
        ),
        "saver": {
            "_target_": "SaveImage",
            "output_dir": "@output_dir",
            "output_postfix": "$'seed-' + str(@seed)",
            "separate_folder": False,
            "resample": False,
        },
        "run": "$@saver(@volume)",
    }


def _generator(model: Generator) -> dict[str, Any]:
    config = model.config
    return {
        "network_def": {
            "_target_": "scripts.generator.Generator",
            "latent_size": config.network.latent_size,
            "channels": config.network.channels,
            "norm_groups": config.network.norm_groups,
            "shape": config.grid.shape,
        },
        "noise": {
            "_target_": "scripts.generator.draw_noise",
            "seed": "@seed",
            "latent_size": model.latent_size,
        },
    }


def _diffusion(model: Diffusion) -> dict[str, Any]:
    config, encoder, autoencoder = model.config, model.encoder, model.autoencoder
    codes = {
        name: COVARIATES[name].levels
        for name in encoder.names
        if name in COVARIATES and COVARIATES[name].levels
    }
    ranges = {
        name: [low, high]
        for name, low, high in zip(encoder.names, encoder.low, encoder.high, strict=True)
    }
    asked = {
        name: next(iter(codes[name])) if name in codes else (low + high) / 2
        for name, (low, high) in ranges.items()
    }
    return {
        "steps": 50,
        "covariates": asked,
        "ranges": ranges,
        "codes": codes,
        "autoencoder_def": _autoencoder_def(autoencoder.config.network),
        "diffusion_def": _diffusion_def(model),
        "conditions": {
            "_target_": "scripts.sampler.encode",
            "covariates": "@covariates",
            "ranges": "@ranges",
            "codes": "@codes",
        },
        "latent_shape": list(autoencoder.latent_shape),
        "network_def": {
            "_target_": "scripts.sampler.Sampler",
            "autoencoder": "@autoencoder_def",
            "diffusion": "@diffusion_def",
            "conditions": "@conditions",
            "steps": "@steps",
            "schedule": {
                "timesteps": config.schedule.timesteps,
                "kind": config.schedule.kind.value,
                "beta_start": config.schedule.beta_start,
                "beta_end": config.schedule.beta_end,
            },
            "prediction": config.prediction.value,
            "detail": config.detail,
            "latent_shape": "@latent_shape",
            "latent_scale": config.latent_scale,
            "conditioning": config.network.conditioning.value,
            "patch": config.network.patch,
            "condition_maps": config.network.condition_maps,
        },
        "noise": {
            "_target_": "scripts.sampler.draw_noise",
            "seed": "@seed",
            "shape": "@latent_shape",
        },
    }


def _autoencoder_def(config: Any) -> dict[str, Any]:
    """MONAI's arguments of `networks.autoencoder.build_autoencoder`."""
    return {
        "_target_": "monai.networks.nets.AutoencoderKL",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 1,
        "latent_channels": config.latent_channels,
        "channels": config.channels,
        "num_res_blocks": config.res_blocks,
        "norm_num_groups": config.norm_groups,
        "norm_eps": 1e-6,
        "attention_levels": [False] * len(config.channels),
        "with_encoder_nonlocal_attn": False,
        "with_decoder_nonlocal_attn": False,
    }


def _diffusion_def(model: Diffusion) -> dict[str, Any]:
    """MONAI's arguments of the U-Net within `networks.unet.ConditionalUNet`."""
    config, network = model.config.network, model.network
    return {
        "_target_": "monai.networks.nets.DiffusionModelUNet",
        "spatial_dims": 3,
        "in_channels": network.unet.in_channels,
        "out_channels": network.unet.out_channels,
        "channels": config.channels,
        "num_res_blocks": config.res_blocks,
        "attention_levels": config.attention_levels,
        "norm_num_groups": config.norm_groups,
        "norm_eps": 1e-6,
        "resblock_updown": True,
        "num_head_channels": config.head_channels,
        "with_conditioning": network.attends,
        "transformer_num_layers": 1,
        "cross_attention_dim": len(model.encoder.names) if network.attends else None,
    }


def metadata(model: Diffusion | Generator, options: ConvertConfig) -> dict[str, Any]:
    """Return configs/metadata.json, by MONAI's schema and with the published bundle's keys."""
    if isinstance(model, Diffusion):
        channels, *latent = model.autoencoder.latent_shape
        names = ", ".join(model.encoder.names) or "nothing"
        description = f"A latent diffusion model that draws T1w brain MRI, given {names}"
        packages = ("einops", "nibabel")
    else:
        channels, latent = model.latent_size, []
        description = "The generator of a GAN that draws T1w brain MRI"
        packages = ("nibabel",)
    authors = options.authors or "not stated"
    tensor = {"dtype": "float32", "is_patch_data": False}
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"Written by brain_ldm {brain_ldm.__version__}"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {name: version(name) for name in packages},
        "task": "Brain image synthesis",
        "description": description,
        "authors": authors,
        "copyright": f"Copyright: {authors}. Licence: {options.licence or 'not stated'}",
        "data_source": f"Cohort: {model.config.trained_on.get('cohort', 'not stated')}",
        "data_type": "nibabel",
        "image_classes": f"T1w brain MRI, {model.grid}, intensities 0..1",
        "eval_metrics": {},
        "intended_use": "For research; not a medical device",
        "references": [PAPER],
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "noise",
                    "format": "latent",
                    "num_channels": channels,
                    "spatial_shape": latent,
                    **tensor,
                    "value_range": [],
                    "channel_def": {str(c): "standard normal noise" for c in range(channels)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "MR",
                    "num_channels": 1,
                    "spatial_shape": list(model.grid.shape),
                    **tensor,
                    "value_range": [0, 1],
                    "channel_def": {"0": "T1w"},
                }
            },
        },
    }
