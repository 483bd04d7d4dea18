"""LSGAN and VAE-GAN: their losses, who learns from what, steps, and what is published."""

from itertools import pairwise
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import binary_cross_entropy_with_logits

from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.errors import InputError
from brain_ldm.models import Generator, GridConfig, SavedGenerator, open_model
from brain_ldm.networks.config import GeneratorConfig, VolumeDiscriminatorConfig
from brain_ldm.training.averaging import moving_average
from brain_ldm.training.config import LSGANTask, VAEGANTask
from brain_ldm.training.data import StepBatches
from brain_ldm.training.gan import pooled, squared_mmd
from brain_ldm.training.lsgan import LSGANTraining, discriminator_loss, generator_loss
from brain_ldm.training.randomness import draws, normal
from brain_ldm.training.vae_gan import VAEGANTraining

SHAPE = (16, 16, 16)
GRID = GridConfig(**VoxelGrid(SHAPE, np.diag([4.0, 4, 4, 1])).to_dict())
KINDS = {"lsgan": (LSGANTask, LSGANTraining), "vae_gan": (VAEGANTask, VAEGANTraining)}


def training(kind, parts=1, **options):
    torch.manual_seed(0)
    task_class, module_class = KINDS[kind]
    options = {"lr": 1e-3, **({"feature_layer": 1} if kind == "vae_gan" else {}), **options}
    task = task_class(
        network=GeneratorConfig(latent_size=5, channels=[4, 8, 8], norm_groups=4),
        discriminator=VolumeDiscriminatorConfig([4, 8]),
        **options,
    )
    model = Generator(SavedGenerator(grid=GRID, network=task.network))
    return module_class(model, task, 7, 100, parts)


def images(count=8):
    random = np.random.default_rng(0)
    axis = np.linspace(-1, 1, SHAPE[0])
    radius = np.sqrt(sum(a**2 for a in np.meshgrid(axis, axis, axis)))
    sizes = random.uniform(0.5, 0.9, count)[:, None, None, None]
    return ((radius[None] < sizes) * 0.8).astype(np.float16)


@pytest.fixture
def fit(quiet_trainer, loader, tmp_path):
    """Train a module on all but the first steps; return its trainer and what it logged."""

    def run(module, steps, callbacks=(), first=0, **options):
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
        trainer.fit(module, loader({"image": images()}, 4, steps, first), **options)
        return trainer, recorded

    return run


def weights(network):
    return torch.cat([p.detach().flatten().clone() for p in network.parameters()])


def test_the_losses_of_an_lsgan_are_the_closed_forms():
    real, drawn = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.5], [-1.0]])
    assert float(generator_loss(drawn)) == pytest.approx((0.25 + 4) / 4)
    assert float(discriminator_loss(real, drawn)) == pytest.approx(1 / 4 + (0.25 + 1) / 4)
    half = torch.full((3, 1), 0.5)  # of a discriminator that guesses
    assert float(discriminator_loss(half, half)) == pytest.approx(0.25)


def test_the_discriminator_learns_to_tell_real_from_drawn(fit):
    module = training("lsgan", lr=0.0, discriminator_lr=2e-3)
    _, recorded = fit(module, 40)
    assert recorded[-1]["train/discriminator"] < 0.25 / 2
    assert recorded[-1]["train/discriminator_accuracy"] > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_moves_towards_what_the_discriminator_takes_for_real(fit, kind):
    options = {"gamma": 0.0} if kind == "vae_gan" else {}
    teacher = training(kind, lr=0.0, discriminator_lr=2e-3, **options)
    fit(teacher, 20)
    module = training(kind, lr=3e-3, discriminator_lr=0.0, **options)
    module.discriminator.load_state_dict(teacher.discriminator.state_dict())
    judged = weights(module.discriminator)
    _, recorded = fit(module, 20)
    assert recorded[-1]["train/generator"] < 0.8 * recorded[0]["train/generator"]
    assert torch.equal(weights(module.discriminator), judged)


def alike(found, expected):
    """Gradients by parameter, equal to rounding; those of biases before a norm are nothing else."""
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-5 * largest), name


