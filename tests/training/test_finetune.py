"""Fine-tuning: the first output is the old model's, whatever became of its covariates."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from brain_ldm.cohorts.covariates import MISSING, CovariateEncoder
from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.diffusion.config import DDIMConfig, Prediction, ScheduleConfig
from brain_ldm.errors import InputError
from brain_ldm.models import (
    Autoencoder,
    Diffusion,
    GridConfig,
    SavedAutoencoder,
    SavedDiffusion,
    open_model,
    save_model,
)
from brain_ldm.networks.config import AutoencoderConfig, UNetConfig
from brain_ldm.training.finetune import start_autoencoder, start_diffusion, start_encoder

OLD = ["sex", "age", "brain_volume"]
AUTOENCODER = AutoencoderConfig(channels=[4, 4], res_blocks=1, norm_groups=4)
NETWORK = UNetConfig(
    channels=[8, 16],
    res_blocks=1,
    attention_levels=[False, True],
    head_channels=[0, 16],
    norm_groups=4,
)
VARIANTS = [{}, {"patch": 2, "condition_maps": 2}]


def grid(edge=8, resolution=4.0):
    affine = np.diag([resolution, resolution, resolution, 1])
    return GridConfig(**VoxelGrid((edge, edge, edge), affine).to_dict())


def random_autoencoder(seed, voxels=None, **options):
    network = dataclasses.replace(AUTOENCODER, **options)
    torch.manual_seed(seed)
    return Autoencoder(SavedAutoencoder(grid=voxels or grid(), network=network)).eval()


def diffusion(names, autoencoder, seed, **options):
    encoder = CovariateEncoder(names, [0.0] * len(names), [1.0] * len(names), [""] * len(names))
    saved = SavedDiffusion(
        **{"grid": autoencoder.config.grid, "network": NETWORK, "latent_scale": 1.0, **options},
        covariates=encoder.to_dict()["covariates"],
    )
    torch.manual_seed(seed)
    return Diffusion(saved, autoencoder).eval()


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def folder(request, tmp_path_factory):
    """A diffusion model that no weight of which is zero."""
    network = dataclasses.replace(NETWORK, **request.param)
    model = diffusion(OLD, random_autoencoder(1), 2, network=network, latent_scale=0.7)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.latent_mean.normal_()
    path = tmp_path_factory.mktemp("models") / "old"
    save_model(model, path, "")
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The folder of a diffusion model as it is built."""
    path = tmp_path_factory.mktemp("models") / "plain"
    save_model(diffusion(OLD, random_autoencoder(1), 2), path, "")
    return path


def started(folder, names, renamed=None):
    """A model with other weights of its own, started from `folder`; and the old one."""
    old = open_model(folder, Diffusion)
    model = diffusion(names, old.autoencoder, 3, network=old.config.network)
    start_diffusion(model, folder, renamed)
    return model, old


@torch.no_grad()
def answer(model, conditions):
    """The network's output in double precision, so that rounding does not hide a difference."""
    generator = torch.Generator().manual_seed(4)
    latent = torch.randn(len(conditions), 3, 4, 4, 4, generator=generator, dtype=torch.float64)
    steps = torch.arange(len(conditions)) * 100
    return model.double().network(latent, steps, conditions.double())


def some_conditions(count=4):
    conditions = torch.rand(count, len(OLD), generator=torch.Generator().manual_seed(5))
    conditions[1, 1] = MISSING
    return conditions


def test_the_old_model_heeds_each_covariate(folder):
    """Otherwise the other tests would hold for any weights."""
    old = open_model(folder, Diffusion)
    for index in range(len(OLD)):
        other = some_conditions()
        other[0, index] += 0.5
        difference = answer(old, other) - answer(old, some_conditions())
        assert difference[0].abs().max() > 1e-3


@torch.no_grad()
def test_the_same_covariates_give_the_same_model(folder):
    model, old = started(folder, OLD)
    states = model.state_dict(), old.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    noise = torch.randn(2, 3, 4, 4, 4)
    samples = [m.sample(some_conditions(2), noise, DDIMConfig(steps=2)) for m in (model, old)]
    assert torch.equal(*samples)
    assert model.config.latent_scale == 0.7
    assert all(p.requires_grad for p in model.network.parameters())


