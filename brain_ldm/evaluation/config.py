"""Options of `evaluate`: which cohorts are held against each other, and what measures them."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from brain_ldm.errors import InputError
from brain_ldm.precision import Precision


class Features(Enum):
    """Whose features cohorts are compared by."""

    medicalnet = "medicalnet"  # ResNet-50 of 23 medical data sets, as the author's later code
    segmenter = "segmenter"  # a stand-in without a download: encoder of `segmenter`
    brain_age = "brain_age"  # a stand-in without a download: blocks of `brain_age`


@dataclass
class EvaluateConfig:
    """Options of `evaluate`."""

    real: str = "cohorts/phantom"  # folder of the real cohort (or of phantoms)
    # Folder of a synthetic cohort, or a list of such folders: synthetic=[A,B]; or rows of the
    # table by name, each with one folder or several of one kind: synthetic={LSGAN: [A,B], LDM: C}.
    synthetic: Any = "cohorts/synthetic"
    # Folders of sweeps: cohorts in which `sample` varied one covariate and kept all else.
    sweeps: list[str] = field(default_factory=list)
    # Model folders of brain-age networks trained on real rows, synthetic rows or both: each is
    # tested on the real cohort's test rows.
    age_networks: list[str] = field(default_factory=list)
    out: str | None = None  # folder of the report; null: reports/<first synthetic cohort's name>

    # Model folders; null does without what it measures.
    segmenter: str | None = "models/segmenter_demo"  # volumes
    brain_age: str | None = "models/brain_age_demo"  # age
    autoencoder: str | None = "models/ae_demo"  # latents; its reconstructions are judged
    embedding: str | None = "models/embedding_demo"  # who is like whom: finds copies

    features: Features | None = Features.medicalnet  # null does without FID and its like
    # File with its weights; null: they are fetched from the Hugging Face hub (extra `engines`).
    medicalnet: str | None = None

    # Rows of the real cohort that requests and measurements are compared on, by its column
    # `split`. Rows that a measuring network was trained on would flatter the ceiling.
    split: str = "test"
    pairs: int = 1000  # random pairs of brains of each cohort for MS-SSIM and 4-G-R-SSIM (paper)
    bootstrap: int = 1000  # resamples behind each 95 % interval of a correlation
    # Resamples behind each 95 % interval of a distance between cohorts: one of them costs an
    # eigenvalue decomposition.
    resamples: int = 100
    # Brains of each cohort that distances between cohorts are taken of, at most: the work grows
    # with their square.
    compared: int = 2000
    neighbours: int = 5  # k of precision, recall, density and coverage (Naeem et al. 2020)
    permutations: int = 1000  # random pairings behind each chance level
    shown: int = 4  # brains in each row of a montage
    # Volumes measured at once; null: 8 at 4 mm, 2 at 2 mm, 1 at 1 mm.
    batch_size: int | None = None
    # Of volumes and latents; features and ages are always of 32 bits, as others publish theirs.
    precision: Precision = Precision.auto
    cache: str = "caches/evaluation"  # folder of what was measured: of use to the next report too
    seed: int = 0  # of pairs, bootstrap and permutations

    def __post_init__(self) -> None:
        """Make `synthetic` rows of the table by name, or refuse it."""
        given = self.synthetic
        rows = given if isinstance(given, dict) else {None: given}
        listed = {}
        for title, folders in rows.items():
            if str(title).lower() == "real":
                raise InputError("synthetic: Real is the real cohort's row; give another name")
            folders = [folders] if isinstance(folders, str) else folders
            good = isinstance(folders, list) and all(isinstance(f, str) and f for f in folders)
            if not good or not folders:
                raise InputError(
                    f"synthetic is {given!r}; give a cohort's folder, a list of them, [A,B], or "
                    "rows of the table by name, {LSGAN: [A,B], LDM: C}"
                )
            listed[title] = folders
        if not listed:
            raise InputError("synthetic is empty; give a cohort's folder, or a list of them: [A,B]")
        self.synthetic = listed
