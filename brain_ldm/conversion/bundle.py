"""Write a diffusion model as a MONAI bundle that runs without this package.

The bundle keeps the names of the published one: configs/inference.json makes MONAI's networks and
draws one brain, models/ has their state dicts, scripts/sampler.py is `bundle_sampler.py`. origin/
is the model folder without its weights, so that the same model can be made of the bundle again.
"""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
import yaml
from omegaconf import OmegaConf

import brain_ldm
from brain_ldm.cohorts.covariates import COVARIATES
from brain_ldm.conversion.cards import licence_section
from brain_ldm.conversion.config import ConvertConfig
from brain_ldm.conversion.published import INFERENCE, METADATA
from brain_ldm.conversion.reading import (
    AUTOENCODER,
    AUTOENCODER_WEIGHTS,
    LATENT,
    ORIGIN,
    WEIGHTS,
    Found,
    latent_weights,
)
from brain_ldm.errors import InputError
from brain_ldm.models import CARD, CONFIG, Diffusion, Model

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

RUN = """\
## Drawing a brain

```sh
pip install 'monai>=1.6' einops fire nibabel
python -m monai.bundle run --config_file configs/inference.json --seed 1{example}
```

in this folder writes `output/brain_seed-1.nii.gz`, float32 in 0..1. The starting noise follows from
`--seed` alone. `--steps` are DDIM steps, 50 by default. Covariates are given as
`--covariates#NAME`; `None` is one that is not known:

{table}
"""


def write_bundle(found: Found, folder: Path, options: ConvertConfig) -> None:
    """Write `found`, a diffusion model, as a bundle to a new folder.

    Raises:
        InputError: a covariate's name cannot stand in a bundle's config.
    """
    model = found.model
    for name in model.encoder.names:
        if not re.fullmatch(r"[^\W_]\w*", name):
            raise InputError(
                f"covariate '{name}': MONAI's configs take names of letters, digits and _ alone, "
                "the first no _; rename it in the model's config.yaml"
            )
    for part in ("configs", "docs", "models", "scripts"):
        (folder / part).mkdir(parents=True)
    _write_json(folder / INFERENCE, inference(model))
    _write_json(folder / METADATA, metadata(model, options))
    (folder / "docs" / "README.md").write_text(_readme(found, options))
    if options.licence is not None:
        (folder / "LICENSE").write_text(f"SPDX-License-Identifier: {options.licence}\n")
    models = folder / "models"
    _save(model.autoencoder.network.state_dict(), models / AUTOENCODER_WEIGHTS[0])
    _save(model.network.unet.state_dict(), models / WEIGHTS[0])
    _save(latent_weights(model), models / LATENT)
    sampler = Path(__file__).with_name("bundle_sampler.py")
    (folder / "scripts" / "__init__.py").touch()
    (folder / "scripts" / "sampler.py").write_text(sampler.read_text())
    _write_origin(model, folder / ORIGIN, found.card)
    _write_origin(model.autoencoder, folder / ORIGIN / AUTOENCODER, found.autoencoder_card)


def inference(model: Diffusion) -> dict[str, Any]:
    """Return configs/inference.json."""
    config, encoder, autoencoder = model.config, model.encoder, model.autoencoder
    # Every text in it is a constant or checked: MONAI executes texts that begin with $.
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
        "imports": ["$import torch", "$from monai.data import MetaTensor"],
        "bundle_root": ".",
        **NOT_THERE,
        "model_dir": "$@bundle_root + '/models'",
        "output_dir": "$@bundle_root + '/output'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "seed": 0,
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
        "network": "$@network_def.load(@model_dir).to(@device)",
        "noise": {
            "_target_": "scripts.sampler.draw_noise",
            "seed": "@seed",
            "shape": "@latent_shape",
        },
        "sample": "$@network(@noise.to(@device))",
        "affine": config.grid.affine,
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


def metadata(model: Diffusion, options: ConvertConfig) -> dict[str, Any]:
    """Return configs/metadata.json, by MONAI's schema and with the published bundle's keys."""
    channels, *latent = model.autoencoder.latent_shape
    authors = options.authors or "not stated"
    names = ", ".join(model.encoder.names) or "nothing"
    tensor = {"dtype": "float32", "is_patch_data": False}
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"Written by brain_ldm {brain_ldm.__version__}"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {name: version(name) for name in ("einops", "nibabel")},
        "task": "Brain image synthesis",
        "description": f"A latent diffusion model that draws T1w brain MRI, given {names}",
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


def _readme(found: Found, options: ConvertConfig) -> str:
    encoder = found.model.encoder
    rows, example = [], ""
    for name, unit, low, high in zip(
        encoder.names, encoder.units, encoder.low, encoder.high, strict=True
    ):
        levels = COVARIATES[name].levels if name in COVARIATES else {}
        asked = " or ".join(levels) if levels else f"{low:.10g} to {high:.10g}"
        rows.append(f"| `{name}` | {asked} | {unit or '-'} |")
        if not levels and not example:
            example = f" --covariates#{name} {(low + high) / 2:g}"
    table = "\n".join(["| covariate | in training | unit |", "|---|---|---|", *rows])
    run = RUN.format(example=example, table=table)
    return f"{found.card.rstrip()}\n\n{run}\n{licence_section(options.licence)}"


def _write_origin(model: Model, folder: Path, card: str) -> None:
    folder.mkdir()
    data = OmegaConf.to_container(OmegaConf.structured(model.config), enum_to_str=True)
    (folder / CONFIG).write_text(yaml.safe_dump(data, sort_keys=False))
    (folder / CARD).write_text(card)


def _save(state: dict[str, torch.Tensor], path: Path) -> None:
    try:
        torch.save({name: value.detach().cpu() for name, value in state.items()}, path)
    except RuntimeError as error:  # torch's of a disk that is full
        raise OSError(f"{path.name}: {error}") from None


def _write_json(path: Path, data: dict) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")
