"""Who a phantom is: age, sex, and the trends of anatomy and contrast with age, with their scatter.

The trends are ours, set so that a cohort looks like an adult population of the paper's age range:
log ventricular volume against age at r of about .5, heads of men 11 % larger than of women, grey
and white matter less distinct and sulci wider with age.
"""

from dataclasses import dataclass

import numpy as np

# The paper's range. It has 63.6 ± 7.5 years; ours are uniform, so that few brains show all ages.
AGES = (44.0, 82.0)
MIDDLE_AGE = 63.0
# Intracranial volume in mm³: mean by sex, and relative scatter.
HEAD_VOLUME = {"F": 1.42e6, "M": 1.58e6}
HEAD_SCATTER = 0.06
# Ventricular volume in mm³ at the middle age; log-linear slope per year, scatter of the log.
VENTRICLES = 28_000.0
VENTRICLE_SLOPE = 0.0225
VENTRICLE_SCATTER = 0.43
# Log odds of CSF against tissue at the pial surface, at the middle age; per year; scatter.
SULCI = 1.6
SULCI_SLOPE = 0.06
SULCI_SCATTER = 0.30
# White minus grey on the 0..1 scale, at the middle age; per year; scatter.
CONTRAST = 0.25
CONTRAST_SLOPE = -0.0040
CONTRAST_SCATTER = 0.022


@dataclass(frozen=True)
class Person:
    """What is drawn before anatomy is.

    Attributes:
        age: years.
        sex: F or M.
        head_volume: mm³ inside the skull.
        ventricular_volume: mm³ that the ventricles shall reach.
        sulci: log odds of CSF against tissue, added where they meet; larger is more atrophy.
        contrast: white minus grey matter, on the 0..1 scale.
    """

    age: float
    sex: str
    head_volume: float
    ventricular_volume: float
    sulci: float
    contrast: float


def draw_person(rng: np.random.Generator) -> Person:
    """A person of random age and sex, with head, ventricles, sulci and contrast to match."""
    age = rng.uniform(*AGES)
    sex = "FM"[rng.integers(2)]
    # Scatter is cut at 2.2 standard deviations: no monsters.
    head, ventricles, sulci, contrast = np.clip(rng.standard_normal(4), -2.2, 2.2)
    head_volume = HEAD_VOLUME[sex] * (1 + HEAD_SCATTER * head)
    years = age - MIDDLE_AGE
    log_ventricles = np.log(VENTRICLES) + VENTRICLE_SLOPE * years + VENTRICLE_SCATTER * ventricles
    return Person(
        age=float(age),
        sex=sex,
        head_volume=float(head_volume),
        # Larger heads have larger ventricles.
        ventricular_volume=float(np.exp(log_ventricles) * head_volume / np.mean([1.42e6, 1.58e6])),
        sulci=float(SULCI + SULCI_SLOPE * years + SULCI_SCATTER * sulci),
        contrast=float(CONTRAST + CONTRAST_SLOPE * years + CONTRAST_SCATTER * contrast),
    )
