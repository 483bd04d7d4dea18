"""Pictures of training: what they show, that only weights change them, and that none is felt."""

import io
import json
from contextlib import contextmanager

import lightning as L
import numpy as np
import pytest
import torch
import wandb
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from brain_ldm.cohorts.covariates import CovariateEncoder
from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.diffusion.config import DDIMConfig
from brain_ldm.errors import InputError
from brain_ldm.models import (
    Autoencoder,
    BrainAge,
    Diffusion,
    GridConfig,
    SavedAutoencoder,
    SavedBrainAge,
    SavedDiffusion,
)
from brain_ldm.networks.config import AutoencoderConfig, BrainAgeConfig, UNetConfig
from brain_ldm.training import pictures as module
from brain_ldm.training.config import PicturesConfig, TensorBoardConfig, WandbConfig, WandbMode
from brain_ldm.training.loggers import close_loggers, make_loggers
from brain_ldm.training.pictures import Pictures
from tests.training.wandb_file import records

SHAPE = X, Y, Z = 8, 16, 8
AFFINE = np.diag([16.0, 16, 16, 1])
AFFINE[:3, 3] = -64, -118, -40
GRID = VoxelGrid(SHAPE, AFFINE)
LATENT = (3, 4, 8, 4)
COVARIATES = CovariateEncoder(
    ["sex", "age", "ventricular_volume"], [0.0, 44, 10_000], [1.0, 82, 90_000], ["", "year", "mm3"]
)
TILE = (Y, X + X + Y)  # slices side by side


def autoencoder():
    torch.manual_seed(0)
    network = AutoencoderConfig(channels=[4, 4], res_blocks=1, norm_groups=2)
    return Autoencoder(SavedAutoencoder(grid=GridConfig(**GRID.to_dict()), network=network))


def diffusion():
    network = UNetConfig([8, 8], 1, [False, True], [0, 8], norm_groups=4)
    saved = SavedDiffusion(
        grid=GridConfig(**GRID.to_dict()),
        network=network,
        latent_scale=1.0,
        covariates=COVARIATES.to_dict()["covariates"],
    )
    model = Diffusion(saved, autoencoder())
    # Its last layer begins at zero, and so would its answer to any covariate.
    torch.nn.init.normal_(model.network.unet.out[-1].conv.weight, std=0.05)
    return model


class Rows(Dataset):
    """Rows that are asked for by step and number."""

    def __init__(self, count):
        draw = np.random.default_rng(0)
        self.images = draw.random((8, *SHAPE)).astype(np.float16)[:count]
        self.conditions = draw.random((8, 3)).astype(np.float32)[:count]
        self.conditions[:1] = 1, 0.5, -1  # a man of 63; ventricles unknown

    def __len__(self):
        return len(self.images)

    def __getitem__(self, at):
        step, row = at
        assert step == -1
        return {
            "image": torch.from_numpy(self.images[row]),
            "mu": torch.zeros(1, *LATENT),
            "sigma": torch.ones(1, *LATENT),
            "conditions": torch.from_numpy(self.conditions[row]),
            "index": torch.tensor(row),
        }


class Data(L.LightningDataModule):
    def __init__(self, val=3):
        super().__init__()
        self.rows = {"train": Rows(8), "val": Rows(val)}

    def train_dataloader(self):
        return DataLoader(torch.ones(8, 1))

    def val_dataloader(self):
        return DataLoader(torch.ones(len(self.rows["val"]), 1))


class Stand(L.LightningModule):
    """A model that learns to say nothing."""

    def __init__(self, model, rate=0.0):
        super().__init__()
        self.model = model
        self.rate = rate
        self.average = None

    def configure_optimizers(self):
        return torch.optim.SGD(self.model.parameters(), self.rate)

    def training_step(self, batch, index):
        return sum(p.square().sum() for p in self.model.parameters())

    def validation_step(self, batch, index):
        pass

    @contextmanager
    def averaged(self):
        trained = self.model.network
        self.model.network = self.average or trained
        yield
        self.model.network = trained


@pytest.fixture
def fit(tmp_path):
    def run(stand, steps=2, config=None, val=3, logger=False, callbacks=(), **options):
        pictures = Pictures(config or PicturesConfig(count=2, steps=2), tmp_path, seed=5)
        trainer = L.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=logger,
            callbacks=[*callbacks, pictures],
            val_check_interval=2,
            check_val_every_n_epoch=None,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        trainer.fit(stand, datamodule=Data(val))
        return found(tmp_path)

    return run


def found(run):
    return {
        path.stem: np.asarray(Image.open(path)) for path in sorted((run / "pictures").glob("*"))
    }


