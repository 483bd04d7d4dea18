"""Options of `preprocess`: where raw scans lie and how they come to MNI space.

P: the paper (Pinaya et al. 2022). Everything else is our choice.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from brain_ldm.errors import InputError


class Layout(Enum):
    """How the source folder is laid out."""

    bids = "bids"  # sub-*/[ses-*/]anat/*_T1w.nii.gz with participants.tsv
    ukb = "ukb"  # UK Biobank bulk: <eid>_20252_<instance>_0.zip, and a table of fields
    folder = "folder"  # NIfTI files anywhere below it, and a table


class Scans(Enum):
    """Which scans of a participant are taken."""

    all = "all"
    first = "first"  # first session, first run


class Registration(Enum):
    """What brings a scan to MNI space, rigidly."""

    simpleitk = "simpleitk"
    unires = "unires"  # P; its command must be on the PATH


class Extraction(Enum):
    """What takes all but the brain away."""

    none = "none"  # P: whole heads
    deepbet = "deepbet"


@dataclass
class PreprocessConfig:
    """Raw T1w scans to a cohort in MNI space."""

    source: str = MISSING  # folder of raw scans
    # Folder of the cohort; null: cohorts/ukb for UK Biobank at 1 mm, else cohorts/brains, with _2mm
    # or _4mm for these resolutions: where the experiments look for it.
    out: str | None = None
    layout: Layout | None = None  # null: told from what lies in the source
    # CSV or TSV with a row a participant (or scan); null: BIDS' participants.tsv, and for other
    # layouts the only table that lies in the source.
    table: str | None = None
    # Columns of the table: {ours: theirs}. Ours are participant_id, file, session, age, sex,
    # ventricular_volume, brain_volume, or any new name, which becomes a column of the cohort.
    # For UK Biobank theirs may be a field's number, as 21001: it is read at the scan's instance.
    columns: Any = None
    # What the table's codes of sex mean, as {1: M, 2: F, 0: n/a}; F, M, female and male are known,
    # and UK Biobank's.
    sexes: Any = None
    # folder: regular expression with a group `id`, the table's, and maybe `subject` (whose scan it
    # is, where the table's ids are those of sessions), `session` and `run`; searched in each file's
    # path below the source. null: a file belongs to the row whose id its name is, or begins with.
    pattern: str | None = None
    scans: Scans = Scans.all

    resolution: int = 1  # mm: 1 (P), 2 or 4
    registration: Registration = Registration.simpleitk
    device: str = "cpu"  # of UniRes: cpu or cuda
    bias_correction: bool = False  # N4 (SimpleITK)
    extraction: Extraction = Extraction.none
    # Percentiles of the voxels in the field of view that become 0 and 1; what lies beyond is cut.
    percentiles: list[float] = field(default_factory=lambda: [0.5, 99.5])
    # A scan whose correlation with the template is lower is rejected. Heads in place had .57 to
    # .78, back to front or upside down at most .38.
    least_correlation: float = 0.45
    reject: str | None = None  # text file of rejected participant_ids; null: <out>/reject.txt

    workers: int | None = None  # processes; null: one a core
    shard: str = "0/1"  # i/n: this call does every n-th scan from the i-th on, i from 0

    def __post_init__(self) -> None:
        """Make `columns` a dictionary of texts, or refuse it."""
        columns = {} if self.columns is None else self.columns
        if not isinstance(columns, dict) or any(
            isinstance(v, dict | list) for v in columns.values()
        ):
            raise InputError(
                f"columns is {columns!r}; give the table's names, as "
                "'columns={age: AGE, sex: Gender}'"
            )
        self.columns = {str(ours): str(theirs) for ours, theirs in columns.items()}
