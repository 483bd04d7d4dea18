"""The latent cache: the posterior of every image, encoded once."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.errors import InputError
from brain_ldm.models import Autoencoder
from brain_ldm.training.augmentation import flip_and_shift
from brain_ldm.training.packed import Team, packed, shown


def check_grid(autoencoder: Autoencoder, cohort: Cohort) -> None:
    """Refuse a cohort that is not on the autoencoder's voxel grid."""
    if not autoencoder.grid.same_as(cohort.grid):
        raise InputError(
            f"the autoencoder works on {autoencoder.grid}, but {cohort.root} has {cohort.grid}"
        )


def cached_latents(
    autoencoder: Autoencoder,
    cohort: Cohort,
    rows: pd.DataFrame,
    folder: Path,
    team: Team,
    encodings: int = 1,
    shift: int = 0,
) -> dict[str, np.ndarray]:
    """Return mu and sigma (N, E, C, x, y, z) in float16 of the images of `rows`.

    Both are kept, so that training draws fresh posterior noise at every step.

    Args:
        autoencoder: encodes; its weights are part of the cache's key, as is the cohort's content.
        cohort: on the autoencoder's grid.
        rows: of the cohort's table.
        folder: of the cache.
        team: the processes that share the work, each on its own device.
        encodings: E, of each image; all but the first are flipped and shifted at random.
        shift: voxels by which these are moved at most.
    """
    ids = list(rows["participant_id"])
    key = {
        "autoencoder": autoencoder.hash,
        "cohort": cohort.content_hash(),
        "grid": cohort.grid.to_dict(),
        "participants": ids,
        "encodings": encodings,
        "shift": shift if encodings > 1 else 0,
    }
    shape = (encodings, *autoencoder.latent_shape)

    def compute(wanted: Sequence[int]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        home = next(autoencoder.parameters()).device
        autoencoder.to(team.device)
        for row in shown(wanted, "encoding latents", team):
            image = cohort.read(ids[row])
            posteriors = [
                encode(autoencoder, flip_and_shift(image, index, row, shift), team.device)
                for index in range(encodings)
            ]
            mu, sigma = (torch.stack(part).numpy() for part in zip(*posteriors, strict=True))
            yield row, {"mu": mu, "sigma": sigma}
        autoencoder.to(home)

    arrays = {"mu": (shape, "float16"), "sigma": (shape, "float16")}
    return packed(folder, key, len(ids), arrays, compute, team)


@torch.inference_mode()
def encode(
    autoencoder: Autoencoder, image: torch.Tensor, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mu and sigma (C, x, y, z) of one image (X, Y, Z), in 32 bits, on the CPU."""
    with torch.autocast(torch.device(device).type, enabled=False):
        mu, sigma = autoencoder.encode(image.float()[None, None].to(device))
    return mu[0].cpu(), sigma[0].cpu()


def latent_scale(mu: np.ndarray, sigma: np.ndarray, mean: np.ndarray) -> float:
    """Return 1 / the standard deviation of latents drawn from these posteriors less `mean`.

    Total variance: that of the means plus the mean of the variances, over all rows and channels.
    """
    rows = [(d.mean(), np.square(d).mean()) for d in (m.astype(np.float64) - mean for m in mu)]
    noise = np.mean([np.square(s, dtype=np.float64).mean() for s in sigma])
    first, second = np.mean(rows, axis=0)
    return float(1 / np.sqrt(second - first**2 + noise))
