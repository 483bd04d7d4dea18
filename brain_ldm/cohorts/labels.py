"""FreeSurfer's label numbers: their names, and the tissue that each belongs to."""

import numpy as np

_SIDED = {
    # left, right: name
    (2, 41): "cerebral-white-matter",
    (3, 42): "cerebral-cortex",
    (4, 43): "lateral-ventricle",
    (5, 44): "inferior-lateral-ventricle",
    (7, 46): "cerebellum-white-matter",
    (8, 47): "cerebellum-cortex",
    (10, 49): "thalamus",
    (11, 50): "caudate",
    (12, 51): "putamen",
    (13, 52): "pallidum",
    (17, 53): "hippocampus",
    (18, 54): "amygdala",
    (25, 57): "lesion",
    (26, 58): "accumbens",
    (28, 60): "ventral-DC",
    (30, 62): "vessel",
    (31, 63): "choroid-plexus",
    # SynthSeg's training maps part the ventricles in two by intensity; these are the second parts.
    (136, 163): "lateral-ventricle-2",
    (137, 164): "inferior-lateral-ventricle-2",
}
NAMES: dict[int, str] = {
    0: "background",
    14: "3rd-ventricle",
    15: "4th-ventricle",
    16: "brain-stem",
    24: "CSF",
    72: "5th-ventricle",
    77: "white-matter-hypointensities",
    80: "non-white-matter-hypointensities",
    85: "optic-chiasm",
    251: "corpus-callosum-posterior",
    252: "corpus-callosum-mid-posterior",
    253: "corpus-callosum-central",
    254: "corpus-callosum-mid-anterior",
    255: "corpus-callosum-anterior",
    502: "artery",
    506: "eyeball",
    507: "other-tissue",
    508: "rectus-muscles",
    509: "mucosa",
    511: "skin",
    512: "spinal-cord",
    514: "vein",
    515: "bone-cortical",
    516: "bone-cancellous",
    530: "optic-nerve",
    **{left: f"left-{name}" for (left, _), name in _SIDED.items()},
    **{right: f"right-{name}" for (_, right), name in _SIDED.items()},
}

# Ventricles as the paper measures them, with SynthSeg's 4, 5, 43 and 44: lateral and inferior
# lateral. SynthSeg counts their second parts (136, 137, 163, 164) to them and choroid plexus
# (31, 63) lies within; the 3rd, 4th and 5th count as CSF. Extra-cerebral labels are background.
GROUPS: dict[str, list[int]] = {
    "background": [0, 85, 502, 506, 507, 508, 509, 511, 512, 514, 515, 516, 530],
    "csf": [14, 15, 24, 30, 62, 72],
    "grey": [3, 8, 10, 11, 12, 13, 17, 18, 26, 42, 47, 49, 50, 51, 52, 53, 54, 58, 80],
    "white": [2, 7, 16, 25, 28, 41, 46, 57, 60, 77, 251, 252, 253, 254, 255],
    "ventricle": [4, 5, 31, 43, 44, 63, 136, 137, 163, 164],
}


def group_index(labels: np.ndarray) -> np.ndarray:
    """The position in `GROUPS` of each voxel's tissue; uint8, of the shape of `labels`.

    Raises:
        ValueError: naming the labels that are in no group.
    """
    top = max(NAMES)
    table = np.full(top + 1, 255, dtype=np.uint8)
    for position, members in enumerate(GROUPS.values()):
        table[members] = position
    known = (labels >= 0) & (labels <= top)
    groups = table[np.where(known, labels, 1)]  # 1 is in no group
    if (groups == 255).any():
        raise ValueError(f"unknown labels {np.unique(labels[groups == 255])[:5].tolist()}")
    return groups


def volumes(labels: np.ndarray, voxel_volume: float) -> dict[str, float]:
    """Volumes counted on a segmentation.

    Args:
        labels: integers (X, Y, Z) in FreeSurfer's numbers.
        voxel_volume: mm³.

    Returns:
        ventricular_volume (lateral and inferior lateral) and brain_volume (grey and white matter)
        in mm³.
    """
    counts = np.bincount(group_index(labels).ravel(), minlength=len(GROUPS)) * voxel_volume
    count = dict(zip(GROUPS, counts.tolist(), strict=True))
    return {
        "ventricular_volume": count["ventricle"],
        "brain_volume": count["grey"] + count["white"],
    }
