"""A model folder: what is saved comes back the same, and a bad folder is told in one line."""

import pytest
import torch
import yaml

from brain_ldm.cohorts.grid import paper_grid
from brain_ldm.diffusion.config import (
    DDIMConfig,
    DDPMConfig,
    DPMPP2MConfig,
    DPMPP2MSDEConfig,
    Grid,
    Prediction,
)
from brain_ldm.diffusion.dpm_solver import dpmpp_2m, dpmpp_2m_sde
from brain_ldm.diffusion.samplers import ddim, ddpm
from brain_ldm.errors import InputError
from brain_ldm.models import (
    Autoencoder,
    BrainAge,
    Diffusion,
    GridConfig,
    SavedAutoencoder,
    SavedBrainAge,
    SavedDiffusion,
    SavedSegmenter,
    Segmenter,
    open_model,
    save_model,
)
from brain_ldm.networks.config import (
    AutoencoderConfig,
    BrainAgeConfig,
    SegmenterConfig,
    UNetConfig,
)

GRID = GridConfig(**paper_grid(4).to_dict())
COVARIATES = [
    {"name": "sex", "unit": "", "low": 0.0, "high": 1.0},
    {"name": "age", "unit": "year", "low": 44.0, "high": 82.0},
]


def autoencoder():
    network = AutoencoderConfig(channels=[4, 8, 8], res_blocks=1, norm_groups=4)
    return Autoencoder(SavedAutoencoder(grid=GRID, network=network)).eval()


def diffusion(prediction=Prediction.epsilon):
    network = UNetConfig(
        channels=[16, 32],
        res_blocks=1,
        attention_levels=[False, True],
        head_channels=[0, 16],
        norm_groups=8,
    )
    saved = SavedDiffusion(
        grid=GRID, network=network, prediction=prediction, latent_scale=0.7, covariates=COVARIATES
    )
    model = Diffusion(saved, autoencoder()).eval()
    # Layers of a fresh U-Net that are zero, its last one among them, would hide what comes before.
    for parameter in model.network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def segmenter():
    network = SegmenterConfig(features=[4, 4, 4, 4, 4, 4])
    classes = ["background", "csf", "grey", "white", "ventricle"]
    return Segmenter(SavedSegmenter(grid=GRID, network=network, classes=classes)).eval()


def brain_age():
    return BrainAge(SavedBrainAge(grid=GRID, network=BrainAgeConfig([2, 4]))).eval()


def sample(model):
    noise = torch.randn(2, 3, 10, 14, 10, generator=torch.Generator().manual_seed(0))
    conditions = torch.tensor([[0.0, 0.2], [1.0, 0.9]])
    return model.decode(model.sample(conditions, noise, DDIMConfig(steps=3)))


USES = [
    (autoencoder, lambda m, x: m.reconstruct(x)),
    (segmenter, lambda m, x: torch.stack(list(m.volumes(x).values()))),
    (brain_age, lambda m, x: m.predict(x)),
    (diffusion, lambda m, x: sample(m)),
    (lambda: diffusion(Prediction.v), lambda m, x: sample(m)),
]


@pytest.mark.parametrize(("make", "use"), USES)
@torch.no_grad()
def test_a_reloaded_model_gives_identical_outputs(tmp_path, make, use):
    torch.manual_seed(3)
    model = make()
    save_model(model, tmp_path / "m", "# card\n")
    again = open_model(tmp_path / "m", type(model))
    images = torch.rand(2, 1, 40, 56, 40)
    assert torch.equal(use(model, images), use(again, images))
    assert (tmp_path / "m" / "MODEL_CARD.md").read_text() == "# card\n"
    assert len(again.hash) == 64
    assert not any(p.requires_grad for p in again.parameters())


def test_volumes_are_soft_sums_in_cubic_millimetres():
    model = segmenter()
    images = torch.rand(1, 1, 40, 56, 40)
    with torch.no_grad():
        posteriors = model.posteriors(images)
        volumes = model.volumes(images)
    assert torch.allclose(posteriors.sum(dim=1), torch.ones(()), atol=1e-5)
    white_and_grey = float(posteriors[0, 2:4].double().sum() * 4**3)
    assert float(volumes["brain_volume"]) == pytest.approx(white_and_grey)
    assert float(volumes["ventricular_volume"]) == pytest.approx(
        float(posteriors[0, 4].double().sum() * 64)
    )


