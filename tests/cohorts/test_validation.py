"""All that is wrong with a cohort is told at once, and no image is read twice."""

import csv
import gzip
import os
import shutil
import threading
import time

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from brain_ldm.cohorts import validation
from brain_ldm.cohorts.cohort import assign_split, open_cohort
from brain_ldm.cohorts.findings import ERROR, WARNING
from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.cohorts.validation import SeveralErrors, judge_voxels, survey, validate
from brain_ldm.cohorts.writer import CohortWriter
from brain_ldm.errors import InputError

GRID = VoxelGrid((12, 14, 10), np.diag([4.0, 4.0, 4.0, 1.0]))
NEED = ("age", "sex", "ventricular_volume", "brain_volume")
SPLITS = ["train"] * 12 + ["val"] * 3 + ["test"] * 3


def voxels(i):
    return np.random.default_rng(i).random(GRID.shape, dtype=np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "cohort"
    writer = CohortWriter(root, "Test", {"Name": "test"}, GRID, synthetic=False)
    for i, split in enumerate(SPLITS):
        row = {
            "participant_id": f"sub-{i:02d}",
            "age": 50.0 + i % 9,
            "sex": "FM"[i % 2],
            "ventricular_volume": 20_000.0 + 100 * (i % 8),
            "brain_volume": 1.1e6 + 1000 * (i % 7),
            "split": split,
        }
        writer.add(row, voxels(i))
    writer.finish()
    return root


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made, tmp_path / "cohort")


@pytest.fixture
def memory(tmp_path):
    return tmp_path / "caches" / "voxels.json"


def image(root, i):
    return root / f"sub-{i:02d}/anat/sub-{i:02d}_space-MNI152NLin2009aSym_T1w.nii.gz"


def save(path, data, affine=GRID.affine):
    nib.save(nib.Nifti1Image(data.astype(np.float32), affine), path)


def edit(root, change):
    path = root / "participants.tsv"
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    change(table).to_csv(path, sep="\t", index=False)


def put(cells):
    """A change of a table that sets cells by (row, column)."""

    def change(table):
        table = table.astype(object)
        for (row, column), value in cells.items():
            table.loc[row, column] = value
        return table

    return change


def found(root, memory, need=NEED):
    """(severity, where, what) of each finding, where without the cohort's folder."""
    seen = survey(root, need)
    return [
        (f.severity, f.where.removeprefix(f"{root}/"), f.what)
        for f in (*seen.findings, *judge_voxels(seen, memory))
    ]


def test_a_good_cohort_opens_as_ever(root, memory, tiny_cohort, tmp_path):
    seen = survey(root, NEED)
    assert validate(seen, memory, tmp_path / "findings.tsv") == []
    assert not (tmp_path / "findings.tsv").exists()
    opened = open_cohort(root, NEED)
    pd.testing.assert_frame_equal(seen.cohort.table, opened.table)
    assert seen.cohort.content_hash() == opened.content_hash()
    assert seen.cohort.grid.same_as(GRID)
    assert found(tiny_cohort.root, tmp_path / "tiny.json") == []


def spoil(root):
    """Break 14 rules; return what shall be found, as (severity, where, part of what)."""
    table, rows = "participants.tsv", {}
    cells = {
        (0, "age"): "forty",
        (1, "age"): "inf",
        (2, "sex"): "W",
        (3, "split"): "training",
        (4, "age"): "430",
        (5, "participant_id"): "05",
    }
    edit(root, put(cells))
    edit(root, lambda t: pd.concat([t, t[6:7]]))
    for row, what in {
        "1 (sub-00)": "age is 'forty'",
        "2 (sub-01)": "age is 'inf'",
        "3 (sub-02)": "sex is 'W'",
        "4 (sub-03)": "split is 'training'",
        "5 (sub-04)": "age is 430, outside 0 to 120 year",
        "6": "participant_id is '05'",
        "19": "sub-06 appears twice",
    }.items():
        rows[f"{table}: row {row}"] = what
    both = nib.load(image(root, 6))
    both.set_sform(np.diag([4.0, 4, 4, 1]), 4)
    both.set_qform(np.diag([2.0, 2, 2, 1]), 4)
    neither = nib.load(image(root, 7))
    neither.set_sform(GRID.affine, 0)
    neither.set_qform(GRID.affine, 0)
    for i, changed in ((6, both), (7, neither)):
        path = image(root, i)
        data = np.asarray(changed.dataobj, np.float32)
        path.write_bytes(gzip.compress(nib.Nifti1Image(data, None, changed.header).to_bytes()))
    image(root, 8).unlink()
    save(image(root, 9), voxels(9)[:5])
    save(image(root, 10), voxels(10), np.diag([-4.0, 4, 4, 1]))
    save(image(root, 11), voxels(11), np.diag([4.0, 4, 5, 1]))
    moved = GRID.affine.copy()
    moved[0, 3] = 8
    save(image(root, 12), voxels(12), moved)
    os.truncate(image(root, 13), image(root, 13).stat().st_size - 30)
    nan = voxels(14)
    nan[1, 1, 1:3] = np.nan, np.inf
    save(image(root, 14), nan)
    save(image(root, 15), np.full(GRID.shape, 0.5))
    save(image(root, 16), 255 * voxels(16))
    save(image(root, 17), voxels(2))
    whats = {
        6: "sform and qform disagree",
        7: "neither sform nor qform has a code",
        8: "no such file",
        9: "5×14×10 voxels of 4 mm",
        10: "not stored RAS+",
        11: "voxels of [4.0, 4.0, 5.0] mm",
        12: "from (8, 0, 0)",
        13: "voxels cannot be read",
        14: "2 voxels are NaN or infinite",
        15: "every voxel is 0.5",
        16: "intensities 0",
        17: "the same voxels as sub-02_",
    }
    save(image(root, 2), voxels(2))
    return rows | {str(image(root, i).relative_to(root)): what for i, what in whats.items()}


