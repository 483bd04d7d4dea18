"""The embedding: views, loss, learning, and the model folder."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from brain_ldm.errors import InputError
from brain_ldm.models import Embedding, GridConfig, SavedEmbedding, open_model, save_model
from brain_ldm.networks.config import EmbeddingConfig
from brain_ldm.training.config import (
    AugmentationConfig,
    DataConfig,
    EmbeddingTask,
    TrainConfig,
    TrainerConfig,
)
from brain_ldm.training.data import VALIDATION
from brain_ldm.training.embedding import EmbeddingTraining, blurred, build, nt_xent, view
from brain_ldm.training.packed import Team
from brain_ldm.training.randomness import generator

SMALL = EmbeddingConfig([8, 16], norm_groups=4, features=8)


def blobs(count, edge=12):
    """Smooth random volumes in 0..1."""
    noise = np.random.default_rng(0).normal(size=(count, edge, edge, edge))
    smooth = scipy.ndimage.gaussian_filter(noise, (0, 2, 2, 2))
    low, high = smooth.min((1, 2, 3), keepdims=True), smooth.max((1, 2, 3), keepdims=True)
    return torch.from_numpy(((smooth - low) / (high - low)).astype(np.float32))


def training(**options):
    torch.manual_seed(0)
    grid = GridConfig([12, 12, 12], torch.eye(4).tolist())
    model = Embedding(SavedEmbedding(grid=grid, network=SMALL))
    return EmbeddingTraining(model, EmbeddingTask(**options), seed=0, max_steps=40)


def test_the_loss_is_that_of_the_papers_equation():
    """Chen et al. 2020, equation 1, view by view."""
    g = torch.Generator().manual_seed(0)
    first, second = F.normalize(torch.randn(2, 5, 4, generator=g), dim=2)
    views = [*zip(first, second, strict=True)]
    flat = [v for pair in views for v in pair]
    total = 0.0
    for pair in views:
        for one, other in (pair, pair[::-1]):
            rest = sum(math.exp(float(one @ v) / 0.2) for v in flat if v is not one)
            total -= math.log(math.exp(float(one @ other) / 0.2) / rest)
    assert float(nt_xent(first, second, 0.2)) == pytest.approx(total / 10, rel=1e-5)


def test_a_view_depends_on_its_generator_alone_and_leaves_the_image():
    image = blobs(1)[0]
    kept = image.clone()
    task = EmbeddingTask()
    one = view(image, task, generator(0))
    torch.manual_seed(5)
    assert torch.equal(view(image, task, generator(0)), one)
    assert not torch.equal(view(image, task, generator(1)), one)
    assert torch.equal(image, kept)
    never = AugmentationConfig(flip=0, affine=0, intensity=0)
    assert torch.equal(
        view(image, EmbeddingTask(augmentation=never, noise=0, blur=0), generator(0)), image
    )


@pytest.mark.parametrize("sd", [0.3, 0.8, 1.5])
def test_blur_is_scipys(sd):
    image = blobs(1)[0, :10, :9]
    expected = scipy.ndimage.gaussian_filter(
        image.numpy(), sd, mode="constant", radius=math.ceil(3 * sd)
    )
    assert np.allclose(blurred(image, sd), expected, atol=1e-5)
    assert blurred(image, 0.0) is image


def test_views_are_fresh_at_every_step_and_fixed_in_validation(tiny_cohort, tmp_path):
    config = TrainConfig(
        task=EmbeddingTask(network=SMALL),
        data=DataConfig(str(tiny_cohort.root), batch_size=4, cache=str(tmp_path / "caches")),
        trainer=TrainerConfig(max_steps=2),
    )
    _, data = build(config, tiny_cohort)
    train, val = data.make("train", Team()), data.make("val", Team())
    assert (len(train), len(val)) == (16, 4)
    item = train[3, 2]
    assert not torch.equal(item["first"], item["second"])
    assert torch.equal(item["first"], train[3, 2]["first"])
    assert not torch.equal(item["first"], train[4, 2]["first"])
    assert torch.equal(val[VALIDATION, 1]["second"], val[VALIDATION, 1]["second"])
    expected = torch.from_numpy(tiny_cohort.read(tiny_cohort.rows("val")["participant_id"][1]))
    assert torch.allclose(val[VALIDATION, 1]["image"], expected, atol=1e-3)


def test_it_learns_to_tell_brains_apart_through_flips_and_shifts(quiet_trainer):
    """Flipped and moved copies of brains that training never saw are closest to their originals."""
    module = training(lr=1e-2, noise=0.02, augmentation=AugmentationConfig(affine=1, gamma=0.2))
    images, unseen = blobs(32).split([20, 12])

    def items(rows, step):
        return [
            {
                "image": image,
                "first": view(image, module.task, generator("a", step, row)),
                "second": view(image, module.task, generator("b", step, row)),
                "index": torch.tensor(row),
            }
            for row, image in enumerate(rows)
        ]

    steps = [item for step in range(40) for item in items(images, step)]
    held_out = DataLoader(items(unseen, VALIDATION), batch_size=5)
    trainer = quiet_trainer(40, num_sanity_val_steps=0, limit_val_batches=3)
    before = trainer.validate(module, held_out, verbose=False)[0]
    trainer.fit(module, DataLoader(steps, batch_size=20))
    after = trainer.validate(module, held_out, verbose=False)[0]
    assert after["val/loss"] < 0.7 * before["val/loss"]
    assert after["val/mismatch"] < before["val/mismatch"]

    model = module.model.eval()
    with torch.no_grad():
        originals = model.embed(unseen[:, None])
        copies = model.embed(unseen.flip(1).roll(1, 2)[:, None])
    found = (copies @ originals.T).argmax(1) == torch.arange(12)
    assert found.float().mean() >= 0.6  # by chance one in twelve


def test_validation_judges_all_rows_together_each_once(quiet_trainer):
    module = training()
    images = blobs(7)
    rows = [
        {"image": x, "first": x, "second": x.flip(0), "index": torch.tensor(row)}
        for row, x in enumerate(images)
    ]
    found = [
        quiet_trainer(1).validate(module, DataLoader(given, batch_size=size), verbose=False)[0]
        for given, size in ((rows, 7), (rows[::-1], 2), (rows + rows[:3], 3))
    ]
    with torch.no_grad():
        first, second = (
            module.model.eval().embed(torch.cat([images, images.flip(1)])[:, None]).chunk(2)
        )
    for values in found:
        assert values["val/mismatch"] == 0  # the view is the image
        assert values["val/loss"] == pytest.approx(float(nt_xent(first, second, 0.1)), rel=1e-4)


def test_a_reloaded_embedding_gives_the_same_unit_vectors(tmp_path):
    module = training()
    images = blobs(3)[:, None]
    module.model.embed(images)  # moves the running statistics, which are to be saved too
    model = module.model.eval()
    save_model(model, tmp_path / "m", "")
    again = open_model(tmp_path / "m", Embedding)
    with torch.no_grad():
        found = again.embed(images)
        assert torch.equal(found, model.embed(images))
    assert found.shape == (3, 8)
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0.0}, "task.temperature is 0: give more than 0"),
        ({"blur": -1.0}, "task.blur is -1: give 0 or more"),
        ({"augmentation": AugmentationConfig(flip=2.0)}, "task.augmentation.flip is 2"),
        ({"network": EmbeddingConfig([6], norm_groups=4)}, "does not divide 6 channels"),
        ({"best": "rank"}, "loss, mismatch"),
    ],
)
def test_options_that_mean_nothing(tiny_cohort, options, said):
    config = TrainConfig(task=EmbeddingTask(**options), data=DataConfig("c", batch_size=4))
    with pytest.raises(InputError, match=said):
        build(config, tiny_cohort)


def test_a_batch_of_one_has_nothing_to_be_told_apart_from(tiny_cohort):
    config = TrainConfig(task=EmbeddingTask(), data=DataConfig("c"))
    with pytest.raises(InputError, match=r"data\.batch_size is 1: give 2 or more"):
        build(config, tiny_cohort)
