"""The GANs' networks: shapes, sizes that do not fit, spectral norm, recomputed activations."""

import copy

import pytest
import torch

from brain_ldm.errors import InputError
from brain_ldm.networks.checkpointing import checkpoint_blocks
from brain_ldm.networks.config import GeneratorConfig, VolumeDiscriminatorConfig
from brain_ldm.networks.generator import (
    EncoderNetwork,
    GeneratorNetwork,
    VolumeDiscriminator,
)

SHAPE = (16, 24, 16)
CONFIG = GeneratorConfig(latent_size=6, channels=[4, 8, 8], norm_groups=4)


def test_noise_becomes_images_and_images_become_noise():
    torch.manual_seed(0)
    z = torch.randn(3, 6)
    images = GeneratorNetwork(CONFIG, SHAPE)(z)
    assert images.shape == (3, 1, *SHAPE)
    assert images.min() >= 0 and images.max() <= 1
    assert not torch.allclose(images[0], images[1])
    mu, log_variance = EncoderNetwork(CONFIG, SHAPE)(images)
    assert mu.shape == log_variance.shape == (3, 6)


@torch.no_grad()
def test_an_image_does_not_depend_on_the_others_of_its_batch():
    torch.manual_seed(0)
    generator, discriminator = GeneratorNetwork(CONFIG, SHAPE), discriminates()
    z = torch.randn(4, 6)
    images = generator(z)
    assert torch.allclose(generator(z[2:3]), images[2:3], atol=1e-6)
    assert torch.allclose(discriminator(images[2:3])[-1], discriminator(images)[-1][2:3], atol=1e-5)


def discriminates(channels=(4, 8)):
    return VolumeDiscriminator(VolumeDiscriminatorConfig(list(channels)), SHAPE)


def test_the_discriminator_gives_a_layers_features_each_and_one_logit():
    outputs = discriminates()(torch.rand(2, 1, *SHAPE))
    assert [tuple(o.shape) for o in outputs] == [(2, 4, 8, 12, 8), (2, 8, 4, 6, 4), (2, 1)]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GeneratorNetwork(CONFIG, (16, 22, 16)), "by 4, which does not divide"),
        (lambda: EncoderNetwork(CONFIG, (16, 22, 16)), "16×22×16"),
        (lambda: GeneratorNetwork(GeneratorConfig(6, [4, 6], 4), SHAPE), "does not divide 6 of"),
        (lambda: discriminates([4] * 5), "5 layers"),
    ],
)
def test_sizes_that_do_not_fit_are_told_in_one_line(make, said):
    with pytest.raises(InputError, match=said) as error:
        make()
    assert "\n" not in str(error.value)


def largest(weight):
    return torch.linalg.matrix_norm(weight.flatten(1), ord=2)


def test_every_weight_of_the_discriminator_has_norm_one():
    torch.manual_seed(0)
    network = discriminates()
    layers = [*network.layers, network.head]
    for _ in range(200):
        network.advance()
    for layer in layers:
        original = layer.parametrizations.weight.original.detach()
        assert float(largest(original)) != pytest.approx(1, abs=1e-2)
        assert torch.allclose(layer.weight, original / largest(original), rtol=1e-4, atol=1e-7)


def test_its_gradient_is_that_of_the_exact_norm():
    torch.manual_seed(0)
    layer = discriminates().layers[1]
    parametrization = layer.parametrizations.weight
    weight, target = parametrization.original, torch.randn_like(layer.weight)
    for _ in range(500):
        parametrization[0].advance(weight)
    (found,) = torch.autograd.grad((layer.weight * target).sum(), weight)
    (exact,) = torch.autograd.grad((weight / largest(weight) * target).sum(), weight)
    assert torch.allclose(found, exact, atol=1e-3 * float(exact.abs().max()))


def test_forward_passes_leave_the_norm_alone():
    """So parts of a batch and recomputed activations meet the weight of the step."""
    torch.manual_seed(0)
    network = discriminates().train()
    images = torch.rand(1, 1, *SHAPE)
    first = network(images)[-1]
    with torch.no_grad():
        network.layers[0].parametrizations.weight.original.add_(torch.randn(4, 1, 4, 4, 4))
    changed = network(images)[-1]
    assert torch.equal(network(images)[-1], changed) and not torch.equal(first, changed)
    network.advance()
    assert not torch.equal(network(images)[-1], changed)


def kept_and_gradients(network, z):
    """Bytes that autograd keeps for the backward pass, weights excluded; output and gradients."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        images = network(z)
    images.square().mean().backward()
    found = [images, *(p.grad for p in network.parameters())]
    return sum(storage.nbytes() for storage in kept.values()), found


def test_recomputed_activations_change_nothing_but_memory():
    torch.manual_seed(0)
    plain = GeneratorNetwork(CONFIG, SHAPE)
    checkpointed = copy.deepcopy(plain)
    checkpoint_blocks(checkpointed)
    z = torch.randn(2, 6)
    (most, expected), (least, found) = (kept_and_gradients(n, z) for n in (plain, checkpointed))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert least < 0.5 * most