class Gradients(L.Callback):
    """Keeps every side's gradients as they are before the first step."""

    def on_train_start(self, trainer, module):
        self.found, update = {}, module.update

        def watch(name):
            network = module.sides()[name][0]
            self.found.setdefault(name, {n: p.grad.clone() for n, p in network.named_parameters()})
            update(name)

        module.update = watch


def test_each_network_of_a_vae_gan_learns_from_its_own_losses_alone(fit):
    """Algorithm 1 of Larsen et al. 2016, written down in one piece."""
    module = training("vae_gan", gamma=0.3)
    torch.nn.init.constant_(module.encoder.last.bias, -1.0)  # so that posteriors are not the prior
    gradients = Gradients()
    reference = training("vae_gan", gamma=0.3)
    reference.load_state_dict(module.state_dict())
    _, recorded = fit(module, 1, [gradients])

    encode, decode, judge = reference.encoder, reference.model.network, reference.discriminator
    rows = [row for _, row in next(iter(StepBatches(8, 4, 1, 0, 1, seed=0, first=0, last=1)))]
    x = torch.from_numpy(images())[rows].float().unsqueeze(1)
    draw = draws(7, 0, torch.tensor(rows))
    mu, log_variance = encode(x)
    posterior = torch.distributions.Normal(mu, (log_variance / 2).exp())
    z = mu + posterior.stddev * normal(draw, mu)
    z_prior = normal(draw, mu)
    reconstructed, drawn = decode(z), decode(z_prior)
    likelihood = torch.distributions.Normal(judge(reconstructed)[0], 1.0).log_prob(judge(x)[0])
    constant = 0.5 * np.log(2 * np.pi) * likelihood[0].numel()
    features = -likelihood.flatten(1).sum(1).mean() - constant
    prior = torch.distributions.Normal(0.0, 1.0)
    kl = torch.distributions.kl_divergence(posterior, prior).sum(1).mean()

    def gan(volumes, is_real):
        logits = judge(volumes)[-1]
        return binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(is_real)))

    fooled = gan(reconstructed, True) + gan(drawn, True)
    told = gan(x, True) + gan(reconstructed, False) + gan(drawn, False)
    losses = {
        "encoder": (encode, kl + features),
        "generator": (decode, 0.3 * features + fooled),
        "discriminator": (judge, told),
    }
    for side, (network, loss) in losses.items():
        names, parameters = zip(*network.named_parameters(), strict=True)
        expected = torch.autograd.grad(loss, parameters, retain_graph=True)
        alike(gradients.found[side], dict(zip(names, expected, strict=True)))
    metrics = recorded[0]
    assert metrics["train/kl"] == pytest.approx(float(kl.detach()), rel=1e-4)
    assert metrics["train/features"] == pytest.approx(float(features.detach()), rel=1e-4)
    assert metrics["train/discriminator"] == pytest.approx(float(told.detach()), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_batch_add_up_to_the_whole(fit, kind):
    whole, parted = Gradients(), Gradients()
    fit(training(kind), 1, [whole])
    fit(training(kind, parts=2), 1, [parted])
    for side, gradients in whole.found.items():
        alike(parted.found[side], gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_gone_on_with_it_ends_as_uninterrupted(fit, tmp_path, kind):
    """Steps are generator steps, all sides move at each, and a checkpoint has all there is."""

    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            moved.append({name: weights(network) for name, (network, _) in module.sides().items()})
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "3.ckpt")

    moved = []
    module = training(kind)
    trainer, recorded = fit(module, 6, [Stop()])
    assert trainer.global_step == len(recorded) == 6
    for before, after in pairwise(moved):
        assert all(not torch.equal(before[name], after[name]) for name in after)
    resumed = training(kind)
    again, rest = fit(resumed, 6, first=3, ckpt_path=tmp_path / "3.ckpt", weights_only=True)
    assert again.global_step == 6 and len(rest) == 3
    one, other = module.state_dict(), resumed.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert rest[-1] == recorded[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_generator_is_the_average(fit, kind):
    module = training(kind, lr=1e-2, ema=0.9)
    followed = [p.detach().clone() for p in module.model.network.parameters()]

    class Follow(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            network = module.model.network
            moving_average(followed, list(network.parameters()), 0.9, trainer.global_step - 1)

    fit(module, 3, [Follow()])
    published = module.published(module.state_dict())
    names = [name for name, _ in module.model.named_parameters()]
    assert published.keys() == set(names) == module.model.weights().keys()
    for name, average, trained in zip(names, followed, module.model.parameters(), strict=True):
        assert torch.equal(published[name], average)
        assert not torch.equal(published[name], trained)


def test_the_distance_is_the_unbiased_sum_over_pairs():
    x, y = np.random.default_rng(0).random((2, 5, 8))
    y = y[:4]

    def mean_distance(a, b, same):
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (same and i == j)]
        return np.mean([np.sqrt(((a[i] - b[j]) ** 2).mean()) for i, j in pairs])

    within = mean_distance(x, x, True) + mean_distance(y, y, True)
    expected = 2 * mean_distance(x, y, False) - within
    found = squared_mmd(torch.from_numpy(x), torch.from_numpy(y))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_the_distance_tells_one_distribution_from_collapse():
    draw = torch.Generator().manual_seed(0)
    samples = torch.randn(200, 20, 6, generator=draw).double()
    alike = torch.stack([squared_mmd(x[:10], x[10:]) for x in samples])
    assert abs(float(alike.mean())) < 3 * float(alike.std()) / 200**0.5
    collapsed = torch.stack([squared_mmd(x[:10], torch.zeros(10, 6)) for x in samples])
    assert float(collapsed.mean()) > 5 * float(alike.std())


def test_ranks_compare_all_rows_whichever_of_them_they_saw():
    batch = torch.from_numpy(images(6)).float()
    index = torch.arange(6)

    def rank(rows):
        module = training("lsgan").eval()
        with torch.no_grad():
            for row in rows:
                one = slice(row, row + 1)
                module.validation_step({"image": batch[one], "index": index[one]}, 0)
        return module

    class Trainer:
        datamodule = type("Data", (), {"rows": {"val": range(6)}})

        def __init__(self, reduce):
            self.strategy = type("Strategy", (), {"reduce": staticmethod(reduce)})

    def gathered(module, reduce):
        module._fabric = None
        module._trainer = Trainer(reduce)
        return module.gathered()

    expected = gathered(rank(range(6)), lambda whole, reduce_op: whole)
    assert torch.allclose(expected[0], pooled(batch.unsqueeze(1)))
    seen = []
    gathered(rank([1, 4, 0]), lambda whole, reduce_op: seen.append(whole) or whole)
    shared = gathered(rank([2, 5, 3]), lambda whole, reduce_op: whole + seen[0])
    doubled = gathered(rank(range(6)), lambda whole, reduce_op: 2 * whole)
    for found in (shared, doubled):
        assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))


