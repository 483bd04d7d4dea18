"""Augmentation: drawn from the generator alone, as often as asked, doing what it says."""

import numpy as np
import pytest
import scipy.ndimage
import torch
import torchio as tio

from brain_ldm.errors import InputError
from brain_ldm.training.augmentation import (
    applied,
    augment,
    check_augmentation,
    draw_transforms,
    flip_and_shift,
)
from brain_ldm.training.config import AugmentationConfig
from brain_ldm.training.randomness import generator

NEVER = {"flip": 0.0, "affine": 0.0, "intensity": 0.0}
ALWAYS = {"flip": 1.0, "affine": 1.0, "intensity": 1.0}
SHAPE = (14, 12, 10)


def only(**changes):
    return AugmentationConfig(**{**NEVER, **changes})


@pytest.fixture
def image():
    """Smooth and lopsided, with an empty border."""
    inner = np.random.default_rng(0).random([s - 6 for s in SHAPE])
    return scipy.ndimage.gaussian_filter(np.pad(inner, 3), 0.7, truncate=2).astype(np.float32)


def test_a_result_depends_on_its_generator_alone(image):
    config = AugmentationConfig(**ALWAYS)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = augment(image, config, generator(0, 5, 7))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(augment(torch.from_numpy(image), config, generator(0, 5, 7)), first)
    assert not torch.equal(augment(image, config, generator(0, 5, 8)), first)


def test_the_input_is_left_as_it_is(image):
    kept = image.copy()
    for seed in range(5):
        augment(image, AugmentationConfig(**ALWAYS), generator(seed))
        flip_and_shift(image, 1, seed, 3)
    assert np.array_equal(image, kept)


def test_without_probabilities_it_is_the_image_itself(image):
    tensor = torch.from_numpy(image)
    assert augment(tensor, only(), generator(0)).data_ptr() == tensor.data_ptr()


def test_packed_images_are_read_only_and_16_bit(image, recwarn):
    packed = image.astype(np.float16)
    packed.flags.writeable = False
    for found in (augment(packed, only(), generator(0)), flip_and_shift(packed, 0, 0, 3)):
        assert found.dtype == torch.float32
        assert np.array_equal(found.numpy(), packed.astype(np.float32))
    assert not recwarn.list


def test_each_kind_comes_as_often_as_asked_and_beside_the_others():
    config = AugmentationConfig(flip=0.5, affine=0.1, intensity=0.3)
    kinds = (tio.Flip, tio.Affine, tio.Gamma)
    came = np.array(
        [
            [
                any(isinstance(t, kind) for t in draw_transforms(config, generator(i)))
                for kind in kinds
            ]
            for i in range(3000)
        ]
    )
    # Four standard errors of a share of 3000.
    assert came.mean(axis=0) == pytest.approx([0.5, 0.1, 0.3], abs=4 * np.sqrt(0.25 / 3000))
    assert np.abs(np.corrcoef(came.T) - np.eye(3)).max() < 4 / np.sqrt(3000)


def test_parameters_fill_their_ranges():
    config = AugmentationConfig(**ALWAYS, translation=3, scale=0.1, shift=0.2, gamma=0.4)
    found = []
    for i in range(1000):
        _, affine, shift, gamma = draw_transforms(config, generator(i))
        moved = float(shift.function(torch.zeros(())))
        found.append([*affine.scales, *affine.translation, moved, gamma.gamma])
    low = [0.9] * 3 + [-3] * 3 + [-0.2, 0.6]
    high = [1.1] * 3 + [3] * 3 + [0.2, 1.4]
    width = np.subtract(high, low)
    assert (np.min(found, axis=0) >= np.array(low) - 1e-6).all()
    assert (np.max(found, axis=0) <= np.array(high) + 1e-6).all()
    # Mean and standard deviation of a uniform distribution.
    assert (np.abs(np.mean(found, axis=0) - np.add(low, high) / 2) < 0.05 * width).all()
    assert np.std(found, axis=0) == pytest.approx(width / np.sqrt(12), rel=0.1)
    assert np.abs(np.corrcoef(np.transpose(found)) - np.eye(8)).max() < 0.15


def test_one_probability_does_not_change_what_another_gives():
    (alone,) = draw_transforms(only(affine=1.0), generator(3))
    _, beside, *_ = draw_transforms(AugmentationConfig(**ALWAYS), generator(3))
    assert alone.scales == beside.scales and alone.translation == beside.translation


def test_every_transform_is_torchios(image):
    image = torch.from_numpy(image) - 0.01  # some below zero
    config = AugmentationConfig(**ALWAYS, translation=3.0, scale=0.2, shift=0.1, gamma=0.3)
    kinds = set()
    for seed in range(20):
        for transform in draw_transforms(config, generator(seed)):
            subject = tio.Subject(image=tio.ScalarImage(tensor=image[None], affine=np.eye(4)))
            theirs = transform.apply_transform(subject)["image"].data[0]
            if isinstance(transform, tio.Gamma):
                theirs = theirs.clamp(min=0)
            assert torch.allclose(applied(transform, image), theirs, rtol=0, atol=1e-6)
            kinds.add(type(transform))
    assert len(kinds) == 4


