"""Phantoms from label maps of real heads, skull and all: SynthSeg's generative method.

Each label's intensities are drawn from a Gaussian of its class (Billot et al. 2023, SynthSeg), then
come partial volume, bias field and noise. Age and sex are drawn and rendered by the same model of
ventricles, sulci, contrast and head size as for the template's phantoms.
"""

import hashlib
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from brain_ldm.cohorts.ageing import SULCI, Person, draw_person
from brain_ldm.cohorts.drawing import Phantom, generator, participant_id, phantom, work_grid
from brain_ldm.cohorts.grid import VoxelGrid, paper_grid
from brain_ldm.cohorts.labels import GROUPS, NAMES, group_index
from brain_ldm.cohorts.registration import register_rigid
from brain_ldm.cohorts.template import CENTRE, MIDDLE_INTENSITY, SHARPNESS, averaged
from brain_ldm.cohorts.ventricles import grow, wall_maps
from brain_ldm.cohorts.warp import Volume, individual
from brain_ldm.errors import InputError

# Intensity classes: labels, mean and standard deviation (0..255, T1). Values are ours; the order is
# that of SynthSeg's T1 priors, which come without a table of their 25 classes: it is read off the
# priors' values (dark cortical bone and CSF, bright white matter and pallidum, widths of the rest).
CLASSES = (
    ([0], 5, 4),
    ([4, 5, 14, 15, 24, 31, 43, 44, 63, 72, 136, 137, 163, 164], 40, 12),
    ([2, 41, 251, 252, 253, 254, 255], 160, 10),
    ([3, 42], 96, 12),
    ([7, 46], 140, 12),
    ([8, 47], 90, 12),
    ([10, 49], 130, 12),
    ([11, 12, 26, 50, 51, 58], 118, 12),
    ([13, 52], 150, 9),
    ([16, 28, 60], 142, 12),
    ([17, 18, 53, 54, 80], 110, 12),
    ([25, 57, 77], 90, 15),
    ([30, 62], 60, 15),
    ([85], 130, 15),
    ([502], 120, 40),
    ([506], 20, 10),
    ([507], 95, 35),
    ([508], 115, 30),
    ([509], 70, 20),
    ([511], 115, 40),
    ([512], 100, 25),
    ([514], 50, 20),
    ([515], 30, 15),
    ([516], 100, 35),
    ([530], 130, 30),
)
CLASS_MEAN_STD = 10.0  # scatter of a class's mean between heads, where there are no priors
# What participants.tsv says of the map beside the usual columns.
COLUMN = {"label_map": {"Description": "Label map that the brain was drawn from (file name)"}}
SUFFIX = ".nii.gz"
REACH = 30  # voxels around the ventricles
# Of the priors' scatter of means: they span scanners and sequences, a cohort has few.
MEAN_SCATTER = 0.4
MARGIN = 16  # mm beyond the paper's field of view, for heads that are shrunk
BRAIN = [n for group in ("csf", "grey", "white", "ventricle") for n in GROUPS[group]]
CORTEX = (3, 8, 42, 47)
LEFT = [n for n, name in NAMES.items() if name.startswith("left-")]
RIGHT = [n for n, name in NAMES.items() if name.startswith("right-")]
# The template's brain is larger than most: an aligned one lies within it.
LEAST_WITHIN = 0.9


@dataclass(frozen=True)
class LabelMaps:
    """A folder of label maps and the intensities of its labels.

    Attributes:
        paths: the maps.
        classes: the class of each label, (max label + 1,).
        means: (2, K), mean and scatter between heads of each class's mean, 0..255.
        stds: (2, K), likewise of its standard deviation within a head.
        digest: sha256 of all files that the phantoms depend on.
    """

    paths: list[Path]
    classes: np.ndarray
    means: np.ndarray
    stds: np.ndarray
    digest: str

    def choice(self, seed: int, index: int) -> int:
        """Which map phantom `index` of `seed` is drawn from: the first of its random numbers."""
        return int(generator(seed, index).integers(len(self.paths)))

    def prepare(self, which: int, folder: Path, resolution: int) -> None:
        """Bring map `which` to MNI space and keep what drawing needs in `folder`."""
        path = self.paths[which]
        kept = _kept(folder, which)
        if kept.exists():
            return
        labels, affine = _read(path)
        for name, array in _align(path, labels, affine, resolution).items():
            _keep(folder / f"map{which:04d}_{name}.npy", array)
        (folder / f"map{which:04d}_head_volume.npy").replace(kept)


