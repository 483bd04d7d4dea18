"""Whole commands, from phantoms to the report, on cohorts and networks as small as they come."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from brain_ldm.cohorts.cohort import open_cohort
from brain_ldm.studies.study import read_off

TINY = {
    "segmenter": ["task.network.features=[4,4,8,8,8,4]", "trainer.max_steps=4"],
    "brain_age": ["task.network.channels=[2,4]", "trainer.max_steps=4", "data.batch_size=4"],
    "ae": [
        "task.network.channels=[4,8]",
        "task.network.norm_groups=4",
        "task.discriminator.channels=4",
        "task.loss.adversarial_start=2",
        "trainer.max_steps=4",
    ],
    "ldm": [
        "task.network.channels=[16]",
        "task.network.norm_groups=8",
        "task.network.head_channels=[16]",
        "trainer.max_steps=4",
        "data.batch_size=4",
    ],
    "embedding": ["task.network.channels=[4,8]", "task.network.norm_groups=2"],
    "lsgan": ["task.discriminator.channels=[4,8]"],
    "vae_gan": ["task.discriminator.channels=[4,8]"],
}
SHORT = ["trainer.max_steps=2", "data.batch_size=4"]
GAN = ["task.network.latent_size=5", "task.network.channels=[4,8,8]", "task.network.norm_groups=4"]


def chain(run, **phantoms):
    """Run every command of the demo; return the report's folder."""

    def succeed(name, *overrides):
        code, out, err = run(name, *overrides)
        assert code == 0, err
        return out

    options = [f"{key}={value}" for key, value in phantoms.items()]
    succeed("phantom", "n=24", "seed=1", *options)
    succeed("phantom", "n=24", "seed=2", "out=cohorts/phantom_measure", *options)
    for name in ("segmenter", "brain_age", "ae", "ldm"):
        succeed("train", f"experiment={name}_demo", "trainer.val_every=2", *TINY[name])
    model = ["model=models/ldm_demo", "sampler.steps=3"]
    table = "table=cohorts/phantom/participants.tsv"
    succeed("sample", *model, table, "split=test", "extrapolate=true", "out=cohorts/synthetic")
    succeed("sample", *model, "sweep=age", "n=3", "out=cohorts/sweep")
    succeed("train", "experiment=embedding_demo", *TINY["embedding"], *SHORT)
    for name in ("lsgan", "vae_gan"):
        succeed("train", f"experiment={name}_demo", *TINY[name], *GAN, *SHORT)
        succeed("sample", f"model=models/{name}_demo", "n=5", f"out=cohorts/{name}")
    report = succeed(
        "evaluate",
        "synthetic={LSGAN: cohorts/lsgan, VAE-GAN: cohorts/vae_gan, LDM: [cohorts/synthetic]}",
        "sweeps=[cohorts/sweep]",
        "age_networks=[models/brain_age_demo]",
        "features=segmenter",
        *("pairs=3", "resamples=3", "out=reports/tiny"),
    )
    assert "reports/tiny" in report
    return Path("reports/tiny")


def read_json(report):
    return json.loads(Path(report, "metrics.json").read_text())


def check_report(report):
    metrics = read_json(report)
    assert metrics["synthetic"]["synthetic"]["n"] == metrics["real"]["n"] > 0
    page = (report / "index.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    assert list(metrics["table"]) == ["LSGAN", "VAE-GAN", "LDM", "Real"]
    assert all(row["ms_ssim"]["mean"] for row in metrics["table"].values())
    assert metrics["utility"][0]["source"] == "real"
    study = yaml.safe_load((Path(__file__).parents[2] / "conf/study/utility.yaml").read_text())
    assert all(read_off(metrics, place)["value"] for place in study["measures"].values())
    assert {p.name for p in (report / "figures").iterdir()} == {
        *("overview.png", "table.png", "utility.png", "sweep_sweep.png"),
        *("montage_synthetic.png", "scatter_synthetic.png"),
        *(f"viewer_{number}.html" for number in range(4)),
        *(f"neighbours_{name}.png" for name in ("synthetic", "lsgan", "vae_gan")),
    }


def test_from_the_template_to_the_report(run_command, workplace):
    check_report(chain(run_command))

    synthetic, real = open_cohort("cohorts/synthetic"), open_cohort("cohorts/phantom")
    asked = synthetic.table.set_index("source_id")
    rows = real.rows("test").set_index("participant_id")
    assert set(asked.index) == set(rows.index)
    assert np.allclose(asked["age"], rows.loc[asked.index, "age"])
    assert synthetic.grid.same_as(real.grid)
    assert "_desc-synth_T1w" in synthetic.image_path(synthetic.table["participant_id"][0]).name
    config = Path("models/ldm_demo/run/config.yaml").read_text()
    assert "autoencoder: models/ae_demo" in config and "${" not in config
    # A second call of sample finds its work done; other brains do not mix with those there.
    table = "table=cohorts/phantom/participants.tsv"
    same = ["model=models/ldm_demo", "sampler.steps=3", table, "split=test", "extrapolate=true"]
    code, out, _ = run_command("sample", *same, "out=cohorts/synthetic")
    assert code == 0 and "done already" in out
    code, _, err = run_command("sample", *same, "out=cohorts/synthetic", "seed=9")
    assert code == 2 and "cohorts/synthetic" in err
    # The report goes into the cards of all that it judged.
    sweep = ["model=models/ldm_demo", "sampler.steps=3", "sweep=age", "n=3"]
    for folder, options in {
        "cohorts/synthetic": same,
        "cohorts/lsgan": ["model=models/lsgan_demo", "n=5"],
        "cohorts/sweep": sweep,
    }.items():
        code, _, err = run_command("sample", *options, f"out={folder}", "report=reports/tiny")
        assert code == 0, err
    card, metrics = Path("cohorts/lsgan/README.md").read_text(), read_json("reports/tiny")
    fid = metrics["synthetic"]["lsgan"]["realism"]["fid"]["value"]
    row = next(line for line in card.splitlines() if line.startswith("| FID"))
    assert float(row.split("|")[2].split()[0]) == pytest.approx(fid, rel=0.01)
    assert "age: r" in Path("cohorts/sweep/README.md").read_text()
    # A trained model is not overwritten.
    code, _, err = run_command("train", "experiment=ae_demo", *TINY["ae"])
    assert code == 2 and "models/ae_demo: holds a trained model" in err


def test_from_label_maps_to_the_report(run_command, workplace):
    data = os.environ.get("BRAIN_LDM_DATA", Path(__file__).parents[3] / "shared" / "data")
    maps = Path(data) / "label_maps"
    if not maps.is_dir():
        pytest.skip(f"no label maps in {maps}; set BRAIN_LDM_DATA to a folder that has them")
    check_report(chain(run_command, label_maps=maps))


def test_multirun_trains_a_model_a_job(run_command, workplace, tiny_cohort):
    code, _, err = run_command(
        "train",
        "-m",
        "experiment=brain_age_demo",
        f"data.cohort={tiny_cohort.root}",
        "task.lr=0.01,0.001",
        *TINY["brain_age"],
    )
    assert code == 0, err
    for job, lr in enumerate(("0.01", "0.001")):
        folder = Path(f"models/brain_age_demo/{job}")
        assert (folder / "weights.safetensors").is_file()
        assert f"lr: {lr}" in (folder / "run" / "config.yaml").read_text()
