"""The voxel grid that a cohort, a model and a synthetic brain share."""

from dataclasses import dataclass

import numpy as np

from brain_ldm.errors import InputError

RESOLUTIONS = (1, 2, 4)
# The paper crops heads to 160 x 224 x 160 at 1 mm in MNI space; it does not say where. Ours: x is
# symmetric about the midline; y and z are centred on the brain of MNI152 2009a, which spans
# x -72..72, y -107..73 and z -72..82 mm.
FIELD_OF_VIEW = (160, 224, 160)
LOW_EDGE = (-80.0, -129.0, -75.0)


@dataclass(frozen=True, eq=False)
class VoxelGrid:
    """Where voxels lie in the world.

    Attributes:
        shape: voxels along x, y and z.
        affine: (4, 4) voxel index to world in mm, diagonal with positive steps (RAS+).
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def resolution(self) -> float:
        """Edge of a voxel in mm."""
        return float(self.affine[0, 0])

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in mm³."""
        return float(np.prod(np.diag(self.affine)[:3]))

    def same_as(self, other: "VoxelGrid") -> bool:
        """Whether both grids have the same voxels, to a micrometre-scale tolerance."""
        return tuple(self.shape) == tuple(other.shape) and bool(
            np.allclose(self.affine, other.affine, atol=1e-3)
        )

    def to_dict(self) -> dict:
        """Plain data for a config file."""
        return {"shape": [int(s) for s in self.shape], "affine": self.affine.tolist()}

    @classmethod
    def from_dict(cls, data: dict) -> "VoxelGrid":
        """The grid that `to_dict` described."""
        return cls(tuple(int(s) for s in data["shape"]), np.asarray(data["affine"], dtype=float))

    def __str__(self) -> str:
        shape = "×".join(str(s) for s in self.shape)
        origin = ", ".join(f"{o:g}" for o in self.affine[:3, 3])
        return f"{shape} voxels of {self.resolution:g} mm from ({origin})"


def paper_grid(resolution: int) -> VoxelGrid:
    """The paper's field of view, 160×224×160 mm in MNI space, in voxels of `resolution` mm.

    All resolutions share the outer edges, so that each coarse voxel holds whole fine ones.

    Raises:
        InputError: if `resolution` is not 1, 2 or 4.
    """
    if resolution not in RESOLUTIONS:
        raise InputError(f"resolution is {resolution}: give 1, 2 or 4 (mm)")
    affine = np.diag([resolution, resolution, resolution, 1.0])
    affine[:3, 3] = np.add(LOW_EDGE, resolution / 2)
    return VoxelGrid(tuple(s // resolution for s in FIELD_OF_VIEW), affine)