@torch.no_grad()
def test_brighter_grey_matter_is_no_more_grey_matter(monkeypatch):
    """A network that takes intensities as they are counts right where contrast is standard."""
    model = segmenter()
    places = torch.tensor([0.0, 0.22, 0.5, 0.75])

    def by_intensity(images):
        logits = -1000 * (images - places.view(1, 4, 1, 1, 1)) ** 2
        return torch.cat([logits, torch.full_like(images, -1e4)], dim=1)

    monkeypatch.setattr(model.network, "forward", by_intensity)
    shares = torch.rand(1, 1, 40, 56, 40).round()  # of grey matter, the rest is CSF
    shares[:, :, 20] = 0.4  # border voxels
    white = torch.arange(56).view(1, 1, 1, 56, 1) < 5

    def brain(grey):
        images = torch.where(white, 0.75, 0.22 + (grey - 0.22) * shares)
        return float(model.volumes(images)["brain_volume"]), model.network(images)

    usual, bright = brain(0.5), brain(0.56)
    one_look = [float(logits.softmax(1)[:, 2:4].sum() * 64) for _, logits in (usual, bright)]
    assert one_look[1] > 1.001 * one_look[0]
    assert bright[0] == pytest.approx(usual[0], rel=1e-5)


@torch.no_grad()
def test_the_latent_scale_is_divided_out_when_sampling():
    model = diffusion()
    noise = torch.randn(1, 3, 10, 14, 10)
    conditions = torch.tensor([[1.0, 0.5]])
    latents = model.sample(conditions, noise, DDIMConfig(steps=3))
    model.config.latent_scale = 1.4
    assert torch.allclose(latents / 2, model.sample(conditions, noise, DDIMConfig(steps=3)))


@torch.no_grad()
def test_guidance_0_and_1_are_the_unconditional_and_the_conditional_model():
    model = diffusion()
    noise = torch.randn(2, 3, 10, 14, 10)
    one, other = torch.tensor([[0.0, 0.1]] * 2), torch.tensor([[1.0, 0.9]] * 2)
    nothing = torch.full_like(one, -1.0)
    steps = DDIMConfig(steps=4)
    free = model.sample(one, noise, steps, guidance=0.0)
    assert torch.equal(free, model.sample(other, noise, steps, guidance=0.0))
    assert torch.equal(free, model.sample(nothing, noise, steps, guidance=1.0))
    assert not torch.allclose(free, model.sample(one, noise, steps, guidance=1.0))
    blend = model.sample(one, noise, steps, guidance=0.999999)
    assert torch.allclose(blend, model.sample(one, noise, steps, guidance=1.0), atol=1e-4)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (DDPMConfig, lambda *process, draw: ddpm(*process, draw)),
        (DDIMConfig, lambda *process, draw: ddim(*process)),
        (DPMPP2MConfig, lambda *process, draw: dpmpp_2m(*process)),
        (DPMPP2MSDEConfig, lambda *process, draw: dpmpp_2m_sde(*process, draw)),
    ],
)
@torch.no_grad()
def test_each_sampler_is_reached_by_its_options(config, expected):
    model = diffusion(Prediction.v)
    noise, conditions = torch.randn(1, 3, 10, 14, 10), torch.tensor([[1.0, 0.5]])

    def drawer():
        generator = torch.Generator().manual_seed(4)
        return lambda like: torch.randn(like.shape, generator=generator)

    process = model.denoiser(conditions), noise, model.alphas_cumprod, torch.tensor([999, 500, 0])
    found = model.sample(conditions, noise, config(steps=3, grid=Grid.linspace), draw=drawer())

    assert torch.equal(found, expected(*process, draw=drawer()) / 0.7)


@torch.no_grad()
def test_rescale_takes_contrast_from_guided_latents():
    model = diffusion(Prediction.x0)
    noise, conditions = torch.randn(1, 3, 10, 14, 10), torch.tensor([[1.0, 0.5]])
    steps = DDIMConfig(steps=3)
    plain = model.sample(conditions, noise, steps)
    guided = model.sample(conditions, noise, steps, guidance=6.0)
    rescaled = model.sample(conditions, noise, steps, guidance=6.0, rescale=1.0)
    assert abs(rescaled.std() - plain.std()) < abs(guided.std() - plain.std()) / 2


def gaussian_diffusion():
    """A model of data that are, scaled, N(age, 0.3^2): its denoiser is known to be the best."""
    model = diffusion()
    model.latent_mean += 0.4

    def denoiser(conditions):
        def epsilon(x, t):
            a, s2 = model.alphas_cumprod[t].sqrt(), 1 - model.alphas_cumprod[t]
            mean = conditions[:, 1, None, None, None, None]
            return s2.sqrt() / (a**2 * 0.3**2 + s2) * (x - a * mean)

        return epsilon

    model.denoiser = denoiser
    return model


NOISE = torch.randn(2, 3, 10, 14, 10, generator=torch.Generator().manual_seed(0))
OWN, WANTED = torch.tensor([[0.0, 0.2], [1.0, 0.9]]), torch.tensor([[0.0, 0.8], [1.0, 0.5]])


