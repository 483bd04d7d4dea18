"""Pass cohorts through the measuring networks: what stays of a brain is a row of numbers."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
import torch

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.evaluation.gradient_similarity import gradient_ssim
from brain_ldm.evaluation.instruments import Instruments, identity
from brain_ldm.evaluation.similarity import ms_ssim, psnr, ssim
from brain_ldm.evaluation.store import stored

KEPT = 2**30  # bytes of volumes that stay in memory between pairs


@dataclass(frozen=True)
class Measured:
    """Some rows of a cohort with what was measured on their images.

    Attributes:
        cohort: theirs.
        table: the rows, numbered from 0, with columns measured_* and `voxels`, a digest.
        vectors: features, embedding, latent and pixels, (n, numbers) each, in 32 or 16 bits.
    """

    cohort: Cohort
    table: pd.DataFrame
    vectors: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.table)

    def rows(self, chosen: np.ndarray | pd.Series) -> "Measured":
        """Some of the rows, by number or by a mask."""
        chosen = np.asarray(chosen)
        table = self.table.iloc[np.flatnonzero(chosen) if chosen.dtype == bool else chosen]
        vectors = {name: values[chosen] for name, values in self.vectors.items()}
        return Measured(self.cohort, table.reset_index(drop=True), vectors)


@dataclass(frozen=True)
class Bench:
    """Where and how brains are measured.

    Attributes:
        instruments: the networks.
        cache: folder of what was measured before.
        batch_size: volumes that pass through the networks at once.
    """

    instruments: Instruments
    cache: Path
    batch_size: int

    def measure(self, cohort: Cohort, rows: pd.DataFrame, title: str, real: bool) -> Measured:
        """Measure the brains of `rows`, some rows of `cohort.table`.

        real: whether no decoder has made them.
        """
        networks, resolution = self.instruments, cohort.grid.resolution

        def compute(batch: Sequence[str]) -> dict[str, np.ndarray]:
            parts = []
            for ids in self.batches(batch):
                images = self.images(cohort, ids)
                digests = [hashlib.sha256(i.cpu().numpy().tobytes()).hexdigest() for i in images]
                part = networks.measure(images) | networks.likeness(images, resolution, real)
                parts.append({k: v.cpu().numpy() for k, v in part.items()} | {"voxels": digests})
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

        key = {
            "measure": networks.hashes(),
            "real": real,
            "resolution": resolution,
            "cohort": cohort.content_hash(),
        }
        participants = rows["participant_id"].tolist()
        found = stored(self.cache, key, participants, compute, f"measuring {title}")
        columns = {n: v for n, v in found.items() if n.startswith("measured_") or n == "voxels"}
        vectors = {name: v for name, v in found.items() if name not in columns}
        # What `measure` wrote into the cohort is of another instrument, or of none that is wanted.
        before = [name for name in rows if name.startswith("measured_")]
        table = rows.drop(columns=before).reset_index(drop=True)
        return Measured(cohort, table.assign(**columns), vectors)

    def copies(self, cohort: Cohort, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        """Vectors of copies of the brains of `rows`, (n, numbers) each, by space.

        A copy is the brain moved by 1 mm along each axis, with noise of .02, and reconstructed.
        """
        networks, resolution = self.instruments, cohort.grid.resolution

        def compute(batch: Sequence[str]) -> dict[str, np.ndarray]:
            parts = []
            for ids in self.batches(batch):
                images = moved(self.images(cohort, ids), 1 / resolution)
                draws = [torch.Generator().manual_seed(crc32(pid.encode())) for pid in ids]
                noise = torch.stack([torch.randn(images.shape[1:], generator=d) for d in draws])
                images = (images + 0.02 * noise.to(images)).clamp(0, 1)
                parts.append(networks.likeness(images, resolution, True))
            return {k: torch.cat([p[k] for p in parts]).cpu().numpy() for k in parts[0]}

        key = {"copies of 1 mm": networks.hashes(), "cohort": cohort.content_hash()}
        found = stored(self.cache, key, rows["participant_id"].tolist(), compute, "planting copies")
        return found

    def reconstruction(self, cohort: Cohort, rows: pd.DataFrame) -> dict[str, np.ndarray]:
        """PSNR in dB and SSIM of the autoencoder's reconstruction of each of `rows`, (n,) each."""

        def compute(batch: Sequence[str]) -> dict[str, np.ndarray]:
            parts = []
            for ids in self.batches(batch):
                images = self.images(cohort, ids)
                again = self.instruments.reconstruct(images)
                parts.append({"psnr": psnr(again, images), "ssim": ssim(again, images)})
            return {k: torch.cat([p[k] for p in parts]).double().cpu().numpy() for k in parts[0]}

        model = self.instruments.autoencoder
        key = {
            "reconstruct": identity(model),
            "precision": self.instruments.precision,
            "cohort": cohort.content_hash(),
        }
        return stored(self.cache, key, rows["participant_id"].tolist(), compute, "reconstructing")

    def similarity(
        self,
        cohort: Cohort,
        pairs: Sequence[tuple[str, str]],
        title: str,
        reconstructed: bool = False,
    ) -> dict[str, np.ndarray]:
        """MS-SSIM and 4-G-R-SSIM of pairs of participants, (pairs,) each.

        Of their reconstructions, where that is asked for.
        """
        measures: dict[str, Callable] = {"ms_ssim": ms_ssim, "gradient_ssim": gradient_ssim}

        # Brains come in many pairs: as many as memory has room for are read once.
        @lru_cache(max(2 * self.batch_size, KEPT // (4 * math.prod(cohort.grid.shape))))
        def image(participant: str) -> torch.Tensor:
            images = self.images(cohort, [participant])
            return self.instruments.reconstruct(images) if reconstructed else images

        @torch.inference_mode()
        def compute(batch: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
            parts = []
            for some in self.batches(batch):
                sides = [torch.cat([image(i) for i in ids]) for ids in zip(*some, strict=True)]
                parts.append({name: measure(*sides) for name, measure in measures.items()})
            return {k: torch.cat([p[k] for p in parts]).double().cpu().numpy() for k in measures}

        key = {"similarity": sorted(measures), "cohort": cohort.content_hash()}
        if reconstructed:
            key["autoencoder"] = identity(self.instruments.autoencoder)
            key["precision"] = self.instruments.precision
        return stored(self.cache, key, pairs, compute, f"comparing pairs, {title}")

    def batches(self, items: Sequence) -> list[Sequence]:
        """Items in parts that pass through the networks at once."""
        return [items[i : i + self.batch_size] for i in range(0, len(items), self.batch_size)]

    def images(self, cohort: Cohort, participants: Sequence[str]) -> torch.Tensor:
        """Volumes of some participants, (B, 1, X, Y, Z)."""
        volumes = np.stack([cohort.read(participant) for participant in participants])
        return torch.from_numpy(volumes[:, None]).to(self.instruments.device)


def moved(images: torch.Tensor, voxels: float) -> torch.Tensor:
    """Images (B, 1, X, Y, Z) moved by up to a voxel along each axis, interpolated linearly."""
    for axis in (2, 3, 4):
        images = torch.lerp(images, images.roll(1, axis), voxels)
    return images
