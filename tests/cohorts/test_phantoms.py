import subprocess
import sys

import numpy as np
import pytest

from brain_ldm.cohorts import phantoms
from brain_ldm.cohorts.ageing import Person
from brain_ldm.cohorts.cohort import open_cohort
from brain_ldm.cohorts.config import PhantomConfig
from brain_ldm.cohorts.drawing import work_grid
from brain_ldm.cohorts.grid import paper_grid
from brain_ldm.cohorts.labels import GROUPS, volumes
from brain_ldm.cohorts.phantoms import write_phantom_cohort
from brain_ldm.cohorts.template import _render, draw_phantom, lateral_ventricles, load_template
from brain_ldm.errors import InputError

ADULT = {"sex": "F", "head_volume": 1.45e6, "ventricular_volume": 28e3}
YOUNG = Person(age=45, sulci=0.5, contrast=0.32, **ADULT)
OLD = Person(age=80, sulci=2.6, contrast=0.18, **ADULT)


def render(person, seed=0):
    return _render(np.random.default_rng(seed), person, work_grid(4))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms") / "cohort"
    return open_cohort(write_phantom_cohort(PhantomConfig(out=str(root), n=3, seed=5, workers=2)))


def test_volumes_in_the_table_are_those_of_the_labels(cohort):
    for row in cohort.table.itertuples():
        labels, affine = cohort.read_labels(row.participant_id)
        assert affine[0, 0] == 2  # finer than the image
        counted = volumes(labels, 8.0)
        assert counted["ventricular_volume"] == row.ventricular_volume
        assert counted["brain_volume"] == row.brain_volume


def test_images_lie_on_the_papers_grid_and_show_a_brain(cohort):
    assert cohort.grid.same_as(paper_grid(4))
    image = cohort.read(cohort.table["participant_id"][0])
    assert image[0].max() == image[:, 0].max() == image[:, :, -1].max() == 0
    assert 0.6 < np.percentile(image[image > 0.02], 95) < 0.95


@pytest.mark.parametrize("workers", [1, 3])
def test_a_phantom_depends_on_seed_and_index_alone(cohort, tmp_path, workers):
    config = PhantomConfig(out=str(tmp_path / "c"), n=2, seed=5, workers=workers)
    fewer = open_cohort(write_phantom_cohort(config))
    assert fewer.table.equals(cohort.table[:2])
    for pid in fewer.table["participant_id"]:
        assert fewer.image_path(pid).read_bytes() == cohort.image_path(pid).read_bytes()


def test_seeds_differ_in_ids_and_brains():
    one, other = draw_phantom(0, 1, 4), draw_phantom(1, 1, 4)
    assert one.row["participant_id"] != other.row["participant_id"]
    assert not np.array_equal(one.image, other.image)


def test_an_interrupted_cohort_goes_on_where_it_stopped(cohort, tmp_path, monkeypatch):
    config = PhantomConfig(out=str(tmp_path / "c"), n=3, seed=5, workers=1)
    drawn = []

    def draw(seed, index, resolution):
        drawn.append(index)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return draw_phantom(seed, index, resolution)

    monkeypatch.setattr(phantoms, "draw_phantom", draw)
    with pytest.raises(KeyboardInterrupt):
        write_phantom_cohort(config)
    write_phantom_cohort(config)
    assert drawn == [0, 1, 1, 2]
    assert open_cohort(tmp_path / "c").content_hash() == cohort.content_hash()


def test_a_finished_cohort_is_kept_and_another_refused(cohort, capsys):
    before = cohort.image_path("sub-s5i00000").stat().st_mtime_ns
    write_phantom_cohort(PhantomConfig(out=str(cohort.root), n=3, seed=5))
    assert "already there" in capsys.readouterr().out
    assert cohort.image_path("sub-s5i00000").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="Number is 3 there, asked 4"):
        write_phantom_cohort(PhantomConfig(out=str(cohort.root), n=4, seed=5))


@pytest.mark.parametrize("volume", [8e3, 28e3, 90e3])
def test_ventricles_reach_the_volume_that_was_drawn(volume):
    labels, _ = render(Person(60, "M", 1.55e6, volume, 1.5, 0.25))
    assert volumes(labels, 8.0)["ventricular_volume"] == pytest.approx(volume, rel=0.02)


