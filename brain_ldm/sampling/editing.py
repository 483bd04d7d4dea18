"""A real brain under other covariates, by way of its noise, found by running DDIM backwards.

Noise that a brain's own covariates turn back into that brain holds what they do not tell; under
other covariates the same noise becomes the brain aged, or with wider ventricles.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from brain_ldm.cohorts.cohort import Cohort, read_grids, read_tables
from brain_ldm.cohorts.covariates import CovariateEncoder
from brain_ldm.cohorts.findings import refuse
from brain_ldm.diffusion.config import DDIMConfig
from brain_ldm.errors import InputError
from brain_ldm.models import Diffusion
from brain_ldm.sampling.config import SampleConfig


def open_source(config: SampleConfig, model: Diffusion, rows: pd.DataFrame) -> Cohort:
    """Return the brains of the cohort `config.from_` that `rows` are made from.

    Args:
        rows: as `requests.requested_rows` returns them.

    Raises:
        InputError: the sampler cannot be run backwards, or an image is missing or not on the
            model's grid.
    """
    if not isinstance(config.sampler, DDIMConfig) or config.sampler.eta != 0:
        raise InputError(
            "from: only DDIM without noise on the way can be run backwards; "
            "give sampler=ddim and sampler.eta=0"
        )
    root = Path(config.from_)
    description, table, findings = read_tables(root)
    refuse(findings)
    table = table[table["participant_id"].isin(rows["source_id"])].reset_index(drop=True)
    for path, grid, found in read_grids(root, table["participant_id"].tolist()):
        refuse(found)
        if not grid.same_as(model.grid):
            raise InputError(
                f"{path}: {grid}, but {config.model} works on {model.grid}; "
                "give a cohort on the model's grid"
            )
    source = Cohort(root, table, model.grid, description)
    _own_conditions(source, rows, model.encoder)
    return source


def changed_latents(
    model: Diffusion, source: Cohort, rows: pd.DataFrame, config: SampleConfig
) -> Tensor:
    """Return latents of the brains that `rows` are made from, under the covariates of `rows`.

    Args:
        model: on the device that shall compute; its autoencoder encodes each image to its
            posterior mean.
        source: as `open_source` returns it.
        rows: B of those that it was opened for; a covariate that is missing there is left out of
            the brain's own ones, too.
        config: its sampler, guidance and rescale.

    Returns:
        (B, C, x, y, z), unscaled, on the model's device.
    """
    device = model.latent_mean.device
    images = np.stack([source.read(participant_id) for participant_id in rows["source_id"]])
    with torch.autocast(device.type, enabled=False):  # as latents were encoded for training
        latents, _ = model.autoencoder.encode(torch.from_numpy(images)[:, None].to(device))
    conditions = torch.from_numpy(_own_conditions(source, rows, model.encoder)).to(device)
    wanted = torch.from_numpy(model.encoder.encode(rows)).to(device)
    return model.edit(latents, conditions, wanted, config.sampler, config.guidance, config.rescale)


def provenance(config: SampleConfig, source: Cohort) -> dict:
    """Return what changed brains depend on besides the model, for BIDS' GeneratedBy."""
    changed = {"Change": dict(config.change)} if config.change else {}
    return {"From": config.from_, "SourceHash": source.content_hash(), **changed}


def _own_conditions(source: Cohort, rows: pd.DataFrame, encoder: CovariateEncoder) -> np.ndarray:
    """Return the encoded covariates (B, N) that the brains of `rows` had before their change."""
    own = source.table.set_index("participant_id").loc[rows["source_id"]].reset_index()
    for name in encoder.names:
        if name in own:
            own[name] = own[name].where(rows[name].notna().to_numpy())
    return encoder.encode(own)
