"""Fine-tuning: begin with the weights of a model folder; covariates may be others than its own."""

import dataclasses
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brain_ldm.cohorts.covariates import MISSING, CovariateEncoder
from brain_ldm.errors import InputError
from brain_ldm.models import Autoencoder, Diffusion, open_model


def start_autoencoder(model: Autoencoder, folder: str | Path) -> None:
    """Copy the weights of the autoencoder in `folder` into `model`, on any voxel grid.

    Raises:
        InputError: the folder holds no autoencoder, or one with other network options.
    """
    old = open_model(folder, Autoencoder)
    _require_same("task.network", model.config.network, old.config.network, folder)
    model.load_state_dict(old.state_dict())


def start_encoder(
    fitted: CovariateEncoder, folder: str | Path, renamed: dict[str, str] | None
) -> CovariateEncoder:
    """Return `fitted` with the old ranges of the covariates that the model in `folder` knows.

    A scaled value thereby goes on meaning what the weights learned; new covariates keep the ranges
    of `fitted`.

    Args:
        fitted: the encoder of the task's covariates, fitted on its training split.
        folder: a diffusion model's.
        renamed: new name to old name, or None.

    Raises:
        InputError: the folder holds no diffusion model, or `renamed` does not fit the names.
    """
    old = open_model(folder, Diffusion).encoder
    low, high, units = list(fitted.low), list(fitted.high), list(fitted.units)
    for here, there in enumerate(_places(fitted.names, old.names, renamed, folder)):
        if there is not None:
            low[here], high[here] = old.low[there], old.high[there]
            units[here] = old.units[there] or units[here]
    return dataclasses.replace(fitted, low=low, high=high, units=units)


def start_diffusion(model: Diffusion, folder: str | Path, renamed: dict[str, str] | None) -> None:
    """Copy the U-Net of `folder` into `model`, whose covariates may be others in another order.

    Weights that read covariates are matched by name. Those of new covariates start at zero, so
    that the first output is the old model's whatever they are. Dropped covariates are left out,
    which reads as them being 0, the low end of their range (for sex: female), and not as missing.
    The mean latent and the latent scale become the old model's, since the weights know no other.

    Args:
        model: a diffusion model with the covariates of the task.
        folder: the old diffusion model's.
        renamed: new name to old name, or None.

    Raises:
        InputError: the folder holds no diffusion model, `renamed` does not fit the names, or the
            old model has another prediction, detail, schedule, network or autoencoder.
    """
    old = open_model(folder, Diffusion)
    places = _places(model.encoder.names, old.encoder.names, renamed, folder)
    for option in ("prediction", "detail", "schedule", "network"):
        here, there = getattr(model.config, option), getattr(old.config, option)
        _require_same(f"task.{option}", here, there, folder)
    if not _same_autoencoder(model.autoencoder, old.autoencoder):
        raise InputError(
            f"{folder} learned the latents of another autoencoder: "
            f"give task.autoencoder={Path(folder) / 'autoencoder'}"
        )

    weights = old.network.state_dict()
    for name, weight in weights.items():
        if name == "maps.weight":
            weights[name] = _rearranged(weight, 0, len(old.encoder.names), places)
        elif (name == "unet.conv_in.conv.weight" and old.network.concatenates) or name.endswith(
            ("attn2.to_k.weight", "attn2.to_v.weight")
        ):
            weights[name] = _rearranged(weight, 1, len(old.encoder.names), places)
    maps = old.network.maps
    dropped = [i for i in range(len(old.encoder.names)) if i not in places]
    if maps is not None and dropped:
        # A covariate without a row adds nothing to the maps, as a missing one; at 0 it does.
        conditions = torch.full((1, len(old.encoder.names)), MISSING)
        conditions[:, dropped] = 0
        weights["maps.bias"] = maps(conditions)[0] / maps.GAIN
    model.network.load_state_dict(weights)
    model.latent_mean.copy_(old.latent_mean)
    model.config.latent_scale = old.config.latent_scale


def _rearranged(weight: Tensor, axis: int, count: int, places: list[int | None]) -> Tensor:
    """Return `weight` with its last `count` slices along `axis` taken from `places`, None: zeros.

    Covariates come last wherever they enter: after the latent's channels, or with nothing before.
    """
    others, old = weight.split([weight.shape[axis] - count, count], dim=axis)
    nothing = torch.zeros_like(old.select(axis, 0))
    slices = [nothing if place is None else old.select(axis, place) for place in places]
    return torch.cat([others, torch.stack(slices, dim=axis)], dim=axis)


def _places(
    names: list[str], old_names: list[str], renamed: dict[str, str] | None, folder: str | Path
) -> list[int | None]:
    """Return where each of `names` stands in `old_names`; None for a new one."""
    if not isinstance(renamed, dict | None):
        raise InputError(
            f"task.renamed: {renamed!r}; give new name: old name, "
            "e.g. 'task.renamed={years: age}'"
        )
    renamed = renamed or {}
    for name, old_name in renamed.items():
        if name not in names:
            raise InputError(
                f"task.renamed: task.covariates has no '{name}', only {', '.join(names)}"
            )
        if old_name not in old_names:
            raise InputError(
                f"task.renamed: {folder} has no covariate '{old_name}', only {', '.join(old_names)}"
            )
    takers: dict[str, str] = {}
    for name in names:
        old_name = renamed.get(name, name)
        if old_name in takers:
            raise InputError(
                f"task.covariates: {takers[old_name]} and {name} would both continue '{old_name}' "
                f"of {folder}; leave one of them out"
            )
        takers[old_name] = name
    return [old_names.index(name) if name in old_names else None for name in takers]


def _require_same(option: str, here: Any, there: Any, folder: str | Path) -> None:
    """Refuse the first option that differs, descending into dataclasses."""
    if dataclasses.is_dataclass(here):
        for field in dataclasses.fields(here):
            inner = f"{option}.{field.name}"
            _require_same(inner, getattr(here, field.name), getattr(there, field.name), folder)
    elif here != there:
        here, there = (v.value if isinstance(v, Enum) else v for v in (here, there))
        mend = f"{option}={there}".replace(" ", "")
        raise InputError(f"{option} is {here}, but {folder} has {there}: give {mend}")


def _same_autoencoder(one: Autoencoder, other: Autoencoder) -> bool:
    weights, others = one.state_dict(), other.state_dict()
    return (
        one.grid.same_as(other.grid)
        and weights.keys() == others.keys()
        and all(torch.equal(weight, others[name]) for name, weight in weights.items())
    )