def test_the_flip_is_left_right(image):
    found = augment(image, only(flip=1.0), generator(0))
    assert np.array_equal(found.numpy(), np.flip(image, axis=0))


def test_a_translation_counts_voxels_and_follows_the_axes(image):
    config = only(affine=1.0, translation=2.0, scale=0.0)
    for seed in range(3):
        (affine,) = draw_transforms(config, generator(seed))
        expected = scipy.ndimage.shift(image, affine.translation, order=1)
        assert np.abs(expected - image).max() > 0.05
        found = augment(image, config, generator(seed)).numpy()
        assert found == pytest.approx(expected, abs=1e-5)


def test_the_affine_map_is_scipys(image):
    config = only(affine=1.0, translation=1.0, scale=0.2)
    centre = (np.array(SHAPE) - 1) / 2
    for seed in range(5):
        (affine,) = draw_transforms(config, generator(seed))
        scales, translation = np.array(affine.scales), np.array(affine.translation)
        # Where each output voxel comes from: undo the scaling about the centre, then the shift.
        expected = scipy.ndimage.affine_transform(
            image, 1 / scales, centre - centre / scales - translation, order=1
        )
        found = augment(image, config, generator(seed)).numpy()
        assert found == pytest.approx(expected, abs=1e-5)


def test_what_enters_from_outside_is_empty():
    config = only(affine=1.0, translation=4.0, scale=0.0)
    (affine,) = draw_transforms(config, generator(1))
    found = augment(np.full(SHAPE, 0.7, np.float32), config, generator(1)).numpy()
    assert set(np.unique(found.round(4))) == {np.float32(0), np.float32(0.7)}
    for axis, moved in enumerate(affine.translation):
        kept = (found > 0).any(axis=tuple({0, 1, 2} - {axis}))
        assert (~kept).sum() == round(abs(moved))
        assert kept[-1 if moved > 0 else 0]


def test_intensities_are_shifted_then_raised_to_a_power(image):
    config = only(intensity=1.0, shift=0.3, gamma=0.5)
    for seed in range(5):
        shift, gamma = draw_transforms(config, generator(seed))
        moved = image + float(shift.function(torch.zeros(())))
        expected = np.clip(np.clip(moved, 0, None) ** gamma.gamma, 0, 1)
        found = augment(image, config, generator(seed)).numpy()
        assert found == pytest.approx(expected, abs=1e-5)


def test_results_stay_in_range():
    image = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    config = AugmentationConfig(**ALWAYS, translation=5.0, scale=0.5, shift=0.5, gamma=0.5)
    for seed in range(20):
        found = augment(image, config, generator(seed))
        assert found.shape == SHAPE and found.dtype == torch.float32
        assert float(found.min()) >= 0 and float(found.max()) <= 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flip", 1.5),
        ("affine", -0.1),
        ("intensity", float("nan")),
        ("translation", -1.0),
        ("scale", 1.0),
        ("shift", -0.1),
        ("gamma", 1.0),
    ],
)
def test_numbers_that_mean_nothing_are_refused(name, value):
    check_augmentation(AugmentationConfig())
    with pytest.raises(InputError, match=rf"task\.augmentation\.{name} is {value:g}"):
        check_augmentation(AugmentationConfig(**{name: value}))


def test_the_first_encoding_is_the_image(image):
    tensor = torch.from_numpy(image)
    assert flip_and_shift(tensor, 0, 3, 4).data_ptr() == tensor.data_ptr()


def recovered(image, found, reach):
    """The one flip and shift (by brute force, through a padded volume) that explain `found`."""
    explained = []
    for flipped in (False, True):
        padded = np.pad(image[::-1] if flipped else image, reach)
        for offset in np.ndindex(*[2 * reach + 1] * 3):
            window = tuple(slice(o, o + s) for o, s in zip(offset, image.shape, strict=True))
            if np.array_equal(padded[window], found):
                explained.append((flipped, *(reach - o for o in offset)))
    (only_one,) = explained
    return only_one


def test_further_encodings_are_flipped_and_shifted_by_whole_voxels():
    image = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32) + 0.1
    found = np.array(
        [
            recovered(image, flip_and_shift(image, encoding, sample, 1).numpy(), 1)
            for sample in range(150)
            for encoding in (1, 2)
        ]
    )
    assert found[:, 0].mean() == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / 300))
    for axis in (1, 2, 3):
        values, counts = np.unique(found[:, axis], return_counts=True)
        assert values.tolist() == [-1, 0, 1]
        assert counts / 300 == pytest.approx([1 / 3] * 3, abs=4 * np.sqrt(2 / 9 / 300))


def test_an_encoding_depends_on_sample_and_number_alone(image):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = flip_and_shift(image, 2, 5, 4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(flip_and_shift(image, 2, 5, 4), first)
    assert not torch.equal(flip_and_shift(image, 1, 5, 4), first)
    assert not torch.equal(flip_and_shift(image, 2, 6, 4), first)


@pytest.mark.parametrize("reach", [-1, 10])
def test_a_shift_that_could_leave_nothing_is_refused(image, reach):
    with pytest.raises(InputError, match=rf"task\.encoding_shift is {reach}: give 0 to 9 voxels"):
        flip_and_shift(image, 1, 0, reach)
