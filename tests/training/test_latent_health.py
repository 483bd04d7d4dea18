"""Latent health: the numbers are numpy's and torch's, and each fault is named in plain words."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from brain_ldm.errors import InputError
from brain_ldm.evaluation.similarity import psnr, ssim
from brain_ldm.training.latent_health import latent_health, table, verdict

ROWS, CHANNELS = 5, 3
SHAPE, LATENT = (8, 12, 8), (4, 6, 4)


class Known(nn.Module):
    """Stands for an autoencoder: the posterior and the reconstruction of each image are given.

    An image's row is told by its first voxel.
    """

    def __init__(self, mu, sigma, images, reconstructions):
        super().__init__()
        self.mu, self.sigma = mu, sigma
        self.images, self.reconstructions = images, reconstructions

    def encode(self, images):
        self.rows = [int((self.images[:, 0, 0, 0, 0] == i[0, 0, 0, 0]).nonzero()) for i in images]
        return self.mu[self.rows], self.sigma[self.rows]

    def decode(self, latents):
        assert torch.equal(latents, self.mu[self.rows])
        return self.reconstructions[self.rows]


def known(mean=(0.0, 1.0, -2.0), sd=(1.0, 2.0, 0.8), sigma=(0.1, 0.2, 0.05), error=0.02, rows=ROWS):
    random = torch.Generator().manual_seed(0)

    def by_channel(values):
        return torch.tensor(values).view(1, CHANNELS, 1, 1, 1)

    shape = (rows, CHANNELS, *LATENT)
    mu = by_channel(mean) + by_channel(sd) * torch.randn(shape, generator=random)
    sigmas = by_channel(sigma) * (0.5 + torch.rand(shape, generator=random))
    images = torch.rand((rows, 1, *SHAPE), generator=random)
    noise = error * torch.randn(images.shape, generator=random)
    return Known(mu, sigmas, images, images + noise)


def health_of(model, batch=2):
    return latent_health(model, model.images.split(batch), "cpu")


def test_moments_are_numpys():
    model = known(mean=(0.0, 300.0, -2.0))
    health = health_of(model)
    mu, sigma = model.mu.double().numpy(), model.sigma.double().numpy()
    for channel in range(CHANNELS):
        m, noise = mu[:, channel], np.square(sigma[:, channel]).mean()
        assert health.mean[channel] == pytest.approx(m.mean(), abs=1e-9)
        assert health.sd[channel] == pytest.approx(np.sqrt(m.var() + noise), rel=1e-9)
        assert health.sigma_share[channel] == pytest.approx(noise / (m.var() + noise), rel=1e-8)
    within, noise = mu.var(axis=(0, 2, 3, 4)).sum(), np.square(sigma).mean(axis=(0, 2, 3, 4)).sum()
    assert health.sigma_share_overall == pytest.approx(noise / (within + noise), rel=1e-8)
    assert health.largest == pytest.approx(np.abs(mu).max())
    assert health.images == ROWS and health.non_finite == 0 and health.lost == 0


def test_sd_is_that_of_drawn_latents():
    model = known(sigma=(0.5, 1.0, 2.0), rows=40)
    drawn = model.mu + model.sigma * torch.randn(model.mu.shape)
    expected = drawn.std(dim=(0, 2, 3, 4)).tolist()
    assert health_of(model).sd == pytest.approx(expected, rel=0.05)


def test_kl_is_torchs():
    model = known()
    health = health_of(model)
    posterior = torch.distributions.Normal(model.mu.double(), model.sigma.double())
    prior = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    kl = torch.distributions.kl_divergence(posterior, prior)
    assert health.kl_per_dimension == pytest.approx(kl.mean(dim=(0, 2, 3, 4)).tolist(), rel=1e-9)
    assert health.kl_overall == pytest.approx(float(kl.mean()), rel=1e-9)


def test_reconstructions_are_measured_as_in_the_report():
    model = known(error=0.1)
    health = health_of(model)
    again = model.reconstructions.clamp(0, 1)
    for name, measure in (("psnr", psnr), ("ssim", ssim)):
        values = measure(again, model.images).double()
        assert getattr(health, name) == pytest.approx(float(values.mean()), rel=1e-5)
        assert getattr(health, f"{name}_sd") == pytest.approx(float(values.std()), rel=1e-3)


def test_batches_may_be_cut_anywhere():
    model = known()
    whole, single = (health_of(model, batch).to_dict() for batch in (ROWS, 1))
    assert whole == pytest.approx(single, rel=1e-6)


def test_names_in_a_log_are_flat():
    flat = health_of(known()).to_dict()
    by_channel = [
        f"latent/{name}_{channel}"
        for name in ("mean", "sd", "kl_per_dimension", "sigma_share")
        for channel in range(CHANNELS)
    ]
    overall = "kl_per_dimension sigma_share psnr psnr_sd ssim ssim_sd largest lost non_finite"
    assert set(flat) == {*by_channel, *(f"latent/{name}" for name in overall.split())}
    assert all(isinstance(value, int | float) for value in flat.values())


def test_one_image_has_no_sd_and_none_is_refused():
    model = known(rows=1)
    health = health_of(model)
    assert math.isnan(health.psnr_sd) and math.isfinite(health.psnr)
    assert "±" not in table(health) and "of 1 image:" in table(health)
    with pytest.raises(InputError, match="no images"):
        latent_health(model, [], "cpu")


def test_a_healthy_latent_is_fit():
    assert verdict(health_of(known())) == ["Fit for diffusion."]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"mean": (0.0, 0.0, 0.0), "sd": (1.0, 0.01, 1.0), "sigma": (0.1, 1.0, 0.1)},
            "Channel 1 is collapsed",
        ),
        ({"sigma": (0.1, 3.0, 1.5)}, "Channels 1, 2 are mostly noise"),
        ({"sd": (1.0, 2.0, 12.0)}, "Channels differ in spread"),
        ({"mean": (0.0, 0.0, 7e4)}, "is beyond float16"),
        ({"sigma": (1e-5, 0.2, 0.05)}, "33% of the posteriors are narrower than 6e-05"),
        ({"error": 0.2}, "Reconstruction is poor: PSNR"),
    ],
)
def test_each_fault_has_its_sentence(changes, sentence):
    model = known(**changes)
    if "collapsed" in sentence:  # exactly N(0, 1) but for a trace
        model.sigma[:, 1] = 1.0
    title, *faults = verdict(health_of(model))
    assert title == "Not yet fit for diffusion:"
    (fault,) = faults
    assert sentence in fault and fault.endswith(".")


@pytest.mark.parametrize("part", ["mu", "sigma", "reconstructions"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_told_alone(part, value):
    model = known()
    if part == "mu":  # told apart by value: NaN never equals itself
        model.decode = lambda latents: model.reconstructions[model.rows]
    getattr(model, part)[1, 0, 0, 0, 0] = value
    (sentence,) = verdict(health_of(model))
    assert sentence.startswith("Not fit for diffusion: 1 NaN or infinite")


def test_the_table_holds_every_channel():
    health = health_of(known())
    lines = table(health).splitlines()
    assert [len(line) for line in lines[: CHANNELS + 3]] == [len(lines[0])] * (CHANNELS + 3)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["channel", "mean", "sd", "KL per dimension (nats)", "noise share"]
    assert all(set(cell) == {"-", ":"} for cell in cells[1])
    for channel, row in enumerate(cells[2 : 2 + CHANNELS]):
        assert row[0] == str(channel)
        found = [health.mean, health.sd, health.kl_per_dimension, health.sigma_share]
        expected = [values[channel] for values in found]
        assert [float(cell) for cell in row[1:]] == pytest.approx(expected, rel=0.01)
    assert cells[2 + CHANNELS][0] == "all"
    assert lines[-1].startswith(f"Reconstruction of {ROWS} images: PSNR {health.psnr:.1f} ± ")