def open_label_maps(folder: str | Path) -> LabelMaps:
    """Find a folder's maps (`*.nii.gz`) and, where it has them, SynthSeg's class and prior files.

    `prior_means_t1.npy` and `prior_stds_t1.npy` (2, K) belong to the classes of
    `generation_labels.npy` with `generation_classes_contrast_specific.npy` or
    `generation_classes.npy`, whichever has K classes; where none has, 25 are `CLASSES`.

    Raises:
        InputError: if there is no map, or a file does not fit the others.
    """
    folder = Path(folder)
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    if not paths:
        raise InputError(f"label_maps={folder}: no *{SUFFIX} there")
    classes = np.zeros(max(NAMES) + 1, dtype=int)
    for position, (members, _, _) in enumerate(CLASSES):
        classes[members] = position
    means = np.array([[m for _, m, _ in CLASSES], [CLASS_MEAN_STD] * len(CLASSES)], dtype=float)
    stds = np.array([[s for _, _, s in CLASSES], [s / 4 for _, _, s in CLASSES]], dtype=float)
    used = list(paths)
    priors = [folder / "prior_means_t1.npy", folder / "prior_stds_t1.npy"]
    if all(p.exists() for p in priors):
        means, stds = (_array(p) for p in priors)
        count = means.shape[-1]
        if means.shape != (2, count) or stds.shape != means.shape:
            raise InputError(f"{priors[1]}: shape {stds.shape}, {priors[0].name} {means.shape}")
        used += priors
        listed = folder / "generation_labels.npy"
        options = [
            folder / "generation_classes_contrast_specific.npy",
            folder / "generation_classes.npy",
        ]
        for option in options:
            if option.exists() and listed.exists():
                labels, option_classes = _array(listed).astype(int), _array(option).astype(int)
                if option_classes.max() + 1 != count:
                    continue
                if labels.shape != option_classes.shape or labels.max() > max(NAMES):
                    raise InputError(f"{option}: does not fit {listed.name}")
                classes[labels] = option_classes
                used += [listed, option]
                break
        else:
            if count != len(CLASSES):
                raise InputError(f"{priors[0]}: {count} classes, and no file says of which labels")
    if means[0, classes[2]] <= means[0, classes[3]]:
        raise InputError(f"{folder}: priors have white matter no brighter than grey; give T1 ones")
    digest = hashlib.sha256()
    for path in used:
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return LabelMaps(paths, classes, means, stds, digest.hexdigest())


def draw_from_label_maps(
    maps: LabelMaps, folder: Path, seed: int, index: int, resolution: int
) -> Phantom:
    """Phantom `index` of `seed`, from one of the maps that `LabelMaps.prepare` left in `folder`."""
    rng = generator(seed, index)
    which = int(rng.integers(len(maps.paths)))
    person = draw_person(rng)
    head = _load_head(folder, which, round(work_grid(resolution).resolution))
    labels, image = _render(rng, person, maps, head, work_grid(resolution))
    drawn = phantom(rng, participant_id(seed, index), person, labels, image, resolution)
    drawn.row["label_map"] = maps.paths[which].name.removesuffix(SUFFIX)
    return drawn


@dataclass(frozen=True)
class _Head:
    """A map in MNI space.

    Attributes:
        tissue: labels, the ventricles replaced by what is beside them; 1 mm.
        ventricle: the ventricle label nearest to each voxel; 1 mm.
        parenchyma: the part of each voxel's surroundings that is brain, not CSF; 1 mm.
        wall: the five channels of `ventricles.wall_maps`, on the work grid.
        head_volume: mm³ inside the skull.
    """

    tissue: Volume
    ventricle: Volume
    parenchyma: Volume
    wall: Volume
    head_volume: float


