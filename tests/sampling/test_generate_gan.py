"""Sampling from a GAN's generator: noise of each row's own, and nothing else to ask for."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from brain_ldm.cohorts.cohort import open_cohort
from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.models import Generator, GridConfig, SavedGenerator, open_model, save_model
from brain_ldm.networks.config import GeneratorConfig


@pytest.fixture
def model(workplace):
    torch.manual_seed(0)
    grid = GridConfig(**VoxelGrid((8, 16, 8), np.diag([4.0, 4, 4, 1])).to_dict())
    network = GeneratorConfig(latent_size=5, channels=[4, 8], norm_groups=4)
    save_model(Generator(SavedGenerator(grid=grid, network=network)), Path("gan"), "# GAN\n")
    return open_model("gan", Generator)


def volumes(root):
    cohort = open_cohort(root)
    table = pd.read_csv(f"{root}/participants.tsv", sep="\t", keep_default_na=False, dtype=str)
    return table, np.stack([cohort.read(pid) for pid in table["participant_id"]])


def test_a_row_is_drawn_from_its_seed_whatever_the_batch(model, run_command):
    drawn = {}
    for size in (1, 4):
        options = ["model=gan", "n=4", "seed=3", "precision=32-true"]
        code, _, err = run_command("sample", *options, f"batch_size={size}", f"out=of_{size}")
        assert code == 0, err
        drawn[size] = volumes(f"of_{size}")
    table, images = drawn[1]
    assert table.equals(drawn[4][0])
    assert np.allclose(images, drawn[4][1], atol=1 / 2048)  # images are stored in steps of 1/4096
    assert np.abs(images[0] - images[1]).max() > 0.01
    assert (table[["age", "sex", "ventricular_volume", "brain_volume"]] == "n/a").all(axis=None)
    for seed, image in zip(table["seed"], images, strict=True):
        z = torch.randn(1, 5, generator=torch.Generator().manual_seed(int(seed)))
        assert np.allclose(model.generate(z)[0, 0].numpy(), image, atol=1 / 2048)


def test_the_cohort_says_what_it_depends_on_and_no_more(model, run_command):
    options = ["model=gan", "n=2", "seed=3", "out=drawn"]
    code, _, err = run_command("sample", *options)
    assert code == 0, err
    (made,) = json.loads(Path("drawn/dataset_description.json").read_text())["GeneratedBy"]
    assert made["ModelHash"] == model.hash and made["Seed"] == 3
    assert made.keys() == {
        *("Name", "Version", "ModelHash", "ConfigHash", "TrainedOn", "Seed", "Storage"),
        *("BatchSize", "Precision", "N", "Brains"),
    }
    code, out, _ = run_command("sample", *options, "sampler=ddpm")  # which does not matter here
    assert code == 0 and "done already" in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["n=2", "covariates=[age]"], "covariates: gan knows no covariates"),
        (["n=2", "ranges={age: 60}"], "ranges: gan knows no covariates"),
        (["table=participants.tsv"], "table: gan knows no covariates"),
        (["n=2", "split=test"], "split: gan knows no covariates"),
        (["n=2", "sweep=age"], "sweep: gan knows no covariates"),
        (["n=2", "guidance=2"], "guidance is 2: gan is a GAN's generator"),
        (["n=2", "noises=2"], "noises is 2: it is for sweeps"),
        ([], "n=…"),
        (["n=0"], "at least 1"),
    ],
)
def test_what_it_cannot_be_asked_is_told_in_one_line(model, one_line, options, said):
    assert said in one_line("sample", "model=gan", "out=none", *options)
    assert not Path("none").exists()


def test_another_kind_of_model_is_told(tiny_models, workplace, one_line):
    line = one_line("sample", f"model={tiny_models['autoencoder']}", "n=1")
    assert "kind 'autoencoder', not 'diffusion' or 'generator'" in line
