"""Options of `measure`: which cohort, and what measures it."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from brain_ldm.precision import Precision


@dataclass
class SynthSegConfig:
    """How mri_synthseg is called."""

    robust: bool = False  # its network for scans of low quality, slower
    fast: bool = False  # without some of its processing; robust is always so
    cpu: bool = False  # not on the GPU
    threads: int | None = None  # on the CPU; null: one a core
    # Images a call: starting it takes long, and the bar moves, once a call.
    chunk: int = 16


@dataclass
class MeasureConfig:
    """Options of `measure`."""

    cohort: str = MISSING  # folder of a cohort, real or synthetic
    segmenter: str = MISSING  # synthseg, or the folder of a segmenter model of ours
    # In a real cohort, covariates that have no value at all are filled with what is measured; true:
    # so are those that have, since values of two instruments do not mix.
    replace: bool = False
    # Column by whose values the agreement with known volumes is also shown; null: label_map, where
    # the cohort has it.
    within: str | None = None
    shard: str = "0/1"  # i/n: this call does every n-th brain from the i-th on, i from 0

    # A segmenter of ours:
    batch_size: int = 4  # brains measured at once; take 1 at 1 mm on a small card
    device: str = "auto"  # auto, cpu or cuda
    # As `evaluate` measures; bf16-mixed shifts volumes a little, and is then another instrument.
    precision: Precision = Precision["32-true"]
    workers: int | None = None  # processes that read images; null: one a core beside a GPU, else 1

    synthseg: SynthSegConfig = field(default_factory=SynthSegConfig)
