"""A diffusion model small enough to draw many brains in a test, with random weights."""

from pathlib import Path

import numpy as np
import torch

from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.models import (
    Autoencoder,
    Diffusion,
    GridConfig,
    SavedAutoencoder,
    SavedDiffusion,
    save_model,
)
from brain_ldm.networks.config import AutoencoderConfig, UNetConfig

COVARIATES = [
    {"name": "sex", "unit": "", "low": 0.0, "high": 1.0},
    {"name": "age", "unit": "year", "low": 44.0, "high": 82.0},
]


def save_tiny_diffusion(folder: Path, edge: int = 8) -> Path:
    """Save a model of brains of edge³ voxels of 4 mm that knows sex and age; return its folder."""
    torch.manual_seed(0)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -2.0 * edge
    grid = GridConfig(**VoxelGrid((edge, edge, edge), affine).to_dict())
    network = AutoencoderConfig([4, 8], res_blocks=1, norm_groups=4)
    autoencoder = Autoencoder(SavedAutoencoder(grid=grid, network=network))
    model = Diffusion(
        SavedDiffusion(
            grid=grid,
            network=UNetConfig([16], 1, [True], [16], 8),
            latent_scale=1.0,
            covariates=COVARIATES,
            trained_on={"cohort_hash": "c" * 64, "training_rows": 16},
        ),
        autoencoder,
    )
    with torch.no_grad():
        for weight in model.network.parameters():  # MONAI starts output layers at zero
            weight.add_(0.05 * torch.randn_like(weight))
        *_, bias = (p for name, p in autoencoder.named_parameters() if "decoder" in name)
        bias.fill_(0.5)  # images in the middle of 0..1
    save_model(model, folder, "# Tiny\n")
    return folder


def files_of(root: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder, by its path in there."""
    root = Path(root)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