def test_a_layer_that_is_not_there_is_told_in_one_line():
    with pytest.raises(InputError, match=r"task\.feature_layer is 3; give 1 to 2"):
        training("vae_gan", feature_layer=3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_trains_chooses_and_goes_on(run_command, workplace, tiny_cohort, kind):
    options = [
        f"experiment={kind}_demo",
        f"data.cohort={tiny_cohort.root}",
        "data.batch_size=4",
        "task.network.latent_size=5",
        "task.network.channels=[4,8,8]",
        "task.network.norm_groups=4",
        "task.discriminator.channels=[4,8]",
        "task.lr_schedule=constant",
        "trainer.precision=32-true",
        "trainer.val_every=3",
        "trainer.log_every=1",
        "trainer.activation_checkpointing=true",
        "pictures.count=0",
    ]
    for out, steps in (("whole", 6), ("parted", 3), ("parted", 6)):
        code, said, err = run_command(
            "train", *options, f"out={out}", f"trainer.max_steps={steps}", "resume=auto"
        )
        assert code == 0, err
    assert "going on from step 3" in said
    one, other = (load_file(Path(out) / "weights.safetensors") for out in ("whole", "parted"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    model = open_model("whole", Generator)
    assert model.grid.same_as(tiny_cohort.grid) and model.latent_size == 5
    card = Path("whole/MODEL_CARD.md").read_text()
    assert "# Generator model" in card and "whose mmd was the lowest" in card
