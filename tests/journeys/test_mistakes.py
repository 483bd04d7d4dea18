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


def test_several_mistakes_of_a_cohort_are_told_at_once(run_command, cohort, workplace):
    for damage in (unknown_sex, truncated):
        damage(cohort)
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4)), image(cohort, "sub-005"))
    code, _, err = run_command("train", "experiment=brain_age_demo", "data.batch_size=4")
    assert code == 2 and "Traceback" not in err
    *table, last = err.strip().splitlines()
    assert [line.split()[0] for line in table] == ["severity", "error", "error", "error"]
    assert "row 1 (sub-000)" in err and "sub-003/anat" in err and "sub-005/anat" in err
    report = Path("models/brain_age_demo/run/findings.tsv")
    assert last == (
        f"train: 3 errors in cohorts/phantom_measure: see the table above, all in {report}"
    )
    assert len(report.read_text().splitlines()) == 4
    assert not list(workplace.rglob("weights.safetensors"))


def test_warnings_about_a_cohort_do_not_stop_training(run_command, cohort):
    edit_table(cohort, lambda table: table.assign(age=["n/a", "n/a", *table["age"][2:]]))
    shutil.copy(image(cohort, "sub-003"), image(cohort, "sub-004"))
    options = [
        "experiment=brain_age_demo", "task.network.channels=[2,4]", "trainer.max_steps=1",
        "data.batch_size=4",
    ]  # fmt: skip
    code, _, err = run_command("train", *options)
    assert code == 0
    told = err.strip().splitlines()
    assert len(told) == 2 and all(line.startswith("warning: ") for line in told)
    assert "column age: 2 of 24 rows have no value" in told[0]
    assert "sub-004" in told[1] and "the same voxels as sub-003" in told[1]
    assert len(Path("models/brain_age_demo/run/findings.tsv").read_text().splitlines()) == 3


def test_a_column_that_cannot_be_balanced(one_line, trainings, workplace):
    line = one_line("train", *trainings["diffusion"], "data.balance=site")
    assert "data.balance" in line and "no column site" in line and "sex" in line
    line = one_line("train", *trainings["autoencoder"], "data.balance=split")
    assert "column split" in line and "nothing to balance" in line
    assert not Path("models").exists()


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
    assert "task.detail is for task.prediction=x0" in line
    line = one_line("train", *trainings["diffusion"], "task.detail=2")
    assert "task.detail is 2" in line
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
