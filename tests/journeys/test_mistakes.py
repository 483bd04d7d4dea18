"""A user's mistakes: one line that names the culprit, exit code 2, nothing half-written."""

import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file


@pytest.fixture
def cohort(tiny_cohort, workplace):
    shutil.copytree(tiny_cohort.root, workplace / "cohorts" / "phantom_measure")
    return workplace / "cohorts" / "phantom_measure"


def image(cohort, participant):
    return next((cohort / participant / "anat").glob("*_T1w.nii.gz"))


def edit_table(cohort, change):
    path = cohort / "participants.tsv"
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    change(table).to_csv(path, sep="\t", index=False)


def missing_column(cohort):
    edit_table(cohort, lambda table: table.drop(columns="age"))
    return ["participants.tsv", "column age is missing"]


def unknown_sex(cohort):
    edit_table(cohort, lambda table: table.assign(sex=["W", *table["sex"][1:]]))
    return ["participants.tsv", "row 1", "'W'", "F or M"]


def other_shape(cohort):
    path = image(cohort, "sub-003")
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), nib.load(path).affine), path)
    return ["sub-003", "8×8×8"]


def truncated(cohort):
    path = image(cohort, "sub-003")
    path.write_bytes(path.read_bytes()[:-2000])
    return ["sub-003", "cannot be read"]


def not_a_number(cohort):
    path = image(cohort, "sub-003")
    old = nib.load(path)
    voxels = np.asarray(old.dataobj, np.float32).copy()
    voxels[3, 3, 3] = np.nan
    path.write_bytes(gzip.compress(nib.Nifti1Image(voxels, old.affine).to_bytes()))
    return ["sub-003", "NaN"]


def missing_file(cohort):
    image(cohort, "sub-003").unlink()
    return ["sub-003", "no such file"]


@pytest.mark.parametrize(
    "damage", [missing_column, unknown_sex, other_shape, truncated, not_a_number, missing_file]
)
def test_a_damaged_cohort_stops_training_before_it_begins(one_line, cohort, workplace, damage):
    parts = damage(cohort)
    line = one_line("train", "experiment=brain_age_demo", "data.batch_size=4")
    for part in parts:
        assert part in line
    assert not list(workplace.rglob("weights.safetensors"))
    assert not list(Path("models").glob("*"))


def test_what_is_not_there(one_line, workplace, cohort):
    assert "experiment/ae_dmo" in one_line("train", "experiment=ae_dmo")
    line = one_line("train", "experiment=ae_demo", f"data.cohort={cohort}")
    assert "models/segmenter_demo: no model there" in line
    assert "cohorts/none" in one_line("train", "experiment=ae_demo", "data.cohort=cohorts/none")
    assert "models/ldm_demo: no model there" in one_line("sample", "model=models/ldm_demo", "n=2")
    folder = workplace / "models" / "segmenter_demo"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        "kind: segmenter\n"
        "grid: {shape: [32, 32, 32], affine: [[4.0, 0.0, 0.0, 0.0], [0.0, 4.0, 0.0, 0.0], "
        "[0.0, 0.0, 4.0, 0.0], [0.0, 0.0, 0.0, 1.0]]}\n"
        "classes: [background, csf, grey, white, ventricle]\n"
    )
    line = one_line("train", "experiment=ae_demo", f"data.cohort={cohort}")
    assert "models/segmenter_demo: no weights.safetensors" in line
    assert not Path("models/ae_demo").exists()


def test_more_rows_in_a_batch_than_in_the_cohort(one_line, cohort):
    line = one_line("train", "experiment=brain_age_demo", "data.batch_size=99")
    assert "data.batch_size" in line and "16 training rows" in line


def test_phantoms_of_impossible_kinds(one_line, workplace):
    assert "resolution is 3" in one_line("phantom", "resolution=3")
    assert "n is 0" in one_line("phantom", "n=0")
    assert "nowhere" in one_line("phantom", "label_maps=nowhere", "n=1")
    assert not list(workplace.iterdir())


def test_shapes_that_strides_do_not_divide(one_line, trainings, workplace):
    line = one_line("train", *trainings["autoencoder"], "task.network.channels=[4,4,4,4,4,4,4]")
    assert "shrinks each axis by 64" in line and "32×32×32" in line
    line = one_line("train", *trainings["diffusion"], "task.network.patch=3")
    assert "shrinks each axis by 3" in line and "16×16×16" in line
    line = one_line("train", *trainings["diffusion"], "task.network.patch=0")
    assert "task.network.patch is 0" in line
    line = one_line("train", *trainings["diffusion"], "task.prediction=v")
    assert "task.x0_weight" in line
    assert not list(workplace.iterdir())


def test_an_output_that_cannot_be_written(one_line, trainings, workplace):
    Path("file").write_text("in the way")
    line = one_line("train", *trainings["diffusion"], "out=file/model")
    assert "file/model: cannot be written" in line
    line = one_line("train", *trainings["diffusion"], "data.cache=file/cache")
    assert "file/cache" in line and "data.cache" in line
    assert not Path("models").exists()


def test_a_cache_of_another_autoencoder_is_never_used_silently(
    run_command, trainings, tiny_models, workplace
):
    shutil.copytree(tiny_models["autoencoder"], "ae")
    options = [*trainings["diffusion"], "task.autoencoder=ae", "trainer.max_steps=1"]
    code, _, err = run_command("train", *options, "out=one")
    assert code == 0, err
    code, out, _ = run_command("train", *options, "out=same")
    assert code == 0 and "made anew" not in out
    weights = load_file("ae/weights.safetensors")
    save_file({name: value * 1.01 for name, value in weights.items()}, "ae/weights.safetensors")
    code, out, _ = run_command("train", *options, "out=two")
    assert code == 0
    told = [line for line in out.splitlines() if "made anew" in line]
    assert len(told) == 2  # the training and the validation split
    assert all("made for another autoencoder" in line for line in told)
