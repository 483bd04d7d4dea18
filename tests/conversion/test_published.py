"""The published bundle becomes a model folder that draws what MONAI's pipeline draws."""

import copy
import json
import os

import numpy as np
import pytest
import torch
from monai.networks.schedulers import DDIMScheduler

from brain_ldm.cohorts.grid import paper_grid
from brain_ldm.conversion.published import read_published
from brain_ldm.conversion.reading import read_bundle
from brain_ldm.conversion.weights import load_weights, older_name
from brain_ldm.diffusion.config import DDIMConfig, Prediction, ScheduleConfig
from brain_ldm.errors import InputError
from brain_ldm.networks.config import AutoencoderConfig, UNetConfig
from tests.conversion.bundles import (
    EARLIEST,
    FIRST,
    LATENT,
    SHAPE,
    ZOO,
    in_older_names,
    networks,
    write_bundle,
)


def pipelines_latent(unet, noise, conditions):
    """What the bundle's sampler makes of noise, on the 50 timesteps that it had when published.

    A literal loop of MONAI's network and MONAI's step, conditions by channels and by attention.
    """
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        schedule="scaled_linear_beta",
        beta_start=0.0015,
        beta_end=0.0205,
        clip_sample=False,
    )
    scheduler.set_timesteps(50)
    context = conditions[:, None]
    channels = conditions[:, :, None, None, None].expand(-1, -1, *noise.shape[2:])
    image = noise
    for t in range(980, -1, -20):
        entering = torch.cat([image, channels], dim=1)
        output = unet(entering, timesteps=torch.tensor([t] * len(noise)), context=context)
        image, _ = scheduler.step(output, t, image)
    return image


@pytest.fixture(scope="module")
def drawn():
    """Noise of two rows, conditions, and what MONAI makes of them: latents and volumes."""
    autoencoder, unet = networks()
    noise = torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(5))
    conditions = torch.tensor([[0.0, 0.1, 0.2, 0.4], [1.0, 0.9, 0.3, 0.6]])
    with torch.no_grad():
        latents = pipelines_latent(unet, noise, conditions)
        return noise, conditions, latents, autoencoder.decode_stage_2_outputs(latents)


@pytest.mark.parametrize(
    ("layout", "older"), [(ZOO, True), (ZOO, False), (FIRST, True), (EARLIEST, True)], ids=str
)
@torch.no_grad()
def test_the_converted_model_draws_the_volume_of_monais_pipeline(tmp_path, drawn, layout, older):
    model = read_bundle(write_bundle(tmp_path / "bundle", layout, older)).model
    noise, conditions, latents, volumes = drawn
    ours = model.sample(conditions, noise, DDIMConfig())
    assert (ours - latents).abs().max() < 1e-5 * latents.std()
    assert volumes.std() > 0.1
    assert (model.autoencoder.decode(ours) - volumes).abs().max() < 1e-5
    assert (model.decode(ours) - volumes.clamp(0, 1)).abs().max() < 1e-5


@pytest.mark.parametrize("which", [0, 1], ids=["autoencoder", "unet"])
def test_older_names_are_those_that_monai_itself_takes(which):
    network = networks()[which]
    older = in_older_names(network.state_dict())
    assert older.keys() == {older_name(name) for name in network.state_dict()}
    assert older.keys() != network.state_dict().keys()
    fresh = copy.deepcopy(network)
    for weight in fresh.parameters():
        weight.data.zero_()
    fresh.load_old_state_dict(dict(older))
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in network.state_dict().items())


