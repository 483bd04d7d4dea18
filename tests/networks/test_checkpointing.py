"""Recomputed activations: less is kept, and nothing else changes."""

import copy

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from brain_ldm.networks import checkpointing
from brain_ldm.networks.autoencoder import build_autoencoder
from brain_ldm.networks.checkpointing import checkpoint_blocks
from brain_ldm.networks.config import (
    AutoencoderConfig,
    DiscriminatorConfig,
    SegmenterConfig,
    UNetConfig,
)
from brain_ldm.networks.discriminator import build_discriminator
from brain_ldm.networks.segmenter import build_segmenter
from brain_ldm.networks.unet import ConditionalUNet


class Reconstruct(nn.Module):
    def __init__(self):
        super().__init__()
        config = AutoencoderConfig(channels=[4, 8], res_blocks=2, norm_groups=2)
        self.network = build_autoencoder(config)

    def forward(self, x):
        mu, sigma = self.network.encode(x)
        return self.network.decode(mu + sigma)


class Discriminate(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = build_discriminator(DiscriminatorConfig(channels=4, layers=2))

    def forward(self, x):
        return torch.cat([y.flatten() for y in self.network(x)])


def unet(covariates):
    config = UNetConfig([8, 16, 16], 1, [False, True, True], [0, 8, 16], norm_groups=4)
    return ConditionalUNet(config, (3, 12, 12, 12), covariates, missing=-1.0)


# Sizes at which no convolution works on a grid of 2 along its first axis: there oneDNN 3.12 gives
# another gradient at each call in bf16, whatever the network.
NETWORKS = {
    "autoencoder": (Reconstruct, lambda: (torch.rand(2, 1, 16, 16, 16),)),
    "discriminator": (Discriminate, lambda: (torch.rand(2, 1, 24, 24, 24),)),
    "segmenter": (
        lambda: build_segmenter(SegmenterConfig([4, 4, 8, 8, 8, 4]), 3),
        lambda: (torch.rand(2, 1, 32, 32, 32),),
    ),
    **{
        f"unet, {n} covariates": (
            lambda n=n: unet(n),
            lambda n=n: (torch.randn(2, 3, 12, 12, 12), torch.tensor([3, 900]), torch.rand(2, n)),
        )
        for n in (2, 0)
    },
}


@pytest.fixture(params=NETWORKS)
def pair(request):
    """A network as it is, the same with checkpointed blocks, and what goes in."""
    torch.manual_seed(0)
    build, inputs = NETWORKS[request.param]
    plain = build()
    for weight in plain.parameters():
        if not weight.any():  # what MONAI begins at zero would hide everything before it
            nn.init.normal_(weight, std=0.1)
    checkpointed = copy.deepcopy(plain)
    checkpoint_blocks(checkpointed)
    return plain, checkpointed, inputs()


def gradients(network, inputs, bf16=False):
    """Output of a network, and its gradients by parameter; the input's is called `input`."""
    first = inputs[0].clone().requires_grad_()
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = network(first, *inputs[1:])
    output.float().square().mean().backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return output, {**found, "input": first.grad}


def saved_bytes(network, inputs):
    """Bytes that autograd keeps between forward and backward pass, parameters excluded."""
    storages = {}
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage  # held, so that no address is met twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(*inputs)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("bf16", [False, True])
def test_outputs_and_gradients_are_equal_to_the_bit(pair, bf16):
    plain, checkpointed, inputs = pair
    assert list(checkpointed.state_dict()) == list(plain.state_dict())
    expected, expected_gradients = gradients(plain, inputs, bf16)
    output, found = gradients(checkpointed, inputs, bf16)
    assert torch.equal(output, expected)
    assert found.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert torch.equal(found[name], gradient), name
    assert expected_gradients["input"].any()


def test_less_is_kept_for_the_backward_pass(pair):
    plain, checkpointed, inputs = pair
    assert saved_bytes(checkpointed, inputs) < 0.7 * saved_bytes(plain, inputs)


def test_a_copy_works_on_its_own_weights(pair):
    """The moving average of the weights is such a copy."""
    _, checkpointed, inputs = pair
    copied = copy.deepcopy(checkpointed)
    before = checkpointed(*inputs)
    with torch.no_grad():
        for weight in copied.parameters():
            weight.mul_(0.9)
    assert not torch.equal(copied(*inputs), before)
    assert torch.equal(checkpointed(*inputs), before)
    checkpoint_blocks(copied)  # a second call changes nothing
    assert [type(m) for m in copied.modules()] == [type(m) for m in checkpointed.modules()]


def test_nothing_is_recomputed_where_nothing_will_be_differentiated(pair, monkeypatch):
    plain, checkpointed, inputs = pair

    def never(*_, **__):
        raise AssertionError("checkpoint was called")

    monkeypatch.setattr(checkpointing, "checkpoint", never)
    with torch.no_grad():
        assert torch.equal(checkpointed(*inputs), plain(*inputs))
    with pytest.raises(AssertionError):
        checkpointed(*inputs)


def test_no_convolution_of_the_decoder_is_computed_twice():
    torch.manual_seed(0)
    decoder = Reconstruct().network.decoder
    checkpoint_blocks(decoder)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        gradients(decoder, (torch.rand(1, 3, 8, 8, 8),))
    counts = {event.key: event.count for event in profile.key_averages()}
    kernels = ("aten::slow_conv3d_forward", "aten::mkldnn_convolution")
    convolutions = sum(isinstance(module, nn.Conv3d) for module in decoder.modules())
    assert sum(counts.get(kernel, 0) for kernel in kernels) == convolutions
    norms = sum(isinstance(module, nn.GroupNorm) for module in decoder.modules())
    assert counts["aten::native_group_norm"] == 2 * norms


def test_the_gradient_at_the_decoders_last_layer_alone():
    """As the adaptive adversarial weight needs it: twice through the same graph."""
    torch.manual_seed(0)
    plain = Reconstruct()
    checkpointed = copy.deepcopy(plain)
    checkpoint_blocks(checkpointed)
    images = torch.rand(1, 1, 16, 16, 16)
    found = []
    for module in (plain, checkpointed):
        output = module(images)
        last = module.network.decoder.blocks[-1].conv.weight
        errors = (output - images).abs().mean()
        (at_last,) = torch.autograd.grad(errors, last, retain_graph=True)
        (errors + output.square().mean()).backward()
        found.append([at_last, *(p.grad for p in module.parameters())])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


class TinyGAN(L.LightningModule):
    """Two backward passes a step, each side's parameters frozen while the other learns."""

    def __init__(self, checkpointed):
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.generator, self.discriminator = Reconstruct(), Discriminate()
        if checkpointed:
            checkpoint_blocks(self.generator)
            checkpoint_blocks(self.discriminator)

    def configure_optimizers(self):
        sides = (self.generator, self.discriminator)
        return [torch.optim.SGD(side.parameters(), 0.1) for side in sides]

    def training_step(self, images, index):
        sides = self.optimizers()
        self.toggle_optimizer(sides[0])
        fake = self.generator(images)
        loss = (fake - images).abs().mean() + (self.discriminator(fake) - 1).square().mean()
        sides[0].zero_grad()
        self.manual_backward(loss)
        sides[0].step()
        self.untoggle_optimizer(sides[0])
        self.toggle_optimizer(sides[1])
        real, fake = self.discriminator(images), self.discriminator(fake.detach())
        sides[1].zero_grad()
        self.manual_backward((real - 1).square().mean() + fake.square().mean())
        sides[1].step()
        self.untoggle_optimizer(sides[1])


def test_a_gan_under_ddp_trains_as_without(tmp_path):
    after = []
    for checkpointed in (False, True):
        module = TinyGAN(checkpointed)
        trainer = L.Trainer(
            max_steps=4,  # both optimisers count
            accelerator="cpu",
            devices=1,
            strategy="ddp_find_unused_parameters_true",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        torch.manual_seed(1)
        trainer.fit(module, DataLoader(torch.rand(2, 1, 16, 16, 16), batch_size=1))
        after.append(module.state_dict())
    start = TinyGAN(False).state_dict()
    assert all(torch.equal(a, after[1][name]) for name, a in after[0].items())
    assert any(not torch.equal(start[n], after[1][n]) for n in start if "discriminator" in n)
    assert any(not torch.equal(start[n], after[1][n]) for n in start if "generator" in n)
