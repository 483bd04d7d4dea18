"""The diffusion model's training: latents, scale, draws, dropout, moving average, and learning."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import lightning as L
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from brain_ldm.cohorts.covariates import CovariateEncoder
from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.diffusion.config import DDIMConfig, Prediction
from brain_ldm.errors import InputError
from brain_ldm.models import Autoencoder, Diffusion, GridConfig, SavedAutoencoder, SavedDiffusion
from brain_ldm.networks.config import AutoencoderConfig, UNetConfig
from brain_ldm.training.augmentation import flip_and_shift
from brain_ldm.training.averaging import moving_average
from brain_ldm.training.config import DiffusionTask
from brain_ldm.training.diffusion import DiffusionTraining, pick_encoding
from brain_ldm.training.latents import cached_latents, check_grid, latent_scale
from brain_ldm.training.packed import Team
from brain_ldm.training.randomness import draws

SHAPE = (3, 4, 4, 4)
NETWORK = UNetConfig(
    channels=[16, 32],
    res_blocks=1,
    attention_levels=[False, True],
    head_channels=[0, 16],
    norm_groups=8,
)


def training(names=("sex", "age"), **options):
    torch.manual_seed(0)
    grid = GridConfig(**VoxelGrid((8, 8, 8), np.diag([4.0, 4, 4, 1])).to_dict())
    autoencoder = Autoencoder(
        SavedAutoencoder(
            grid=grid, network=AutoencoderConfig(channels=[4, 4], res_blocks=1, norm_groups=4)
        )
    )
    encoder = CovariateEncoder(list(names), [0.0] * len(names), [1.0] * len(names), [""] * 2)
    task = DiffusionTask(network=NETWORK, **options)
    saved = SavedDiffusion(
        grid=grid,
        network=NETWORK,
        prediction=task.prediction,
        detail=task.detail,
        latent_scale=2.0,
        covariates=encoder.to_dict()["covariates"],
    )
    return DiffusionTraining(Diffusion(saved, autoencoder), task, seed=7, max_steps=200)


def batch(count=6, sigma=0.1):
    g = torch.Generator().manual_seed(1)
    return {
        "mu": torch.randn(count, 1, *SHAPE, generator=g),
        "sigma": torch.full((count, 1, *SHAPE), sigma),
        "conditions": torch.rand(count, 2, generator=g),
        "index": torch.arange(count),
    }


@pytest.fixture(scope="module")
def autoencoder(tiny_cohort):
    grid = GridConfig(**tiny_cohort.grid.to_dict())
    network = AutoencoderConfig(channels=[4, 8, 8], res_blocks=1, norm_groups=4)
    torch.manual_seed(0)
    model = Autoencoder(SavedAutoencoder(grid=grid, network=network)).eval()
    model.requires_grad_(False)
    model.hash = "one"
    return model


def test_the_cache_holds_the_posterior_and_is_reused(tiny_cohort, autoencoder, tmp_path):
    rows = tiny_cohort.rows("val")
    latents = cached_latents(autoencoder, tiny_cohort, rows, tmp_path / "latents", Team())
    image = torch.from_numpy(tiny_cohort.read(rows["participant_id"][2]))[None, None]
    mu, sigma = autoencoder.encode(image)
    assert np.allclose(latents["mu"][2, 0], mu[0], atol=1e-3)
    assert np.allclose(latents["sigma"][2, 0], sigma[0], atol=1e-3)
    assert latents["mu"].dtype == np.float16
    stamp = (tmp_path / "latents" / "mu.npy").stat().st_mtime_ns
    cached_latents(autoencoder, tiny_cohort, rows, tmp_path / "latents", Team())
    assert (tmp_path / "latents" / "mu.npy").stat().st_mtime_ns == stamp


def test_another_autoencoder_or_cohort_is_encoded_anew(tiny_cohort, autoencoder, tmp_path):
    rows = tiny_cohort.rows("val")
    folder = tmp_path / "latents"
    cached_latents(autoencoder, tiny_cohort, rows, folder, Team())
    stamp = (folder / "mu.npy").stat().st_mtime_ns
    autoencoder.hash = "two"
    cached_latents(autoencoder, tiny_cohort, rows, folder, Team())
    second = (folder / "mu.npy").stat().st_mtime_ns
    assert second != stamp
    assert len(cached_latents(autoencoder, tiny_cohort, rows.head(3), folder, Team())["mu"]) == 3


def test_an_interrupted_cache_is_completed_and_nothing_encoded_twice(
    tiny_cohort, autoencoder, tmp_path, monkeypatch
):
    rows = tiny_cohort.rows("val")
    folder = tmp_path / "latents"
    whole = cached_latents(autoencoder, tiny_cohort, rows, tmp_path / "whole", Team())
    encode, calls = autoencoder.encode, []

    def stop_at_the_third(images):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(images)

    monkeypatch.setattr(autoencoder, "encode", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        cached_latents(autoencoder, tiny_cohort, rows, folder, Team())
    latents = cached_latents(autoencoder, tiny_cohort, rows, folder, Team())
    assert len(calls) == 3 + len(rows) - 2
    for name in ("mu", "sigma"):
        assert np.array_equal(latents[name], whole[name])


@pytest.mark.parametrize("slow", [0, 1])
def test_ranks_share_the_work(tiny_cohort, autoencoder, tmp_path, slow):
    """Each row is encoded by one of two ranks and none by both, whichever of them dawdles."""
    rows = tiny_cohort.rows("train")
    whole = cached_latents(autoencoder, tiny_cohort, rows, tmp_path / "whole", Team())
    barrier, seen = threading.Barrier(2), ([], [])

    def work(rank):
        def wait():
            barrier.wait(30)
            if rank == slow:
                time.sleep(0.3)

        class Watched:
            def __getattr__(self, name):
                return getattr(tiny_cohort, name)

            def read(self, participant):
                seen[rank].append(participant)
                return tiny_cohort.read(participant)

        team = Team(rank, 2, wait)
        latents = cached_latents(autoencoder, Watched(), rows, tmp_path / "shared", team)
        return np.array(latents["mu"])

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(work, (0, 1)))
    assert len(seen[0]) == len(seen[1]) == len(rows) // 2
    assert set(seen[0]) | set(seen[1]) == set(rows["participant_id"])
    for result in results:
        assert np.array_equal(result, whole["mu"])


def test_a_cache_of_another_autoencoder_is_told_and_made_anew(
    tiny_cohort, autoencoder, tmp_path, capsys, monkeypatch
):
    rows = tiny_cohort.rows("val")
    cached_latents(autoencoder, tiny_cohort, rows, tmp_path / "latents", Team())
    monkeypatch.setattr(autoencoder, "hash", "retrained")
    capsys.readouterr()
    cached_latents(autoencoder, tiny_cohort, rows, tmp_path / "latents", Team())
    told = capsys.readouterr().out.strip().splitlines()
    assert told == [f"{tmp_path / 'latents'}: made for another autoencoder; made anew"]


def test_a_damaged_cache_is_not_used(tiny_cohort, autoencoder, tmp_path, capsys):
    rows = tiny_cohort.rows("val")
    folder = tmp_path / "latents"
    whole = np.array(cached_latents(autoencoder, tiny_cohort, rows, folder, Team())["mu"])
    (folder / "mu.npy").write_bytes((folder / "mu.npy").read_bytes()[:-100])
    again = cached_latents(autoencoder, tiny_cohort, rows, folder, Team())["mu"]
    assert "damaged" in capsys.readouterr().out
    assert np.array_equal(again, whole)


def test_further_encodings_are_flipped_and_shifted(tiny_cohort, autoencoder, tmp_path):
    rows = tiny_cohort.rows("val")
    folder = tmp_path / "latents"
    several = cached_latents(autoencoder, tiny_cohort, rows, folder, Team(), encodings=3, shift=2)[
        "mu"
    ]
    plain = cached_latents(autoencoder, tiny_cohort, rows, tmp_path / "plain", Team())["mu"]
    assert np.array_equal(several[:, 0], plain[:, 0])
    assert not np.array_equal(several[:, 1], several[:, 0])
    image = flip_and_shift(tiny_cohort.read(rows["participant_id"][1]), 2, 1, 2)
    mu, _ = autoencoder.encode(image[None, None])
    assert np.allclose(several[1, 2], mu[0], atol=1e-3)
    item = {name: torch.from_numpy(np.array(several)).float() for name in ("mu", "sigma")}
    chosen, _ = pick_encoding(item, draws(0, 5, torch.arange(len(rows))))
    for row, one in enumerate(chosen):
        assert any(torch.equal(one, encoding) for encoding in item["mu"][row])


def test_a_cohort_on_another_grid_is_refused(tiny_cohort, autoencoder, tmp_path):
    other = GridConfig(**VoxelGrid((16, 16, 16), np.diag([8.0, 8, 8, 1])).to_dict())
    model = Autoencoder(SavedAutoencoder(grid=other, network=autoencoder.config.network))
    with pytest.raises(InputError, match="the autoencoder works on 16×16×16"):
        check_grid(model, tiny_cohort)


def test_the_scale_makes_drawn_latents_unit_variance():
    random = np.random.default_rng(0)
    mu = random.normal(3.0, 2.0, (50, *SHAPE)).astype(np.float16)
    sigma = np.full((50, *SHAPE), 1.5, np.float16)
    drawn = mu + sigma * random.standard_normal(mu.shape)
    nothing = np.zeros(SHAPE)
    assert np.std(drawn) * latent_scale(mu, sigma, nothing) == pytest.approx(1, abs=0.02)
    centred = drawn - mu.mean(axis=0)
    assert np.std(centred) * latent_scale(mu, sigma, mu.mean(axis=0)) == pytest.approx(1, abs=0.02)


def test_a_centred_model_adds_the_mean_back():
    module = training()
    noise = torch.randn(2, *SHAPE)
    asked = torch.rand(2, 2)
    with torch.no_grad():
        plain = module.model.sample(asked, noise, DDIMConfig(steps=3))
        module.model.latent_mean.fill_(5.0)
        moved = module.model.sample(asked, noise, DDIMConfig(steps=3))
    assert torch.allclose(moved, plain + 5)


def test_every_timestep_is_as_likely():
    module = training()
    seen = []
    module.model.network.forward = lambda x, t, c: (seen.append(t), torch.zeros_like(x))[1]
    rows = batch(2000)
    module.loss(module.model.network, rows, draws(7, 0, rows["index"]), dropout=False)
    drawn = seen[0].numpy()
    assert drawn.min() >= 0 and drawn.max() < 1000
    assert scipy.stats.kstest((drawn + 0.5) / 1000, "uniform").pvalue > 0.01


def test_detail_that_goes_past_the_network_is_not_asked_of_it():
    module = training(prediction=Prediction.x0, detail=0.2)
    rows = batch(sigma=0.0)
    x0 = 2 * rows["mu"][:, 0]

    def exact(x, t, _):
        alpha_bar = module.model.alphas_cumprod[t].float().reshape(-1, 1, 1, 1, 1)
        square = 0.2 * alpha_bar + 1 - alpha_bar
        return (square / (1 - alpha_bar)).sqrt() * (x0 - 0.2 * alpha_bar.sqrt() / square * x)

    module.model.network.forward = exact
    loss = module.loss(module.model.network, rows, draws(7, 0, rows["index"]), dropout=False)
    assert loss.max() < 1e-6


def test_posterior_noise_is_fresh_at_every_step():
    module = training()
    rows = batch()
    losses = [
        module.loss(module.model.network, rows, draws(7, step, rows["index"]), dropout=False)
        for step in (0, 0, 1)
    ]
    assert torch.equal(losses[0], losses[1])
    assert not torch.allclose(losses[0], losses[2])


@torch.no_grad()
def test_a_samples_draws_do_not_depend_on_its_batch():
    module = training()
    rows = batch()
    whole = module.loss(module.model.network, rows, draws(7, 3, rows["index"]), dropout=True)
    part = {name: value[[4, 1]] for name, value in rows.items()}
    alone = module.loss(module.model.network, part, draws(7, 3, part["index"]), dropout=True)
    assert torch.allclose(whole[[4, 1]], alone, atol=1e-6)


def test_dropout_makes_whole_rows_and_single_covariates_missing():
    module = training(condition_dropout=0.2, covariate_dropout=0.1)
    conditions = torch.full((4000, 2), 0.5)
    dropped = module.drop(conditions, draws(0, 0, torch.arange(4000))) == -1
    both = dropped.all(dim=1).float().mean()
    one = (dropped.sum(dim=1) == 1).float().mean()
    assert both == pytest.approx(0.2 + 0.8 * 0.01, abs=0.02)
    assert one == pytest.approx(0.8 * 2 * 0.1 * 0.9, abs=0.02)
    none = training(condition_dropout=0.0, covariate_dropout=0.0)
    assert torch.equal(none.drop(conditions, draws(0, 0, torch.arange(4000))), conditions)


def test_the_moving_average_follows_its_formula():
    average, value = torch.zeros(1), 0.0
    for n in range(30):
        moving_average([average], [torch.full((1,), float(n))], 0.9, n)
        decay = min(0.9, (1 + n) / (10 + n))
        value = decay * value + (1 - decay) * n
        assert float(average) == pytest.approx(value, rel=1e-5)


def test_it_learns_what_the_covariate_says(quiet_trainer, loader):
    """Latents whose mean is the covariate: samples follow what is asked for, and only that."""
    module = training(prediction=Prediction.v, lr=2e-3, ema=0.98, condition_dropout=0.2)
    random = np.random.default_rng(0)
    conditions = random.random((256, 2)).astype(np.float32)
    mean = conditions[:, 1, None, None, None, None] - 0.5
    mu = mean + 0.2 * random.standard_normal((256, *SHAPE))
    arrays = {
        "mu": mu[:, None].astype(np.float16),
        "sigma": np.full((256, 1, *SHAPE), 0.05, np.float16),
        "conditions": conditions,
    }
    L.seed_everything(0, verbose=False)
    trainer = quiet_trainer(200)
    trainer.fit(module, loader(arrays, 32, 200))
    model = published(module)
    asked = torch.rand(64, 2, generator=torch.Generator().manual_seed(5))
    noise = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        got = model.sample(asked, noise, DDIMConfig(steps=20)).flatten(1).mean(dim=1)
        missing = torch.full_like(asked, -1.0)
        free = model.sample(missing, noise, DDIMConfig(steps=20)).flatten(1).mean(dim=1)
    assert np.corrcoef(got, asked[:, 1])[0, 1] > 0.9
    assert abs(np.corrcoef(got, asked[:, 0])[0, 1]) < 0.35  # the other covariate says nothing
    assert abs(np.corrcoef(free, asked[:, 1])[0, 1]) < 0.35
    assert pd.Series(free).std() > 0.1  # without a request, brains of every kind


def test_an_epsilon_network_beats_a_guess():
    """Answering zero costs 1; it must do better where noise is most of what it sees."""
    module = training(prediction=Prediction.epsilon, lr=2e-3)
    rows = batch(16)
    network, optimizer = module.model.network, module.configure_optimizers()["optimizer"]
    first = float(module.loss(network, rows, draws(7, -1, rows["index"]), False).mean().detach())
    for step in range(60):
        optimizer.zero_grad()
        module.loss(network, rows, draws(7, step, rows["index"]), True).mean().backward()
        optimizer.step()
    last = float(module.loss(network, rows, draws(7, -1, rows["index"]), False).mean().detach())
    assert first == pytest.approx(1, abs=0.1)
    assert last < 0.6


def published(module):
    model = module.model.eval()
    model.load_state_dict(module.published(module.state_dict()), strict=False)
    return model


def test_the_published_network_is_the_average(quiet_trainer, loader):
    module = training(lr=1e-2, ema=0.9)
    followed = [p.detach().clone() for p in module.model.network.parameters()]
    seen = []

    class Follow(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            moving_average(followed, list(module.model.network.parameters()), 0.9, len(seen))
            seen.append(trainer.global_step)

    arrays = {name: value.numpy() for name, value in batch().items() if name != "index"}
    quiet_trainer(3, callbacks=[Follow()]).fit(module, loader(arrays, 3, 3))
    assert seen == [1, 2, 3]
    trained = [p.detach().clone() for p in module.model.network.parameters()]
    moved = 0
    for value, average, last in zip(
        published(module).network.parameters(), followed, trained, strict=True
    ):
        assert torch.equal(value, average)
        moved += not torch.equal(value, last)
    assert moved > len(trained) / 2
