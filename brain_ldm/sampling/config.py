"""Options of `sample`."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING

from brain_ldm.diffusion.config import SamplerConfig
from brain_ldm.precision import Precision


class Storage(Enum):
    """How intensities of 0..1 are stored in the images."""

    int16 = "int16"  # steps of 1/4096, ours
    uint8 = "uint8"  # steps of 1/255
    float32 = "float32"  # as they are computed


@dataclass
class SampleConfig:
    """Which brains to draw from a model, and how.

    A GAN's generator takes `n` and `seed` alone: it knows no covariates and no sampler.
    """

    model: str | None = None  # folder of a diffusion model or of a generator
    out: str = "cohorts/synthetic"  # folder of the new cohort
    # Which brains: those of one of `table`, `population`, `grid`, `sweep` and `from`; or `n` alone,
    # whose covariates are drawn from `ranges`.
    table: str | None = None  # a participants.tsv: one brain a row, with its covariates
    # A cohort: n brains whose covariates go together as in its training rows, and are nobody's.
    population: str | None = None
    # By covariate, how many even steps through its range; every combination is asked for once.
    # For example grid={age: 5, sex: 2}. What is not named stays in the middle.
    grid: Any = None
    sweep: str | None = None  # a covariate that goes through its range in n steps, all else fixed
    noises: int = 1  # how often a sweep is done, each time of another starting noise
    # A cohort: its brains as they are, but for `change` and `ranges`. Given as from=COHORT.
    from_: str | None = None
    # By covariate, what is added in its unit. For example change={age: 10}.
    change: Any = None
    split: str | None = None  # of table, population (train if not given) or from these rows only
    n: int | None = None  # brains; of table or from, the first n; of a sweep, its steps
    # By covariate: a value, or [low, high] in its unit. What is not given: the training range,
    # or its middle (and F) where a sweep or a grid fixes it, or what it is in `from`.
    # For example ranges={age: [60, 70], sex: F}.
    ranges: Any = None
    extrapolate: bool = False  # whether values outside the training range may be asked for
    covariates: list[str] | None = None  # ask for these alone, [] for none; null: all the model has
    seed: int = 0  # with the row's number it gives the row's own seed
    sampler: SamplerConfig = MISSING
    guidance: float = 1.0  # 0 unconditional, 1 conditional (the paper's), above 1 exaggerated
    rescale: float = 0.0  # 0 to 1: how much of the contrast that guidance adds is taken back
    batch_size: int = 16  # a brain is the same to the bit at equal batch_size alone
    device: str = "auto"  # auto, cpu or cuda
    precision: Precision = Precision.auto

    shard: str = "0/1"  # i/n: this call draws every n-th batch from the i-th on, i from 0
    writers: int | None = None  # processes that encode images; 0: none; null: as the device needs
    storage: Storage = Storage.int16
    # Brains a cohort, at most; the set is then out/part-000, out/part-001, …; null: one cohort.
    folder_size: int | None = None
    licence: str | None = None  # License of the cohort, as CC-BY-4.0; null: none is given
    report: str | None = None  # of a finished cohort: its evaluation's folder, for its README.md
    verify: bool = False  # only hold the finished set in `out` against its manifest
