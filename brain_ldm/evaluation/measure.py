"""Pass cohorts through the measuring networks, in batches: tables out, no volume kept."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.evaluation.similarity import ms_ssim, psnr, ssim
from brain_ldm.models import Autoencoder, BrainAge, Segmenter
from brain_ldm.progress import track


@dataclass(frozen=True)
class Instruments:
    """The networks that measure, all on `device`."""

    segmenter: Segmenter
    brain_age: BrainAge
    autoencoder: Autoencoder
    device: str = "cpu"

    def named(self) -> dict[str, Segmenter | BrainAge | Autoencoder]:
        """The networks by their names in the config."""
        return {
            "segmenter": self.segmenter,
            "brain_age": self.brain_age,
            "autoencoder": self.autoencoder,
        }


@torch.inference_mode()
def measure(
    cohort: Cohort, rows: pd.DataFrame, instruments: Instruments, batch_size: int, title: str
) -> pd.DataFrame:
    """Measure the brains of `rows`, some rows of `cohort.table`.

    Returns `rows`, numbered from 0, with three further columns: measured_ventricular_volume and
    measured_brain_volume in mm³ and measured_age in years.
    """
    parts = []
    for _, images in _batches(cohort, rows, instruments.device, batch_size, f"measuring {title}"):
        volumes = instruments.segmenter.volumes(images)
        part = {**volumes, "age": instruments.brain_age.predict(images)}
        parts.append({f"measured_{k}": v.double().cpu().numpy() for k, v in part.items()})
    return rows.reset_index(drop=True).assign(**_joined(parts))


@torch.inference_mode()
def reconstruct(
    cohort: Cohort,
    rows: pd.DataFrame,
    instruments: Instruments,
    batch_size: int,
    into: np.ndarray,
) -> pd.DataFrame:
    """Reconstruct the brains of `rows` into `into` (n, X, Y, Z), an array that may lie on disk.

    Returns PSNR in dB and SSIM of each: columns psnr and ssim, numbered from 0.
    """
    parts = []
    for start, images in _batches(cohort, rows, instruments.device, batch_size, "reconstructing"):
        again = instruments.autoencoder.reconstruct(images)
        into[start : start + len(images)] = again[:, 0].cpu().numpy()
        part = {"psnr": psnr(again, images), "ssim": ssim(again, images)}
        parts.append({k: v.double().cpu().numpy() for k, v in part.items()})
    return pd.DataFrame(_joined(parts))


@torch.inference_mode()
def pair_similarity(
    read: Callable[[int], np.ndarray], pairs: np.ndarray, device: str, batch_size: int, title: str
) -> np.ndarray:
    """MS-SSIM of each pair: (pairs,).

    read: gives the volume (X, Y, Z) of a row number. pairs: (pairs, 2) row numbers.
    """
    values = []
    starts = range(0, len(pairs), batch_size)
    for start in track(starts, f"MS-SSIM {title}"):
        first, second = (
            _tensor([read(int(row)) for row in side], device)
            for side in pairs[start : start + batch_size].T
        )
        values.append(ms_ssim(first, second).cpu().numpy())
    return np.concatenate(values) if values else np.empty(0)


def _batches(
    cohort: Cohort, rows: pd.DataFrame, device: str, batch_size: int, title: str
) -> Iterator[tuple[int, torch.Tensor]]:
    participants = rows["participant_id"].tolist()
    for start in track(range(0, len(participants), batch_size), title):
        batch = participants[start : start + batch_size]
        yield start, _tensor([cohort.read(participant) for participant in batch], device)


def _tensor(volumes: list[np.ndarray], device: str) -> torch.Tensor:
    return torch.from_numpy(np.stack(volumes)[:, None].astype(np.float32)).to(device)


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
