import json
import os
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from brain_ldm.cohorts.cohort import assign_split, open_cohort
from brain_ldm.cohorts.grid import VoxelGrid, paper_grid
from brain_ldm.cohorts.writer import CohortWriter
from brain_ldm.errors import InputError
from tests.bids import bids_errors

GRID = VoxelGrid((24, 28, 20), np.diag([4.0, 4.0, 4.0, 1.0]))
MADE_BY = {"Name": "test", "Seed": 1}


def writer(root, **changes):
    arguments = {"name": "Test", "generated_by": MADE_BY, "grid": GRID, "synthetic": True}
    return CohortWriter(root, **{**arguments, **changes})


def image(seed):
    return np.random.default_rng(seed).random(GRID.shape, dtype=np.float32)


def row(i, **more):
    return {"participant_id": f"sub-{i:02d}", "age": 50.0 + i, "sex": "FM"[i % 2], **more}


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "cohort"
    made = writer(root)
    for i in range(4):
        made.add(row(i), image(i), labels=np.full((12, 14, 10), 4), label_affine=np.diag([2.0] * 4))
    made.finish()
    return root


def edit(root, change):
    path = root / "participants.tsv"
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    change(table).to_csv(path, sep="\t", index=False)


def image_path(root, i=2):
    return root / f"sub-{i:02d}/anat/sub-{i:02d}_space-MNI152NLin2009aSym_desc-synth_T1w.nii.gz"


def save(path, voxels, affine=GRID.affine):
    nib.save(nib.Nifti1Image(voxels, affine), path)


def test_what_was_written_is_read(root):
    cohort = open_cohort(root, need=("age", "sex"))
    assert cohort.grid.same_as(GRID)
    assert cohort.table["age"].tolist() == [50, 51, 52, 53]
    assert cohort.table["sex"].tolist() == ["F", "M", "F", "M"]
    assert cohort.table["brain_volume"].isna().all()
    np.testing.assert_allclose(cohort.read("sub-02"), image(2), atol=1 / 4096)
    assert cohort.read("sub-02").dtype == np.float32
    labels, affine = cohort.read_labels("sub-02")
    assert labels.shape == (12, 14, 10) and (labels == 4).all() and affine[0, 0] == 2


def test_headers_say_mni_space_and_mm(root):
    header = nib.load(image_path(root)).header
    assert header["sform_code"] == header["qform_code"] == 4
    assert header.get_xyzt_units()[0] == "mm"


def test_a_real_cohort_has_no_synthetic_names_and_opens_alike(tmp_path):
    made = writer(tmp_path / "real", synthetic=False, skull_stripped=False)
    made.add(row(0), image(0))
    made.finish()
    cohort = open_cohort(tmp_path / "real")
    path = cohort.image_path("sub-00")
    assert path.name == "sub-00_space-MNI152NLin2009aSym_T1w.nii.gz"
    sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
    assert json.loads(sidecar.read_text())["SkullStripped"] is False
    assert cohort.label_path("sub-00") is None
    with pytest.raises(InputError, match="sub-00 has no segmentation"):
        cohort.read_labels("sub-00")


def test_splits_are_stable_and_near_their_fractions():
    ids = [f"sub-{i}" for i in range(4000)]
    counts = pd.Series([assign_split(i) for i in ids]).value_counts(normalize=True)
    assert counts.to_dict() == pytest.approx({"train": 0.80, "val": 0.05, "test": 0.15}, abs=0.02)
    # Golden: a participant of a published cohort must not change sides.
    assert [assign_split(i) for i in ("sub-1", "sub-4", "sub-0")] == [
        "train",
        "val",
        "test",
    ]


def test_extra_columns_are_kept_and_described(tmp_path):
    made = writer(tmp_path / "c", extra_columns={"seed": {"Description": "Seed"}})
    made.add(row(0, seed=7, split="test"), image(0))
    made.finish()
    table = open_cohort(tmp_path / "c").rows("test")
    assert table["seed"].tolist() == [7]
    assert "seed" in json.loads((tmp_path / "c/participants.json").read_text())


