"""Batches of rows to images: noise of each row's own, the sampler, the decoder."""

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.models import Diffusion, Generator
from brain_ldm.precision import resolve
from brain_ldm.sampling.config import SampleConfig
from brain_ldm.sampling.editing import changed_latents


def draw_batches(
    model: Diffusion | Generator,
    batches: Iterable[pd.DataFrame],
    config: SampleConfig,
    device: torch.device,
    source: Cohort | None = None,
) -> Iterator[tuple[pd.DataFrame, np.ndarray]]:
    """Yield each batch's rows and images, (B, X, Y, Z) float32 in 0..1.

    A GPU computes the next batch while one is copied and taken care of.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch, draw_images(model, batch, config, device, source)[:, 0].float().numpy()
        return
    torch.cuda.set_device(device)
    torch.backends.cudnn.deterministic = True  # kernels that give the same bits each time
    before = None
    for batch in batches:
        images = draw_images(model, batch, config, device, source)[:, 0].float()
        copy, copied = images.to("cpu", non_blocking=True), torch.cuda.Event()
        copied.record()
        if before is not None:
            yield _arrived(*before)
        before = batch, copy, copied
    if before is not None:
        yield _arrived(*before)


def _arrived(
    batch: pd.DataFrame, copy: Tensor, copied: torch.cuda.Event
) -> tuple[pd.DataFrame, np.ndarray]:
    copied.synchronize()
    return batch, copy.numpy()


def draw_images(
    model: Diffusion | Generator,
    rows: pd.DataFrame,
    config: SampleConfig,
    device: torch.device,
    source: Cohort | None = None,
) -> Tensor:
    """Return an image for each row, (B, 1, X, Y, Z) in 0..1.

    From noise of the row's own seed, or from its own brain in `source`.
    """
    if source is not None:
        return model.decode(changed_latents(model, source, rows, config))
    seeds = [int(seed) for seed in rows["seed"]]
    if isinstance(model, Generator):
        return model.generate(row_noise(seeds, (model.latent_size,), device)[0])
    noise, draw = row_noise(seeds, model.autoencoder.latent_shape, device)
    conditions = torch.from_numpy(model.encoder.encode(rows)).to(device)
    latents = model.sample(conditions, noise, config.sampler, config.guidance, draw, config.rescale)
    return model.decode(latents)


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


def autocast(config: SampleConfig, device: torch.device) -> torch.autocast:
    """Return the context of the precision that `config` asks for."""
    mixed = resolve(config.precision, device.type) == "bf16-mixed"
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed)
