"""The autoencoder's GAN: every loss term acts, the discriminator trains, steps count once."""

import dataclasses
import math

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.errors import InputError
from brain_ldm.models import Autoencoder, GridConfig, SavedAutoencoder, SavedSegmenter, Segmenter
from brain_ldm.networks.config import AutoencoderConfig, DiscriminatorConfig, SegmenterConfig
from brain_ldm.networks.perceptual import SegmenterPerceptualLoss, hub_perceptual_loss
from brain_ldm.training.autoencoder import AutoencoderTraining, build_perceptual, kl_divergence
from brain_ldm.training.config import AutoencoderLossConfig, AutoencoderTask, PerceptualConfig
from brain_ldm.training.randomness import draws, normal

SHAPE = (16, 16, 16)
GRID = GridConfig(**VoxelGrid(SHAPE, np.diag([4.0, 4, 4, 1])).to_dict())
ONLY = {"l1": 0.0, "perceptual": 0.0, "adversarial": 0.0, "kl": 0.0}


class NoPerceptual(nn.Module):
    def forward(self, images, targets, generators):
        return (images - targets).square().mean()


def training(seed=0, lr=1e-3, discriminator_lr=1e-3, **loss):
    torch.manual_seed(seed)
    task = AutoencoderTask(
        network=AutoencoderConfig(channels=[4, 8], res_blocks=1, norm_groups=4),
        discriminator=DiscriminatorConfig(channels=8, layers=2),
        loss=AutoencoderLossConfig(**loss),
        lr=lr,
        discriminator_lr=discriminator_lr,
    )
    model = Autoencoder(SavedAutoencoder(grid=GRID, network=task.network))
    return AutoencoderTraining(model, task, NoPerceptual(), seed, max_steps=100)


def images(count=8):
    random = np.random.default_rng(0)
    axis = np.linspace(-1, 1, SHAPE[0])
    radius = np.sqrt(sum(a**2 for a in np.meshgrid(axis, axis, axis)))
    sizes = random.uniform(0.5, 0.9, count)[:, None, None, None]
    return ((radius[None] < sizes) * 0.8).astype(np.float16)


@pytest.fixture
def fit(quiet_trainer, loader, tmp_path):
    """Train a module; return its trainer and what it logged at each step."""

    def run(module, steps, callbacks=()):
        recorded = []

        class Record(L.Callback):
            def on_train_batch_end(self, trainer, module, *_):
                recorded.append({k: float(v) for k, v in trainer.callback_metrics.items()})

        trainer = quiet_trainer(
            steps,
            log_every_n_steps=1,
            default_root_dir=tmp_path,
            callbacks=[Record(), *callbacks],
        )
        trainer.fit(module, loader({"image": images()}, 4, steps))
        return trainer, recorded

    return run


def weights(module):
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


class Snapshots(L.Callback):
    def __init__(self):
        self.generator, self.discriminator = [], []

    def on_train_batch_end(self, trainer, module, *_):
        self.generator.append(weights(module.model))
        self.discriminator.append(weights(module.discriminator))


def test_the_discriminator_begins_after_the_warm_up(fit):
    module = training(adversarial_start=3)
    before = weights(module.discriminator)
    snapshots = Snapshots()
    _, recorded = fit(module, 6, [snapshots])
    for step in range(3):
        assert torch.equal(snapshots.discriminator[step], before)
        assert "train/discriminator" not in recorded[step]
        assert "train/adversarial" not in recorded[step]
    for step in range(3, 6):
        assert not torch.equal(snapshots.discriminator[step], snapshots.discriminator[step - 1])
        assert "train/adversarial" in recorded[step]


def test_the_discriminator_learns_to_tell_real_from_reconstructed(fit):
    """With the generator at rest its least-squares loss must fall well below that of a guess."""
    module = training(lr=0.0, discriminator_lr=2e-3)
    _, recorded = fit(module, 40)
    guess = 0.25  # of a discriminator that answers 1/2 everywhere
    assert recorded[-1]["train/discriminator"] < guess / 2
    assert recorded[-1]["train/discriminator_accuracy"] > 0.9


