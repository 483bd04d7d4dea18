"""A model of ours as a MONAI bundle: without this package it draws the same volume."""

import json
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata, verify_net_in_out
from safetensors.torch import load_file

from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.conversion.config import ConvertConfig, Target
from brain_ldm.conversion.convert import convert
from brain_ldm.diffusion.config import DDIMConfig, Prediction
from brain_ldm.errors import InputError
from brain_ldm.models import (
    Autoencoder,
    Diffusion,
    Generator,
    GridConfig,
    SavedAutoencoder,
    SavedDiffusion,
    SavedGenerator,
    open_model,
    save_model,
)
from brain_ldm.networks.config import AutoencoderConfig, Conditioning, GeneratorConfig, UNetConfig

AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
AFFINE[:3, 3] = (-30, -62, -50)
GRID = GridConfig(**VoxelGrid((16, 32, 16), AFFINE).to_dict())
AGE = {"name": "age", "unit": "year", "low": 44.0, "high": 82.0}
SEX = {"name": "sex", "unit": "", "low": 0.0, "high": 1.0}
EDUCATION = {"name": "education", "unit": "", "low": 8.0, "high": 21.0}


def diffusion(covariates, prediction=Prediction.epsilon, detail=0.0, **network):
    """A small model with weights of which none is zero, its latents scaled and centred."""
    torch.manual_seed(1)
    autoencoder = Autoencoder(
        SavedAutoencoder(
            grid=GRID,
            network=AutoencoderConfig(channels=[4, 8], res_blocks=1, norm_groups=4),
            trained_on={"cohort": "c", "training_rows": 3},
        )
    )
    unet = {
        "channels": [8, 16],
        "res_blocks": 1,
        "attention_levels": [False, True],
        "head_channels": [0, 8],
        "norm_groups": 4,
    }
    saved = SavedDiffusion(
        grid=GRID,
        network=UNetConfig(**unet, **network),
        prediction=prediction,
        detail=detail,
        latent_scale=0.7,
        covariates=covariates,
        trained_on={"cohort": "c", "steps": 4, "extra": {"a": [1.5, None]}},
    )
    model = Diffusion(saved, autoencoder).eval()
    for weight in model.network.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.05)
    model.latent_mean.normal_()
    return model


MODELS = {
    "paper": lambda: diffusion([SEX, AGE]),
    "demo": lambda: diffusion([AGE, SEX], Prediction.x0, 0.2, patch=2, condition_maps=2),
    "v": lambda: diffusion([EDUCATION], Prediction.v, conditioning=Conditioning.concatenation),
    "token": lambda: diffusion([AGE, EDUCATION], conditioning=Conditioning.cross_attention),
    "unconditional": lambda: diffusion([]),
}


def generator():
    """A small generator of a GAN."""
    torch.manual_seed(2)
    network = GeneratorConfig(latent_size=6, channels=[4, 8, 8], norm_groups=4)
    return Generator(SavedGenerator(grid=GRID, network=network, trained_on={"cohort": "c"})).eval()


def write(model, folder):
    """Save a model and convert it; return the bundle's folder."""
    if isinstance(model, Diffusion):
        save_model(model.autoencoder, folder / "model" / "autoencoder", "# inner card\n")
    save_model(model, folder / "model", "# card\n")
    bundle = folder / "bundle"
    convert(ConvertConfig(source=str(folder / "model"), out=str(bundle), to=Target.bundle))
    return bundle


def ours(model, asked, seed, steps):
    """The volume that the model draws itself, float32 (X, Y, Z)."""
    conditions = torch.from_numpy(model.encoder.encode(pd.DataFrame([asked], index=[0])))
    shape = model.autoencoder.latent_shape
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))[None]
    with torch.no_grad():
        return model.decode(model.sample(conditions, noise, DDIMConfig(steps=steps)))[0, 0].numpy()


@pytest.fixture
def importable(monkeypatch):
    """Let a bundle's scripts be imported within this process."""

    def add(bundle):
        monkeypatch.syspath_prepend(bundle)
        for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
            monkeypatch.delitem(sys.modules, name)

    return add


