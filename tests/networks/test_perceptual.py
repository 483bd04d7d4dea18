"""The perceptual losses: MONAI's distances, each sample's own draw, samples by themselves."""

import pytest
import torch
from monai.losses import PerceptualLoss

from brain_ldm.errors import InputError
from brain_ldm.networks.config import SegmenterConfig
from brain_ldm.networks.perceptual import SegmenterPerceptualLoss, hub_perceptual_loss
from brain_ldm.networks.segmenter import build_segmenter

SLICES, VOLUMES = "radimagenet_resnet50", "medicalnet_resnet10_23datasets"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A torch.hub folder with small networks of random weights under MONAI's names."""
    folder = tmp_path / "hub"
    repository = folder / "Project-MONAI_perceptual-models_main"
    repository.mkdir(parents=True)
    (repository / "hubconf.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        f"def {SLICES}(**_):\n"
        "    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),\n"
        "        nn.Conv2d(8, 8, 3))\n"
        f"def {VOLUMES}(**_):\n"
        "    torch.manual_seed(0)\n"
        "    return nn.Conv3d(1, 8, 3)\n"
    )
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return str(folder)


def segmenter_loss():
    torch.manual_seed(0)
    return SegmenterPerceptualLoss(build_segmenter(SegmenterConfig([4, 4, 8, 8, 8, 4]), 3))


def volumes(batch, seed=0, shape=(20, 24, 16)):
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(batch, 1, *shape, generator=random)
    return images.requires_grad_(), torch.rand(batch, 1, *shape, generator=random)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_slices_are_measured_as_monai_does(hub, monkeypatch, share):
    def reversed_order(size, generator=None):
        return torch.arange(size - 1, -1, -1)

    monkeypatch.setattr(torch, "randperm", reversed_order)
    ours = hub_perceptual_loss(SLICES, hub, share)
    theirs = PerceptualLoss(3, SLICES, is_fake_3d=True, fake_3d_ratio=share, cache_dir=hub)
    theirs.load_state_dict(
        {k.replace("network.", "perceptual_function."): v for k, v in ours.state_dict().items()}
    )
    images, targets = volumes(1)
    values = [ours(images, targets, generators(0)), theirs(images, targets)]
    assert torch.allclose(*values, rtol=1e-6)
    a, b = (torch.autograd.grad(value, images)[0] for value in values)
    assert torch.allclose(a, b, rtol=1e-4, atol=1e-9)
    seen = int(20 * share), int(24 * share), int(16 * share)
    unseen = (20 - seen[0]) * (24 - seen[1]) * (16 - seen[2])
    assert int((a == 0).sum()) >= unseen  # no other voxel has a say
    assert a.any()


def test_monais_own_3d_distance(hub):
    ours = hub_perceptual_loss(VOLUMES, hub, 0.25)
    theirs = PerceptualLoss(3, VOLUMES, is_fake_3d=False, cache_dir=hub)
    images, targets = volumes(1)
    values = [ours(images, targets, generators(0)), theirs(images, targets)]
    assert torch.equal(*values)
    assert torch.equal(*(torch.autograd.grad(value, images)[0] for value in values))


@pytest.mark.parametrize("network", [SLICES, VOLUMES, "segmenter"])
def test_a_sample_does_not_depend_on_its_batch(hub, network):
    shape = (32, 32, 32) if network == "segmenter" else (20, 24, 16)
    loss = segmenter_loss() if network == "segmenter" else hub_perceptual_loss(network, hub, 0.25)
    images, targets = volumes(3, shape=shape)
    together = loss(images, targets, generators(7, 8, 9))
    alone = [loss(images[i : i + 1], targets[i : i + 1], generators(7 + i)) for i in range(3)]
    assert torch.allclose(together, torch.stack(alone).mean(), rtol=1e-5)
    assert not torch.allclose(alone[0], alone[1], rtol=1e-4)


def test_the_draw_is_the_generators_alone(hub):
    loss = hub_perceptual_loss(SLICES, hub, 0.25)
    images, targets = volumes(1)
    state = torch.get_rng_state()
    first = loss(images, targets, generators(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(loss(images, targets, generators(1)), first)
    assert not torch.equal(loss(images, targets, generators(2)), first)


@pytest.mark.parametrize("network", [SLICES, VOLUMES, "segmenter"])
def test_it_is_a_ruler_and_measures_in_its_own_format(hub, network):
    shape = (32, 32, 32)
    loss = segmenter_loss() if network == "segmenter" else hub_perceptual_loss(network, hub, 0.25)
    assert not any(m.training for m in loss.train().modules())
    assert not any(p.requires_grad for p in loss.parameters())
    images, targets = volumes(1, shape=shape)
    full = loss(images, targets, generators(0))
    half = loss.to(torch.bfloat16)(images, targets, generators(0))
    assert float(half.detach()) == pytest.approx(float(full.detach()), rel=0.05)
    assert float(loss(targets, targets, generators(0)).detach()) == pytest.approx(0, abs=1e-6)


def test_slices_are_kept_and_not_their_features(hub):
    """What stays for the backward pass are the drawn slices, whatever the network's width."""
    loss = hub_perceptual_loss(SLICES, hub, 0.25)
    images, targets = volumes(1)
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(images, targets, generators(0))
    drawn = 5 * 24 * 16 + 6 * 20 * 16 + 4 * 20 * 24
    assert sum(kept) < 2.1 * drawn  # of both volumes, and indices


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_that_is_none(share):
    with pytest.raises(InputError, match=r"task\.perceptual\.slices"):
        hub_perceptual_loss(SLICES, None, share)


def test_a_small_share_is_at_least_one_slice(hub):
    images, targets = volumes(1)
    assert torch.isfinite(hub_perceptual_loss(SLICES, hub, 0.01)(images, targets, generators(0)))


def test_chunks_do_not_show(hub, monkeypatch):
    loss = hub_perceptual_loss(SLICES, hub, 1.0)
    images, targets = volumes(2)
    whole = loss(images, targets, generators(0, 1))
    monkeypatch.setattr(type(loss), "CHUNK", 3)
    assert torch.allclose(loss(images, targets, generators(0, 1)), whole, rtol=1e-5)
