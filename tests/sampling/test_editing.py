"""Real brains under other covariates: what is asked for, and their noise found again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from brain_ldm.cohorts.cohort import open_cohort
from brain_ldm.cohorts.covariates import CovariateEncoder
from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.cohorts.writer import CohortWriter
from brain_ldm.diffusion.config import DDIMConfig, DDPMConfig, Prediction
from brain_ldm.errors import InputError
from brain_ldm.models import (
    Autoencoder,
    Diffusion,
    GridConfig,
    SavedAutoencoder,
    SavedDiffusion,
    save_model,
)
from brain_ldm.networks.config import AutoencoderConfig, UNetConfig
from brain_ldm.sampling.config import SampleConfig
from brain_ldm.sampling.editing import changed_latents, open_source, provenance
from brain_ldm.sampling.requests import requested_rows

NAMES = ["sex", "age", "ventricular_volume"]
DDIM = DDIMConfig(steps=10)


@pytest.fixture(scope="module")
def encoder(tiny_cohort):
    return CovariateEncoder.fit(tiny_cohort.rows("train"), NAMES)


@pytest.fixture(scope="module")
def model(tiny_cohort, encoder):
    """A diffusion model with random weights, of latents of 8³."""
    torch.manual_seed(1)
    grid = GridConfig(**tiny_cohort.grid.to_dict())
    network = AutoencoderConfig([4, 4, 8], res_blocks=1, norm_groups=4)
    autoencoder = Autoencoder(SavedAutoencoder(grid=grid, network=network))
    network = UNetConfig([8], 1, attention_levels=[True], head_channels=[8], norm_groups=4)
    saved = SavedDiffusion(
        grid=grid, network=network, prediction=Prediction.v, latent_scale=2.0, **encoder.to_dict()
    )
    model = Diffusion(saved, autoencoder)
    # Layers of a fresh U-Net that are zero, its last one among them, would hide what comes before.
    for parameter in model.network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    model.latent_mean += 0.1
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def asked(tiny_cohort, encoder):
    def ask(**options):
        options = {"sampler": DDIM, "split": "test", "n": 2, "extrapolate": True, **options}
        config = SampleConfig(model="m", from_=str(tiny_cohort.root), **options)
        return config, requested_rows(config, encoder)

    return ask


def test_rows_are_the_brains_with_what_is_asked_changed(asked, tiny_cohort):
    own = tiny_cohort.rows("test")[:2]
    _, rows = asked(change={"age": 2.5}, ranges={"ventricular_volume": 30000, "sex": "M"})
    assert list(rows["source_id"]) == list(own["participant_id"])
    assert np.allclose(rows["age"], own["age"] + 2.5)
    assert set(rows["ventricular_volume"]) == {30000} and set(rows["sex"]) == {"M"}
    # All brains of a person stay on one side of a split, and no seed is claimed.
    assert list(rows["subject"]) == list(own["participant_id"]) and set(rows["split"]) == {"test"}
    assert set(rows["participant_id"]).isdisjoint(own["participant_id"]) and "seed" not in rows
    assert len(asked(n=None)[1]) == 4
    assert asked(covariates=["age"])[1][["sex", "ventricular_volume"]].isna().all(axis=None)


@torch.inference_mode()
def test_unchanged_brains_come_back_as_the_autoencoder_has_them(asked, model, tiny_cohort):
    config, rows = asked()
    source = open_source(config, model, rows)
    latents = changed_latents(model, source, rows, config)
    images = torch.from_numpy(np.stack([tiny_cohort.read(pid) for pid in rows["source_id"]]))[
        :, None
    ]
    wanted = model.autoencoder.reconstruct(images)
    assert wanted.std() > 1e-3
    assert torch.allclose(model.decode(latents), wanted, atol=1e-5)


@torch.inference_mode()
def test_changed_brains_are_changed_by_what_is_asked_alone(asked, model, tiny_cohort):
    changing, changed = asked(change={"age": 10}, ranges={"sex": "M"})
    source = open_source(changing, model, changed)
    latents = changed_latents(model, source, changed, changing)
    images = np.stack([tiny_cohort.read(pid) for pid in changed["source_id"]])
    before, _ = model.autoencoder.encode(torch.from_numpy(images)[:, None])
    own = tiny_cohort.rows("test")[:2]
    conditions, wanted = (torch.from_numpy(model.encoder.encode(r)) for r in (own, changed))
    assert torch.allclose(latents, model.edit(before, conditions, wanted, DDIM), atol=1e-5)
    assert not torch.allclose(latents, before, atol=1e-3)
    # One brain's change is its own, whatever is beside it.
    alone = changed_latents(model, source, changed[1:2].reset_index(drop=True), changing)
    assert torch.allclose(alone[0], latents[1], atol=1e-4)
    # A covariate that the model is not told is not told of the brain as it was either.
    some, told = asked(covariates=["age"], change={"age": 10})
    other = changed_latents(model, open_source(some, model, told), told, some)
    assert not torch.allclose(other, latents, atol=1e-4)
    made = provenance(changing, source)
    assert made["Change"] == {"age": 10} and made["SourceHash"] == source.content_hash()
    assert len(source.table) == len(changed)
    assert made["SourceHash"] != open_cohort(source.root).content_hash()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"change": {"age": 50}}, r"change.age: age of row 1 \(sub-020\) is .* year, outside the"),
        ({"change": {"sex": 1}}, "change.sex: 1; set it by ranges.sex: F or M"),
        ({"change": {"weight": 1}}, "no covariate 'weight'"),
        ({"change": {"age": 1}, "ranges": {"age": 60}}, "ranges.age sets it already"),
        ({"ranges": {"age": [60, 70]}}, r"ranges.age: \[60, 70\]; with from give one value"),
        ({"ranges": {"age": 90}}, "ranges.age is 90 year, outside the training range"),
        ({"split": "none"}, "no rows of split none"),
    ],
)
def test_what_cannot_be_changed_is_told_in_one_line(asked, options, said):
    with pytest.raises(InputError, match=said) as error:
        asked(extrapolate=False, **options)
    assert "\n" not in str(error.value)


def test_a_brain_that_is_out_of_range_itself_is_named(tiny_cohort, encoder):
    age = tiny_cohort.rows("test")["age"].iloc[0]
    high = [
        age - 1 if name == "age" else high for name, high in zip(NAMES, encoder.high, strict=True)
    ]
    options = {"from_": str(tiny_cohort.root), "split": "test", "change": {"ventricular_volume": 1}}
    with pytest.raises(InputError) as error:
        requested_rows(SampleConfig(model="m", n=1, **options), replace(encoder, high=high))
    assert str(error.value).startswith(f"{tiny_cohort.root}: age of row 1 (sub-020) is ")
    assert "take such rows out, or give extrapolate=true" in str(error.value)


def test_a_cohort_that_does_not_fit_is_told_in_one_line(asked, model, tmp_path, encoder):
    config, rows = asked()
    for sampler in (DDPMConfig(), DDIMConfig(eta=0.5)):
        other = SampleConfig(model="m", from_=config.from_, sampler=sampler)
        with pytest.raises(InputError, match=r"give sampler=ddim and sampler.eta=0"):
            open_source(other, model, rows)
    grid = VoxelGrid((16, 16, 16), np.diag([4.0, 4, 4, 1]))
    writer = CohortWriter(tmp_path / "c", "Other", {"Name": "tests"}, grid, synthetic=False)
    for index, age in enumerate((60, None)):
        row = {"participant_id": f"sub-{index}", "age": age, "sex": "F", "split": "train"}
        writer.add({**row, "ventricular_volume": 30000.0}, np.eye(16)[None].repeat(16, 0))
    writer.finish()
    options = {"from_": str(tmp_path / "c"), "sampler": DDIM, "extrapolate": True}
    config = SampleConfig(model="m", **options)
    with pytest.raises(InputError, match=r"sub-0_.*16×16×16 voxels .*, but m works on 32×32×32"):
        open_source(config, model, requested_rows(config, encoder))
    with pytest.raises(InputError, match=r"sub-1 has no age to change \(1 of 2 brains lack it\)"):
        requested_rows(SampleConfig(model="m", change={"age": 1}, **options), encoder)
    table = pd.read_csv(tmp_path / "c" / "participants.tsv", sep="\t")
    table.drop(columns="age").to_csv(tmp_path / "c" / "participants.tsv", sep="\t", index=False)
    with pytest.raises(InputError, match="column age is missing"):
        requested_rows(config, encoder)


def test_from_is_an_option_though_a_word_of_python(run_command, one_line, workplace):
    code, out, _ = run_command("sample", "--help")
    assert code == 0 and "\nfrom: null\n" in out and "from_" not in out
    assert "did you mean from?" in one_line("sample", "model=m", "form=c")
    line = one_line("sample", "model=m", "from=[a,b]")
    assert "override from=[a,b]" in line and "from_" not in line
    # Names of the user's own stay as they are.
    assert "/in_/x: no such folder" in one_line("sample", "out=/in_/x", "verify=true")
    assert "in_: no such folder" in one_line("sample", "out=in_", "verify=true")
    assert "\nout: in_\n" in run_command("sample", "out=in_", "--help")[1]


def test_the_command_ages_brains(run_command, workplace, model, tiny_cohort):
    shutil.copytree(tiny_cohort.root, "real")
    save_model(model, Path("model"), "# Tiny\n")
    shutil.copytree(workplace / "model", "m")
    options = ["model=m", "from=real", "split=test", "n=2", "sampler.steps=3", "extrapolate=true"]
    options += ["precision=32-true", "out=older", "change={age: 10}"]
    code, _, err = run_command("sample", *options)
    assert code == 0, err
    older, own = open_cohort("older"), tiny_cohort.rows("test")[:2]
    assert np.allclose(older.table["age"], own["age"] + 10)
    assert list(older.table["source_id"]) == list(own["participant_id"])
    assert list(older.table["subject"]) == list(own["participant_id"])
    assert set(older.table["split"]) == {"test"} and "seed" not in older.table
    (made,) = json.loads(Path("older/dataset_description.json").read_text())["GeneratedBy"]
    assert (
        made["From"] == "real" and made["Change"] == {"age": 10} and len(made["SourceHash"]) == 64
    )
