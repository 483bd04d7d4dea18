"""The latent cache: the posterior of every image, encoded once."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.errors import InputError
from brain_ldm.models import Autoencoder
from brain_ldm.progress import track
from brain_ldm.training.packed import packed

BATCH = 4


def cached_latents(
    autoencoder: Autoencoder, cohort: Cohort, rows: pd.DataFrame, folder: Path
) -> dict[str, np.ndarray]:
    """Return mu and sigma (N, C, x, y, z) in float16 of the images of `rows`.

    Both are kept, so that training draws fresh posterior noise at every step; the folder is keyed
    by the autoencoder's weights and the cohort's content, and another one's is replaced.

    Raises:
        InputError: the cohort is not on the autoencoder's grid.
    """
    if not autoencoder.grid.same_as(cohort.grid):
        raise InputError(
            f"the autoencoder works on {autoencoder.grid}, but {cohort.root} has {cohort.grid}"
        )
    ids = list(rows["participant_id"])
    shape = (len(ids), *autoencoder.latent_shape)
    key = {
        "autoencoder": autoencoder.hash,
        "cohort": cohort.content_hash(),
        "participants": ids,
    }

    def batches() -> Iterable[dict[str, np.ndarray]]:
        starts = range(0, len(ids), BATCH)
        for start in track(starts, "encoding latents"):
            images = np.stack([cohort.read(i) for i in ids[start : start + BATCH]])
            with torch.inference_mode():
                mu, sigma = autoencoder.encode(torch.from_numpy(images).unsqueeze(1))
            yield {"mu": mu.numpy(), "sigma": sigma.numpy()}

    return packed(folder, key, {"mu": (shape, "float16"), "sigma": (shape, "float16")}, batches)


def latent_scale(mu: np.ndarray, sigma: np.ndarray, mean: np.ndarray) -> float:
    """Return 1 / the standard deviation of latents drawn from these posteriors less `mean`.

    Total variance: that of the means plus the mean of the variances, over all rows and channels.
    """
    rows = [(d.mean(), np.square(d).mean()) for d in (m.astype(np.float64) - mean for m in mu)]
    noise = np.mean([np.square(s, dtype=np.float64).mean() for s in sigma])
    first, second = np.mean(rows, axis=0)
    return float(1 / np.sqrt(second - first**2 + noise))
