"""Draw a synthetic cohort from a diffusion model or from the generator of a GAN."""

import pandas as pd
import torch
from torch import Tensor

import brain_ldm
from brain_ldm.cohorts.covariates import COVARIATES
from brain_ldm.cohorts.writer import CohortWriter
from brain_ldm.device import open_device
from brain_ldm.diffusion.config import DDIMConfig, SamplerConfig
from brain_ldm.diffusion.grid import timesteps
from brain_ldm.errors import InputError
from brain_ldm.models import Diffusion, Generator, open_model
from brain_ldm.precision import resolve
from brain_ldm.progress import track
from brain_ldm.sampling.config import SampleConfig
from brain_ldm.sampling.requests import requested_rows, unconditional_rows

EXTRA_COLUMNS = {
    "seed": {"Description": "Seed of the brain's starting noise"},
    "source_id": {"Description": "Row of the given table whose covariates were asked for"},
}


def sample_cohort(config: SampleConfig) -> None:
    """Write the cohort that `config` asks for to `config.out`; go on with one that was stopped.

    participants.tsv holds the covariates that were asked for, not measured ones.

    Raises:
        InputError: before any long work, naming what is wrong.
    """
    model = open_model(config.model, Diffusion, Generator)
    device = open_device(config.device)
    names: list[str] = []
    if isinstance(model, Diffusion):
        check_sampler(config.sampler, model)
        rows = requested_rows(config, model.encoder)
        names = model.encoder.names
    else:
        rows = unconditional_rows(config)
    extra = {name: text for name, text in EXTRA_COLUMNS.items() if name in rows}
    others = [name for name in names if name not in COVARIATES]
    extra |= {name: {"Description": "Covariate that was asked for"} for name in others}
    writer = CohortWriter(
        config.out,
        "Synthetic brains",
        _generated_by(config, model),
        model.grid,
        synthetic=True,
        extra_columns=extra,
    )
    if writer.finished:
        print(f"{config.out}: done already")
        return
    done = writer.done()
    left = rows[~rows["participant_id"].isin(done)].reset_index(drop=True)
    model.to(device)
    starts = range(0, len(left), config.batch_size)
    with torch.inference_mode(), _autocast(config, device):
        for start in track(starts, "sampling"):
            batch = left.iloc[start : start + config.batch_size].reset_index(drop=True)
            images = draw_images(model, batch, config, device).float().cpu().numpy()
            for row, image in zip(batch.to_dict("records"), images, strict=True):
                writer.add(row, image[0])
    writer.finish()
    print(f"{len(rows)} brains in {config.out}")


def check_sampler(sampler: SamplerConfig, model: Diffusion) -> None:
    """Refuse steps that the model's schedule does not have."""
    try:
        timesteps(sampler.grid, sampler.steps, len(model.alphas_cumprod))
    except ValueError as error:
        raise InputError(f"sampler: {error}") from None
    if isinstance(sampler, DDIMConfig) and not 0 <= sampler.eta <= 1:
        raise InputError(f"sampler.eta is {sampler.eta}; give 0 to 1")


def draw_images(
    model: Diffusion | Generator, rows: pd.DataFrame, config: SampleConfig, device: torch.device
) -> Tensor:
    """Return an image for each row, (B, 1, X, Y, Z) in 0..1, from noise of the row's own seed."""
    seeds = [int(seed) for seed in rows["seed"]]
    if isinstance(model, Generator):
        return model.generate(row_noise(seeds, (model.latent_size,), device)[0])
    conditions = torch.from_numpy(model.encoder.encode(rows)).to(device)
    noise, draw = row_noise(seeds, model.autoencoder.latent_shape, device)
    return model.decode(model.sample(conditions, noise, config.sampler, config.guidance, draw))


def row_noise(seeds: list[int], shape: tuple[int, ...], device: torch.device):
    """Return starting noise (B, *shape) and a source of further noise, a generator a row.

    Noise is drawn on the CPU from the row's own seed, so it is the same on any device, for any
    batch and any order of the rows.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(like: Tensor) -> Tensor:
        rows = [torch.randn(like.shape[1:], generator=generator) for generator in generators]
        return torch.stack(rows).to(like)

    return draw(torch.empty(len(seeds), *shape, device=device)), draw


def _autocast(config: SampleConfig, device: torch.device) -> torch.autocast:
    mixed = resolve(config.precision, device.type) == "bf16-mixed"
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed)


def _generated_by(config: SampleConfig, model: Diffusion | Generator) -> dict:
    """Return what the cohort depends on, as BIDS' GeneratedBy."""
    made_by = {
        "Name": "brain_ldm sample",
        "Version": brain_ldm.__version__,
        "ModelHash": model.hash,
        "TrainedOn": {
            name: model.config.trained_on.get(name) for name in ("cohort_hash", "training_rows")
        },
        "Seed": config.seed,
    }
    if isinstance(model, Generator):
        return {**made_by, "N": config.n}
    sampler = {
        name: value if isinstance(value, int | float) else value.name
        for name, value in vars(config.sampler).items()
    }
    asked = {
        "Table": config.table,
        "Split": config.split,
        "N": config.n,
        "Sweep": config.sweep,
        "Noises": config.noises if config.sweep else None,
        "Ranges": config.ranges,
        "Covariates": config.covariates,
    }
    return {
        **made_by,
        "AutoencoderHash": model.autoencoder.hash,
        "Sampler": {"Name": type(config.sampler).__name__.removesuffix("Config"), **sampler},
        "Guidance": config.guidance,
        **{name: value for name, value in asked.items() if value is not None},
    }
