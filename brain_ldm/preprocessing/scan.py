"""A raw scan: where it lies, whose it is, and reading it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class Unusable(Exception):
    """A scan that cannot be used; the message says why, in a line fit for rejected.tsv."""


@dataclass(frozen=True)
class Scan:
    """A raw T1w scan.

    Attributes:
        participant_id: its name in the cohort, `sub-` and letters or digits; unique.
        subject: whose it is; all scans of one land in one split.
        path: a NIfTI file, or a zip that holds one.
        member: the file in the zip.
        row: session (where the source has any) and covariates in real units; missing ones absent.
        problem: why it cannot be used, where that is known before it is read.
    """

    participant_id: str
    subject: str
    path: Path
    member: str | None = None
    row: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None
