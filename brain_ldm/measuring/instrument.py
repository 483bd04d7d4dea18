"""What measures the volumes of a brain."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from brain_ldm.cohorts.cohort import Cohort

# In mm³; as covariates and, with measured_ before it, as columns of what was measured.
VOLUMES = ("ventricular_volume", "brain_volume")

# The volumes of a brain by name, or why it has none: a line that names its file.
Outcome = dict[str, float] | str


@dataclass(frozen=True)
class Instrument:
    """A program or a network that measures volumes.

    Attributes:
        name: what it is, in words; other words mean other values.
        measure: given a cohort, participants and a folder to work in, gives each participant with
            its outcome, in any order. A brain that cannot be measured does not stop the others.
    """

    name: str
    measure: Callable[[Cohort, list[str], Path], Iterator[tuple[str, Outcome]]]
