"""Models that begin from models, and sweeps over real trainings."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml


@pytest.fixture
def wider_cohort(tiny_cohort, tmp_path):
    """The tiny cohort with a column more, and age under another name."""
    root = tmp_path / "wider"
    shutil.copytree(tiny_cohort.root, root)
    table = pd.read_csv(root / "participants.tsv", sep="\t")
    table["education"] = [8 + i % 9 for i in range(len(table))]
    table["years"] = table["age"] + 1
    table.to_csv(root / "participants.tsv", sep="\t", index=False)
    return root


def test_fine_tuning_to_other_covariates(trainings, run_command, one_line, workplace, wider_cohort):
    few = ["trainer.max_steps=3"]
    code, _, err = run_command(
        "train", *trainings["diffusion"], *few, "task.covariates=[sex,age]", "out=old"
    )
    assert code == 0, err
    again = [
        *trainings["diffusion"],
        *few,
        f"data.cohort={wider_cohort}",
        "task.start_from=old",
        "task.autoencoder=old/autoencoder",
        "task.covariates=[years,education,sex]",
        "task.renamed={years: age}",
        "out=new",
    ]
    code, _, err = run_command("train", *again)
    assert code == 0, err
    old, new = (yaml.safe_load(Path(m, "config.yaml").read_text()) for m in ("old", "new"))
    assert [c["name"] for c in new["covariates"]] == ["years", "education", "sex"]
    assert new["latent_scale"] == old["latent_scale"]
    assert new["covariates"][0]["low"] == old["covariates"][1]["low"]
    assert (new["covariates"][1]["low"], new["covariates"][1]["high"]) == (8, 16)
    code, _, err = run_command(
        "sample", "model=new", "n=2", "sampler.steps=2", "ranges={education: [9, 10]}", "out=brains"
    )
    assert code == 0, err
    # A table may ask for it too.
    code, _, err = run_command(
        "sample", "model=new", f"table={wider_cohort}/participants.tsv", "split=val",
        "sampler.steps=2", "extrapolate=true", "out=asked",
    )  # fmt: skip
    assert code == 0, err
    asked = pd.read_csv("asked/participants.tsv", sep="\t")
    rows = pd.read_csv(wider_cohort / "participants.tsv", sep="\t").set_index("participant_id")
    assert list(asked["education"]) == list(rows.loc[asked["source_id"], "education"])
    line = one_line("train", *again[:-1], "out=other", "task.renamed={years: height}")
    assert "height" in line and "age" in line
    line = one_line("train", *again[:-1], "out=other", "task.autoencoder=nowhere")
    assert "nowhere: no model there" in line
    assert not Path("other").exists()


def test_an_autoencoder_begins_from_another(trainings, run_command, one_line, workplace):
    options = [*trainings["autoencoder"], "trainer.max_steps=2"]
    for extra in (["out=old"], ["task.start_from=old", "out=new"]):
        code, _, err = run_command("train", *options, *extra)
        assert code == 0, err
    line = one_line(
        "train", *options, "task.start_from=old", "task.network.channels=[8,8]", "out=x"
    )
    assert "task.network.channels" in line


def test_an_unconditional_model_trains_and_samples(trainings, run_command, workplace):
    options = [*trainings["diffusion"], "trainer.max_steps=3", "pictures.count=1"]
    options += [
        "pictures.steps=2",
        "task.network.condition_maps=0",
        "task.covariates=[]",
        "out=free",
    ]
    code, _, err = run_command("train", *options)
    assert code == 0, err
    code, _, err = run_command("sample", "model=free", "n=2", "sampler.steps=2", "out=brains")
    assert code == 0, err
    assert len(pd.read_csv("brains/participants.tsv", sep="\t")) == 2


def test_a_sweep_with_optuna_names_the_best(trainings, run_command, workplace):
    pytest.importorskip("optuna", reason="needs pip install -e '.[sweeps]'")
    options = [*trainings["diffusion"], "trainer.max_steps=3", "out=swept"]
    code, out, err = run_command(
        "train", "-m", "hydra/sweeper=optuna", *options, "task.lr=interval(1e-4,1e-2)",
        "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=1",
    )  # fmt: skip
    assert code == 0, err
    summary = json.loads(Path("swept/sweep.json").read_text())
    values = {
        job: json.loads(Path(f"swept/{job}/run/result.json").read_text())["value"] for job in (0, 1)
    }
    assert summary["best"] == min(values, key=values.get)
    assert f"best: job {summary['best']}, val/loss" in out
    assert "task.lr" in out and summary["command"] in out
