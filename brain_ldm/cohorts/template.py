"""Phantoms from the MNI152 brain that nilearn carries."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from brain_ldm.cohorts.ageing import Person, draw_person
from brain_ldm.cohorts.drawing import Phantom, generator, participant_id, phantom, work_grid
from brain_ldm.cohorts.grid import VoxelGrid, paper_grid
from brain_ldm.cohorts.ventricles import grow, wall_maps
from brain_ldm.cohorts.warp import Volume, individual

# Raises the template's blurred tissue probabilities to those of one sharp brain.
SHARPNESS = 2.5
MIDDLE_INTENSITY = 0.62  # between grey and white matter
CSF_INTENSITY = 0.13
CENTRE = np.array([0.0, -17.0, 5.0])  # of the template's brain in mm


@dataclass(frozen=True)
class Template:
    """Maps of the template's brain.

    Attributes:
        tissue: grey, white and CSF probability (the lateral ventricles apart: there the tissue
            beside them goes on) and texture, the T1 image less its tissues' mean intensities.
        wall: the five maps of `ventricles.wall_maps`.
        inside: where a brain can be, dilated (1 channel, 0 or 1).
        head_volume: mm³ inside the brain mask.
    """

    tissue: Volume
    wall: Volume
    inside: Volume
    head_volume: float


@lru_cache(maxsize=1)
def load_template(resolution: int) -> Template:
    """The template on the paper's grid of `resolution` mm; kept, so that a fork shares it."""
    from nilearn import datasets

    grid = paper_grid(1)
    t1, grey, white = (
        _onto(load(resolution=1), grid)
        for load in (
            datasets.load_mni152_template,
            datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
        )
    )
    brain = t1 > 0
    # The cisterns below the brain are cut out of the template's mask: they are CSF.
    mask = ndimage.binary_fill_holes(ndimage.binary_closing(brain, iterations=6))
    csf = np.where(mask, np.clip(1 - grey - white, 0, 1), 0).astype(np.float32)
    ventricle = lateral_ventricles(csf, grid.affine)
    left = (np.arange(grid.shape[0]) < grid.shape[0] // 2)[:, None, None]
    wall = wall_maps(ventricle & left, ventricle & ~left)

    # Mean intensities by least squares on a tenth of the voxels; what they leave is texture.
    tissues = np.stack([grey, white, csf], axis=-1)
    means, *_ = np.linalg.lstsq(tissues[brain][::10], t1[brain][::10], rcond=None)
    texture = np.where(brain, t1 - tissues @ means.astype(np.float32), 0) * (1 - csf)
    texture = np.clip(texture, -0.15, 0.15)

    # Outside the wall the ventricle's blurred edge is no CSF, and inside it tissue goes on.
    box = ndimage.find_objects((wall[0] < 6).astype(np.uint8))[0]
    near = wall[0][box]
    total = np.maximum(grey + white, 1e-3)[box]
    source = ndimage.distance_transform_edt(near < 1.2, return_distances=False, return_indices=True)
    csf[box] = np.where(near < 3.5, 0, csf[box])
    for image in (grey, white):
        image[box] = np.where(near < 3.5, image[box] / total, image[box])
    for image in (grey, white, texture):
        image[box] = image[box][tuple(source)]

    work = paper_grid(resolution)
    tissue, walls, inside = (
        Volume(np.stack([averaged(c, work) for c in channels], axis=-1), work.affine)
        for channels in (
            (grey, white, csf, texture),
            wall,
            (ndimage.binary_dilation(mask, iterations=3),),
        )
    )
    return Template(tissue, walls, inside, float(mask.sum()))


def draw_phantom(seed: int, index: int, resolution: int) -> Phantom:
    """Phantom `index` of `seed`, from the MNI152 brain; it depends on nothing else.

    Args:
        resolution: of the image, 1, 2 or 4 mm.
    """
    rng = generator(seed, index)
    person = draw_person(rng)
    labels, image = _render(rng, person, work_grid(resolution))
    return phantom(rng, participant_id(seed, index), person, labels, image, resolution)


def _render(
    rng: np.random.Generator, person: Person, work: VoxelGrid
) -> tuple[np.ndarray, np.ndarray]:
    """Labels int16 and intensities float32 (X, Y, Z) of one person on the work grid."""
    template = load_template(round(work.resolution))
    points = individual(rng, work, person, template.head_volume, CENTRE)
    asymmetry = rng.normal(0, 0.4)
    flat = points.reshape(-1, 3)
    # Asked for every block of 2 voxels, by its middle.
    middle = (points[::2, ::2, ::2] + points[1::2, 1::2, 1::2]) / 2
    blocks = template.inside.nearest(middle.reshape(-1, 3)).reshape(middle.shape[:3]) > 0.5
    inside = np.flatnonzero(blocks.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2))
    points = flat[inside]
    left = points[:, 0] < 0

    came_from, ventricle = grow(points, template.wall, person.ventricular_volume, asymmetry, work)
    tissue = template.tissue.linear(came_from)

    grey, white, csf = np.clip(tissue[:, :3], 0, 1).T
    outside = np.clip(1 - grey - white - csf, 0, 1)
    grey, white, csf, outside = (p**SHARPNESS for p in (grey, white, csf, outside))
    csf *= np.exp(person.sulci, dtype=np.float32)
    total = grey + white + csf + outside + 1e-6
    grey, white, csf, outside = (p / total for p in (grey, white, csf, outside))

    half = person.contrast / 2
    intensity = (
        grey * np.float32(MIDDLE_INTENSITY - half)
        + white * np.float32(MIDDLE_INTENSITY + half)
        + csf * np.float32(CSF_INTENSITY)
        + tissue[:, 3] * (grey + white)
    )
    intensity += ventricle * (np.float32(CSF_INTENSITY) - intensity)

    best = np.argmax(np.stack([outside, csf, grey, white]), axis=0)
    label = np.where(
        left, np.array([0, 24, 3, 2], dtype=np.int16)[best], np.array([0, 24, 42, 41])[best]
    )
    label = np.where(ventricle > 0.5, np.where(left, 4, 43), label)

    labels = np.zeros(len(flat), dtype=np.int16)
    image = np.zeros(len(flat), dtype=np.float32)
    labels[inside], image[inside] = label, intensity
    return labels.reshape(work.shape), image.reshape(work.shape)


