"""The order of each sampler: its error against the number of steps, where the answer is known.

Data are Gaussian, N(mean, sd²) in each of three components, so the best denoiser is known, and so
is where an infinite number of steps ends from N(0, 1): the probability flow (DDIM, DPM-Solver++)
takes each start to one image, the reverse diffusion (DDPM, SDE-DPM-Solver++) to a Gaussian. Every
sampler is affine here, so what it ends at is a Gaussian as well, and both are computed without any
chance. The error is the distance between the two, Wasserstein's of order 2: the root of the summed
squares of what means and standard deviations differ by, over the components.

On the left the schedule is even in lambda = log(signal / noise), which the theory of order speaks
of; on the right it is the paper's, of 1000 timesteps. Run: python benchmarks/sampler_order.py
(seconds); it writes docs/images/sampler_order.png.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from brain_ldm.diffusion.config import Grid, ScheduleConfig
from brain_ldm.diffusion.dpm_solver import dpmpp_2m, dpmpp_2m_sde
from brain_ldm.diffusion.grid import timesteps
from brain_ldm.diffusion.samplers import Denoiser, Draw, ddim, ddpm
from brain_ldm.diffusion.schedule import make_schedule

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "sampler_order.png"
MEAN = torch.tensor([0.7, -1.1, 0.2], dtype=torch.float64)
SD = torch.tensor([0.05, 0.5, 1.5], dtype=torch.float64)
# lambda from 10 to -5 in so many timesteps that those a grid chooses lie evenly, too.
EVEN = torch.sigmoid(2 * torch.linspace(10, -5, 102_401, dtype=torch.float64))
PAPER = make_schedule(ScheduleConfig())
EVEN_STEPS = [9, 17, 33, 65, 129, 257, 513]
FITTED = EVEN_STEPS[-4:]  # where the next power of the step no longer shows
PAPER_STEPS = [5, 10, 20, 50, 100, 200, 500, 1000]

Sampler = Callable[[Denoiser, Tensor, Tensor, Tensor, Draw], Tensor]
# By name: the sampler, whether it draws on the way, its colour.
SAMPLERS: dict[str, tuple[Sampler, bool, str]] = {
    "ddim": (lambda e, x, schedule, grid, draw: ddim(e, x, schedule, grid), False, "#1f6feb"),
    "dpmpp_2m": (
        lambda e, x, schedule, grid, draw: dpmpp_2m(e, x, schedule, grid),
        False,
        "#2f9e68",
    ),
    "ddpm": (ddpm, True, "#f0a04b"),
    "dpmpp_2m_sde": (dpmpp_2m_sde, True, "#b0479b"),
}


def best_denoiser(schedule: Tensor) -> Denoiser:
    """Return E[epsilon | x_t] of the Gaussian data."""

    def epsilon(x: Tensor, t: int) -> Tensor:
        a, s2 = schedule[t].sqrt(), 1 - schedule[t]
        return s2.sqrt() / (a**2 * SD**2 + s2) * (x - a * MEAN)

    return epsilon


def ends_at(sampler: Sampler, draws: int, schedule: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, by component, of what a sampler makes of N(0, 1).

    The first row starts from zero and draws zeros: the mean. Each other row has a one for one of
    the normal numbers, and differs from the mean by what the sampler multiplies it with.
    """
    ones = iter(torch.eye(draws + 2, dtype=torch.float64)[1:])

    def draw(like: Tensor) -> Tensor:
        return next(ones)[:, None].expand_as(like)

    start = draw(torch.empty(draws + 2, len(MEAN), dtype=torch.float64))
    x = sampler(best_denoiser(schedule), start, schedule, grid, draw)
    return x[0], (x[1:] - x[0]).square().sum(dim=0).sqrt()


def tends_to(stochastic: bool, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same of an infinite number of steps from the first timestep's alpha_bar."""
    a, s2 = alpha_bar.sqrt(), 1 - alpha_bar
    v = a**2 * SD**2 + s2
    gain = a * SD**2 / v if stochastic else SD / v.sqrt()
    left = SD**2 * s2 / v if stochastic else 0.0  # variance of x0 that x_t leaves open
    return MEAN - gain * a * MEAN, (gain**2 + left).sqrt()


def error(name: str, schedule: Tensor, grid: Grid, steps: int) -> float:
    """Return a sampler's distance from what it tends to, in the unit of the data."""
    sampler, stochastic, _ = SAMPLERS[name]
    chosen = timesteps(grid, steps, len(schedule))
    found = ends_at(sampler, steps - 1 if stochastic else 0, schedule, chosen)
    expected = tends_to(stochastic, schedule[chosen[0]])
    return sum((f - e).square().sum() for f, e in zip(found, expected, strict=True)).sqrt().item()


def order(steps: list[int], errors: list[float]) -> float:
    """Fit the power of 1 / steps that the error falls with."""
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def even_panel(ax: Axes) -> None:
    """Draw the schedule that is even in lambda, and print the fitted orders."""
    for name, (_, _, colour) in SAMPLERS.items():
        errors = [error(name, EVEN, Grid.linspace, steps) for steps in EVEN_STEPS]
        fitted = order(FITTED, errors[-len(FITTED) :])
        print(f"{name:14} order {fitted:.2f}")
        ax.plot(EVEN_STEPS, errors, "o-", ms=4, color=colour, label=f"{name}: {fitted:.2f}")
    for power, at in ((1, 0.3), (2, 0.02)):
        line = at * (np.divide(EVEN_STEPS, EVEN_STEPS[0]) ** -power)
        ax.plot(EVEN_STEPS, line, ":", color="#7d8790", zorder=0)
        ax.annotate(f"order {power}", (EVEN_STEPS[-1], line[-1]), size=8, color="#5d666f")
    ax.set_title("Schedule even in lambda: fitted orders", size=10)


def paper_panel(ax: Axes) -> None:
    """Draw the paper's schedule, and print the errors."""
    print(f"\n{'the paper’s schedule, steps':27}" + "".join(f"{n:>9}" for n in PAPER_STEPS))
    for name, (_, _, colour) in SAMPLERS.items():
        for grid, style in ((Grid.trailing, "-"), (Grid.leading, "--"), (Grid.linspace, ":")):
            errors = [error(name, PAPER, grid, steps) for steps in PAPER_STEPS]
            print(f"{name:14} {grid.value:12}" + "".join(f"{e:9.4f}" for e in errors))
            ax.plot(PAPER_STEPS, errors, style, color=colour, label=f"{name}, {grid.value}")
    ax.set_title("The paper's schedule", size=10)


def main() -> None:
    """Print the orders and draw the figure."""
    figure = Figure((9.6, 4.2), dpi=130)
    axes = figure.subplots(1, 2)
    for ax, draw in zip(axes, (even_panel, paper_panel), strict=True):
        draw(ax)
        ax.set(xscale="log", yscale="log", xlabel="steps")
        ax.legend(frameon=False, fontsize=7)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("distance from the exact distribution")
    figure.tight_layout()
    figure.savefig(PICTURE)
    print(f"\n{PICTURE}")


if __name__ == "__main__":
    main()
