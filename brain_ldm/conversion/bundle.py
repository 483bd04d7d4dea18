"""Write what draws brains, a diffusion model or a GAN's generator, as a MONAI bundle.

It runs without this package. The bundle keeps the names of the published one:
configs/inference.json makes the networks and draws one brain, models/ has their state dicts,
scripts/ has `bundle_sampler.py` or `bundle_generator.py`. origin/ is the model folder without its
weights, so that the same model can be made of the bundle again.
"""

import json
import re
from pathlib import Path

import torch
import yaml
from omegaconf import OmegaConf

from brain_ldm.cohorts.covariates import COVARIATES
from brain_ldm.conversion.bundle_config import inference, metadata
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

RUN = """\
## Drawing a brain

```sh
pip install 'monai>=1.6' {packages}
python -m monai.bundle run --config_file configs/inference.json --seed 1{example}
```

in this folder writes `output/brain_seed-1.nii.gz`, float32 in 0..1. The starting noise follows from
`--seed` alone. {asking}
"""

ASKING = """\
`--steps` are DDIM steps, 50 by default. Covariates are given as
`--covariates#NAME`; `None` is one that is not known:

| covariate | in training | unit |
|---|---|---|
"""


def write_bundle(found: Found, folder: Path, options: ConvertConfig) -> None:
    """Write `found`, a diffusion model or a generator, as a bundle to a new folder.

    Raises:
        InputError: a covariate's name cannot stand in a bundle's config.
    """
    model = found.model
    _check_names(model)
    for part in ("configs", "docs", "models", "scripts"):
        (folder / part).mkdir(parents=True)
    _write_json(folder / INFERENCE, inference(model))
    _write_json(folder / METADATA, metadata(model, options))
    (folder / "docs" / "README.md").write_text(_readme(found, options))
    if options.licence is not None:
        (folder / "LICENSE").write_text(f"SPDX-License-Identifier: {options.licence}\n")
    models, script = folder / "models", "generator"
    _write_origin(model, folder / ORIGIN, found.card)
    if isinstance(model, Diffusion):
        script = "sampler"
        _save(model.autoencoder.network.state_dict(), models / AUTOENCODER_WEIGHTS[0])
        _save(model.network.unet.state_dict(), models / WEIGHTS[0])
        _save(latent_weights(model), models / LATENT)
        _write_origin(model.autoencoder, folder / ORIGIN / AUTOENCODER, found.autoencoder_card)
    else:
        _save(model.network.state_dict(), models / WEIGHTS[0])
    source = Path(__file__).with_name(f"bundle_{script}.py")
    (folder / "scripts" / "__init__.py").touch()
    (folder / "scripts" / f"{script}.py").write_text(source.read_text())


def _check_names(model: Model) -> None:
    for name in model.encoder.names if isinstance(model, Diffusion) else ():
        if not re.fullmatch(r"[^\W_]\w*", name):
            raise InputError(
                f"covariate '{name}': MONAI's configs take names of letters, digits and _ alone, "
                "the first no _; rename it in the model's config.yaml"
            )


def _readme(found: Found, options: ConvertConfig) -> str:
    if isinstance(found.model, Diffusion):
        example, rows = _covariates(found.model)
        run = RUN.format(packages="einops fire nibabel", example=example, asking=ASKING + rows)
    else:
        nothing_else = "Nothing else can be asked for."
        run = RUN.format(packages="fire nibabel", example="", asking=nothing_else)
    return f"{found.card.rstrip()}\n\n{run}\n{licence_section(options.licence)}"


def _covariates(model: Diffusion) -> tuple[str, str]:
    """An option that asks for one, and the rows of the table of all."""
    encoder, rows, example = model.encoder, [], ""
    for name, unit, low, high in zip(
        encoder.names, encoder.units, encoder.low, encoder.high, strict=True
    ):
        levels = COVARIATES[name].levels if name in COVARIATES else {}
        asked = " or ".join(levels) if levels else f"{low:.10g} to {high:.10g}"
        rows.append(f"| `{name}` | {asked} | {unit or '-'} |")
        if not levels and not example:
            example = f" --covariates#{name} {(low + high) / 2:g}"
    return example, "\n".join(rows)


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
