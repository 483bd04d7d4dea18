"""How well the diffusion model denoises, and whether more steps change the power of what it draws.

A small model's error in predicting the clean latent is there at every step of a sampler. For test
brains that the model never saw, prints that error by timestep; then, for DDIM and DDPM by number of
steps, the mean square of the latents that are drawn for these brains' covariates, beside that of
the brains' own latents (1 on average over training brains). Trailing grid, bf16 where it is native.
Needs `make demo`; takes minutes for 16 brains. Run: .venv/bin/python benchmarks/drift.py
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from brain_ldm.cohorts.cohort import open_cohort
from brain_ldm.diffusion.config import DDIMConfig, DDPMConfig, Grid, Prediction
from brain_ldm.diffusion.parameterisation import to_x0
from brain_ldm.diffusion.schedule import add_noise
from brain_ldm.models import Diffusion, open_model
from brain_ldm.precision import Precision, resolve
from brain_ldm.progress import track

TIMESTEPS = (20, 100, 200, 400, 600, 800, 980)
STEPS = {DDIMConfig: (5, 10, 50, 250), DDPMConfig: (5, 10, 50, 250, 1000)}


@torch.inference_mode()
def main() -> None:
    """Print errors by timestep, and mean squares by sampler and number of steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohort", default="cohorts/phantom")
    parser.add_argument("--model", default="models/ldm_demo")
    parser.add_argument("--brains", type=int, default=16)
    args = parser.parse_args()
    for folder in (args.cohort, args.model):
        if not Path(folder).is_dir():
            print(f"{folder} is not there: make demo")
            return

    fast = resolve(Precision.auto, "cpu") == "bf16-mixed"
    generator = torch.Generator().manual_seed(0)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    model = open_model(args.model, Diffusion)
    cohort = open_cohort(args.cohort)
    table = cohort.table[cohort.table["split"] == "test"].head(args.brains)
    images = np.stack([cohort.read(name) for name in table["participant_id"]])
    conditions = torch.from_numpy(model.encoder.encode(table))
    mu, sigma = model.autoencoder.encode(torch.from_numpy(images)[:, None])
    real = scaled(model, mu + sigma * draw(mu))

    print(f"{len(table)} test brains of {args.cohort}, {args.model}")
    print("timestep  share of noise  error of the predicted latent (mean square)")
    denoiser = model.denoiser(conditions)
    for t in TIMESTEPS:
        alpha_bar = model.alphas_cumprod[t]
        noisy = add_noise(real, draw(real), alpha_bar.expand(len(real)))
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            epsilon = denoiser(noisy, t)
        x0 = to_x0(Prediction.epsilon, epsilon, noisy, alpha_bar)
        print(f"{t:8d}  {1 - alpha_bar:14.2f}  {(x0 - real).square().mean():.3f}")

    print(f"mean square of latents: real {spread(real)}")
    print("sampler  steps  drawn latents, mean (sd) over brains")
    noise = draw(real)
    points = [(kind, steps) for kind, each in STEPS.items() for steps in each]
    lines = []
    for kind, steps in track(points, "sampling"):
        sampler = kind(steps=steps, grid=Grid.trailing)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            drawn = scaled(model, model.sample(conditions, noise, sampler, draw=draw))
        name = kind.__name__.removesuffix("Config")
        lines.append(f"{name:7}  {steps:5d}  {spread(drawn)}")
    print("\n".join(lines))


def scaled(model: Diffusion, latents: Tensor) -> Tensor:
    """Latents as diffusion sees them: centred, of unit variance over the training rows."""
    return (latents - model.latent_mean) * model.config.latent_scale


def spread(latents: Tensor) -> str:
    """Mean square of each brain's latents: mean and standard deviation over brains."""
    squares = latents.square().flatten(1).mean(dim=1)
    return f"{squares.mean():.3f} ({squares.std():.3f})"


if __name__ == "__main__":
    main()
