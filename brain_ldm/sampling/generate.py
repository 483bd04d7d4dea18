"""Draw a synthetic cohort from a diffusion model."""

import torch
from torch import Tensor

import brain_ldm
from brain_ldm.cohorts.covariates import COVARIATES
from brain_ldm.cohorts.writer import CohortWriter
from brain_ldm.device import open_device
from brain_ldm.diffusion.config import DDIMConfig
from brain_ldm.diffusion.grid import timesteps
from brain_ldm.errors import InputError
from brain_ldm.models import Diffusion, open_model
from brain_ldm.precision import resolve
from brain_ldm.progress import track
from brain_ldm.sampling.config import SampleConfig
from brain_ldm.sampling.requests import requested_rows

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
    model = open_model(config.model, Diffusion)
    device = open_device(config.device)
    try:
        timesteps(config.sampler.grid, config.sampler.steps, len(model.alphas_cumprod))
    except ValueError as error:
        raise InputError(f"sampler: {error}") from None
    if isinstance(config.sampler, DDIMConfig) and not 0 <= config.sampler.eta <= 1:
        raise InputError(f"sampler.eta is {config.sampler.eta}; give 0 to 1")
    rows = requested_rows(config, model.encoder)
    extra = {name: text for name, text in EXTRA_COLUMNS.items() if name in rows}
    others = [name for name in model.encoder.names if name not in COVARIATES]
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
            conditions = torch.from_numpy(model.encoder.encode(batch)).to(device)
            noise, draw = row_noise(
                [int(seed) for seed in batch["seed"]], model.autoencoder.latent_shape, device
            )
            latents = model.sample(conditions, noise, config.sampler, config.guidance, draw)
            images = model.decode(latents).float().cpu().numpy()
            for row, image in zip(batch.to_dict("records"), images, strict=True):
                writer.add(row, image[0])
    writer.finish()
    print(f"{len(rows)} brains in {config.out}")


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


def _generated_by(config: SampleConfig, model: Diffusion) -> dict:
    """Return what the cohort depends on, as BIDS' GeneratedBy."""
    sampler = {
        name: value if isinstance(value, int | float) else value.name
        for name, value in vars(config.sampler).items()
    }
    asked = {
        "Table": config.table,
        "Split": config.split,
        "N": config.n,
        "Sweep": config.sweep,
        "Ranges": config.ranges,
        "Covariates": config.covariates,
    }
    return {
        "Name": "brain_ldm sample",
        "Version": brain_ldm.__version__,
        "ModelHash": model.hash,
        "AutoencoderHash": model.autoencoder.hash,
        "Seed": config.seed,
        "Sampler": {"Name": type(config.sampler).__name__.removesuffix("Config"), **sampler},
        "Guidance": config.guidance,
        **{name: value for name, value in asked.items() if value is not None},
    }