@pytest.fixture
def parsed(importable):
    """Evaluate an entry of a bundle's inference config within this process."""

    def evaluate(bundle, entry, **overrides):
        importable(bundle)
        parser = ConfigParser()
        parser.read_config(bundle / "configs" / "inference.json")
        parser.update({"bundle_root": str(bundle), "device": "$torch.device('cpu')", **overrides})
        return parser.get_parsed_content(entry)

    return evaluate


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_model_draws_the_same_from_its_bundle(tmp_path, parsed, kind):
    model = MODELS[kind]()
    bundle = write(model, tmp_path)
    everything = {"sex": "M", "age": 71.25, "education": 17}
    asked = {name: everything[name] for name in model.encoder.names}
    overrides = {f"covariates#{name}": value for name, value in asked.items()}
    volume = parsed(bundle, "volume", seed=2**62 + 3, steps=7, **overrides)
    expected = ours(model, asked, 2**62 + 3, 7)
    assert expected.std() > 0.01
    assert np.allclose(volume[0].numpy(), expected, atol=1e-5)
    assert np.allclose(volume.affine, AFFINE)


def test_a_generator_draws_the_same_where_this_package_is_not(tmp_path, without_us, importable):
    model = generator()
    bundle = write(model, tmp_path)
    configs = ("--config_file", "configs/inference.json")
    without_us(bundle, "-m", "monai.bundle", "run", *configs, "--seed", "11")
    image = nib.load(bundle / "output" / "brain_seed-11.nii.gz")
    with torch.no_grad():
        noise = torch.randn(6, generator=torch.Generator().manual_seed(11))[None]
        expected = model.generate(noise)[0, 0].numpy()
    assert expected.std() > 0.01 and np.allclose(image.affine, AFFINE)
    assert np.allclose(image.get_fdata(), expected, atol=1e-5)
    importable(bundle)
    configs = {name: str(bundle / "configs" / f"{name}.json") for name in ("metadata", "inference")}
    verify_net_in_out("network_def", configs["metadata"], configs["inference"], device="cpu")
    readme = (bundle / "docs" / "README.md").read_text()
    assert "--seed 1\n" in readme and "covariate" not in readme

    convert(ConvertConfig(source=str(bundle), out=str(tmp_path / "again"), to=Target.model))
    for file in ("config.yaml", "MODEL_CARD.md"):
        assert (tmp_path / "again" / file).read_text() == (tmp_path / "model" / file).read_text()
    again = open_model(tmp_path / "again", Generator).weights()
    assert all(torch.equal(value, again[name]) for name, value in model.weights().items())
    torch.save({"other": torch.zeros(2)}, bundle / "models" / "model.pt")
    with pytest.raises(InputError, match=r"model.pt: .*'other', are neither those of Generator"):
        convert(ConvertConfig(source=str(bundle), out=str(tmp_path / "x"), to=Target.model))


def test_a_covariate_that_is_not_known_is_missing(tmp_path, parsed):
    model = MODELS["demo"]()
    volume = parsed(write(model, tmp_path), "volume", steps=3, **{"covariates#age": None})
    assert np.allclose(volume[0].numpy(), ours(model, {"sex": "F"}, 0, 3), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [("sex", "W", "sex is W; give F or M"), ("age", 2, "age is 2"), ("agee", 70, "no covariate")],
)
def test_a_wrong_request_is_refused_by_the_bundle(tmp_path, parsed, name, value, line):
    bundle = write(MODELS["paper"](), tmp_path)
    with pytest.raises(Exception, match="encode") as raised:
        parsed(bundle, "conditions", **{f"covariates#{name}": value})
    reasons, error = "", raised.value
    while error is not None:
        reasons, error = f"{reasons}\n{error}", error.__cause__ or error.__context__
    assert line in reasons


@pytest.mark.parametrize("kind", ["paper", "demo"])
def test_a_bundle_becomes_the_same_model_again(tmp_path, kind):
    bundle = write(MODELS[kind](), tmp_path)
    convert(ConvertConfig(source=str(bundle), out=str(tmp_path / "again"), to=Target.model))
    files = ("config.yaml", "MODEL_CARD.md", "autoencoder/config.yaml", "autoencoder/MODEL_CARD.md")
    for file in files:
        assert (tmp_path / "again" / file).read_text() == (tmp_path / "model" / file).read_text()
    for file in ("weights.safetensors", "autoencoder/weights.safetensors"):
        before, after = load_file(tmp_path / "model" / file), load_file(tmp_path / "again" / file)
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
    # MONAI itself takes the two files as they are.
    for entry, file in (("autoencoder_def", "autoencoder.pt"), ("diffusion_def", "model.pt")):
        parser = ConfigParser()
        parser.read_config(bundle / "configs" / "inference.json")
        state = torch.load(bundle / "models" / file, weights_only=True)
        parser.get_parsed_content(entry).load_state_dict(state)