def tiles(picture, columns, width):
    """The brains of a picture, a pixel amid each voxel: (rows, columns, height, width, 3)."""
    times = -(-width // TILE[1])
    assert times % 2  # so that interpolation leaves the pixels amid voxels alone
    high, wide = TILE[0] * times, TILE[1] * times
    step = module.STRIP + high + module.GAP
    assert picture.shape[1] == columns * (wide + module.GAP) - module.GAP
    return np.array(
        [
            [
                picture[top : top + high, left : left + wide][
                    times // 2 :: times, times // 2 :: times
                ]
                for left in range(0, picture.shape[1], wide + module.GAP)
            ]
            for top in range(module.STRIP, picture.shape[0] // step * step, step)
        ]
    ).astype(float)


def brain(volume):
    """The slices of a volume as they must lie, in 0..255."""
    x, y, z = (
        round((at - start) / 16) for at, start in zip(module.CROSSING, AFFINE[:3, 3], strict=True)
    )
    middle = (Y - Z) // 2
    expected = np.zeros(TILE)
    for i in range(X):
        for j in range(Y):
            expected[Y - 1 - j, i] = volume[i, j, z]
    for k in range(Z):
        for i in range(X):
            expected[middle + Z - 1 - k, X + i] = volume[i, y, k]
        for j in range(Y):
            expected[middle + Z - 1 - k, 2 * X + j] = volume[x, j, k]
    return expected * 255


def test_reconstructions_lie_beside_images_and_differences(fit):
    stand = Stand(autoencoder())
    pictures = fit(stand)
    assert list(pictures) == ["reconstructions-00000002"]
    shown = tiles(pictures["reconstructions-00000002"], 3, module.WIDE)
    assert len(shown) == 2
    for row, (image, again, difference) in enumerate(shown):
        volume = torch.from_numpy(Rows(3).images[row]).float()
        with torch.no_grad():
            expected = stand.model.eval().reconstruct(volume[None, None])[0, 0].numpy()
        volume = volume.numpy()
        assert image[..., 0] == pytest.approx(brain(volume), abs=1)
        assert again[..., 0] == pytest.approx(brain(expected), abs=1)
        error = np.clip(brain(expected - volume) / module.STRONGEST, -255, 255)
        assert difference.max(axis=-1) == pytest.approx(np.abs(error), abs=1)
        assert np.all(difference[..., 0][error > 2] > difference[..., 2][error > 2])
        assert np.all(difference[..., 0][error < -2] < difference[..., 2][error < -2])
        assert np.ptp(image, axis=-1).max() == np.ptp(again, axis=-1).max() == 0  # grey


def test_samples_are_the_averages_for_each_rows_covariates(fit, monkeypatch):
    asked = []
    sample = Diffusion.sample

    def spy(model, conditions, noise, sampler, guidance):
        asked.append((model.network, conditions, noise, sampler, guidance))
        return sample(model, conditions, noise, sampler, guidance)

    monkeypatch.setattr(Diffusion, "sample", spy)
    stand = Stand(diffusion())
    stand.average = diffusion().network
    pictures = fit(stand, config=PicturesConfig(count=2, steps=2, guidance=1.5))
    assert list(pictures) == ["samples-00000002", "sweep-00000002"]
    assert len(asked) == 1 + 3
    for network, _, _, sampler, guidance in asked:
        assert network is stand.average
        assert sampler == DDIMConfig(steps=2) and guidance == 1.5
    rows = torch.from_numpy(Rows(3).conditions[:2])
    assert torch.equal(asked[0][1], rows)
    noise = asked[0][2]
    assert noise.std() == pytest.approx(1, abs=0.1)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.2
    for covariate, (_, conditions, start, _, _) in enumerate(asked[1:]):
        others = [i for i in range(3) if i != covariate]
        assert conditions[:, covariate].tolist() == [0, 0.25, 0.5, 0.75, 1]
        assert torch.equal(conditions[:, others], rows[:1, others].expand(5, -1))
        assert torch.equal(start, noise[:1].expand(5, -1, -1, -1, -1))

    assert tiles(pictures["samples-00000002"], 1, module.WIDE).shape[:2] == (2, 1)
    swept = tiles(pictures["sweep-00000002"], 5, module.NARROW)
    assert swept.shape[:2] == (3, 5)
    # Sex, 1 in this row: the last column is the sample itself.
    monkeypatch.undo()
    stand.model.network = stand.average
    with torch.no_grad():
        latent = sample(stand.model.eval(), rows[:1], noise[:1], DDIMConfig(steps=2), 1.5)
        expected = brain(stand.model.decode(latent)[0, 0].numpy())
    assert swept[0, 4, ..., 0] == pytest.approx(expected, abs=1)
    assert np.abs(swept[1, 0] - swept[1, 4]).max() > 0


@pytest.mark.parametrize("build", [autoencoder, diffusion])
def test_pictures_of_two_steps_differ_by_the_weights_alone(fit, build, tmp_path):
    names = ["reconstructions"] if build is autoencoder else ["samples", "sweep"]
    still = fit(Stand(build()), steps=4)
    for name in names:
        assert np.array_equal(still[f"{name}-00000002"], still[f"{name}-00000004"])
    moving = fit(Stand(build(), rate=0.05), steps=4)
    for name in names:
        assert not np.array_equal(moving[f"{name}-00000002"], moving[f"{name}-00000004"])


@pytest.mark.parametrize("val", [3, 0])
@pytest.mark.parametrize("build", [autoencoder, diffusion])
def test_training_does_not_feel_them(fit, build, val, monkeypatch):
    """Without validation rows they come in the midst of training, and show training rows."""
    states, draw = [], Pictures.draw

    def watched(pictures, trainer, stand):
        states.append(state(stand))
        draw(pictures, trainer, stand)
        states.append(state(stand))

    def state(stand):
        return (
            torch.get_rng_state().tolist(),
            [part.training for part in stand.modules()],
            [(p.requires_grad, p.grad is None or p.grad.tolist()) for p in stand.parameters()],
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            sorted(vars(stand)),
        )

    monkeypatch.setattr(Pictures, "draw", watched)
    trained = []
    for count in (2, 0):
        stand = Stand(build(), rate=1e-3)
        stand.model.train()
        if build is diffusion:
            stand.model.autoencoder.eval()
        shown = fit(stand, 4, PicturesConfig(count=count, steps=2), val)
        assert len(shown) == (2 if build is autoencoder else 4)  # none more at a count of 0
        trained.append(torch.nn.utils.parameters_to_vector(stand.parameters()))
    assert len(states) == 8
    assert states[0::2] == states[1::2]
    assert torch.equal(*trained)


def test_only_validations_of_training_are_drawn(fit, tmp_path):
    assert not fit(Stand(autoencoder()), steps=1, num_sanity_val_steps=2)
    pictures = Pictures(PicturesConfig(count=2), tmp_path, 0)
    L.Trainer(
        accelerator="cpu", logger=False, callbacks=[pictures], enable_progress_bar=False
    ).validate(Stand(autoencoder()), datamodule=Data(), verbose=False)
    assert not found(tmp_path)


def test_other_models_have_no_pictures(fit):
    shape = (32, 32, 32)
    grid = GridConfig(**VoxelGrid(shape, AFFINE).to_dict())
    model = BrainAge(SavedBrainAge(grid=grid, network=BrainAgeConfig([2, 2])))
    assert not fit(Stand(model))


def test_mixed_precision_draws_in_it(fit):
    pictures = fit(Stand(diffusion()), precision="bf16-mixed")
    plain = fit(Stand(diffusion()))
    for name, picture in pictures.items():
        assert np.abs(picture.astype(float) - plain[name]).mean() < 3


def test_impossible_options_are_one_line():
    with pytest.raises(InputError, match=r"pictures\.count is -1"):
        module.check_pictures(PicturesConfig(count=-1), autoencoder())
    with pytest.raises(InputError, match=r"pictures\.steps"):
        module.check_pictures(PicturesConfig(steps=2000), diffusion())
    module.check_pictures(PicturesConfig(steps=2000), autoencoder())  # which samples nothing


def test_covariates_are_told_in_their_units():
    assert module.describe(COVARIATES, [1, 0.5, 0.25]) == (
        "sex M, age 63 years, ventricular volume 30 ml"
    )
    assert module.describe(COVARIATES, [0.25, -1, 0]) == (
        "sex 0.25, age n/a, ventricular volume 10 ml"
    )


def test_a_legend_is_wrapped_between_words():
    font = module.ImageFont.load_default(module.LETTERS)
    lines = module.wrapped(module.GREY, font, 200)
    assert " ".join(lines) == module.GREY
    assert len(lines) > 1 and max(map(font.getlength, lines)) <= 200


def test_wandb_gets_every_picture(fit, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()
    loggers = make_loggers(WandbConfig(mode=WandbMode.offline), tmp_path, "a", {})
    shown = fit(Stand(diffusion()), steps=4, logger=loggers)
    close_loggers(loggers)
    wandb.teardown()  # its service writes the end of a file when it ends
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    logged = {}
    for record in records(path):
        items = {tuple(i.nested_key): json.loads(i.value_json) for i in record.history.item}
        for key, value in items.items():
            if key[1:] == ("filenames",):
                name = f"{key[0].removeprefix('pictures/')}-{items['trainer/global_step',]:08d}"
                logged[name] = np.asarray(Image.open(path.parent / "files" / value[0]))
    assert logged.keys() == shown.keys() and len(shown) == 4
    assert all(np.array_equal(logged[name], picture) for name, picture in shown.items())


def test_tensorboard_gets_every_picture(fit, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is an option")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = fit(Stand(autoencoder()), logger=make_loggers(TensorBoardConfig(), tmp_path, "a", {}))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (image,) = events.Images("pictures/reconstructions")
    (picture,) = shown.values()
    assert image.step == 2
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(image.encoded_image_string))), picture)
