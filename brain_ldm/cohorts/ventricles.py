"""The lateral ventricles' wall as a distance map, and how it moves."""

import numpy as np
from scipy import ndimage

from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.cohorts.warp import Volume

PUSH_RANGE = 12.0  # mm over which the push of the ventricular wall fades to 1/e
# An old wall further in would leave tissue to be made up where there was none.
MOST_SHRINKING = np.float32(2.5)  # mm
SEPTUM = 0.8  # mm on either side of the surface between the ventricles that neither takes


def wall_maps(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, ...]:
    """Maps that tell how far the ventricles' wall is, in which direction, and on whose side.

    Args:
        left, right: bool (X, Y, Z) at 1 mm, the ventricles of each side.

    Returns:
        float32 (X, Y, Z) each: signed distance from the wall in mm, negative inside, smoothed;
        its gradient (3), shorter where walls face each other; and the distance from the surface
        midway between the two sides in mm, negative on the left.
    """
    to_left, to_right = (ndimage.distance_transform_edt(~side) for side in (left, right))
    both = left | right
    # The box around them, with a border that is outside, is all that the inner distance needs.
    box = tuple(
        slice(max(s.start - 1, 0), s.stop + 1)
        for s in ndimage.find_objects(both.astype(np.uint8))[0]
    )
    inside = np.zeros(both.shape)
    inside[box] = ndimage.distance_transform_edt(both[box])
    distance = np.where(inside > 0, 0.5 - inside, np.minimum(to_left, to_right) - 0.5)
    smooth = ndimage.gaussian_filter(distance.astype(np.float32), 1.0)
    side = ((to_left - to_right) / 2).astype(np.float32)
    return smooth, *np.gradient(smooth), side


def grow(
    points: np.ndarray, wall: Volume, volume: float, asymmetry: float, grid: VoxelGrid
) -> tuple[np.ndarray, np.ndarray]:
    """Move the ventricles' wall until they fill `volume`, and the tissue around with it.

    The wall moves by one distance everywhere, found by counting voxels. Tissue moves along the
    gradient of the distance map: at the wall as far as the wall, further away less, by e for each
    `PUSH_RANGE`. What the ventricles have taken is read from just outside the old wall.

    Args:
        points: (N, 3) in mm, where the voxels of `grid` come from in the old brain.
        wall: the five channels of `wall_maps`.
        volume: mm³ to be reached, unless the wall had to move in by more than `MOST_SHRINKING`.
        asymmetry: mm by which the left ventricle's wall moves less and the right one's more.
        grid: of which the points are some.

    Returns:
        (N, 3) where each point's tissue comes from, in mm, and the part (N,) of each point's
        voxel that is ventricle, 0 to 1.
    """
    values = wall.linear(points)
    distance, normal, side = values[:, 0], values[:, 1:4], values[:, 4]
    distance = distance - np.sign(side) * np.float32(asymmetry)
    distance[np.abs(side) < SEPTUM] += np.float32(1e3)
    count = int(np.clip(round(volume / grid.voxel_volume), 1, len(distance) - 1))
    moved = max(np.partition(distance, count)[count], -MOST_SHRINKING)
    ventricle = np.clip((moved - distance) / np.float32(grid.resolution) + 0.5, 0, 1)
    distance[distance > 500] -= np.float32(1e3)
    reach = np.float32(PUSH_RANGE) + np.abs(moved)
    shift = moved * np.exp(-np.maximum(distance - moved, 0) / reach)
    source = np.maximum(distance - shift, np.float32(0.5))
    return points - (distance - source)[:, None] * normal, ventricle
