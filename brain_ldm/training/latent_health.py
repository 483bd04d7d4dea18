"""Is a trained autoencoder's latent fit for diffusion? Numbers, a table and a plain verdict.

docs/latents.md explains the numbers. All thresholds are ours.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from monai.metrics.regression import compute_ssim_and_cs
from torch import Tensor

from brain_ldm.errors import InputError
from brain_ldm.models import Autoencoder

COLLAPSED = 0.05  # nats per dimension: a channel below it tells next to nothing of the image
NOISY = 0.5  # share of a channel's variance that is posterior noise
UNEVEN = 5.0  # times: largest over smallest standard deviation of the channels
BLURRED = 25.0  # dB, mean PSNR of reconstructions
# Latents are cached in float16: at most 65504, full precision down to 6.1e-5.
LARGEST = 6e4
SMALLEST = torch.finfo(torch.float16).smallest_normal
LOST = 0.01  # share of posterior standard deviations below `SMALLEST`
# As in the report, so that both give the same SSIM.
WINDOW, WINDOW_SIGMA = 7, 1.5


@dataclass(frozen=True)
class LatentHealth:
    """What latents and reconstructions of some images look like.

    Attributes:
        images: how many.
        mean: of the latents, a channel each.
        sd: of latents drawn from the posteriors, over all voxels and images, a channel each.
        kl_per_dimension: KL to N(0, 1) in nats per latent dimension, a channel each.
        sigma_share: mean sigma² / (var(mu) + mean sigma²), a channel each.
        kl_overall: mean of `kl_per_dimension`.
        sigma_share_overall: as `sigma_share`, the variances summed over channels.
        largest: largest |mu|.
        lost: share of sigmas too small for float16's full precision.
        non_finite: latents and reconstructed voxels that are NaN or infinite.
        psnr, psnr_sd: dB, peak 1; mean and standard deviation over images, each decoded from its
            posterior mean and clipped to 0..1. Of one image there is no sd: NaN.
        ssim, ssim_sd: alike.
    """

    images: int
    mean: list[float]
    sd: list[float]
    kl_per_dimension: list[float]
    sigma_share: list[float]
    kl_overall: float
    sigma_share_overall: float
    largest: float
    lost: float
    non_finite: int
    psnr: float
    psnr_sd: float
    ssim: float
    ssim_sd: float

    def to_dict(self) -> dict[str, float]:
        """Return flat names for a log, those of channel c ending in _c: latent/mean_0, ..."""
        by_channel = {
            f"latent/{name}_{channel}": value
            for name in ("mean", "sd", "kl_per_dimension", "sigma_share")
            for channel, value in enumerate(getattr(self, name))
        }
        single = ("largest", "lost", "non_finite", "psnr", "psnr_sd", "ssim", "ssim_sd")
        return {
            **by_channel,
            "latent/kl_per_dimension": self.kl_overall,
            "latent/sigma_share": self.sigma_share_overall,
            **{f"latent/{name}": getattr(self, name) for name in single},
        }


@torch.inference_mode()
def latent_health(
    model: Autoencoder, images: Iterable[Tensor], device: torch.device | str
) -> LatentHealth:
    """Encode and decode `images`, a batch at a time; only sums are kept.

    Args:
        model: on `device`.
        images: batches (B, 1, X, Y, Z) in 0..1.
        device: where to compute.

    Raises:
        InputError: there are no images.
    """
    count = largest = lost = non_finite = 0
    sums: Tensor | float = 0.0  # of mu, mu², sigma² and KL: (4, C)
    psnr, ssim = [], []
    for batch in images:
        batch = batch.to(device).float()
        mu, sigma = model.encode(batch)
        again = model.decode(mu).float()
        non_finite += sum(int((~x.isfinite()).sum()) for x in (mu, sigma, again))
        again = again.clamp(0, 1)
        mu, sigma = mu.double(), sigma.double()
        divergence = 0.5 * (mu.square() + sigma.square() - 2 * sigma.log() - 1)
        terms = torch.stack([mu, mu.square(), sigma.square(), divergence])
        sums = sums + terms.sum(dim=(1, 3, 4, 5)).cpu()
        count += mu[:, 0].numel()
        largest = max(largest, float(mu.abs().max()))
        lost += int((sigma < SMALLEST).sum())
        psnr += (-10 * (again - batch).square().flatten(1).mean(dim=1).log10()).tolist()
        ssim += _ssim(again, batch).tolist()
    if not psnr:
        raise InputError("latent health: no images; give the cohort rows to validate on")
    mean, square, noise, kl = sums / count
    total = (square - mean.square()).clamp(min=0) + noise
    return LatentHealth(
        images=len(psnr),
        mean=mean.tolist(),
        sd=total.sqrt().tolist(),
        kl_per_dimension=kl.tolist(),
        sigma_share=(noise / total).tolist(),
        kl_overall=float(kl.mean()),
        sigma_share_overall=float(noise.sum() / total.sum()),
        largest=largest,
        lost=lost / (count * len(mean)),
        non_finite=non_finite,
        **_mean_and_sd("psnr", psnr),
        **_mean_and_sd("ssim", ssim),
    )


def verdict(health: LatentHealth) -> list[str]:
    """Return in plain words whether the latent is fit for diffusion, and every fault found."""
    if health.non_finite:
        return [
            f"Not fit for diffusion: {health.non_finite} NaN or infinite among latents and "
            "reconstructed voxels. Train again with a lower task.lr, or with "
            "trainer.precision=32-true."
        ]
    faults = []
    collapsed = [c for c, kl in enumerate(health.kl_per_dimension) if kl < COLLAPSED]
    if collapsed:
        faults.append(
            f"{_channels(collapsed)} collapsed: KL below {COLLAPSED} nats per dimension, next to "
            "nothing of the image is in there. Lower task.loss.kl, or use fewer latent channels."
        )
    noisy = [
        c for c, share in enumerate(health.sigma_share) if share > NOISY and c not in collapsed
    ]
    if noisy:
        faults.append(
            f"{_channels(noisy)} mostly noise: over {NOISY:.0%} of the variance is the posterior's "
            "own. Lower task.loss.kl."
        )
    if max(health.sd) > UNEVEN * min(health.sd):
        faults.append(
            f"Channels differ in spread: standard deviations from {min(health.sd):.3g} to "
            f"{max(health.sd):.3g}, more than {UNEVEN:g} times; one latent scale cannot fit them "
            "all. Raise task.loss.kl, or train longer."
        )
    if health.largest > LARGEST:
        faults.append(
            f"The largest latent, {health.largest:.3g}, is beyond float16, in which latents are "
            "cached. Raise task.loss.kl."
        )
    if health.lost > LOST:
        faults.append(
            f"{health.lost:.0%} of the posteriors are narrower than {SMALLEST:.1g}, which float16, "
            "in which latents are cached, rounds. Raise task.loss.kl."
        )
    if health.psnr < BLURRED:
        faults.append(
            f"Reconstruction is poor: PSNR {health.psnr:.1f} dB, below {BLURRED:g}; the diffusion "
            "model can be no sharper than this. Train longer, or lower task.loss.kl."
        )
    if not faults:
        return ["Fit for diffusion."]
    return ["Not yet fit for diffusion:", *faults]


def table(health: LatentHealth) -> str:
    """Return a Markdown table, a row a channel, that also reads well in a terminal."""
    rows = [
        [str(channel), *(f"{value:.3g}" for value in values)]
        for channel, values in enumerate(
            zip(health.mean, health.sd, health.kl_per_dimension, health.sigma_share, strict=True)
        )
    ]
    overall = (health.kl_overall, health.sigma_share_overall)
    rows.append(["all", "", "", *(f"{value:.3g}" for value in overall)])
    head = ["channel", "mean", "sd", "KL per dimension (nats)", "noise share"]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        [title.ljust(width) for title, width in zip(head, widths, strict=True)],
        ["-" * (width - 1) + ":" for width in widths],
        *([cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows),
    ]
    spread = [
        f" ± {sd:.2g}" if math.isfinite(sd) else "" for sd in (health.psnr_sd, health.ssim_sd)
    ]
    return "\n".join(
        [
            *(f"| {' | '.join(line)} |" for line in lines),
            "",
            f"Reconstruction of {health.images} image{'s' * (health.images > 1)}: PSNR "
            f"{health.psnr:.1f}{spread[0]} dB, SSIM {health.ssim:.3f}{spread[1]}.",
        ]
    )


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    window = {"kernel_size": (WINDOW,) * 3, "kernel_sigma": (WINDOW_SIGMA,) * 3}
    return compute_ssim_and_cs(a, b, spatial_dims=3, **window)[0].flatten(1).mean(dim=1)


def _mean_and_sd(name: str, values: list[float]) -> dict[str, float]:
    found = torch.tensor(values, dtype=torch.float64)
    sd = float(found.std()) if len(values) > 1 else math.nan
    return {name: float(found.mean()), f"{name}_sd": sd}


def _channels(numbers: list[int]) -> str:
    names = ", ".join(map(str, numbers))
    return f"Channel {names} is" if len(numbers) == 1 else f"Channels {names} are"
