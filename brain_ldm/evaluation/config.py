"""Options of `evaluate`: which cohorts are held against each other, and what measures them."""

from dataclasses import dataclass, field
from typing import Any

from brain_ldm.errors import InputError


@dataclass
class EvaluateConfig:
    """Options of `evaluate`."""

    real: str = "cohorts/phantom"  # folder of the real cohort (or of phantoms)
    # Folder of a synthetic cohort, or a list of such folders: synthetic=[a,b].
    synthetic: Any = "cohorts/synthetic"
    # Folders of sweeps: cohorts in which `sample` varied one covariate and kept all else.
    sweeps: list[str] = field(default_factory=list)
    out: str | None = None  # folder of the report; null: reports/<first synthetic cohort's name>

    segmenter: str = "models/segmenter_demo"  # model folder: measures the volumes
    brain_age: str = "models/brain_age_demo"  # model folder: predicts age
    autoencoder: str = "models/ae_demo"  # model folder: its reconstructions are judged

    # Rows of the real cohort to compare with, by its column `split`. Rows that a measuring
    # network was trained on would flatter the ceiling.
    split: str = "test"
    # Random pairs of brains for MS-SSIM in each cohort. The paper takes 1000; with 100 the mean
    # is known to a tenth of the spread between pairs.
    pairs: int = 100
    bootstrap: int = 2000  # resamples behind each 95 % interval
    permutations: int = 1000  # random pairings behind each chance level
    shown: int = 4  # brains in each row of the montage
    batch_size: int = 8  # volumes measured at once; 8 fit a laptop at 4 mm, take 1 at 1 mm
    seed: int = 0  # of pairs, bootstrap and permutations

    def __post_init__(self) -> None:
        """Make `synthetic` a list, or refuse it."""
        folders = [self.synthetic] if isinstance(self.synthetic, str) else self.synthetic
        if not isinstance(folders, list) or not all(isinstance(f, str) and f for f in folders):
            raise InputError(
                f"synthetic is {self.synthetic!r}; give a cohort's folder, or a list of them: [A,B]"
            )
        if not folders:
            raise InputError("synthetic is empty; give a cohort's folder, or a list of them: [A,B]")
        self.synthetic = folders