def test_the_hash_tells_voxels_and_tables_apart(root, tmp_path):
    before = open_cohort(root).content_hash()
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    assert open_cohort(copy).content_hash() == before
    voxels = np.asarray(nib.load(image_path(copy)).dataobj)
    voxels[0, 0, 0] = 1 - voxels[0, 0, 0]
    save(image_path(copy), voxels.astype(np.float32))
    assert open_cohort(copy).content_hash() != before
    edit(root, lambda t: t.assign(age="60"))
    assert open_cohort(root).content_hash() != before


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        (lambda t: t.drop(columns="age"), "participants.tsv: column age is missing"),
        (lambda t: t.assign(sex=["F", "M", "X", "M"]), r"row 3 \(sub-02\): sex is 'X'"),
        (lambda t: t.assign(age=["1", "2", "3", "four"]), r"row 4 \(sub-03\): age is 'four'"),
        (lambda t: t.assign(age="n/a"), "column age: no row has a value"),
        (lambda t: t.assign(split="training"), r"row 1 \(sub-00\): split is 'training'"),
        (lambda t: pd.concat([t, t[:1]]), "row 5: sub-00 appears twice"),
        (lambda t: t.replace("sub-01", "01"), "row 2: participant_id is '01'"),
        (lambda t: t.replace("sub-01", "sub-09"), "sub-09.*no such file"),
        (lambda t: t[:0], "no rows"),
    ],
)
def test_a_wrong_table_is_named_by_row_and_column(root, change, culprit):
    edit(root, change)
    with pytest.raises(InputError, match=culprit) as error:
        open_cohort(root, need=("age", "sex"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spoil", "culprit"),
    [
        (
            lambda p: save(p, image(0)[:5]),
            r"sub-02.*5×28×20 voxels.*the rest of the cohort has 24×28×20",
        ),
        (lambda p: save(p, image(0), np.diag([2.0, 2, 2, 1])), "sub-02.*voxels of 2 mm"),
        (lambda p: save(p, image(0), np.diag([-4.0, 4, 4, 1])), "sub-02.*not stored RAS"),
        (lambda p: save(p, image(0)[..., None]), "sub-02.*4 dimensions"),
        (lambda p: p.write_bytes(b"not an image"), "sub-02.*not a readable NIfTI"),
        (lambda p: p.unlink(), "sub-02.*no such file"),
    ],
)
def test_a_wrong_file_is_named_on_opening(root, spoil, culprit):
    spoil(image_path(root))
    with pytest.raises(InputError, match=culprit):
        open_cohort(root)


def with_voxel(value):
    voxels = image(0)
    voxels[1, 1, 1] = value
    return voxels


@pytest.mark.parametrize(
    ("spoil", "culprit"),
    [
        (lambda p: os.truncate(p, p.stat().st_size - 30), "voxels cannot be read"),
        (lambda p: save(p, with_voxel(np.nan)), "1 voxels are NaN"),
        (lambda p: save(p, np.zeros(GRID.shape, np.float32)), "every voxel is 0"),
        (lambda p: save(p, with_voxel(255)), "scale them to 0..1"),
    ],
)
def test_wrong_voxels_are_named_on_reading(root, spoil, culprit):
    spoil(image_path(root))
    cohort = open_cohort(root)
    with pytest.raises(InputError, match=f"sub-02.*{culprit}"):
        cohort.read("sub-02")


def test_a_folder_that_is_no_cohort_is_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such cohort folder"):
        open_cohort(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"dataset_description.json: no such file"):
        open_cohort(tmp_path)


def test_an_interrupted_cohort_goes_on_and_does_not_open(tmp_path):
    first = writer(tmp_path / "c")
    first.add(row(0), image(0))
    with pytest.raises(InputError):
        open_cohort(tmp_path / "c")
    (tmp_path / "c/sub-00/anat/.half_written.nii.gz").touch()
    second = writer(tmp_path / "c")
    assert list(second.done()) == ["sub-00"]
    second.add(row(1), image(1))
    second.finish()
    assert len(open_cohort(tmp_path / "c").table) == 2
    assert not list((tmp_path / "c").rglob(".*"))


def test_only_the_same_cohort_may_be_written_again(root, tmp_path):
    assert writer(root).finished
    with pytest.raises(InputError, match="Seed is 1 there, asked 2"):
        writer(root, generated_by={"Name": "test", "Seed": 2})
    writer(tmp_path / "begun")
    with pytest.raises(InputError, match="unfinished cohort with other parameters"):
        writer(tmp_path / "begun", generated_by={"Name": "other"})
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").touch()
    with pytest.raises(InputError, match="not empty and is no cohort"):
        writer(tmp_path / "photos")


@pytest.mark.parametrize("bad", [image(0)[1:], with_voxel(np.nan), with_voxel(2)])
def test_a_wrong_image_is_not_written(tmp_path, bad):
    made = writer(tmp_path / "c")
    with pytest.raises(ValueError, match="sub-00"):
        made.add(row(0), bad)
    assert not list((tmp_path / "c").glob("sub-*"))


def test_the_bids_validator_passes_a_cohort(tmp_path):
    grid = paper_grid(4)
    made = CohortWriter(tmp_path / "c", "Test", MADE_BY, grid, synthetic=True)
    labels = np.zeros(paper_grid(2).shape, dtype=np.int16)
    made.add(row(0), np.full(grid.shape, 0.5), labels, paper_grid(2).affine)
    made.finish()
    assert bids_errors(tmp_path / "c") == []