def _render(
    rng: np.random.Generator, person: Person, maps: LabelMaps, head: _Head, work: VoxelGrid
) -> tuple[np.ndarray, np.ndarray]:
    """Labels int16 and intensities float32 (X, Y, Z) of one person on the work grid."""
    points = individual(rng, work, person, head.head_volume, CENTRE).reshape(-1, 3)
    came_from, ventricle = grow(
        points, head.wall, person.ventricular_volume, rng.normal(0, 0.4), work
    )
    labels = head.tissue.nearest(came_from)[:, 0]
    # Sulci open where the odds of CSF at the pial surface exceed 1; at the middle age they are
    # about the map's own.
    part = np.clip(head.parenchyma.linear(came_from)[:, 0], 1e-3, 1 - 1e-3)
    open_sulcus = SHARPNESS * np.log((1 - part) / part) + person.sulci - SULCI > 0
    labels[np.isin(labels, CORTEX) & open_sulcus] = 24
    filled = ventricle > 0.5
    labels[filled] = head.ventricle.nearest(points[filled])[:, 0]

    means, stds = _intensities(rng, person, maps)
    classes = maps.classes[labels]
    # Standard deviations are those of voxels of 1 mm.
    image = rng.standard_normal(len(labels), dtype=np.float32)
    image *= stds.astype(np.float32)[classes] * np.float32(work.resolution**-1.5)
    image += means.astype(np.float32)[classes]
    image = ndimage.gaussian_filter(image.reshape(work.shape), 0.5)
    return labels.astype(np.int16).reshape(work.shape), np.clip(image, 0, None)


def _intensities(
    rng: np.random.Generator, person: Person, maps: LabelMaps
) -> tuple[np.ndarray, np.ndarray]:
    """Each class's mean and standard deviation (K,) in one head, on the 0..1 scale."""
    grey, white = maps.classes[[3, 42]], maps.classes[[2, 41]]
    middle = maps.means[0, [*grey, *white]].mean()
    scale = MIDDLE_INTENSITY / middle
    means = (maps.means[0] + MEAN_SCATTER * rng.normal(0, maps.means[1])) * scale
    stds = np.abs(rng.normal(*maps.stds)) * scale
    # The person's age decides the contrast of grey and white, and that of the nuclei with it.
    typical = (maps.means[0, white].mean() - maps.means[0, grey].mean()) * scale
    brain = np.unique(maps.classes[GROUPS["grey"] + GROUPS["white"]])
    means[brain] = MIDDLE_INTENSITY + (means[brain] - MIDDLE_INTENSITY) * person.contrast / typical
    means[grey] = MIDDLE_INTENSITY - person.contrast / 2
    means[white] = MIDDLE_INTENSITY + person.contrast / 2
    return np.clip(means, 0, 1), stds


