"""Options of `sample`."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from brain_ldm.diffusion.config import SamplerConfig
from brain_ldm.precision import Precision


@dataclass
class SampleConfig:
    """Which brains to draw from a model, and how.

    A GAN's generator takes `n` and `seed` alone: it knows no covariates and no sampler.
    """

    model: str = MISSING  # folder of a diffusion model or of a generator
    out: str = "cohorts/synthetic"  # folder of the new cohort
    # Which brains: the rows of `table`, or `n` brains, or `n` steps of a `sweep`.
    table: str | None = None  # a participants.tsv: one brain a row, with its covariates
    split: str | None = None  # of the table's rows only these: train, val or test
    n: int | None = None  # brains whose covariates are drawn from `ranges`; of a table, the first n
    sweep: str | None = None  # a covariate that goes through its range in n steps, all else fixed
    noises: int = 1  # how often a sweep is done, each time of another starting noise
    # By covariate: a value, or [low, high] in its unit. What is not given: the training range,
    # or its middle (and F) where a sweep fixes it.
    # For example ranges={age: [60, 70], sex: F}.
    ranges: Any = None
    covariates: list[str] | None = None  # ask for these alone, [] for none; null: all the model has
    seed: int = 0  # with the row's number it gives the row's own seed
    sampler: SamplerConfig = MISSING
    guidance: float = 1.0  # 0 unconditional, 1 conditional (the paper's), above 1 exaggerated
    batch_size: int = 16
    device: str = "auto"  # auto, cpu or cuda
    precision: Precision = Precision.auto