def test_all_that_is_wrong_is_told_at_once(root, memory):
    expected = spoil(root)
    errors = [(where, what) for severity, where, what in found(root, memory) if severity == ERROR]
    assert sorted(where for where, _ in errors) == sorted(expected)
    for where, what in errors:
        assert expected[where] in what
    # What opening a cohort stops at is the first of them.
    with pytest.raises(InputError, match=r"row 6: participant_id is '05'; give sub-"):
        open_cohort(root, NEED)


def test_a_table_on_stderr_and_a_list_on_disk(root, memory, tmp_path, capsys):
    expected = spoil(root)
    save(image(root, 0), 0.1 * voxels(0))
    report = tmp_path / "model" / "run" / "findings.tsv"
    with pytest.raises(SeveralErrors, match=rf"{len(expected)} errors in .*cohort: see .*{report}"):
        validate(survey(root, NEED), memory, report)
    table = capsys.readouterr().err
    assert "sub-14/anat" in table and "scale them to 0..1" in table
    assert table.index("error") < table.index("warning")
    with report.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert sum(row["severity"] == ERROR for row in rows) == len(expected)
    assert any(row["where"] == f"{root}/participants.tsv: row 6" for row in rows)
    # Other processes of a run only stop.
    with pytest.raises(SeveralErrors):
        validate(survey(root, NEED), memory, report, first=False)
    assert capsys.readouterr().err == ""


def test_long_lists_are_capped(root, memory, tmp_path, capsys):
    for i in range(12):
        save(image(root, i), 100 * voxels(i))
    with pytest.raises(SeveralErrors, match="12 errors"):
        validate(survey(root, ()), memory, tmp_path / "findings.tsv")
    lines = capsys.readouterr().err.splitlines()
    assert sum("scale them to 0..1" in line for line in lines) == 5
    assert "and 7 more like these" in lines[-1]
    assert len((tmp_path / "findings.tsv").read_text().splitlines()) == 13


def test_one_error_is_its_own_line(root, memory, tmp_path, capsys):
    image(root, 3).unlink()
    with pytest.raises(InputError, match=r"sub-03_.*: no such file.*; make it, or remove its row"):
        validate(survey(root, NEED), memory, tmp_path / "findings.tsv")
    assert capsys.readouterr().err == "" and not (tmp_path / "findings.tsv").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda t: t.assign(brain_volume=[f"{1100 + i}" for i in range(18)]),
            (ERROR, "column brain_volume", "18 of 18 values lie outside 300,000 to 2,500,000 mm3"),
        ),
        (
            put({(3, "ventricular_volume"): "21"}),
            (WARNING, "row 4 (sub-03)", "ventricular_volume is 21, outside 500 to 500,000 mm3"),
        ),
        (
            put({(3, "age"): "n/a", (14, "age"): ""}),
            (WARNING, "column age", "2 of 18 rows have no value"),
        ),
        (
            put({(13, "age"): "80", (16, "age"): "20"}),
            (WARNING, "column age", "2 of 6 val and test rows (20 to 80) lie far outside"),
        ),
        (lambda t: t.replace("val", "train"), (WARNING, "", "no row has the split val")),
        (lambda t: t.replace("train", "test"), (ERROR, "", "no row has the split train")),
        (
            lambda t: t.assign(subject=[*map(str, range(1, 13)), *"444556"]),
            (ERROR, "row 13 (sub-12)", "subject 4 is in val here and in train as sub-03"),
        ),
    ],
)
def test_values_that_cannot_be_meant(root, memory, change, expected):
    edit(root, change)
    severity, row, what = expected
    told = found(root, memory)
    assert told[0][:2] == (severity, "participants.tsv" + (f": {row}" if row else ""))
    assert what in told[0][2]
    assert len(told) == (6 if "subject" in what else 1), told