def test_age_takes_brain_opens_sulci_and_dims_contrast():
    (young, bright), (old, dim) = render(YOUNG), render(OLD)
    assert volumes(old, 8.0)["brain_volume"] < 0.93 * volumes(young, 8.0)["brain_volume"]
    assert (old == 24).sum() > 1.3 * (young == 24).sum()

    def contrast(labels, image):
        return image[np.isin(labels, [2, 41])].mean() - image[np.isin(labels, [3, 42])].mean()

    assert contrast(old, dim) < 0.75 * contrast(young, bright)


def test_larger_ventricles_push_white_matter_and_spare_the_cortex():
    small = render(Person(60, "M", 1.55e6, 20e3, 1.5, 0.25))[0]
    large = render(Person(60, "M", 1.55e6, 80e3, 1.5, 0.25))[0]
    ventricle = np.isin(large, [4, 43])
    assert (small[ventricle] != 24).mean() > 0.95
    surface = paper_grid(2).affine[2, 3] + 2 * np.arange(80) > 55  # mm, well above them
    assert (small[:, :, surface] == large[:, :, surface]).mean() > 0.97


def test_left_is_left():
    labels, _ = render(YOUNG)
    x = work_grid(4).affine[0, 3] + 2 * np.arange(labels.shape[0])
    for left, right in ((2, 41), (3, 42), (4, 43)):
        assert (x @ (labels == left).sum(axis=(1, 2))) < 0
        assert (x @ (labels == right).sum(axis=(1, 2))) > 0


def test_the_templates_ventricles_are_the_lateral_ones():
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template

    grey, white = load_mni152_gm_template(resolution=1), load_mni152_wm_template(resolution=1)
    csf = np.clip(1 - grey.get_fdata() - white.get_fdata(), 0, 1)
    ventricle = lateral_ventricles(csf, grey.affine)
    origin = grey.affine[:3, 3].astype(int)

    def there(x, y, z):
        return bool(ventricle[tuple(np.array([x, y, z]) - origin)])

    for side in (-1, 1):
        assert there(side * 8, 20, 6)  # frontal horn
        assert there(side * 14, -20, 22)  # body
        assert there(side * 29, -46, 5)  # atrium
        assert there(side * 34, -10, -21)  # temporal horn
        assert there(side * 37, -30, -11)  # and further back
    assert not there(0, -10, 0)  # 3rd ventricle
    assert not there(0, -45, -32)  # 4th ventricle
    assert not there(0, -36, 4)  # quadrigeminal cistern
    assert 15e3 < ventricle.sum() < 22e3


def test_a_2_mm_phantom_is_the_4_mm_one_in_more_detail():
    coarse, fine = draw_phantom(0, 3, 4), draw_phantom(0, 3, 2)
    for name in ("age", "sex"):
        assert coarse.row[name] == fine.row[name]
    for name in ("ventricular_volume", "brain_volume"):
        assert coarse.row[name] == pytest.approx(fine.row[name], rel=0.03)
    averaged = fine.image.reshape(40, 2, 56, 2, 40, 2).mean(axis=(1, 3, 5))
    assert np.corrcoef(averaged.ravel(), coarse.image.ravel())[0, 1] > 0.98
    load_template.cache_clear()


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"resolution": 3}, "resolution is 3"),
        ({"n": 0}, "n is 0"),
        ({"workers": 0}, "workers is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"label_maps": "nowhere"}, "label_maps=nowhere"),
    ],
)
def test_wrong_options_are_named_and_nothing_is_written(tmp_path, change, culprit):
    with pytest.raises(InputError, match=culprit):
        write_phantom_cohort(PhantomConfig(**{"out": str(tmp_path / "c"), **change}))
    assert not (tmp_path / "c").exists()


def test_the_command_answers_a_mistake_in_one_line(tmp_path):
    command = [sys.executable, "-m", "brain_ldm.phantom", f"out={tmp_path / 'c'}", "resolution=3"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert run.returncode == 2
    assert run.stderr.splitlines() == ["phantom: resolution is 3: give 1, 2 or 4 (mm)"]
    assert not list(tmp_path.iterdir())


def test_phantom_labels_are_known_tissues():
    labels, _ = render(YOUNG)
    assert set(np.unique(labels)) == {0, 2, 3, 4, 24, 41, 42, 43}
    assert set(np.unique(labels)) <= {n for group in GROUPS.values() for n in group}
