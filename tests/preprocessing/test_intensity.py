import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from brain_ldm.preprocessing.intensity import correct_bias, scale_intensity
from brain_ldm.preprocessing.scan import Unusable

AFFINE = np.diag([5.0, 5.0, 5.0, 1.0])


def test_percentiles_become_0_and_1_and_the_rest_is_cut():
    image = np.random.default_rng(0).permutation(np.arange(1001.0)).reshape(7, 11, 13) - 300
    scaled = scale_intensity(image, [10, 90])
    assert scaled.dtype == np.float32 and scaled.shape == image.shape
    np.testing.assert_allclose(scaled, np.clip((image + 200) / 800, 0, 1), atol=1e-6)
    assert (scaled == 0).sum() == (scaled == 1).sum() == 101


def test_the_scale_of_a_scanner_does_not_matter():
    image = np.random.default_rng(0).gamma(2, size=(9, 9, 9))
    np.testing.assert_allclose(
        scale_intensity(image, [0.5, 99.5]),
        scale_intensity((1000 * image + 50).astype(np.float32), [0.5, 99.5]),
        atol=1e-4,
    )


def test_the_image_given_stays_as_it_was():
    image = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    scale_intensity(image, [0, 100])
    np.testing.assert_array_equal(image.ravel(), range(8))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.full((4, 4, 4), 7.0), "percentiles 0.5 and 99.5 are both 7"),
        (np.eye(100)[:, :, None] * (np.arange(100) < 3)[:, None, None], "are both 0"),
        (np.array([[[0, 1, np.nan]]]), "not finite"),
        (np.array([[[0, 1, np.inf]]]), "not finite"),
        (1e8 + np.random.default_rng(0).random((9, 9, 9)), "no contrast"),
    ],
)
def test_an_image_without_contrast_is_no_scan(image, reason):
    with pytest.raises(Unusable, match=reason):
        scale_intensity(image, [0.5, 99.5])


@pytest.fixture(scope="module")
def head():
    """A ball of grey around white matter, their labels, and a smooth log field, zero-mean."""
    random = np.random.default_rng(3)
    shape = (30, 36, 28)
    points = np.meshgrid(*(np.linspace(-1, 1, s) for s in shape), indexing="ij")
    radius = np.sqrt(sum(p**2 for p in points)) + 0.15 * ndimage.gaussian_filter(
        random.standard_normal(shape), 2
    )
    white, tissue = radius < 0.55, radius < 0.85
    image = 600.0 * tissue + 300 * white
    image += tissue * random.normal(0, 12, shape)
    field = 0.25 * points[0] - 0.2 * points[1] ** 2 + 0.15 * points[2] * points[0]
    return image, white, tissue, field - field[tissue].mean()


def spread(image, where):
    return image[where].std() / image[where].mean()


def test_a_known_bias_field_is_taken_out(head):
    image, white, tissue, field = head
    biased = image * np.exp(field)
    corrected = correct_bias(biased, AFFINE)
    assert corrected.dtype == np.float32 and corrected.shape == image.shape
    found = np.log(biased[tissue] / corrected[tissue])
    assert np.corrcoef(found, field[tissue])[0, 1] > 0.97
    assert spread(corrected, white) < 0.35 * spread(biased, white)
    assert (corrected[biased == 0] == 0).all()


def test_an_image_without_a_field_stays_about_as_it_was(head):
    image, white, _, _ = head
    assert spread(correct_bias(image, AFFINE), white) < 1.2 * spread(image, white)


def test_the_result_does_not_depend_on_the_number_of_threads(head):
    image, _, _, field = head
    biased = image * np.exp(field)
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    corrected = correct_bias(biased, AFFINE)
    assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == before
    try:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(3)
        np.testing.assert_array_equal(correct_bias(biased, AFFINE), corrected)
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def test_orientation_and_sign_of_the_axes_do_not_matter(head):
    image, white, _, field = head
    biased = image * np.exp(field)
    turned = correct_bias(biased.transpose(2, 0, 1)[:, ::-1], np.diag([-5.0, 5.0, -5.0, 1.0]))
    assert spread(turned[:, ::-1].transpose(1, 2, 0), white) < 0.35 * spread(biased, white)


@pytest.mark.parametrize("value", [0.0, 5.0, -5.0])
def test_nothing_in_front_of_the_background_is_no_scan(value):
    with pytest.raises(Unusable, match="no foreground"):
        correct_bias(np.full((9, 9, 9), value), AFFINE)