def test_volumes_in_ml_are_recognised(root):
    edit(root, lambda t: t.assign(brain_volume="1100"))
    (finding,) = survey(root, NEED).findings
    assert "look like ml (cm3), multiply by 1000" in finding.mend
    edit(root, lambda t: t.assign(brain_volume="7"))
    (finding,) = survey(root, NEED).findings
    assert finding.mend == "give mm3"


def test_what_is_not_needed_only_warns(root, memory):
    edit(root, lambda t: t.assign(age="600", brain_volume="n/a"))
    assert [(s, w) for s, w, _ in found(root, memory, need=())] == [
        (WARNING, "participants.tsv: column age")
    ]


def test_scans_of_one_person_share_a_split(root):
    people = [f"person{i % 5}" for i in range(17)] + ["n/a"]
    edit(root, lambda t: t.assign(subject=people, split="n/a"))
    table = open_cohort(root).table
    assert table["split"].tolist() == [assign_split(p) for p in [*people[:17], "sub-17"]]
    assert table["subject"].tolist()[:2] == ["person0", "person1"]
    # Numbers stay names, and a split that is given is kept.
    edit(root, lambda t: t.assign(subject=[f"{i:03d}" for i in range(18)], split="val"))
    table = open_cohort(root).table
    assert table["subject"][1] == "001" and set(table["split"]) == {"val"}


def test_twins_in_one_split_warn(root, memory):
    shutil.copy(image(root, 1), image(root, 2))
    save(image(root, 13), np.asarray(nib.load(image(root, 0)).dataobj))
    told = [f for f in found(root, memory) if "same voxels" in f[2]]
    assert [(s, "sub-01_" in what or "sub-00_" in what) for s, _, what in told] == [
        (WARNING, True),
        (ERROR, True),
    ]
    assert told[1][2].endswith("(train, here val)")


def test_dim_images_warn(root, memory):
    save(image(root, 4), voxels(4) * 0.1)
    ((severity, where, what),) = found(root, memory)
    assert severity == WARNING and "sub-04" in where
    assert what.startswith("99.5% of the voxels stay below 0.09")


@pytest.fixture
def read(monkeypatch):
    """Names of the images that are read, in this process."""
    names = []
    original = validation.read_voxels

    def noted(path, shape):
        names.append(path.name[:6])
        time.sleep(0.01)
        return original(path, shape)

    monkeypatch.setattr(validation, "read_voxels", noted)
    monkeypatch.setattr(
        validation, "each", lambda job, items, *_, **__: ((item, job(item)) for item in items)
    )
    return names


def test_no_image_is_read_twice(root, memory, read):
    first = found(root, memory)
    assert len(read) == 18
    assert found(root, memory) == first and len(read) == 18
    save(image(root, 7), 2 * voxels(7))
    ((_, where, _),) = found(root, memory)
    assert read[18:] == ["sub-07"] and "sub-07" in where
    assert len(found(root, memory)) == 1 and len(read) == 19
    memory.write_text("[1, 2")
    assert len(found(root, memory)) == 1 and len(read) == 37


def test_an_unreadable_image_is_tried_again(root, memory, read):
    whole = image(root, 5).read_bytes()
    image(root, 5).write_bytes(whole[:-40])
    assert len(found(root, memory)) == len(found(root, memory)) == 1
    assert read[18:] == ["sub-05"]


def test_what_was_read_before_an_interruption_is_kept(root, memory, read, monkeypatch):
    def interrupted(job, items, *_, **__):
        for item in items[:6]:
            yield item, job(item)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(validation, "each", interrupted)
        found(root, memory)
    found(root, memory)
    assert len(read) == 18 == len(set(read))


def test_processes_that_come_at_once_read_once(root, memory, read):
    # Locks of files keep threads apart as they do processes: each opens the file anew.
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(found(root, memory))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read) == 18 and results == [[], [], []]


def test_a_memory_that_cannot_be_written_is_named(root, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/c: cannot be written .*give data\.cache another"):
        found(root, tmp_path / "file" / "c" / "voxels.json")