def _align(path: Path, labels: np.ndarray, affine: np.ndarray, resolution: int) -> dict:
    """What `_Head` needs of one map, as arrays by name, head_volume last."""
    from nilearn import datasets

    # Every second voxel is enough for a rigid fit.
    coarser = np.diag([2.0, 2.0, 2.0, 1.0])
    template = datasets.load_mni152_template(resolution=1)
    target = template.get_fdata(dtype=np.float32)[::2, ::2, ::2]
    target_affine = template.affine @ coarser
    groups = group_index(labels)
    # A T1-like picture of the brain alone, as the template is: background, CSF, grey, white,
    # ventricle.
    picture = np.array([0, 0.2, 0.6, 0.85, 0.2], dtype=np.float32)[groups]
    picture = ndimage.gaussian_filter(picture, 0.8)[::2, ::2, ::2]
    matrix, _ = register_rigid(target, target_affine, picture, affine @ coarser, mask=target > 0)

    def resample(image: np.ndarray, at: np.ndarray, shape, to: np.ndarray) -> np.ndarray:
        transform = np.linalg.inv(at) @ matrix @ to
        return ndimage.affine_transform(
            image, transform[:3, :3], transform[:3, 3], shape, order=0, cval=0
        )

    brain = resample(np.isin(groups, (2, 3, 4)), affine, target.shape, target_affine)
    within_template = (brain & (target > 0)).sum() / max(brain.sum(), 1)
    if within_template < LEAST_WITHIN:
        raise InputError(
            f"{path}: could not be brought to MNI space ({within_template:.0%} of its brain "
            "lies within the template's); is it a whole head with a true affine?"
        )
    grid = _margin_grid(1)
    moved = resample(labels, affine, grid.shape, grid.affine)
    left, right = np.isin(moved, LEFT), np.isin(moved, RIGHT)
    if ndimage.center_of_mass(left)[0] > ndimage.center_of_mass(right)[0]:
        raise InputError(f"{path}: left labels lie on the right; mend its affine")
    ventricle = np.isin(moved, GROUPS["ventricle"])
    wall = wall_maps(ventricle & left, ventricle & right)
    # No ventricle grows beyond this box.
    box = tuple(
        slice(max(s.start - REACH, 0), s.stop + REACH)
        for s in ndimage.find_objects(ventricle.astype(np.uint8))[0]
    )
    parts, within = moved[box], ventricle[box]
    matter = np.isin(parts, GROUPS["grey"] + GROUPS["white"])
    tissue, nearest_ventricle = moved.copy(), moved.copy()
    tissue[box] = np.where(within, _spread(parts, matter), parts)
    nearest_ventricle[box] = _spread(parts, within)
    parenchyma = np.isin(tissue, GROUPS["grey"] + GROUPS["white"]).astype(np.float32)
    work = _margin_grid(resolution)
    return {
        "tissue": tissue.astype(np.int16)[..., None],
        "ventricle": nearest_ventricle.astype(np.int16)[..., None],
        "parenchyma": ndimage.gaussian_filter(parenchyma, 1.0)[..., None],
        "wall": np.stack([averaged(c, work) for c in wall], axis=-1),
        "head_volume": np.array(float(np.isin(moved, BRAIN).sum())),
    }


def _spread(labels: np.ndarray, where: np.ndarray) -> np.ndarray:
    """For each voxel, the nearest label among those `where` allows."""
    nearest = ndimage.distance_transform_edt(~where, return_distances=False, return_indices=True)
    return labels[tuple(nearest)]


def _margin_grid(resolution: int) -> VoxelGrid:
    """The paper's field of view with `MARGIN` mm more on each side."""
    paper = paper_grid(resolution)
    affine = paper.affine.copy()
    affine[:3, 3] -= MARGIN
    return VoxelGrid(tuple(s + 2 * MARGIN // resolution for s in paper.shape), affine)


def _kept(folder: Path, which: int) -> Path:
    # Written last, so that its presence says that the rest is there.
    return folder / f"map{which:04d}.npy"


def _keep(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array)


@lru_cache(maxsize=16)
def _load_head(folder: Path, which: int, resolution: int) -> _Head:
    def load(name: str, grid: VoxelGrid) -> Volume:
        # Mapped, not read: processes share the pages.
        array = np.load(folder / f"map{which:04d}_{name}.npy", mmap_mode="r")
        return Volume(array, grid.affine)

    fine, work = _margin_grid(1), _margin_grid(resolution)
    return _Head(
        load("tissue", fine),
        load("ventricle", fine),
        load("parenchyma", fine),
        load("wall", work),
        float(np.load(_kept(folder, which))),
    )


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        image = nib.load(path)
        voxels = np.asarray(image.dataobj)
    except (OSError, EOFError, zlib.error, ValueError, nib.filebasedimages.ImageFileError) as error:
        raise InputError(f"{path}: cannot be read ({str(error)[:100]})") from None
    if voxels.ndim != 3:
        raise InputError(f"{path}: {voxels.ndim} dimensions, a label map has 3")
    labels = np.rint(np.nan_to_num(voxels, nan=-1)).astype(np.int32)
    unknown = np.setdiff1d(np.unique(labels), list(NAMES))
    if unknown.size:
        raise InputError(
            f"{path}: labels {unknown[:5].tolist()} are not FreeSurfer's or SynthSeg's"
        )
    missing = [NAMES[n] for n in (4, 43, 2, 41, 3, 42) if not (labels == n).any()]
    if missing:
        raise InputError(f"{path}: no {missing[0]}; a whole brain is needed")
    return labels, image.affine


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
