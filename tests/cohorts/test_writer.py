"""A cohort that grows: what `preprocess` asks of the writer."""

import hashlib
import json
import time

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from brain_ldm.cohorts.cohort import assign_split, open_cohort
from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.cohorts.writer import IMAGE, CohortWriter

GRID = VoxelGrid((12, 14, 10), np.diag([4.0, 4.0, 4.0, 1.0]))


def writer(root, **changes):
    extra = {"subject": {"Description": "Person"}}
    arguments = {"synthetic": False, "extra_columns": extra, "grows": True, **changes}
    return CohortWriter(root, "Test", {"Name": "test"}, GRID, **arguments)


def add(made, index, **more):
    image = np.random.default_rng(index).random(GRID.shape, dtype=np.float32)
    row = {"participant_id": f"sub-{index:02d}", "subject": f"sub-{index:02d}", "age": 50.0}
    made.add({**row, **more}, image)


@pytest.fixture
def root(tmp_path):
    made = writer(tmp_path / "cohort")
    add(made, 1)
    add(made, 2)
    made.finish()
    return tmp_path / "cohort"


def read(root):
    return pd.read_csv(root / "participants.tsv", sep="\t", dtype=str, keep_default_na=False)


def test_brains_that_arrive_later_join_a_finished_cohort(root):
    later = writer(root)
    assert later.finished and set(later.done()) == {"sub-01", "sub-02"}
    add(later, 0)
    later.finish()
    assert open_cohort(root).table["participant_id"].tolist() == ["sub-00", "sub-01", "sub-02"]


def test_rows_may_be_left_out_and_come_back(root):
    again = writer(root)
    again.finish([again.done()["sub-02"]])
    assert read(root)["participant_id"].tolist() == ["sub-02"]
    writer(root).finish()
    assert read(root)["participant_id"].tolist() == ["sub-01", "sub-02"]


def test_what_others_added_to_the_table_stays(root):
    table = read(root)
    table["ventricular_volume"] = ["20000", "31000.5"]
    table["measured_brain_volume"] = ["1100000.25", "1200000"]
    table.to_csv(root / "participants.tsv", sep="\t", index=False)
    described = json.loads((root / "participants.json").read_text())
    described["measured_brain_volume"] = {"Description": "Measured", "Units": "mm3"}
    described["ventricular_volume"]["Description"] += ", measured by an instrument"
    (root / "participants.json").write_text(json.dumps(described))

    again = writer(root)
    add(again, 3)
    again.finish()

    table = read(root)
    assert table["ventricular_volume"].tolist() == ["20000", "31000.5", "n/a"]
    assert table["measured_brain_volume"].tolist() == ["1100000.25", "1200000", "n/a"]
    described = json.loads((root / "participants.json").read_text())
    assert described["measured_brain_volume"]["Units"] == "mm3"
    assert described["ventricular_volume"]["Description"].endswith(", measured by an instrument")

    # The source's own values are no mixture with what was measured.
    again = writer(root)
    add(again, 4, ventricular_volume=15000.0)
    again.finish()
    assert read(root)["ventricular_volume"].tolist() == ["n/a", "n/a", "n/a", "15000.0"]
    described = json.loads((root / "participants.json").read_text())
    assert "measured by" not in described["ventricular_volume"]["Description"]


def test_a_value_that_was_taken_out_stays_out(root):
    table = read(root)
    table["age"] = ["61", "70"]
    table.to_csv(root / "participants.tsv", sep="\t", index=False)
    writer(root).finish()
    assert read(root)["age"].isin(["61", "70"]).sum() == 0


def test_scans_of_one_person_share_a_split(tmp_path):
    made = writer(tmp_path / "cohort")
    for index in range(12):
        add(made, index, subject="sub-anna" if index % 2 else "sub-berta")
    made.finish()
    splits = read(tmp_path / "cohort").groupby("subject")["split"].agg(set)
    assert splits["sub-anna"] == {assign_split("sub-anna")}
    assert splits["sub-berta"] == {assign_split("sub-berta")}


def test_shards_that_begin_together_share_a_folder(tmp_path):
    (tmp_path / "cohort" / ".unfinished").mkdir(parents=True)  # another shard is that far
    add(writer(tmp_path / "cohort"), 1)
    add(writer(tmp_path / "cohort"), 2)
    assert set(writer(tmp_path / "cohort").done()) == {"sub-01", "sub-02"}


def test_a_sidecar_says_where_an_image_came_from(tmp_path):
    made = writer(tmp_path / "cohort")
    image = np.zeros(GRID.shape, np.float32)
    made.add({"participant_id": "sub-01"}, image, sidecar={"Sources": ["raw/01.nii.gz"]})
    (path,) = (tmp_path / "cohort").glob("sub-01/anat/*_T1w.json")
    assert json.loads(path.read_text()) == {"SkullStripped": True, "Sources": ["raw/01.nii.gz"]}


def test_a_row_says_how_long_its_image_is_and_its_sha256(root):
    row = writer(root).done(["sub-02"])["sub-02"]
    content = (root / row[IMAGE]["file"]).read_bytes()
    assert row[IMAGE]["bytes"] == len(content)
    assert row[IMAGE]["sha256"] == hashlib.sha256(content).hexdigest()


def test_the_same_image_is_the_same_file(tmp_path):
    for name in "ab":
        made = writer(tmp_path / name)
        add(made, 1)
        time.sleep(1.1)  # gzip's clock counts seconds
    (one,), (other,) = (list((tmp_path / name).rglob("*.nii.gz")) for name in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_rows_of_some_participants_are_read_without_the_others(root):
    (root / ".unfinished/rows/sub-01.json").write_text("{")  # would not be read
    assert set(writer(root).done(["sub-02", "sub-77"])) == {"sub-02"}


@pytest.mark.parametrize(
    ("storage", "kind", "step"), [("int16", "int16", 4096), ("uint8", "uint8", 255)]
)
def test_integers_hold_0_and_1(tmp_path, storage, kind, step):
    made = writer(tmp_path / "cohort", storage=storage)
    image = np.zeros(GRID.shape, np.float32)
    image[0, 0, :3] = 1, 0.5, 1 / step
    made.add({"participant_id": "sub-01"}, image)
    (path,) = (tmp_path / "cohort").rglob("*.nii.gz")
    stored = nib.load(path)
    assert stored.get_data_dtype() == kind
    assert stored.dataobj.get_unscaled().max() == step
    assert np.abs(stored.get_fdata() - image).max() <= 0.5 / step + 1e-7
    assert stored.get_fdata()[1].max() == 0


def test_floats_are_stored_as_they_are(tmp_path):
    made = writer(tmp_path / "cohort", storage="float32")
    add(made, 1)
    (path,) = (tmp_path / "cohort").rglob("*.nii.gz")
    drawn = np.random.default_rng(1).random(GRID.shape, dtype=np.float32)
    assert np.array_equal(nib.load(path).get_fdata(dtype=np.float32), drawn)


def test_a_finished_cohort_may_take_a_lost_image_again(tmp_path):
    made = writer(tmp_path / "cohort", grows=False)
    add(made, 1)
    made.finish()
    assert not made.work.exists()
    again = writer(tmp_path / "cohort", grows=False)
    again.open_work()
    add(again, 1)
    assert set(again.done()) == {"sub-01"}