@pytest.mark.parametrize("guided", [{}, {"guidance": 1.5, "rescale": 0.7}])
@torch.no_grad()
def test_latents_come_back_from_their_inverted_noise(guided):
    model, steps = gaussian_diffusion(), DDIMConfig(steps=20)
    latents = model.sample(OWN, NOISE, steps, **guided)
    found = model.invert(latents, OWN, steps, **guided, iterations=20)
    assert torch.allclose(found, NOISE, atol=1e-3)
    again = model.sample(OWN, found, steps, **guided)
    assert torch.allclose(again, latents, atol=1e-4)


@torch.no_grad()
def test_an_edit_leaves_alone_what_conditions_do_not_change():
    model = diffusion(Prediction.v)
    wanted = torch.stack([WANTED[0], OWN[1]])
    options = {"guidance": 2.0, "rescale": 0.5, "iterations": 1}
    changed = model.edit(NOISE, OWN, wanted, DDIMConfig(steps=3), **options)
    assert torch.allclose(changed[1], NOISE[1], atol=1e-5)
    assert (changed[0] - NOISE[0]).std() > 0.01


@pytest.mark.parametrize("grid", Grid)
@torch.no_grad()
def test_an_edit_moves_latents_by_what_conditions_move_the_data_by(grid):
    model = gaussian_diffusion()
    changed = model.edit(NOISE, OWN, WANTED, DDIMConfig(grid=grid))
    moved = (changed - NOISE) * model.config.latent_scale
    expected = (WANTED - OWN)[:, 1, None, None, None, None].expand_as(moved)
    assert torch.allclose(moved, expected, rtol=0.02, atol=0)


def test_a_sampler_that_draws_on_the_way_has_no_inverse():
    model, conditions = diffusion(), torch.tensor([[1.0, 0.5]])
    with pytest.raises(ValueError, match=r"only eta=0 can be inverted, got 0\.5"):
        model.invert(torch.zeros(1, 3, 10, 14, 10), conditions, DDIMConfig(steps=3, eta=0.5))


@torch.no_grad()
def test_both_ways_of_conditioning_reach_the_output():
    """Concatenation and cross-attention each matter: silence one, the other still acts."""
    model = diffusion()
    unet = model.network.unet
    x, t = torch.randn(1, 5, 10, 14, 10), torch.tensor([500])
    quiet, loud = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
    assert not torch.equal(unet(x, t, context=quiet), unet(x, t, context=loud))
    other = x.clone()
    other[:, 3:] += 1
    assert not torch.equal(unet(x, t, context=quiet), unet(other, t, context=quiet))


def test_bad_folders_are_told_in_one_line(tmp_path):
    folder = tmp_path / "m"
    with pytest.raises(InputError, match="no model there"):
        open_model(folder, Autoencoder)
    save_model(autoencoder(), folder, "")
    with pytest.raises(InputError, match="kind 'autoencoder', not 'segmenter'"):
        open_model(folder, Segmenter)

    weights = folder / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged"):
        open_model(folder, Autoencoder)
    weights.unlink()
    with pytest.raises(InputError, match=r"no weights\.safetensors"):
        open_model(folder, Autoencoder)
    weights.write_bytes(whole)

    config = folder / "config.yaml"
    data = yaml.safe_load(config.read_text())
    data["network"]["channels"] = [4, 4, 8]
    config.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match="does not fit"):
        open_model(folder, Autoencoder)
    data["network"]["channels"], data["network"]["norm_groups"] = [4, 8], 3
    config.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match=r"config\.yaml: .*multiple of"):
        open_model(folder, Autoencoder)
    data["network"]["depth"] = 3
    config.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match="depth"):
        open_model(folder, Autoencoder)
    config.write_text("kind: !!python/object/apply:os.system ['false']\n")
    with pytest.raises(InputError, match="not a model's config"):
        open_model(folder, Autoencoder)


def test_an_interrupted_save_leaves_no_whole_model(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("brain_ldm.models.save_file", stop)
    with pytest.raises(KeyboardInterrupt):
        save_model(autoencoder(), tmp_path / "m", "")
    with pytest.raises(InputError, match=r"no weights\.safetensors"):
        open_model(tmp_path / "m", Autoencoder)


def test_shapes_that_the_strides_do_not_divide():
    grid = GridConfig(shape=[40, 54, 40], affine=GRID.affine)
    network = AutoencoderConfig(channels=[4, 8, 8], norm_groups=4)
    with pytest.raises(InputError, match="does not divide"):
        Autoencoder(SavedAutoencoder(grid=grid, network=network))
