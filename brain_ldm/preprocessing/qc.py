"""Quality control by eye: a picture a scan, the page that shows them, and reject.txt."""

import re
import uuid
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from brain_ldm.cohorts.files import brief, write_text
from brain_ldm.cohorts.grid import FIELD_OF_VIEW, VoxelGrid
from brain_ldm.errors import InputError
from brain_ldm.preprocessing.page import page

# Where planes are cut, mm in MNI space: beside the midline, and through both lateral ventricles.
PLANES = (3.0, -16.0, 19.0)
# Sagittal, coronal and axial side by side, a pixel a mm: width and height.
SIZE = (FIELD_OF_VIEW[1] + 2 * FIELD_OF_VIEW[0], FIELD_OF_VIEW[1])

OUTLINE, MIDLINE, LETTER = (255, 150, 30), (120, 200, 255), (150, 158, 166)
OUTLINE_WIDTH = 1.3  # pixels
MIDLINE_STRENGTH = 0.5
QUALITY = 50  # 20 kB for a sharp head; half of them for a blurred one


def draw(image: np.ndarray, grid: VoxelGrid, mask: np.ndarray, path: Path) -> None:
    """Draw a scan and the template's outline over it, as a JPEG of `SIZE`; written whole.

    Sagittal (front to the right), coronal and axial planes at `PLANES`, all on one scale, with the
    participant's left on the left. Grey goes from 0 (black) to 1 (white).

    Args:
        image: (X, Y, Z) intensities in 0..1.
        grid: of the image; one of `paper_grid`.
        mask: bool (X, Y, Z), the template's brain on the same grid.
        path: of the picture; its folder is made.
    """
    picture = Image.new("RGB", SIZE)
    softness = max(0.6 * grid.resolution, 1)  # rounds the voxels' staircase off
    left = 0
    for number, (scan, brain) in enumerate(
        zip(_planes(image, grid), _planes(mask, grid), strict=True)
    ):
        grey = _pixels(scan, grid).clip(0, 1)[..., None] * 255 * np.ones(3)
        if number:  # coronal and axial
            away = np.arange(grey.shape[1]) + 0.5 - grey.shape[1] / 2
            grey = _blend(grey, MIDLINE, MIDLINE_STRENGTH * (1 - np.abs(away)).clip(0, 1)[None])
        line = _outline(ndimage.gaussian_filter(_pixels(brain, grid), softness))
        tile = Image.fromarray(np.rint(_blend(grey, OUTLINE, line)).astype(np.uint8))
        if number:
            ImageDraw.Draw(tile).text((3, 1), "L", LETTER, ImageFont.load_default(13))
        picture.paste(tile, (left, (SIZE[1] - tile.height) // 2))
        left += tile.width
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}_{path.name}")
    # Colours at full resolution: the outline is about a pixel wide.
    picture.save(temporary, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
    temporary.replace(path)


def _planes(volume: np.ndarray, grid: VoxelGrid) -> list[np.ndarray]:
    """Sagittal, coronal and axial (rows, columns): top or front up, left or back on the left."""
    voxel = np.rint(np.linalg.solve(grid.affine, [*PLANES, 1.0])[:3]).astype(int)
    x, y, z = voxel
    return [volume[x, :, ::-1].T, volume[:, y, ::-1].T, volume[:, ::-1, z].T]


def _pixels(plane: np.ndarray, grid: VoxelGrid) -> np.ndarray:
    """A plane (rows, columns) of voxels as pixels, float32."""
    size = [round(n * grid.resolution) for n in reversed(plane.shape)]
    voxels = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    return np.asarray(voxels.resize(size, Image.Resampling.BICUBIC))


def _outline(soft: np.ndarray) -> np.ndarray:
    """How much of each pixel the line covers along which a blurred mask is ½; in 0..1."""
    steepness = np.hypot(*np.gradient(soft))
    away = np.abs(soft - 0.5) / np.maximum(steepness, 1e-6)  # in pixels, near the line
    return (OUTLINE_WIDTH / 2 + 0.5 - away).clip(0, 1)


def _blend(picture: np.ndarray, colour: tuple[int, int, int], strength: np.ndarray) -> np.ndarray:
    return picture + strength[..., None] * (np.array(colour) - picture)


def write_page(root: Path, rows: list[dict], least_correlation: float, reject: Path) -> None:
    """Write `<root>/qc/index.html`: every scan by its score, lowest first.

    Args:
        root: folder of the cohort; pictures are `<root>/qc/<participant_id>.jpg`.
        rows: a row a scan: participant_id; source, the file it came from; score, its correlation
            with the template, or None where it did not come so far; and reason, why it is rejected,
            empty where it is kept.
        least_correlation: what a score must reach.
        reject: the text file where rejected participant_ids go, which need not exist yet.

    Raises:
        InputError: `reject` cannot be read, or a line of it is no participant_id.
    """
    listed = read_reject(reject)
    folder = root / "qc"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {path.stem for path in folder.glob("*.jpg")}
    scans = [
        row
        | {
            "picture": row["participant_id"] in pictures,
            "listed": row["participant_id"] in listed,
        }
        for row in rows
    ]
    lowest = -2.0  # below any correlation
    scans.sort(
        key=lambda row: (lowest if row["score"] is None else row["score"], row["participant_id"])
    )
    text = reject.read_text("utf-8-sig") if reject.exists() else ""
    look = {
        "width": SIZE[0],
        "height": SIZE[1],
        "planes": "x {:g}, y {:g}, z {:g} mm".format(*PLANES),
    }
    write_text(
        folder / "index.html",
        page(root.resolve(), scans, least_correlation, reject.resolve(), text, look),
    )


def read_reject(path: Path) -> dict[str, str]:
    """Read which participants a person rejected.

    Args:
        path: a text file with a participant_id a line, and perhaps a reason after it; blank lines
            and those that begin with # say nothing. None is rejected where there is no such file.

    Returns:
        participant_id to reason, which may be empty.

    Raises:
        InputError: it cannot be read, or a line is no participant_id.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as UTF-8 text ({brief(error)})") from None
    reasons = {}
    for number, line in enumerate(lines, 1):
        participant_id, _, reason = line.strip().replace("\t", " ").partition(" ")
        if not participant_id or participant_id.startswith("#"):
            continue
        if not re.fullmatch(r"sub-[A-Za-z0-9]+", participant_id):
            raise InputError(
                f"{path}: line {number}: {participant_id!r} is no participant_id; give sub- and "
                "letters or digits, a reason only after a blank, and # before a comment"
            )
        reasons.setdefault(participant_id, reason.strip(" #"))
    return reasons
