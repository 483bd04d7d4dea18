"""Deformations by pull-back: where each voxel of a new brain comes from in an old one."""

import numpy as np

from brain_ldm.cohorts.ageing import Person
from brain_ldm.cohorts.grid import VoxelGrid

NODE_SPACING = 32.0  # mm between control points of the individual deformation
NODE_STD = 5.5  # mm at the control points, about 2 mm after the spline
ROTATION_STD = 0.01  # rad left over by a rigid registration
SHIFT_STD = 0.5  # mm
STRETCH_STD = 0.015  # relative, along each axis, at constant volume
PIECE = 16384  # points


class Volume:
    """Channels on a grid that can be read between voxels.

    Args:
        channels: (X, Y, Z, C), float32 to be read between voxels, or labels for `nearest`.
        affine: (4, 4) voxel to world in mm, diagonal.
    """

    def __init__(self, channels: np.ndarray, affine: np.ndarray):
        self.shape = channels.shape[:3]
        self.flat = np.ascontiguousarray(channels).reshape(-1, channels.shape[3])
        self.origin = affine[:3, 3].astype(np.float32)
        self.step = np.diag(affine)[:3].astype(np.float32)

    def _index(self, points: np.ndarray) -> np.ndarray:
        last = np.array(self.shape, dtype=np.float32) - 1
        return np.clip((points - self.origin) / self.step, 0, last - np.float32(1e-3))

    def linear(self, points: np.ndarray) -> np.ndarray:
        """Trilinear values (N, C) at world points (N, 3) in mm; the border is repeated outside."""
        # One gather of whole channel rows for each of 8 corners, in pieces that stay in the cache:
        # several times faster than scipy's map_coordinates, channel by channel.
        values = np.empty((len(points), self.flat.shape[1]), dtype=np.float32)
        for start in range(0, len(points), PIECE):
            piece = slice(start, start + PIECE)
            self._linear(points[piece], values[piece])
        return values

    def _linear(self, points: np.ndarray, values: np.ndarray) -> None:
        index = self._index(points)
        base = index.astype(np.int32)
        high = index - base
        low = 1 - high
        _, ny, nz = self.shape
        corner = (base[:, 0] * ny + base[:, 1]) * nz + base[:, 2]
        values[:] = 0
        for dx, wx in enumerate((low[:, 0], high[:, 0])):
            for dy, wy in enumerate((low[:, 1], high[:, 1])):
                wxy = wx * wy
                for dz, wz in enumerate((low[:, 2], high[:, 2])):
                    rows = self.flat.take(corner + ((dx * ny + dy) * nz + dz), axis=0)
                    rows *= (wxy * wz)[:, None]
                    values += rows

    def nearest(self, points: np.ndarray) -> np.ndarray:
        """Values (N, C) of the nearest voxels to world points (N, 3) in mm."""
        index = np.rint(self._index(points)).astype(np.int32)
        _, ny, nz = self.shape
        return self.flat.take((index[:, 0] * ny + index[:, 1]) * nz + index[:, 2], axis=0)


def spline_field(
    rng: np.random.Generator, grid: VoxelGrid, channels: int, spacing: float
) -> np.ndarray:
    """A smooth random field from a cubic B-spline over Gaussian control points.

    Control points are set in mm from the grid's edge: one seed gives one field at every resolution.

    Returns:
        float32 (X, Y, Z, channels); at the control points' variance of 1 its own is about .1.
    """
    weights = []
    for size, step in zip(grid.shape, np.diag(grid.affine), strict=False):
        at = (np.arange(size) * step + step / 2) / spacing
        nodes = int(np.ceil(size * step / spacing)) + 3
        distance = np.abs(at[:, None] - (np.arange(nodes) - 1))
        spline = np.where(
            distance < 1,
            2 / 3 - distance**2 + distance**3 / 2,
            np.clip(2 - distance, 0, None) ** 3 / 6,
        )
        weights.append(spline.astype(np.float32))
    wx, wy, wz = weights
    nodes = rng.standard_normal((channels, wx.shape[1], wy.shape[1], wz.shape[1]))
    field = nodes.astype(np.float32) @ wz.T
    field = np.swapaxes(np.swapaxes(field, 2, 3) @ wy.T, 2, 3)
    return np.ascontiguousarray(np.einsum("xa,cayz->xyzc", wx, field, optimize=True))


def individual(
    rng: np.random.Generator, grid: VoxelGrid, person: Person, head_volume: float, centre
) -> np.ndarray:
    """The pull-back of one person's head from a head of `head_volume` mm³ centred on `centre`.

    Returns:
        float32 (X, Y, Z, 3): where each voxel of `grid` comes from, in mm.
    """
    stretch = rng.standard_normal(3) * STRETCH_STD
    rotation = rng.standard_normal(3) * ROTATION_STD
    shift = rng.standard_normal(3) * SHIFT_STD
    size = (person.head_volume / head_volume) ** (1 / 3) * np.exp(stretch - stretch.mean())
    a, b, c = rotation
    # Of first order is enough for a degree or two.
    matrix = np.diag(1 / size) @ np.array([[1, -c, b], [c, 1, -a], [-b, a, 1]])
    offset = centre - matrix @ (centre + shift)
    axes = [
        (np.arange(n) * s + o).astype(np.float32)
        for n, s, o in zip(grid.shape, np.diag(grid.affine), grid.affine[:3, 3], strict=False)
    ]
    points = spline_field(rng, grid, 3, NODE_SPACING) * np.float32(NODE_STD)
    matrix, offset = matrix.astype(np.float32), offset.astype(np.float32)
    points += axes[0][:, None, None, None] * matrix[:, 0]
    points += axes[1][None, :, None, None] * matrix[:, 1]
    points += axes[2][None, None, :, None] * matrix[:, 2] + offset
    return points
