"""Figures: orientation, framing, and that every panel is drawn."""

import numpy as np
import pytest
from matplotlib.image import imread

from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.evaluation.figures import (
    Brain,
    Line,
    Points,
    Window,
    montage,
    scatter,
    sweep,
    window,
)


@pytest.fixture
def grid() -> VoxelGrid:
    affine = np.diag([10.0, 10.0, 10.0, 1.0])
    affine[:3, 3] = (-75, -105, -65)
    return VoxelGrid((16, 20, 16), affine)


def ball(grid: VoxelGrid, radius: float) -> np.ndarray:
    centre = np.divide(grid.shape, 2)
    away = np.indices(grid.shape).T - centre
    return (np.linalg.norm(away, axis=-1) < radius).T.astype(np.float32)


def test_planes_are_upright_with_the_left_on_the_left():
    volume = np.zeros((4, 5, 6), np.float32)
    frame = Window((0, 0, 0), volume.shape, (0, 4, 5))
    volume[0, 4, 5] = 1  # left, front, top
    assert frame.axial(volume).shape == (5, 4)
    assert frame.axial(volume)[0, 0] == 1  # front is up, left is left
    assert frame.coronal(volume).shape == (6, 4)
    assert frame.coronal(volume)[0, 0] == 1  # top is up, left is left
    assert frame.sagittal(volume).shape == (6, 5)
    assert frame.sagittal(volume)[0, -1] == 1  # top is up, front is right


def test_window_frames_every_brain_and_cuts_in_mni(grid):
    small, large = ball(grid, 3), ball(grid, 5)
    frame = window(grid, [small, large])
    assert frame == window(grid, [large])
    inside = large[tuple(map(slice, frame.low, frame.high))]
    assert inside.sum() == large.sum()
    assert max(frame.size) < max(grid.shape)
    world = grid.affine @ [*frame.cut, 1]
    assert world[:3] == pytest.approx((2, -14, 20), abs=5)


def test_montage_draws_three_planes_a_brain(grid, tmp_path):
    rows = {
        name: [
            Brain(ball(grid, 3 + i), (f"{50 + i} years, F", "ventricles 20.0 ml")) for i in (0, 1)
        ]
        for name in ("Real", "Reconstructed", "Synthetic")
    }
    figure = montage(tmp_path / "m.png", grid, rows)
    assert len(figure.axes) == 3 * 2 * 3
    words = [text.get_text() for text in figure.texts]
    assert {"Real", "Reconstructed", "Synthetic"} <= set(words)
    assert "51 years, F\nventricles 20.0 ml" in words
    for axes in figure.axes:
        (image,) = axes.images
        assert image.get_clim() == (0, 1)
        box = axes.get_window_extent()
        rows_, columns = image.get_array().shape
        assert box.width / box.height == pytest.approx(columns / rows_, rel=1e-3)
    pixels = imread(tmp_path / "m.png")
    assert pixels.shape[1] > 1500
    assert 0.1 < (pixels[..., 0] > 0.9).mean() < 0.9


def test_scatter_puts_the_ceiling_on_the_same_axes(tmp_path):
    x = np.array([10.0, 20.0, np.nan, 40.0])
    panel = Points("Age", "years", (x, x + 5), (x[:2], x[:2]), "r 1.000", "r 0.900")
    figure = scatter(tmp_path / "s.png", [panel, panel, panel])
    assert len(figure.axes) == 6
    synthetic, ceiling = figure.axes[:2]
    assert synthetic.get_xlim() == synthetic.get_ylim() == ceiling.get_xlim() == ceiling.get_ylim()
    identity, points = synthetic.lines
    assert np.array_equal(*identity.get_data())
    assert np.array_equal(points.get_ydata(), x + 5, equal_nan=True)
    assert "r 1.000" in [text.get_text() for text in synthetic.texts]
    assert imread(tmp_path / "s.png")[..., 0].min() < 0.2


def test_scatter_without_a_single_request_is_drawn_empty(tmp_path):
    nothing = np.full(3, np.nan)
    panel = Points("Age", "years", (nothing, np.ones(3)), (nothing, np.ones(3)), "no r", "no r")
    scatter(tmp_path / "s.png", [panel])
    assert (tmp_path / "s.png").stat().st_size > 5000


def test_sweep_draws_a_strip_and_its_lines(grid, tmp_path):
    brains = [Brain(ball(grid, 3 + i), (f"asked {i}", f"measured {i}")) for i in range(4)]
    values = np.arange(4.0)
    line = Line("Age: varied", "age", "age", [(values, values + 1)] * 2, (values, values), (-5, 2))
    figure = sweep(tmp_path / "s.png", grid, brains, [line, line, line])
    assert len(figure.axes) == 4 * 2 + 3
    assert [text.get_text() for text in figure.texts] == [
        f"asked {i}\nmeasured {i}" for i in range(4)
    ]
    low, high = figure.axes[-1].get_ylim()
    assert low < -5
    assert 4 < high < 5
    assert len(figure.axes[-1].lines) == 3  # what was requested, and two seeds
    assert (tmp_path / "s.png").stat().st_size > 5000
