"""Raw scans, some of them damaged, to a cohort: in one run, killed at random moments, in shards."""

import hashlib
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from brain_ldm.cohorts.cohort import open_cohort
from brain_ldm.cohorts.template import draw_phantom
from tests.bids import bids_errors
from tests.journeys.runs import end, succeed
from tests.preprocessing.raw import KINDS, SEED, damage, raw_head, write_raw

SCANS = int(os.environ.get("BRAIN_LDM_SCANS", "25"))
DAMAGED = max(SCANS // 20, len(KINDS))
KILLS = 5 if SCANS >= 100 else 2
FIRST = SCANS - DAMAGED  # the damaged ones come last
SECONDS = 240 + 20 * SCANS  # for a whole run on a machine with other work


def command(raw: Path, out: Path, *more: str) -> list[str]:
    options = ["layout=folder", f"source={raw}", f"table={raw / 'table.csv'}", f"out={out}"]
    options += ["resolution=4", "workers=2", *more]
    return [sys.executable, "-m", "brain_ldm.preprocess", *options]


def start(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """A folder of scans of phantoms and a table; the last ones are damaged in every known way."""
    folder = tmp_path_factory.mktemp("raw")
    rows = []
    for index in range(SCANS):
        voxels, affine, row = raw_head(index)
        path = folder / f"P{index:04d}.nii.gz"
        write_raw(path, voxels, affine)
        rows.append({**row, "participant_id": f"P{index:04d}"})
        if index >= FIRST:
            damage(path, list(KINDS)[(index - FIRST) % len(KINDS)])
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def cohort(raw, tmp_path_factory) -> Path:
    """What one undisturbed run makes of them."""
    out = tmp_path_factory.mktemp("once") / "cohort"
    succeed(start(command(raw, out)), SECONDS)
    return out


def content(root: Path) -> dict[str, str]:
    """A digest of every file of a cohort, but for its own path and the notes of the run itself."""
    here = str(root).encode()
    return {
        str(path.relative_to(root)): hashlib.sha256(
            path.read_bytes().replace(here, b"")
        ).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".unfinished" not in path.parts
    }


def test_whole_scans_come_out_and_damaged_ones_are_named_with_their_reason(raw, cohort):
    made = open_cohort(cohort, need=["age", "sex", "ventricular_volume", "brain_volume"])
    assert len(made.table) == FIRST
    table = pd.read_csv(raw / "table.csv", dtype={"participant_id": str})
    assert made.table["age"].tolist() == table["age"][:FIRST].tolist()
    # Small heads with wide ventricles are least like the template, and as straight as any: each is
    # like the phantom that it was before it was turned (.976 to .998; 4 mm off is .93 to .97).
    assert made.table["template_correlation"].between(0.6, 1).all()
    for index, participant in enumerate(made.table["participant_id"]):
        upright = draw_phantom(SEED, index, 4).image
        alike = np.corrcoef(made.read(participant).ravel(), upright.ravel())[0, 1]
        assert alike > 0.95, participant

    rejected = pd.read_csv(cohort / "rejected.tsv", sep="\t").set_index("participant_id")
    assert len(rejected) == DAMAGED
    kinds = list(KINDS.items())
    for index in range(FIRST, SCANS):
        kind, reason = kinds[(index - FIRST) % len(kinds)]
        found = rejected.loc[f"sub-P{index:04d}", "reason"]
        assert re.search(reason, found), (kind, found)

    page = (cohort / "qc" / "index.html").read_text()
    assert all(f"sub-P{index:04d}" in page for index in range(SCANS))
    assert len(list((cohort / "qc").glob("*.jpg"))) == FIRST


def test_the_cohort_is_bids(cohort):
    assert bids_errors(cohort) == []


def test_killed_at_random_moments_the_result_is_the_same(raw, cohort, tmp_path):
    out, chance = tmp_path / "cohort", random.Random(0)
    for _ in range(KILLS):
        process = start(command(raw, out))
        before = len(list(out.glob(".unfinished/*/sub-*.json")))
        enough = before + chance.randint(1, max(FIRST // (KILLS + 1), 1))
        while process.poll() is None:
            if len(list(out.glob(".unfinished/*/sub-*.json"))) >= enough:
                time.sleep(chance.random())
                break
            time.sleep(0.02)
        end(process)
        assert not (out / "participants.tsv").exists()  # it was not finished yet
    kept = {p: p.stat().st_mtime_ns for p in out.glob(".unfinished/rows/sub-*.json")}
    assert kept
    succeed(start(command(raw, out)), SECONDS)
    assert content(out) == content(cohort)
    assert all(
        path.stat().st_mtime_ns == when for path, when in kept.items()
    )  # none was done twice


def test_shards_make_the_same_cohort(raw, cohort, tmp_path):
    out = tmp_path / "cohort"
    processes = [start(command(raw, out, f"shard={i}/2", "workers=1")) for i in range(2)]
    said = "".join(succeed(process, SECONDS) for process in processes)
    assert "left to other shards" in said or said.count("rejected.tsv") == 2
    assert content(out) == content(cohort)


def test_a_person_rejects_by_a_text_file_and_changes_their_mind(raw, cohort, run_command):
    first, second = open_cohort(cohort).table["participant_id"][:2]
    before = content(cohort)
    (cohort / "reject.txt").write_text(f"{first} moved\n{second}\n")
    options = command(raw, cohort)[3:]

    code, out, err = run_command("preprocess", *options)
    assert code == 0, err
    assert f"{FIRST - 2} brains" in out
    assert first not in open_cohort(cohort).table["participant_id"].tolist()
    rejected = pd.read_csv(cohort / "rejected.tsv", sep="\t").set_index("participant_id")
    assert rejected.loc[first, "reason"] == "rejected by eye: moved"
    assert not (cohort / first).exists()

    (cohort / "reject.txt").unlink()
    assert run_command("preprocess", *options)[0] == 0
    assert content(cohort) == before


def test_what_arrives_later_joins_and_what_was_mended_is_tried_again(
    raw, cohort, tmp_path, run_command
):
    grown = tmp_path / "grown"
    grown.mkdir()
    for path in sorted(raw.iterdir())[1:]:
        if path.suffix != ".csv":
            (grown / path.name).symlink_to(path)
    (grown / "table.csv").write_text((raw / "table.csv").read_text())
    mended = grown / f"P{FIRST:04d}.nii.gz"
    out = tmp_path / "cohort"
    options = command(grown, out)[3:]
    assert run_command("preprocess", *options)[0] == 0
    assert len(open_cohort(out).table) == FIRST - 1

    (grown / "P0000.nii.gz").symlink_to(raw / "P0000.nii.gz")
    mended.unlink(missing_ok=True)
    write_raw(mended, *raw_head(FIRST)[:2])
    assert run_command("preprocess", *options)[0] == 0
    ids = open_cohort(out).table["participant_id"].tolist()
    assert ids == [f"sub-P{index:04d}" for index in range(FIRST + 1)]


def test_mistakes_are_one_line_before_any_work(raw, tmp_path, one_line, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    out = tmp_path / "out"
    options = command(raw, out)[3:]
    assert "resolution is 3" in one_line("preprocess", *options, "resolution=3")
    assert "shard is 2/2" in one_line("preprocess", *options, "shard=2/2")
    assert "percentiles" in one_line("preprocess", *options, "percentiles=[99,1]")
    assert "unires" in one_line("preprocess", *options, "registration=unires")
    assert "no_such" in one_line("preprocess", *options, "columns={age: no_such}")
    assert "columns is" in one_line("preprocess", *options, "columns=age")
    assert not out.exists()
