import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brain_ldm.cohorts.cohort import open_cohort
from brain_ldm.cohorts.config import PhantomConfig
from brain_ldm.cohorts.grid import paper_grid
from brain_ldm.cohorts.labelmaps import CLASSES, open_label_maps
from brain_ldm.cohorts.labels import NAMES, volumes
from brain_ldm.cohorts.phantoms import write_phantom_cohort
from brain_ldm.errors import InputError

DATA = Path(os.environ.get("BRAIN_LDM_DATA", Path(__file__).parents[3] / "shared" / "data"))
MAPS = DATA / "label_maps"


def save(path, labels):
    nib.save(nib.Nifti1Image(labels.astype(np.int16), np.eye(4)), path)


def whole_brain():
    labels = np.zeros((12, 12, 12))
    labels.flat[:6] = [2, 41, 3, 42, 4, 43]
    return labels


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    if not MAPS.is_dir():
        pytest.skip(f"no label maps at {MAPS} (set BRAIN_LDM_DATA)")
    root = tmp_path_factory.mktemp("labelmaps")
    (root / "maps").mkdir()
    for source in (MAPS / "seg_03.nii.gz", *MAPS.glob("*.npy")):
        (root / "maps" / source.name).symlink_to(source)
    config = PhantomConfig(out=str(root / "cohort"), n=2, label_maps=str(root / "maps"), workers=1)
    return open_cohort(write_phantom_cohort(config))


def test_real_heads_come_with_skull_and_counted_volumes(cohort):
    for row in cohort.table.itertuples():
        labels, affine = cohort.read_labels(row.participant_id)
        assert volumes(labels, affine[0, 0] ** 3) == {
            "ventricular_volume": row.ventricular_volume,
            "brain_volume": row.brain_volume,
        }
        assert 0.7e6 < row.brain_volume < 1.6e6
        assert (labels == 515).any() and set(np.unique(labels)) <= set(NAMES)
        sidecar = str(cohort.image_path(row.participant_id)).replace(".nii.gz", ".json")
        assert json.loads(Path(sidecar).read_text())["SkullStripped"] is False


def test_each_row_names_its_label_map(cohort):
    assert set(cohort.table["label_map"]) == {"seg_03"}
    assert "Description" in json.loads((cohort.root / "participants.json").read_text())["label_map"]


def test_real_heads_lie_in_mni_space_with_left_on_the_left(cohort):
    labels, affine = cohort.read_labels(cohort.table["participant_id"][0])

    def middle(*wanted):
        voxels = np.argwhere(np.isin(labels, wanted)).mean(axis=0)
        return affine[:3, :3] @ voxels + affine[:3, 3]

    assert middle(4)[0] < -5 and middle(43)[0] > 5
    # Thalami and brain stem of MNI152, in mm.
    np.testing.assert_allclose(middle(10), [-11, -19, 7], atol=7)
    np.testing.assert_allclose(middle(49), [11, -19, 7], atol=7)


def test_white_matter_is_brighter_than_grey_and_csf_dark(cohort):
    pid = cohort.table["participant_id"][0]
    image, (labels, _) = cohort.read(pid), cohort.read_labels(pid)
    fine = image.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    white, grey, ventricle = (fine[np.isin(labels, n)].mean() for n in ([2, 41], [3, 42], [4, 43]))
    assert white > grey > ventricle
    assert cohort.grid.same_as(paper_grid(4))


def test_without_priors_classes_have_intensities_of_their_own(tmp_path):
    save(tmp_path / "a.nii.gz", whole_brain())
    maps = open_label_maps(tmp_path)
    assert maps.means.shape == (2, len(CLASSES))
    csf, grey, white = (maps.means[0, maps.classes[n]] for n in (24, 3, 2))
    assert csf < grey < white
    assert maps.classes[2] == maps.classes[41]


def test_priors_follow_their_class_file(tmp_path):
    save(tmp_path / "a.nii.gz", whole_brain())
    np.save(tmp_path / "generation_labels.npy", np.array([0, 2, 3, 4, 41, 42, 43]))
    np.save(tmp_path / "generation_classes.npy", np.array([0, 1, 2, 3, 1, 2, 3]))
    np.save(tmp_path / "prior_means_t1.npy", np.array([[0, 180, 90, 30], [1, 1, 1, 1]]))
    np.save(tmp_path / "prior_stds_t1.npy", np.ones((2, 4)))
    maps = open_label_maps(tmp_path)
    assert maps.means[0, maps.classes[[2, 42, 43]]].tolist() == [180, 90, 30]
    before = maps.digest
    np.save(tmp_path / "prior_stds_t1.npy", np.full((2, 4), 2))
    assert open_label_maps(tmp_path).digest != before
    np.save(tmp_path / "prior_stds_t1.npy", np.ones((2, 5)))
    with pytest.raises(InputError, match=r"prior_stds_t1.npy: shape \(2, 5\)"):
        open_label_maps(tmp_path)
    for name in ("prior_stds_t1.npy", "prior_means_t1.npy"):
        np.save(tmp_path / name, np.ones((2, 7)))
    with pytest.raises(InputError, match=r"prior_means_t1.npy: 7 classes"):
        open_label_maps(tmp_path)


@pytest.mark.parametrize(
    ("labels", "culprit"),
    [
        (np.full((12, 12, 12), 999), r"labels \[999\]"),
        (np.where(whole_brain() == 43, 0, whole_brain()), "no right-lateral-ventricle"),
        (whole_brain()[0], "2 dimensions"),
    ],
)
def test_wrong_maps_are_named_and_no_cohort_is_finished(tmp_path, labels, culprit):
    (tmp_path / "maps").mkdir()
    save(tmp_path / "maps" / "wrong.nii.gz", labels)
    config = PhantomConfig(
        out=str(tmp_path / "c"), n=1, label_maps=str(tmp_path / "maps"), workers=1
    )
    with pytest.raises(InputError, match=f"wrong.nii.gz: {culprit}"):
        write_phantom_cohort(config)
    assert not (tmp_path / "c" / "dataset_description.json").exists()
