"""What `preprocess` keeps, does again and leaves out; the work on a scan is a stand-in."""

import os

import numpy as np
import pandas as pd
import pytest

from brain_ldm.cohorts.cohort import open_cohort
from brain_ldm.cohorts.grid import paper_grid
from brain_ldm.errors import InputError
from brain_ldm.preprocessing import preprocess as room
from brain_ldm.preprocessing.config import Layout, PreprocessConfig, Scans
from brain_ldm.preprocessing.prepare import Prepared
from brain_ldm.preprocessing.scan import Failed
from tests.preprocessing.raw import plain_head, write_raw

AGES = {"1": 51, "2": 62, "3": 73}


@pytest.fixture
def source(tmp_path):
    """Two sessions of person 1 and one of 2 and 3, as BIDS."""
    for subject, session in (("1", "1"), ("1", "2"), ("2", "1"), ("3", "1")):
        folder = tmp_path / "raw" / f"sub-{subject}" / f"ses-{session}" / "anat"
        write_raw(folder / f"sub-{subject}_ses-{session}_T1w.nii.gz", *plain_head())
    rows = [{"participant_id": f"sub-{s}", "age": a, "sex": "F"} for s, a in AGES.items()]
    pd.DataFrame(rows).to_csv(tmp_path / "raw" / "participants.tsv", sep="\t", index=False)
    return tmp_path / "raw"


@pytest.fixture(autouse=True)
def stand_in(tmp_path, monkeypatch):
    """Leave a line for each scan that is worked on; fail where a file `broken` lies."""

    def prepare(scan, config):
        with (tmp_path / "log").open("a") as log:
            log.write(f"{scan.participant_id}\n")
        if (tmp_path / "broken").exists():
            raise Failed("no memory")
        size = scan.path.stat().st_size
        image = np.full(paper_grid(4).shape, 0.5, np.float32)
        image[:20] = (size % 97) / 97
        return Prepared(image, np.eye(4), 0.9)

    monkeypatch.setattr(room, "prepare", prepare)


@pytest.fixture
def run(source, tmp_path):
    """Preprocess; give the ids that were worked on, in order."""

    def go(out="cohort", **options):
        config = PreprocessConfig(
            source=str(options.pop("source", source)),
            out=str(tmp_path / out),
            layout=Layout.bids,
            resolution=4,
            workers=1,
            columns={},
            **options,
        )
        (tmp_path / "log").unlink(missing_ok=True)
        room.preprocess(config)
        log = tmp_path / "log"
        return sorted(log.read_text().split()) if log.exists() else []

    return go


ALL = ["sub-1ses1", "sub-1ses2", "sub-2ses1", "sub-3ses1"]


def ids(tmp_path):
    return open_cohort(tmp_path / "cohort").table["participant_id"].tolist()


def test_a_scan_whose_file_has_changed_is_done_again(run, source, tmp_path):
    assert run() == ALL
    before = open_cohort(tmp_path / "cohort").read("sub-2ses1")
    assert run() == []
    path = next(source.glob("sub-2/ses-1/anat/*.nii.gz"))
    voxels, affine = plain_head()
    write_raw(path, voxels + np.arange(voxels.shape[2], dtype=np.int16), affine)
    os.utime(path, (1, 1))
    assert run() == ["sub-2ses1"]
    assert (open_cohort(tmp_path / "cohort").read("sub-2ses1") != before).any()
    assert run() == []


def test_one_that_was_put_aside_comes_back_in_its_new_version(run, source, tmp_path):
    run()
    (tmp_path / "cohort" / "reject.txt").write_text("sub-2 moved\n")
    run()
    assert "sub-2ses1" not in ids(tmp_path)
    os.utime(next(source.glob("sub-2/ses-1/anat/*.nii.gz")), (1, 1))
    (tmp_path / "cohort" / "reject.txt").unlink()
    assert run() == ["sub-2ses1"]
    assert ids(tmp_path) == ALL
    assert not (tmp_path / "cohort" / "rejected" / "sub-2ses1").exists()


def test_a_list_that_is_there_first_is_heeded(run, tmp_path):
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "reject.txt").write_text("sub-1 withdrawn\n")
    assert run() == ["sub-2ses1", "sub-3ses1"]
    assert ids(tmp_path) == ["sub-2ses1", "sub-3ses1"]
    rejected = pd.read_csv(tmp_path / "cohort" / "rejected.tsv", sep="\t")
    assert rejected["reason"].tolist() == ["rejected by eye: withdrawn"] * 2


def test_what_the_options_no_longer_choose_is_put_aside(run, tmp_path):
    run()
    assert run(scans=Scans.first) == []
    assert ids(tmp_path) == ["sub-1ses1", "sub-2ses1", "sub-3ses1"]
    reasons = pd.read_csv(tmp_path / "cohort" / "rejected.tsv", sep="\t")["reason"].tolist()
    assert reasons == ["not among the scans that the options choose now"]
    assert run() == []
    assert ids(tmp_path) == ALL


def test_what_need_not_be_the_scan_s_fault_is_tried_again(run, tmp_path):
    (tmp_path / "broken").touch()
    with pytest.raises(InputError, match="no scan can be used"):
        run()
    (tmp_path / "broken").unlink()
    assert run() == ALL
    assert ids(tmp_path) == ALL


def test_another_folder_of_the_same_name_is_another_cohort(run, source, tmp_path):
    run()
    (tmp_path / "other").mkdir()
    source.rename(tmp_path / "other" / "raw")
    with pytest.raises(InputError, match=r"other parameters \(.*Source"):
        run(source=tmp_path / "other" / "raw")


def test_the_first_session_is_the_first_that_the_table_knows(run, source, tmp_path):
    table = pd.DataFrame(
        {
            "participant_id": ["1", "2", "3"],
            "session": ["2", "1", "1"],
            "age": [51, 62, 73],
        }
    )
    table.to_csv(tmp_path / "sessions.tsv", sep="\t", index=False)
    run(scans=Scans.first, table=str(tmp_path / "sessions.tsv"))
    assert ids(tmp_path) == ["sub-1ses2", "sub-2ses1", "sub-3ses1"]


def test_two_columns_of_one_name_are_refused(run, source):
    path = source / "participants.tsv"
    text = path.read_text().splitlines()
    path.write_text("\n".join([text[0] + "\tage", *(line + "\t30" for line in text[1:])]) + "\n")
    with pytest.raises(InputError, match="2 columns are called age"):
        run()