def lateral_ventricles(csf: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The lateral and inferior lateral ventricles of MNI152 2009a.

    Boxes in MNI space around horns, bodies, atria and temporal horns keep the 3rd ventricle, the
    quadrigeminal cistern and the fissures out; only pieces that a ventricle would have remain.

    Args:
        csf: (X, Y, Z) probability of CSF at 1 mm.
        affine: (4, 4) of it.

    Returns:
        bool (X, Y, Z).
    """
    x, y, z = np.meshgrid(
        *(np.arange(n) + o for n, o in zip(csf.shape, affine[:3, 3], strict=True)),
        indexing="ij",
        sparse=True,
    )
    x = np.abs(x)
    frontal = (x > 1) & (x < 24) & (y > 3) & (y < 36) & (z > -6) & (z < 26)
    body = (x > 1) & (x < 26) & (y > -30) & (y <= 4) & (z > np.where(y < -2, 17, 12)) & (z < 34)
    atrium = (y <= -22) & (y > -58) & (z > -6) & (z < 34) & (x > np.where(z < 17, 15, 4)) & (x < 40)
    temporal = (
        (z <= 0) & (z > -24) & (y < -6) & (y > -48) & (x < 42) & (x > np.where(y < -13, 31, 25))
    )
    # The temporal horn is a slit that the average of many brains blurs.
    ventricle = ((csf > 0.5) & (frontal | body | atrium)) | ((csf > 0.3) & temporal)
    pieces, count = ndimage.label(ventricle, structure=np.ones((3, 3, 3)))
    sizes = ndimage.sum_labels(ventricle, pieces, np.arange(count + 1))
    return (sizes >= 60)[pieces] & ventricle


def _onto(image, grid: VoxelGrid) -> np.ndarray:
    """A NIfTI image of the same voxel size, shifted onto `grid`; float32."""
    shift = grid.affine[:3, 3] - image.affine[:3, 3]
    voxels = image.get_fdata(dtype=np.float32)
    return ndimage.affine_transform(voxels, np.ones(3), shift, grid.shape, order=1)


def averaged(image: np.ndarray, work: VoxelGrid) -> np.ndarray:
    """A 1 mm image of the paper's grid, averaged over the voxels of `work`."""
    k = round(work.resolution)
    x, y, z = work.shape
    return image.reshape(x, k, y, k, z, k).mean(axis=(1, 3, 5), dtype=np.float32)
