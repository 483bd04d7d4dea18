# SPDX-License-Identifier: Apache-2.0
"""Draw a brain: DDIM in an autoencoder's latent space, with torch and MONAI alone.

`brain_ldm.convert` copies this file into every bundle that it writes, as scripts/sampler.py. A
bundle brings it since MONAI's inferers let a condition enter by channels or by cross-attention and
this model has both, and since MONAI's DDIMScheduler steps beside its own timesteps where they are
few.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

MISSING = -1.0  # what stands for a covariate that is not known


def encode(
    covariates: Mapping[str, float | str | None],
    ranges: Mapping[str, Sequence[float]],
    codes: Mapping[str, Mapping[str, float]],
) -> Tensor:
    """Scale covariates to 0..1 over the ranges of training.

    Args:
        covariates: in their own units or codes; None, or not there, is a missing one.
        ranges: of each, the values that become 0 and 1, in the model's order.
        codes: of those that have codes, the number of each.

    Returns:
        (1, N).

    Raises:
        ValueError: an unknown covariate or code, or a value so low that it would read as missing.
    """
    unknown = covariates.keys() - ranges.keys()
    if unknown:
        raise ValueError(f"no covariate '{min(unknown)}'; the model knows {', '.join(ranges)}")
    encoded = []
    for name, (low, high) in ranges.items():
        value = covariates.get(name)
        if value is None:
            encoded.append(MISSING)
            continue
        if name in codes:
            if value not in codes[name]:
                raise ValueError(f"{name} is {value}; give {' or '.join(codes[name])}, or None")
            value = codes[name][value]
        scaled = (float(value) - low) / (high - low)
        if scaled <= MISSING:
            raise ValueError(f"{name} is {value}, a whole range below {low} to {high}")
        encoded.append(scaled)
    return torch.tensor([encoded], dtype=torch.float32)


def draw_noise(seed: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise (1, *shape), drawn on the CPU from the seed alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))[None]


class Sampler(nn.Module):
    """From noise (1, C, x, y, z) to a T1w brain (1, 1, X, Y, Z) in 0..1.

    Args:
        autoencoder: MONAI's AutoencoderKL.
        diffusion: MONAI's DiffusionModelUNet.
        conditions: (1, N), covariates as `encode` gives them.
        steps: 2 to T denoising steps; timesteps are the first `steps` multiples of T // steps.
        schedule: `timesteps` (T), `kind` (linear or scaled_linear), `beta_start` and `beta_end`.
        prediction: what the U-Net gives: epsilon, v or x0.
        detail: for x0, the variance of detail that goes past the U-Net. Of x = a x0 + s e, e the
            noise, it gives (s x0 - detail a e) / r, r^2 = detail a^2 + s^2: x0 itself for detail 0.
        latent_shape: (C, x, y, z).
        latent_scale: what latents, their mean subtracted, were multiplied by in training.
        conditioning: how covariates enter: concatenation, cross_attention or both.
        patch: edge of the blocks of latent voxels that enter the U-Net as one.
        condition_maps: further channels, linear in the covariates at every voxel.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        diffusion: nn.Module,
        conditions: Tensor,
        steps: int,
        schedule: Mapping[str, int | float | str],
        prediction: str,
        detail: float,
        latent_shape: Sequence[int],
        latent_scale: float,
        conditioning: str,
        patch: int,
        condition_maps: int,
    ) -> None:
        super().__init__()
        self.autoencoder, self.diffusion = autoencoder, diffusion
        self.steps, self.prediction, self.detail = steps, prediction, detail
        self.latent_scale, self.patch = latent_scale, patch
        self.alpha_bars = alpha_bars(**schedule)
        if not 2 <= steps <= len(self.alpha_bars):
            raise ValueError(f"steps is {steps}; give 2 to {len(self.alpha_bars)}")
        count = conditions.shape[1]
        self.concatenates = conditioning != "cross_attention"
        self.attends = conditioning != "concatenation" and count > 0
        self.register_buffer("conditions", conditions, persistent=False)
        self.register_buffer("latent_mean", torch.zeros(*latent_shape))
        self.maps = (
            ConditionMaps(count, condition_maps, latent_shape[1:]) if condition_maps else None
        )

    def load(self, folder: str) -> "Sampler":
        """Read the weights of a bundle's models/ folder."""

        def read(name: str) -> dict[str, Tensor]:
            return torch.load(Path(folder) / name, map_location="cpu", weights_only=True)

        self.autoencoder.load_state_dict(read("autoencoder.pt"))
        self.diffusion.load_state_dict(read("model.pt"))
        self.load_state_dict(read("latent.pt"), strict=False)  # the rest has been read
        return self.eval()

    @torch.no_grad()
    def forward(self, noise: Tensor) -> Tensor:
        """Draw the brain that this noise leads to: Song et al. 2021, equation 12, without noise."""
        gap = len(self.alpha_bars) // self.steps
        x = noise
        for t in range((self.steps - 1) * gap, -1, -gap):
            now = self.alpha_bars[t]
            then = self.alpha_bars[t - gap] if t else 1.0
            epsilon = self.epsilon(x, t)
            x0 = (x - (1 - now) ** 0.5 * epsilon) / now**0.5
            x = then**0.5 * x0 + (1 - then) ** 0.5 * epsilon
        return self.autoencoder.decode(x / self.latent_scale + self.latent_mean).clamp(0, 1)

    def epsilon(self, x: Tensor, t: int) -> Tensor:
        """The noise in x at timestep t, as the U-Net sees it."""
        conditions = self.conditions.expand(len(x), -1)
        entering = x if self.maps is None else torch.cat([x, self.maps(conditions)], dim=1)
        p = self.patch
        entering = rearrange(entering, "b c (x p) (y q) (z r) -> b (c p q r) x y z", p=p, q=p, r=p)
        if self.concatenates:
            broadcast = conditions[:, :, None, None, None].expand(-1, -1, *entering.shape[2:])
            entering = torch.cat([entering, broadcast], dim=1)
        timesteps = torch.full((len(x),), t, device=x.device)
        token = conditions[:, None] if self.attends else None
        output = self.diffusion(entering, timesteps=timesteps, context=token)
        output = rearrange(output, "b (c p q r) x y z -> b c (x p) (y q) (z r)", p=p, q=p, r=p)
        signal, noise = self.alpha_bars[t] ** 0.5, (1 - self.alpha_bars[t]) ** 0.5
        if self.prediction == "v":
            return noise * x + signal * output
        if self.prediction == "x0":
            square = self.detail * signal**2 + noise**2
            return noise / square * x - signal / square**0.5 * output
        return output


class ConditionMaps(nn.Module):
    """Maps (B, M, x, y, z) that are linear in the covariates at every voxel."""

    GAIN = 5.0

    def __init__(self, covariates: int, maps: int, size: Sequence[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(covariates, maps, *size))
        self.bias = nn.Parameter(torch.zeros(maps, *size))

    def forward(self, conditions: Tensor) -> Tensor:
        """Maps for conditions (B, N), of which a missing one adds nothing."""
        spread = (4 * conditions - 2).masked_fill(conditions == MISSING, 0)
        return self.GAIN * (torch.einsum("bn,nmxyz->bmxyz", spread, self.weight) + self.bias)


def alpha_bars(timesteps: int, kind: str, beta_start: float, beta_end: float) -> list[float]:
    """How much of the latent's variance is left at each timestep, T numbers."""
    root = 0.5 if kind == "scaled_linear" else 1.0
    betas = torch.linspace(beta_start**root, beta_end**root, timesteps, dtype=torch.float64)
    return torch.cumprod(1 - betas ** (1 / root), dim=0).tolist()