@pytest.fixture
def without_us(tmp_path):
    """Run Python in a bundle where brain_ldm cannot be imported; return what it printed."""
    block = tmp_path / "block"
    block.mkdir()
    (block / "sitecustomize.py").write_text(
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] == 'brain_ldm':\n"
        "            raise ModuleNotFoundError(f'{name} is blocked')\n"
        "sys.meta_path.insert(0, Block())\n"
    )
    path = os.pathsep.join(filter(None, (str(block), os.environ.get("PYTHONPATH"))))

    def run(folder, *arguments, code=0):
        done = subprocess.run(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path},
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    assert "is blocked" in run(tmp_path, "-c", "import brain_ldm", code=1)
    return run


def test_monai_runs_the_bundle_where_this_package_is_not(tmp_path, without_us):
    model = MODELS["demo"]()
    bundle = write(model, tmp_path)
    command = ("-m", "monai.bundle", "run", "--config_file", "configs/inference.json")
    asked = ("--steps", "6", "--seed", "11", "--covariates#age", "50", "--covariates#sex", "M")
    without_us(bundle, *command, *asked)
    (path,) = (bundle / "output").glob("*.nii.gz")
    image = nib.load(path)
    assert path.name == "brain_seed-11.nii.gz" and image.get_data_dtype() == np.float32
    assert np.allclose(image.affine, AFFINE)
    expected = ours(model, {"age": 50.0, "sex": "M"}, 11, 6)
    assert np.allclose(image.get_fdata(), expected, atol=1e-5)


def test_monai_verifies_what_goes_in_and_out(tmp_path, without_us, importable):
    bundle = write(MODELS["demo"](), tmp_path)
    meta = ("--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json")
    printed = without_us(bundle, "-m", "monai.bundle", "verify_net_in_out", "network_def", *meta)
    assert "verified with no error" in printed
    importable(bundle)
    inference = str(bundle / "configs" / "inference.json")
    workflow = ConfigWorkflow(inference, logging_file=False, workflow_type="infer")
    workflow.initialize()
    assert workflow.check_properties() == []


# Of configs/metadata.json of brain_image_synthesis_latent_diffusion_model 1.0.0 in
# Project-MONAI/model-zoo (commit 17e7879).
PUBLISHED = {
    *("schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version"),
    *("required_packages_version", "task", "description", "authors", "copyright", "data_source"),
    *("data_type", "image_classes", "eval_metrics", "intended_use", "references"),
    "network_data_format",
}
TENSOR = {
    *("type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data"),
    "channel_def",
}


def test_metadata_has_the_published_bundles_keys(tmp_path):
    bundle = write(MODELS["paper"](), tmp_path)
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata.keys() == PUBLISHED
    data_format = metadata["network_data_format"]
    assert data_format["inputs"]["image"].keys() == TENSOR
    assert data_format["outputs"]["pred"].keys() == TENSOR | {"modality"}
    assert data_format["outputs"]["pred"]["spatial_shape"] == [16, 32, 16]
    assert data_format["inputs"]["image"]["spatial_shape"] == [8, 16, 8]


def test_metadata_passes_monais_schema(tmp_path):
    pytest.importorskip("jsonschema", reason="verify_metadata needs jsonschema")
    bundle = write(MODELS["paper"](), tmp_path)
    try:
        verify_metadata(
            meta_file=str(bundle / "configs" / "metadata.json"),
            filepath=str(tmp_path / "schema.json"),
        )
    except (OSError, RuntimeError) as error:
        pytest.skip(f"the schema, which lies on the net, cannot be fetched ({error})")


def test_what_a_stranger_wrote_into_a_model_is_not_run_by_its_bundle(tmp_path, parsed):
    model = MODELS["paper"]()
    ran = tmp_path / "ran"
    harm = f"$__import__('pathlib').Path({str(ran)!r}).touch()"
    model.config.trained_on = {"cohort": harm, "extra": {"_target_": "os.mkdir", "path": str(ran)}}
    model.config.covariates[0]["unit"] = harm
    bundle = write(model, tmp_path)
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    parser.read_meta(bundle / "configs" / "metadata.json")
    parser.get_parsed_content("_meta_")
    parsed(bundle, "conditions")
    assert not ran.exists()