def test_what_the_bundle_and_the_paper_say_is_in_the_config(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    metadata = folder / "configs" / "metadata.json"
    data = json.loads(metadata.read_text())
    data["network_data_format"]["outputs"]["pred"]["spatial_shape"] = [160, 224, 160]
    metadata.write_text(json.dumps(data))
    autoencoder, diffusion, _ = read_published(folder)
    assert np.allclose(diffusion.grid.affine, paper_grid(1).affine)
    assert diffusion.grid.shape == autoencoder.grid.shape == [160, 224, 160]
    assert diffusion.covariates == [
        {"name": "sex", "unit": "", "low": 0.0, "high": 1.0},
        {"name": "age", "unit": "year", "low": 44.0, "high": 82.0},
        {"name": "ventricular_volume", "unit": "mm3", "low": 6995.68, "high": 171375.0},
        {"name": "brain_volume", "unit": "mm3", "low": 1144240.0, "high": 1793910.0},
    ]
    assert diffusion.schedule == ScheduleConfig()  # whose defaults are the paper's
    assert (diffusion.prediction, diffusion.latent_scale) == (Prediction.epsilon, 1.0)
    assert diffusion.network.channels == [8, 16, 24] and diffusion.network.res_blocks == 2


def test_at_the_published_widths_the_networks_are_our_defaults(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    for name, channels in (("autoencoder", [64, 128, 128, 128]), ("diffusion", [256, 512, 768])):
        edit(folder, "inference", f"{name}_def.channels", channels)
        edit(folder, "inference", f"{name}_def.norm_num_groups", 32)
    edit(folder, "inference", "diffusion_def.num_head_channels", [0, 512, 768])
    autoencoder, diffusion, _ = read_published(folder)
    assert autoencoder.network == AutoencoderConfig()
    assert diffusion.network == UNetConfig()


def test_the_card_names_what_is_assumed(tmp_path):
    found = read_bundle(write_bundle(tmp_path / "bundle"))
    assert list(found.model.grid.shape) == list(SHAPE)
    for part in (
        "bundle 1.0.0",
        "6995.68",
        "1793910",
        "field 31",
        "25009",
        "Left and right",
        "MNI",
    ):
        assert part in found.card
    assert "Size of a volume" not in found.card
    assert found.model.config.trained_on["sha256"].keys() == {"autoencoder.pt", "model.pt"}


def test_what_an_early_bundle_does_not_say_comes_from_the_paper_by_name(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    (folder / "configs" / "metadata.json").write_text("{}")
    _, diffusion, unsaid = read_published(folder)
    assert diffusion.grid.shape == [160, 224, 160]
    assert [c["name"] for c in diffusion.covariates][:2] == ["sex", "age"]
    assert any("160×224×160" in line for line in unsaid)
    assert any("Order of the covariates" in line for line in unsaid)


def test_the_bundles_order_of_covariates_is_followed(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    edit(folder, "metadata", "network_data_format.inputs.image.channel_def.0", "Age")
    edit(folder, "metadata", "network_data_format.inputs.image.channel_def.1", "Gender")
    _, diffusion, _ = read_published(folder)
    assert [c["name"] for c in diffusion.covariates][:2] == ["age", "sex"]


def edit(folder, file, key, value):
    """Change one entry of a JSON file; None removes it."""
    path = folder / "configs" / f"{file}.json"
    data = json.loads(path.read_text())
    *parents, last = key.split(".")
    node = data
    for part in parents:
        node = node[part]
    if value is None:
        del node[last]
    else:
        node[last] = value
    path.write_text(json.dumps(data))


CHANNELS = "network_data_format.inputs.image.channel_def"


@pytest.mark.parametrize(
    ("file", "key", "value", "line"),
    [
        ("inference", "diffusion_def", None, "diffusion_def makes no DiffusionModelUNet"),
        ("inference", "autoencoder_def._target_", "os.system", "makes no AutoencoderKL"),
        ("inference", "diffusion_def.resblock_updown", False, "resblock_updown is False"),
        ("inference", "diffusion_def.norm_eps", None, None),  # MONAI's default is ours
        ("inference", "diffusion_def.depth", 3, "depth is no argument"),
        ("inference", "diffusion_def.channels", "$print(1)", "diffusion_def: channels: Invalid"),
        ("inference", "diffusion_def.in_channels", 3, "in_channels is 3, not 7"),
        ("inference", "diffusion_def.num_res_blocks", [2, 2, 1], "differs by level"),
        ("inference", "diffusion_def.norm_num_groups", 5, "multiple of norm_num_groups"),
        ("inference", "autoencoder_def.attention_levels", [True] * 4, "has no attention"),
        ("inference", "autoencoder_def.in_channels", 2, "in_channels is 2; our model has 1"),
        ("inference", "scheduler.clip_sample", None, "clip_sample is True"),
        ("inference", "scheduler.schedule", "cosine", "schedule is cosine"),
        ("metadata", "network_data_format.outputs.pred.spatial_shape", ["*"], "three numbers"),
        ("metadata", f"{CHANNELS}.2", "Height", "'Height', of which the paper gives no range"),
        ("metadata", f"{CHANNELS}.3", None, "in_channels is 7, not 6"),
        ("metadata", f"{CHANNELS}.0", None, "by number from 0"),
    ],
)
def test_a_bundle_of_something_else_is_told_in_one_line(tmp_path, file, key, value, line):
    folder = write_bundle(tmp_path / "bundle")
    edit(folder, file, key, value)
    if line is None:
        read_bundle(folder)
        return
    with pytest.raises(InputError, match=line) as raised:
        read_bundle(folder)
    assert ".json: " in str(raised.value) and "\n" not in str(raised.value)


class Runs:
    """A pickle that runs a command when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    torch.save({"conv_in.conv.weight": Runs(tmp_path / "ran")}, folder / "models" / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt: refused.*system") as raised:
        read_bundle(folder)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()


def missing(state):
    del state["conv_in.conv.weight"]
    return state


WRONG = {
    "lacks 'conv_in.conv.weight'": missing,
    "'extra' is no weight": lambda state: {**state, "extra": torch.zeros(1)},
    r"'conv_in.conv.bias' is 3, in .* 8": lambda state: {
        **state,
        "conv_in.conv.bias": torch.zeros(3),
    },
    "'conv_in.conv.bias' holds NaN": lambda state: {
        **state,
        "conv_in.conv.bias": torch.full((8,), torch.nan),
    },
    "neither those of DiffusionModelUNet nor": lambda state: {
        f"model.{name}": value for name, value in state.items()
    },
    "'epoch' is no tensor": lambda state: {**state, "epoch": 3},
    "holds a list": lambda state: list(state.values()),
}


@pytest.mark.parametrize("line", WRONG)
@pytest.mark.parametrize("rename", [dict, in_older_names], ids=["current", "older"])
def test_weights_that_do_not_fit_are_named(tmp_path, line, rename):
    unet = networks()[1]
    path = tmp_path / "model.pt"
    torch.save(WRONG[line](rename(unet.state_dict())), path)
    with pytest.raises(InputError, match=line) as raised:
        load_weights(unet, path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"no weights at all", None], ids=["empty", "text", "cut"])
def test_damaged_weights_are_told_in_one_line(tmp_path, content):
    folder = write_bundle(tmp_path / "bundle")
    path = folder / "models" / "model.pt"
    path.write_bytes(path.read_bytes()[:-3000] if content is None else content)
    with pytest.raises(InputError, match=r"model\.pt: damaged") as raised:
        read_bundle(folder)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named_with_the_way_to_fetch_it(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    (folder / "models" / "model.pt").unlink()
    with pytest.raises(InputError, match=r"models/model\.pt: no such file; copy"):
        read_bundle(folder)
    (folder / "large_files.yml").touch()
    with pytest.raises(InputError, match=r"monai\.bundle download_large_files"):
        read_bundle(folder)
    (folder / "configs" / "metadata.json").unlink()
    with pytest.raises(InputError, match=r"metadata\.json: no such file"):
        read_bundle(folder)
