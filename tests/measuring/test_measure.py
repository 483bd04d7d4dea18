"""Measured volumes go into a cohort's table, and nothing else in it changes."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from brain_ldm.cohorts.cohort import open_cohort
from brain_ldm.cohorts.grid import VoxelGrid, paper_grid
from brain_ldm.measuring.agreement import agreement
from brain_ldm.measuring.network import average_blocks, coarser
from brain_ldm.models import Segmenter, open_model

VOLUMES = ["ventricular_volume", "brain_volume"]
NEW = [f"measured_{name}" for name in VOLUMES]


@pytest.fixture
def cohort(tiny_cohort, workplace):
    """A copy of the tiny cohort whose volumes are not known."""
    shutil.copytree(tiny_cohort.root, workplace / "brains")
    edit(Path("brains"), lambda table: table.drop(columns=VOLUMES))
    return Path("brains")


@pytest.fixture
def measure(run_command, tiny_models):
    """Measure with the tiny segmenter; give stdout and stderr."""

    def run(cohort, *options):
        code, out, err = run_command(
            "measure", f"cohort={cohort}", f"segmenter={tiny_models['segmenter']}", *options
        )
        assert code == 0, err
        return out, err

    return run


@pytest.fixture
def passes(monkeypatch):
    """The number of brains of each pass through the segmenter."""
    sizes = []
    volumes = Segmenter.volumes

    def counted(model, images):
        sizes.append(len(images))
        return volumes(model, images)

    monkeypatch.setattr(Segmenter, "volumes", counted)
    return sizes


def read(cohort):
    return pd.read_csv(cohort / "participants.tsv", sep="\t", dtype=str, keep_default_na=False)


def edit(cohort, change):
    change(read(cohort)).to_csv(cohort / "participants.tsv", sep="\t", index=False)


def image(cohort, participant):
    return next((cohort / participant / "anat").glob("*_T1w.nii.gz"))


def make_synthetic(cohort):
    for path in cohort.glob("sub-*/anat/*_T1w.*"):
        path.rename(path.with_name(path.name.replace("_T1w", "_desc-synth_T1w")))


def damage(cohort, participant):
    path = image(cohort, participant)
    path.write_bytes(path.read_bytes()[:-500])


def test_volumes_are_the_segmenters_and_fill_what_is_missing(cohort, measure, tiny_models):
    out, err = measure(cohort, "batch_size=5")
    model = open_model(tiny_models["segmenter"], Segmenter)
    table = read(cohort)
    opened = open_cohort(cohort)
    for row in table.to_dict("records"):
        voxels = torch.from_numpy(opened.read(row["participant_id"]))[None, None]
        for name, value in model.volumes(voxels).items():
            assert float(row[f"measured_{name}"]) == pytest.approx(float(value), rel=1e-5)
            assert row[name] == row[f"measured_{name}"]
    described = json.loads((cohort / "participants.json").read_text())
    for name in VOLUMES + NEW:
        assert model.hash in described[name]["Description"] and described[name]["Units"] == "mm3"
    assert "24 brains measured" in out and not err
    assert "Known or requested" not in out  # there is nothing to compare with
    assert not list(cohort.glob(".*"))


def test_bytes_of_other_columns_stay(cohort, measure):
    path = cohort / "participants.tsv"
    lines = path.read_text().split("\n")[:-1]
    lines = [
        f"{line}\t{note}" for line, note in zip(lines, ["note", *["0060.50"] * 24], strict=True)
    ]
    lines[2] = lines[2].replace("0060.50", 'é "quoted" ')
    lines[3] = lines[3].replace("0060.50", "")
    text = "\ufeff" + "\r\n".join([*lines[:5], "", *lines[5:]])  # an empty line, none at the end
    path.write_bytes(text.encode())
    measure(cohort)
    after = path.read_bytes().decode()
    assert after.split("\r\n")[0] == "\ufeff" + "\t".join([lines[0], *VOLUMES, *NEW])
    assert "\r\n".join("\t".join(line.split("\t")[:-4]) for line in after.split("\r\n")) == text


@pytest.mark.parametrize("note", ["a\tb", "a\nb"])
def test_a_field_that_hides_a_tab_or_a_line_is_refused(cohort, one_line, tiny_models, passes, note):
    edit(cohort, lambda table: table.assign(note=[note, *["c"] * 23], brain_volume="n/a"))
    before = (cohort / "participants.tsv").read_bytes()
    line = one_line("measure", f"cohort={cohort}", f"segmenter={tiny_models['segmenter']}")
    assert "participants.tsv" in line and "in quotes" in line
    assert (cohort / "participants.tsv").read_bytes() == before and not passes


def test_measured_already_and_by_another_segmenter(cohort, measure, passes, tiny_models):
    measure(cohort)
    before = read(cohort)
    first = open_model(tiny_models["segmenter"], Segmenter).hash
    passes.clear()
    out, _ = measure(cohort)
    assert "measured already" in out and not passes
    shutil.copytree(tiny_models["segmenter"], "other")
    from safetensors.torch import load_file, save_file

    weights = load_file("other/weights.safetensors")
    save_file({name: value * 1.5 for name, value in weights.items()}, "other/weights.safetensors")
    out, _ = measure(cohort, "segmenter=other")
    assert sum(passes) == 24
    assert any(first in line and "replaced" in line for line in out.splitlines())
    after = read(cohort)
    assert (after[NEW] != before[NEW]).all(axis=None)
    # Covariates keep what the first one measured, and a line says so.
    assert after.drop(columns=NEW).equals(before.drop(columns=NEW))
    assert "ventricular_volume stays as it was, with 0 of 24 rows n/a" in out
    passes.clear()
    measure(cohort, "segmenter=other", "replace=true")
    after = read(cohort)
    assert not passes
    assert after["ventricular_volume"].equals(after["measured_ventricular_volume"])


def test_a_column_with_some_values_stays(cohort, measure):
    edit(cohort, lambda table: table.assign(ventricular_volume=["41000.50", *["n/a"] * 23]))
    out, _ = measure(cohort)
    table = read(cohort)
    assert table["ventricular_volume"].tolist() == ["41000.50", *["n/a"] * 23]
    assert table["brain_volume"].equals(table["measured_brain_volume"])
    (line,) = [line for line in out.splitlines() if "stays" in line]
    assert "ventricular_volume" in line and "23 of 24" in line and "replace=true" in line
    out, _ = measure(cohort, "replace=true")
    table = read(cohort)
    assert table["ventricular_volume"].equals(table["measured_ventricular_volume"])
    assert "stays" not in out


def test_an_unreadable_scan_stays_out_and_is_tried_again(cohort, measure, passes):
    good = image(cohort, "sub-003").read_bytes()
    damage(cohort, "sub-003")
    out, err = measure(cohort)
    assert "23 brains measured" in out
    (line,) = err.strip().splitlines()
    assert "sub-003_space" in line and "cannot be read" in line
    table = read(cohort).set_index("participant_id")
    assert (table.loc["sub-003", VOLUMES + NEW] == "n/a").all()
    assert (table.drop("sub-003")[VOLUMES + NEW] != "n/a").all(axis=None)
    image(cohort, "sub-003").write_bytes(good)
    passes.clear()
    measure(cohort)
    assert passes == [1]
    again = read(cohort).set_index("participant_id")
    assert (again.loc["sub-003", VOLUMES + NEW] != "n/a").all()
    assert again.drop("sub-003").equals(table.drop("sub-003"))


def test_no_readable_scan_at_all(cohort, one_line, tiny_models):
    before = (cohort / "participants.tsv").read_bytes()
    for participant in read(cohort)["participant_id"]:
        damage(cohort, participant)
    line = one_line("measure", f"cohort={cohort}", f"segmenter={tiny_models['segmenter']}")
    assert "not one of its 24 brains" in line and "sub-000" in line
    assert (cohort / "participants.tsv").read_bytes() == before
    assert not list(cohort.glob(".*"))


def test_interrupted_it_measures_no_brain_twice(cohort, measure, passes, run_command, tiny_models):
    volumes = Segmenter.volumes

    def stopped(model, images):
        if sum(passes) == 12:
            raise MemoryError
        return volumes(model, images)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Segmenter, "volumes", stopped)
        run_command("measure", f"cohort={cohort}", f"segmenter={tiny_models['segmenter']}")
    (journal,) = cohort.glob(".measuring/*/*.jsonl")
    with journal.open("a") as file:
        file.write('["sub-023", {"ventricular_vol')  # as a kill may leave it
    assert not set(NEW) & set(read(cohort))
    measure(cohort)
    assert sum(passes) == 24
    assert not list(cohort.glob(".*"))


def test_shards_make_the_table_of_one(cohort, measure, passes):
    shutil.copytree(cohort, "whole")
    measure("whole")
    out, _ = measure(cohort, "shard=1/3")
    assert "16 of 24 brains are left" in out and not set(NEW) & set(read(cohort))
    measure(cohort, "shard=0/3")
    passes.clear()
    measure(cohort, "shard=1/3")
    assert not passes
    out, _ = measure(cohort, "shard=2/3")
    assert "24 brains measured" in out and sum(passes) == 8
    one, other = read(cohort), read(Path("whole"))
    assert one.drop(columns=VOLUMES + NEW).equals(other.drop(columns=VOLUMES + NEW))
    numbers = [table[VOLUMES + NEW].astype(float) for table in (one, other)]
    assert np.allclose(*numbers, rtol=1e-5)


def test_readers_in_processes(cohort, measure):
    shutil.copytree(cohort, "one")
    measure("one")
    measure(cohort, "workers=2")
    one, other = (read(Path(c))[VOLUMES + NEW].astype(float) for c in ("one", cohort))
    assert np.allclose(one, other, rtol=1e-5)


def test_what_was_asked_for_never_changes(tiny_cohort, workplace, measure, one_line, tiny_models):
    cohort = Path("drawn")
    shutil.copytree(tiny_cohort.root, cohort)
    make_synthetic(cohort)
    maps = ["one", "two"] * 12
    edit(cohort, lambda t: t.assign(label_map=maps, brain_volume=[*t["brain_volume"][1:], "n/a"]))
    before = read(cohort)
    line = one_line(
        "measure", f"cohort={cohort}", f"segmenter={tiny_models['segmenter']}", "replace=true"
    )
    assert "replace=true" in line and "synthetic" in line
    out, _ = measure(cohort)
    after = read(cohort)
    assert after.drop(columns=NEW).equals(before) and "stays" not in out
    numbers = after.apply(pd.to_numeric, errors="coerce").assign(label_map=maps)
    rows = [line.split() for line in out.splitlines()]
    for name, n in (("ventricular", 24), ("brain", 23)):
        known, measured = numbers[f"{name}_volume"][:n], numbers[f"measured_{name}_volume"][:n]
        error = (measured - known).abs()
        assert [
            name,
            "volume",
            "all",
            str(n),
            f"{np.corrcoef(known, measured)[0, 1]:.3f}",
            f"{100 * (error / known).mean():.1f}",
            "%",
            f"{error.mean() / 1000:.1f}",
            f"{np.polyfit(known, measured, 1)[0]:.2f}",
        ] in rows
    assert [row[2:5] for row in rows].count(["label_map", "one", "12"]) == 2
    # The same table again, by another column, and nothing is measured.
    out, _ = measure(cohort, "within=sex")
    assert "measured already" in out and "sex F" in out and "label_map" not in out


def test_finer_voxels_are_averaged(cohort, measure, tiny_models, tiny_cohort):
    """Each brain in eight times as many voxels gives the volumes of the brain itself."""
    shutil.copytree(cohort, "fine")
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = tiny_cohort.grid.affine[:3, 3] - 1
    for pid in tiny_cohort.table["participant_id"]:
        voxels = np.kron(tiny_cohort.read(pid), np.ones((2, 2, 2), np.float32))
        nib.save(nib.Nifti1Image(voxels, affine), image(Path("fine"), pid))
    measure(cohort)
    measure("fine")
    one, other = (read(Path(c))[NEW].astype(float) for c in (cohort, "fine"))
    assert np.allclose(one, other, rtol=1e-5)


def test_blocks_and_the_grids_that_they_lead_to():
    image = np.random.default_rng(0).random((4, 6, 2), np.float32)
    blocks = average_blocks(image, 2)
    assert blocks.shape == (2, 3, 1)
    assert blocks[1, 2, 0] == pytest.approx(image[2:4, 4:6, 0:2].mean())
    assert coarser(paper_grid(1), paper_grid(2)) == 2
    assert coarser(paper_grid(1), paper_grid(4)) == 4
    assert coarser(paper_grid(2), paper_grid(2)) == 1
    assert coarser(paper_grid(2), paper_grid(1)) is None
    shifted = paper_grid(2).affine.copy()
    shifted[0, 3] += 1
    assert coarser(paper_grid(1), VoxelGrid(paper_grid(2).shape, shifted)) is None
    assert coarser(paper_grid(1), VoxelGrid((80, 112, 81), paper_grid(2).affine)) is None


def test_mistakes(one_line, cohort, tiny_models):
    segmenter = f"segmenter={tiny_models['segmenter']}"
    assert "'segmenter' must be given" in one_line("measure", f"cohort={cohort}")
    assert "none: no such cohort" in one_line("measure", "cohort=none", segmenter)
    assert "nothing: no model there" in one_line("measure", f"cohort={cohort}", "segmenter=nothing")
    line = one_line("measure", f"cohort={cohort}", f"segmenter={tiny_models['autoencoder']}")
    assert "of kind 'autoencoder'" in line
    for option, part in (
        ("shard=3/3", "shard is 3/3"),
        ("within=site", "within=site"),
        ("batch_size=0", "batch_size is 0"),
        ("workers=0", "workers is 0"),
        ("device=nowhere", "device=nowhere"),
    ):
        assert part in one_line("measure", f"cohort={cohort}", segmenter, option)
    shutil.copytree(tiny_models["segmenter"], "finer")
    config = Path("finer/config.yaml")
    config.write_text(config.read_text().replace("- 4.0", "- 2.0").replace("- 32", "- 64"))
    line = one_line("measure", f"cohort={cohort}", "segmenter=finer")
    assert "brains" in line and "finer" in line and "coarser voxels" in line
    assert not list(cohort.glob(".*"))


def test_agreement_of_what_does_not_vary():
    known, measured = np.array([10.0, 20.0, np.nan, 40.0]), np.array([11.0, 20.0, 3.0, np.nan])
    two = agreement(known, measured)
    assert (two.n, two.error, two.r, two.slope) == (2, 0.5, None, None)
    assert two.percent == pytest.approx(5)
    same = agreement(np.full(5, 10.0), np.arange(8.0, 13.0))
    assert (same.n, same.r, same.slope) == (5, None, None) and same.error == pytest.approx(1.2)
    assert agreement(known, np.full(4, np.nan)).n == 0