@pytest.mark.parametrize("name", ["_target_", "a b", "x#y", "@seed", "::"])
def test_a_covariates_name_that_means_something_to_monai_is_refused(tmp_path, name):
    model = diffusion([{**AGE, "name": name}])
    with pytest.raises(InputError, match="letters, digits and _"):
        write(model, tmp_path)
    assert not (tmp_path / "bundle").exists()


def test_licence_and_authors_are_stated_or_said_to_be_missing(tmp_path):
    bundle = write(MODELS["paper"](), tmp_path)
    assert "Not stated" in (bundle / "docs" / "README.md").read_text()
    assert not (bundle / "LICENSE").exists()
    stated = {"licence": "CC-BY-4.0", "authors": "A. Author"}
    source, out = str(bundle), tmp_path / "second"
    convert(ConvertConfig(source=source, out=str(out), to=Target.bundle, **stated))
    assert (out / "LICENSE").read_text() == "SPDX-License-Identifier: CC-BY-4.0\n"
    metadata = json.loads((out / "configs" / "metadata.json").read_text())
    assert metadata["authors"] == "A. Author" and "CC-BY-4.0" in metadata["copyright"]
    readme = (out / "docs" / "README.md").read_text()
    assert readme.startswith("# card\n") and "--covariates#age 63" in readme


@pytest.mark.parametrize(
    ("damage", "line"), [("model.pt", "'other', are neither"), ("latent.pt", "'latent_mean' does")]
)
def test_a_damaged_bundle_of_ours_is_told_in_one_line(tmp_path, damage, line):
    bundle = write(MODELS["demo"](), tmp_path)
    path = bundle / "models" / damage
    torch.save({"other": torch.zeros(2)}, path)
    again = ConvertConfig(source=str(bundle), out=str(tmp_path / "again"), to=Target.model)
    with pytest.raises(InputError, match=rf"{damage}: .*{line}"):
        convert(again)
    path.unlink()
    with pytest.raises(InputError, match=rf"{damage}: no such file"):
        convert(again)
    config = bundle / "origin" / "config.yaml"
    config.write_text("kind: !!python/object/apply:os.system ['false']\n")
    with pytest.raises(InputError, match="not a model's config"):
        convert(again)
    assert not (tmp_path / "again").exists()


def test_a_repository_is_a_model_folder_with_the_hubs_card(tmp_path):
    from huggingface_hub import ModelCard

    model = MODELS["demo"]()
    save_model(model, tmp_path / "model", "# card\n\ntext\n")
    source, out = str(tmp_path / "model"), tmp_path / "repository"
    convert(ConvertConfig(source=source, out=str(out), to=Target.hub, licence="Apache-2.0"))
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "apache-2.0" and card.data.library_name == "brain_ldm"
    assert card.data.pipeline_tag == "unconditional-image-generation"
    assert {"mri", "latent-diffusion"} <= set(card.data.tags)
    assert "# card\n\ntext" in card.text and "Apache-2.0" in card.text
    assert "*.safetensors filter=lfs" in (out / ".gitattributes").read_text()
    again = open_model(out, Diffusion)
    assert all(torch.equal(v, again.weights()[name]) for name, v in model.weights().items())
    # It is a source again; without a licence the hub's field is left out.
    convert(ConvertConfig(source=str(out), out=str(tmp_path / "second"), to=Target.hub))
    head = (tmp_path / "second" / "README.md").read_text().split("---\n")[1]
    assert "license" not in yaml.safe_load(head)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    save_model(MODELS["paper"](), tmp_path / "model", "")

    def full(*_):
        raise RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed")

    monkeypatch.setattr(torch, "save", full)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"out: cannot be written .*is the disk full"):
        convert(ConvertConfig(source=str(tmp_path / "model"), out=str(out), to=Target.bundle))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch):
    save_model(MODELS["paper"](), tmp_path / "model", "")
    options = ConvertConfig(
        source=str(tmp_path / "model"), out=str(tmp_path / "out"), to=Target.bundle
    )

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("brain_ldm.conversion.bundle._save", stop)
        with pytest.raises(KeyboardInterrupt):
            convert(options)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    # What a killed call has left is no hindrance, nor is an empty folder.
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / "out").mkdir()
    convert(options)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out"}