def test_new_covariates_say_nothing_at_first(folder):
    model, old = started(folder, ["sex", "site", "age", "brain_volume", "education"])
    known = some_conditions()
    for value in (MISSING, 0.0, 0.3, 1.7):
        conditions = torch.full((len(known), 5), value)
        conditions[:, [0, 2, 3]] = known
        assert torch.allclose(answer(model, conditions), answer(old, known), rtol=0, atol=1e-12)


def test_names_and_order_may_change(folder):
    renamed = {"years": "age", "tissue": "brain_volume"}
    model, old = started(folder, ["tissue", "sex", "years"], renamed)
    known = some_conditions()
    got = answer(model, known[:, [2, 0, 1]])
    assert torch.allclose(got, answer(old, known), rtol=0, atol=1e-12)
    # The key of a single token never shows in the output.
    keys = [n for n in old.state_dict() if n.endswith("attn2.to_k.weight")]
    assert len(keys) == 4
    for name in keys:
        assert torch.equal(model.state_dict()[name], old.state_dict()[name][:, [2, 0, 1]])
    swapped, _ = started(folder, OLD, {"age": "brain_volume", "brain_volume": "age"})
    got = answer(swapped, known[:, [0, 2, 1]])
    assert torch.allclose(got, answer(old, known), rtol=0, atol=1e-12)


def test_a_dropped_covariate_reads_as_zero(folder):
    known = some_conditions()
    model, old = started(folder, ["brain_volume"])
    at_zero = known.clone()
    at_zero[:, [0, 1]] = 0
    # Maps have their bias changed in single precision.
    assert torch.allclose(answer(model, known[:, [2]]), answer(old, at_zero), rtol=0, atol=1e-5)


def test_more_fewer_and_renamed_at_once(folder):
    known = some_conditions()
    model, old = started(folder, ["site", "tissue", "age"], {"tissue": "brain_volume"})
    conditions = torch.stack([torch.full((len(known),), 0.8), known[:, 2], known[:, 1]], dim=1)
    at_zero = known.clone()
    at_zero[:, 0] = 0
    assert torch.allclose(answer(model, conditions), answer(old, at_zero), rtol=0, atol=1e-5)


def test_training_reaches_the_new_covariate(folder):
    model, _ = started(folder, [*OLD, "site"])
    network = model.network
    # Of the one token the value alone counts: its softmax is 1 whatever its key.
    values = [w[:, 3] for n, w in network.named_parameters() if n.endswith("attn2.to_v.weight")]
    new = [network.unet.conv_in.conv.weight[:, -1], *values]
    new += [] if network.maps is None else [network.maps.weight[3]]
    assert len(values) == 4
    assert not any(weight.any() for weight in new)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    latent = torch.randn(4, 3, 4, 4, 4)
    conditions = torch.cat([some_conditions(), torch.tensor([[0.1], [0.9], [MISSING], [0.4]])], 1)
    network(latent, torch.arange(4), conditions).square().mean().backward()
    optimizer.step()
    for weight in new:
        assert weight.all()