def test_the_adversarial_term_alone_moves_the_generator_towards_real(fit):
    """A discriminator at rest must take the reconstructions for real ever more."""
    teacher = training(lr=0.0, discriminator_lr=2e-3)
    fit(teacher, 30)
    module = training(discriminator_lr=0.0, **{**ONLY, "adversarial": 1.0})
    module.discriminator.load_state_dict(teacher.discriminator.state_dict())
    judged = weights(module.discriminator)
    _, recorded = fit(module, 30)
    assert recorded[-1]["train/adversarial"] < 0.7 * recorded[0]["train/adversarial"]
    assert torch.equal(weights(module.discriminator), judged)


@pytest.mark.parametrize(
    ("term", "weight", "lr", "left"),
    # Posteriors begin narrow, so their divergence has a long way to go.
    [("l1", 1.0, 1e-3, 0.8), ("perceptual", 1.0, 1e-3, 0.8), ("kl", 1e-3, 3e-2, 0.95)],
)
def test_every_other_term_alone_falls(fit, term, weight, lr, left):
    module = training(lr=lr, **{**ONLY, term: weight})
    _, recorded = fit(module, 20)
    assert recorded[-1][f"train/{term}"] < left * recorded[0][f"train/{term}"]


def test_the_total_is_the_weighted_sum_and_weights_are_logged(fit):
    module = training(l1=1.0, perceptual=0.3, adversarial=0.2, kl=1e-4)
    _, recorded = fit(module, 1)
    metrics = recorded[0]
    terms = ["l1", "perceptual", "adversarial", "kl"]
    total = sum(metrics[f"weight/{t}"] * metrics[f"train/{t}"] for t in terms)
    assert metrics["train/generator"] == pytest.approx(total, rel=1e-5)
    assert metrics["weight/perceptual"] == pytest.approx(0.3)


