"""Options of the `phantom` command."""

from dataclasses import dataclass
from typing import Optional


@dataclass
class PhantomConfig:
    """Brains of exactly known age, sex and volumes."""

    # Folder of the cohort.
    out: str = "cohorts/phantom"
    # Number of brains (ours: what the demo trains on in minutes).
    n: int = 400
    # Voxel edge in mm on the paper's field of view: 1 (the paper's), 2 or 4 (the demo's).
    resolution: int = 4
    # One brain depends on this and its index alone.
    seed: int = 0
    # Folder of FreeSurfer or SynthSeg label maps to draw from; none: the MNI152 brain.
    label_maps: Optional[str] = None  # noqa: UP045 (OmegaConf reads Optional)
    # Processes; none: one a core.
    workers: Optional[int] = None  # noqa: UP045