def test_a_person_means_the_same_to_both_models(folder, tmp_path):
    """From a table in real units to the output, on a cohort with other ranges."""
    table = pd.DataFrame(
        {
            "sex": ["F", "M", "M"],
            "age": [50.0, 61.0, 90.0],
            "brain_volume": [1.0e6, 1.1e6, np.nan],
            "site": [1.0, 2.0, 3.0],
        }
    )
    old = open_model(folder, Diffusion)
    old.encoder = CovariateEncoder(OLD, [0, 44, 9e5], [1, 82, 1.3e6], ["", "year", "mm3"])
    old.config.covariates = old.encoder.to_dict()["covariates"]
    save_model(old, tmp_path / "old", "")

    table["gm_wm"] = table["brain_volume"]
    names, renamed = ["age", "site", "gm_wm", "sex"], {"gm_wm": "brain_volume"}
    encoder = start_encoder(CovariateEncoder.fit(table, names), tmp_path / "old", renamed)
    assert encoder == CovariateEncoder(
        names, [44, 1, 9e5, 0], [82, 3, 1.3e6, 1], ["year", "", "mm3", ""]
    )
    model, _ = started(tmp_path / "old", names, renamed)
    one, other = (torch.from_numpy(e.encode(table)) for e in (encoder, old.encoder))
    assert torch.allclose(answer(model, one), answer(old, other), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("renamed", "message"),
    [
        ({"agee": "age"}, r"task.covariates has no 'agee', only sex, years, brain_volume$"),
        ({"years": "ages"}, r"plain has no covariate 'ages', only sex, age, brain_volume$"),
        (
            "age",
            r"^task.renamed: 'age'; give new name: old name, e.g. 'task.renamed={years: age}'$",
        ),
        ({"years": "sex"}, r"sex and years would both continue 'sex' of .*plain; leave one"),
    ],
)
def test_names_that_do_not_fit(plain, renamed, message):
    names = ["sex", "years", "brain_volume"]
    with pytest.raises(InputError, match=message):
        started(plain, names, renamed)
    with pytest.raises(InputError, match=message):
        start_encoder(CovariateEncoder(names, [0.0] * 3, [1.0] * 3, [""] * 3), plain, renamed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prediction": Prediction.v},
            r"^task.prediction is v, but .*plain has epsilon: give task.prediction=epsilon$",
        ),
        (
            {"prediction": Prediction.epsilon, "detail": 0.1},
            r"^task.detail is 0.1, but .*plain has 0.0: give task.detail=0.0$",
        ),
        (
            {"schedule": ScheduleConfig(timesteps=500)},
            r"^task.schedule.timesteps is 500, .* give task.schedule.timesteps=1000$",
        ),
        (
            {"network": dataclasses.replace(NETWORK, channels=[16, 16], norm_groups=8)},
            r"^task.network.channels is \[16, 16\], .* give task.network.channels=\[8,16\]$",
        ),
        (
            {"network": dataclasses.replace(NETWORK, condition_maps=1)},
            r"^task.network.condition_maps is 1, .* give task.network.condition_maps=0$",
        ),
    ],
)
def test_other_options_than_the_old_models(plain, options, message):
    with pytest.raises(InputError, match=message):
        start_diffusion(diffusion(OLD, random_autoencoder(1), 3, **options), plain, None)


@pytest.mark.parametrize(
    "other",
    [
        lambda: random_autoencoder(7),
        lambda: random_autoencoder(1, res_blocks=2),
        lambda: random_autoencoder(1, grid(edge=16)),
    ],
)
def test_another_autoencoder_is_refused(plain, other):
    with pytest.raises(InputError, match=rf"give task.autoencoder={plain}/autoencoder$"):
        start_diffusion(diffusion(OLD, other(), 3), plain, None)


@torch.no_grad()
def test_an_autoencoder_goes_on_from_another_grid(plain):
    model = random_autoencoder(7, grid(edge=4, resolution=8.0))
    start_autoencoder(model, plain / "autoencoder")
    old = random_autoencoder(1)
    images = torch.rand(2, 1, 8, 8, 8)
    assert torch.equal(model.reconstruct(images), old.reconstruct(images))
    assert model.grid.shape == (4, 4, 4)
    assert all(p.requires_grad for p in model.parameters())


def test_an_autoencoder_of_other_options_or_kind_is_refused(plain):
    message = r"^task.network.res_blocks is 2, but .*autoencoder has 1: give .*res_blocks=1$"
    with pytest.raises(InputError, match=message):
        start_autoencoder(random_autoencoder(7, res_blocks=2), plain / "autoencoder")
    with pytest.raises(InputError, match="kind 'diffusion', not 'autoencoder'"):
        start_autoencoder(random_autoencoder(7), plain)
    with pytest.raises(InputError, match="no model there"):
        start_diffusion(diffusion(OLD, random_autoencoder(1), 3), plain / "nowhere", None)