def test_steps_are_generator_steps_and_travel_in_the_checkpoint(
    fit, tmp_path, quiet_trainer, loader
):
    module = training()
    trainer, recorded = fit(module, 5)
    assert trainer.global_step == len(recorded) == 5
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved["global_step"] == 5
    # Going on from there, the warm-up and max_steps count on from 5.
    resumed = training(adversarial_start=7)
    began = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if "train/discriminator" in trainer.callback_metrics:
                began.append(trainer.global_step)

    again = quiet_trainer(9, callbacks=[Watch()])
    rest = loader({"image": images()}, 4, 9, first=5)
    again.fit(resumed, rest, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert again.global_step == 9
    assert began == [8, 9]


def test_only_the_stepping_side_has_gradients():
    module = training()
    module.discriminator.zero_grad()
    batch = torch.from_numpy(images(2)).float().unsqueeze(1)
    mu, _ = module.model.encode(batch)
    reconstructions = module.model.decode(mu)
    loss, _ = module.discriminator_loss(batch, reconstructions.detach())
    loss.backward()
    assert all(p.grad is None for p in module.model.parameters())
    assert all(p.grad is not None for p in module.discriminator.parameters())


def test_kl_is_the_closed_form_summed_over_the_latent():
    mu, sigma = torch.randn(5, 3, 2, 2, 2), torch.rand(5, 3, 2, 2, 2) + 0.1
    posterior = torch.distributions.Normal(mu, sigma)
    prior = torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(posterior, prior).flatten(1).sum(1).mean()
    assert torch.allclose(kl_divergence(mu, sigma), expected, rtol=1e-5)


def test_segmenter_features_are_a_distance():
    torch.manual_seed(0)
    saved = SavedSegmenter(
        grid=GRID, network=SegmenterConfig([4, 4, 8, 8, 8, 4]), classes=list("abcde")
    )
    loss = SegmenterPerceptualLoss(Segmenter(saved).network)
    x, y = torch.rand(1, 1, 32, 32, 32), torch.rand(1, 1, 32, 32, 32, requires_grad=True)
    assert float(loss(x, x, [])) == 0
    value = loss(y, x, [])
    value.backward()
    assert float(value.detach()) > 0 and float(y.grad.abs().sum()) > 0
    assert not any(p.requires_grad for p in loss.parameters())
    assert not loss.train().network.training


def test_hub_networks_load_from_a_local_folder(tmp_path, monkeypatch):
    """MONAI's PerceptualLoss loads from a torch.hub folder; this one is made here."""
    hub = tmp_path / "hub"
    repository = hub / "Project-MONAI_perceptual-models_main"
    repository.mkdir(parents=True)
    network = nn.Conv3d(1, 8, 3)
    torch.save(network.state_dict(), repository / "weights.pt")
    (repository / "hubconf.py").write_text(
        "import os, torch\n"
        "def medicalnet_resnet10_23datasets(**_):\n"
        "    net = torch.nn.Conv3d(1, 8, 3)\n"
        "    here = os.path.dirname(__file__)\n"
        "    net.load_state_dict(torch.load(os.path.join(here, 'weights.pt'), weights_only=True))\n"
        "    return net\n"
    )
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    loss = hub_perceptual_loss("medicalnet_resnet10_23datasets", str(hub), 0.25)
    loaded = loss.network.model.state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(loaded[name], value)
    x, y = torch.rand(1, 1, 32, 32, 32), torch.rand(1, 1, 32, 32, 32)
    assert math.isclose(float(loss(x, x, [])), 0, abs_tol=1e-6)
    assert float(loss(x, y, [])) > 0


def test_a_segmenter_is_needed_and_must_fit(tiny_cohort, tmp_path):
    config = PerceptualConfig()
    with pytest.raises(InputError, match="segmenter's model folder"):
        build_perceptual(config, tiny_cohort)
    config = dataclasses.replace(config, weights=str(tmp_path / "none"))
    with pytest.raises(InputError, match="no model there"):
        build_perceptual(config, tiny_cohort)


def test_a_hub_network_that_cannot_be_had_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with pytest.raises(InputError, match="network=resnet99"):
        hub_perceptual_loss("resnet99", str(tmp_path), 0.25)

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load", unreachable)
    with pytest.raises(InputError, match=r"task\.perceptual\.weights"):
        hub_perceptual_loss("radimagenet_resnet50", str(tmp_path), 0.25)


def test_each_side_has_gradients_of_its_own_loss_alone_and_clips_them(fit):
    """Seen at the moment each optimiser steps: what requires a gradient, and how long it is."""
    module = training(adversarial_start=0)
    module.task.gradient_clip = 1e-3
    seen = []

    class Watch(L.Callback):
        def on_train_start(self, trainer, module):
            for side, optimizer in zip(
                ("generator", "discriminator"), trainer.optimizers, strict=True
            ):
                optimizer.register_step_pre_hook(
                    lambda o, *_, side=side: self.note(side, o, module)
                )

        @staticmethod
        def note(side, optimizer, module):
            mine, other = module.model, module.discriminator
            if side == "discriminator":
                mine, other = other, mine
            assert all(p.grad is None for p in other.parameters())
            squares = [p.grad.square().sum() for g in optimizer.param_groups for p in g["params"]]
            assert len(squares) == len(list(mine.parameters()))
            seen.append((side, float(sum(squares)) ** 0.5))

    _, recorded = fit(module, 3, [Watch()])
    assert [side for side, _ in seen] == ["generator", "discriminator"] * 3
    for _, norm in seen:
        assert norm <= 1.001e-3
    assert recorded[0]["gradient/generator"] > 1e-3
    assert recorded[0]["gradient/discriminator"] > 1e-3


def test_the_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer(fit):
    module = training(adversarial_start=0, l1=1.0, perceptual=0.5, adversarial=0.1, adaptive=True)
    twin = training(adversarial_start=0, l1=1.0, perceptual=0.5, adversarial=0.1)
    order = []

    class Order(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, _):
            order.append(batch["index"])

    _, recorded = fit(module, 1, [Order()])
    rows = order[0]
    batch = torch.from_numpy(images()).float()[rows].unsqueeze(1)
    mu, sigma = twin.model.encode(batch)
    output = twin.model.decode(mu + sigma * normal(draws(0, 0, rows), mu))
    terms = twin.generator_terms(batch, output, mu, sigma, [], adversarial=True)
    last = twin.model.network.decoder.blocks[-1].conv.weight
    likeness = terms["l1"] + 0.5 * terms["perceptual"]
    norms = [
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
        for loss in (likeness, terms["adversarial"])
    ]
    expected = 0.1 * float(norms[0] / (norms[1] + 1e-6))
    assert recorded[0]["weight/adversarial"] == pytest.approx(expected, rel=1e-4)


def test_what_the_discriminator_says_of_an_image_does_not_depend_on_the_batch():
    """Nor, therefore, on how many ranks the batch is spread over."""
    discriminator = training().discriminator.train()
    batch = torch.rand(4, 1, *SHAPE)
    with torch.no_grad():
        together = discriminator(batch)[-1]
        alone = torch.cat([discriminator(image[None])[-1] for image in batch])
    assert torch.allclose(together, alone, atol=1e-5)
