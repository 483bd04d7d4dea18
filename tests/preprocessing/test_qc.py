"""Quality control by eye: pictures, the page, and reject.txt."""

from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from brain_ldm.cohorts.grid import paper_grid
from brain_ldm.errors import InputError
from brain_ldm.preprocessing.page import GROUP
from brain_ldm.preprocessing.qc import PLANES, SIZE, draw, read_reject, write_page

ODD = '<script>alert("&")</script>'


def world(grid):
    """Coordinates in mm of every voxel's middle: three arrays (X, Y, Z)."""
    index = np.indices(grid.shape)
    return [index[a] * grid.resolution + grid.affine[a, 3] for a in range(3)]


def drawn(image, grid, mask, folder):
    path = folder / "qc" / "sub-1.jpg"
    draw(image, grid, mask, path)
    assert [p.name for p in path.parent.iterdir()] == ["sub-1.jpg"]
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and picture.size == SIZE == (544, 224)
        return np.asarray(picture, dtype=int)


def row(number, score, reason="", source="scan.nii.gz"):
    return {
        "participant_id": f"sub-{number}",
        "score": score,
        "source": source,
        "reason": reason,
    }


class Page(HTMLParser):
    """The page's cards by participant_id, the order of all ids, and what a person reads."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.ids, self.cards, self.text, self.links = [], [], {}, [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.links += [given[name] for name in ("src", "href") if name in given]
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "li":
            self.card = self.cards[given["id"]] = {"button": None, "img": None}
        elif tag in ("button", "img") and self.cards:
            self.card[tag] = given

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("resolution", [2, 4])
def test_each_plane_is_upright_with_left_on_the_left_and_front_on_the_right(resolution, tmp_path):
    grid = paper_grid(resolution)
    x, y, z = PLANES
    # A spot in each plane, and the pixel where it belongs: the field of view begins at -80, -129
    # and -75 mm and ends at 80, 95 and 85 mm; the lower planes stand 32 pixels below the edge.
    spots = {
        (x, 50, 60): (50 + 129, 32 + 85 - 60),  # sagittal: front and top
        (-40, y, 50): (224 + 80 - 40, 32 + 85 - 50),  # coronal: left and top
        (-40, 50, z): (384 + 80 - 40, 95 - 50),  # axial: left and front
    }
    image = np.zeros(grid.shape, np.float32)
    for spot in spots:
        image[np.all([np.abs(w - s) < 8 for w, s in zip(world(grid), spot, strict=True)], 0)] = 1
    pixels = drawn(image, grid, np.zeros(grid.shape, bool), tmp_path)
    bright = pixels.min(axis=2) > 200
    panels = ((0, 224), (224, 384), (384, 544))
    for (left, right), (column, line) in zip(panels, spots.values(), strict=True):
        lines, columns = np.nonzero(bright[:, left:right])
        assert columns.mean() + left == pytest.approx(column, abs=resolution + 1)
        assert lines.mean() == pytest.approx(line, abs=resolution + 1)
        assert len(lines) == pytest.approx(16**2, rel=0.35)


def test_the_outline_runs_along_the_masks_border_and_the_midline_between_the_halves(tmp_path):
    grid = paper_grid(2)
    x, y, z = world(grid)
    radius = 50
    mask = (x - 10) ** 2 + (y + 16) ** 2 + (z - 19) ** 2 < radius**2
    pixels = drawn(np.full(grid.shape, 0.3, np.float32), grid, mask, tmp_path)
    red, _, blue = np.moveaxis(pixels, 2, 0)
    lines, columns = np.nonzero(red - blue > 90)
    axial = columns >= 384
    across, along = columns[axial] + 0.5 - 384 - 80, 95 - lines[axial] - 0.5  # mm
    away = np.abs(np.hypot(across - 10, along + 16) - radius)
    assert np.median(away) < 1 and away.max() < 4  # a voxel, and what JPEG smears
    angles = np.degrees(np.arctan2(along + 16, across - 10)).round(-1)
    assert len(np.unique(angles % 360)) == 36  # all the way round
    middle = blue - red > 15
    assert np.nonzero(middle[10:20])[1].mean() == pytest.approx(384 + 79.5, abs=0.5)
    assert middle[100:120, 384 + 79 : 384 + 81].mean() > 0.5
    assert middle[:, :224].mean(axis=0).max() < 0.2  # none in the sagittal plane


def test_a_mask_beyond_the_picture_and_odd_intensities_are_drawn(tmp_path):
    grid = paper_grid(4)
    image = np.linspace(-1, 2, np.prod(grid.shape), dtype=np.float32).reshape(grid.shape)
    pixels = drawn(image, grid, np.ones(grid.shape, bool), tmp_path)
    assert pixels.min() == 0 and pixels.max() == 255


def test_the_page_shows_lowest_scores_first_and_rejected_ones_apart(tmp_path):
    rows = [row(number, score) for number, score in ((1, 0.9), (2, 0.62), (3, 0.71), (4, 0.9))]
    rows += [row(5, 0.31, "correlation 0.31"), row(6, None, "truncated"), row(7, 0.85, "by eye")]
    (tmp_path / "qc").mkdir()
    for number in (1, 2, 3, 4, 5, 7):
        (tmp_path / "qc" / f"sub-{number}.jpg").touch()
    (tmp_path / "reject.txt").write_text("# seen\nsub-7\tmotion\n")
    write_page(tmp_path, rows[::-1], 0.6, tmp_path / "reject.txt")
    page = Page(tmp_path / "qc" / "index.html")

    order = [name for name in page.ids if name.startswith("sub-") or name in ("kept", "rejected")]
    assert order == ["kept", *(f"sub-{n}" for n in (2, 3, 1, 4)), "rejected"] + [
        f"sub-{n}" for n in (5, 7, 6)
    ]
    kept, low, by_eye = (page.cards[f"sub-{n}"] for n in (1, 5, 7))
    assert kept["button"]["aria-pressed"] == "false" and by_eye["button"]["aria-pressed"] == "true"
    assert low["button"] is None and "sub-6" not in page.cards
    assert kept["img"] == {
        "src": "sub-1.jpg",
        "alt": "Reject sub-1",
        "loading": "lazy",
        "width": "544",
        "height": "224",
    }
    assert page.tags.count("rect") == 5  # 0.31 .62 .71 .85, and 0.9 twice in one bin
    text = "".join(page.text)
    assert "7 scans" in text and "4 kept" in text and "3 rejected" in text
    assert "least_correlation=0.6" in text and "correlation 0.31" in text and "truncated" in text
    assert "# seen\nsub-7\tmotion\n" in text  # kept as it is, for the new file
    assert str(tmp_path.resolve() / "reject.txt") in text
    assert not [link for link in page.links if ":" in link or link.startswith("/")]


def test_odd_names_are_text_and_no_markup(tmp_path):
    root = tmp_path / 'a"<b>&'
    root.mkdir()
    rows = [
        row(1, 0.9, source=f"{ODD}.zip"),
        row(2, None, reason=ODD),
        {**row(0, None, reason="no id"), "participant_id": ODD},
    ]
    reject = root / "mine.txt"
    reject.write_text("# </textarea>" + ODD)
    write_page(root, rows, 0.6, reject)
    page = Page(root / "qc" / "index.html")
    assert page.tags.count("script") == page.tags.count("textarea") == 1
    assert "b" in page.tags and ODD in page.ids
    assert sum(ODD in text for text in page.text) >= 3
    assert str(reject.resolve()) in "".join(page.text)


def test_a_cohort_without_scores_or_of_many_groups_has_a_page(tmp_path):
    write_page(tmp_path, [row(1, None, "unreadable")], 0.6, tmp_path / "reject.txt")
    assert "svg" not in Page(tmp_path / "qc" / "index.html").tags
    rows = [row(number, 0.58 + number / 1000) for number in range(2 * GROUP + 1)]
    write_page(tmp_path, rows, 0.6, tmp_path / "reject.txt")
    page = Page(tmp_path / "qc" / "index.html")
    assert list(page.cards) == [f"sub-{number}" for number in range(len(rows))]
    assert page.tags.count("ol") == 3


def test_reject_txt_has_ids_reasons_and_comments(tmp_path):
    path = tmp_path / "reject.txt"
    assert read_reject(path) == {}
    path.write_bytes(
        b"\xef\xbb\xbf# by eye\r\nsub-1\r\n\r\n  sub-2S3\tmoved a lot \r\n"
        b"sub-4 # cut off\r\nsub-1 again\r\n"
    )
    assert read_reject(path) == {"sub-1": "", "sub-2S3": "moved a lot", "sub-4": "cut off"}


@pytest.mark.parametrize("line", ["1234567", "sub-1,motion", "participant_id", "sub-é", "sub-"])
def test_a_line_that_is_no_id_is_named(tmp_path, line):
    path = tmp_path / "reject.txt"
    path.write_text(f"sub-1\n\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"reject.txt: line 3: .* is no participant_id"):
        read_reject(path)
    with pytest.raises(InputError, match="line 3"):
        write_page(tmp_path, [row(1, 0.9)], 0.6, tmp_path / "reject.txt")
    assert not (tmp_path / "qc").exists()


def test_a_reject_txt_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "reject.txt"
    path.write_text("sub-1\n", encoding="utf-16")
    with pytest.raises(InputError, match=r"reject.txt: not readable as UTF-8 text"):
        read_reject(path)
    with pytest.raises(InputError, match="not readable"):
        read_reject(tmp_path)
