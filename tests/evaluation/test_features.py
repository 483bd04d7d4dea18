"""Extractors of features: MedicalNet from every sort of file, and the stand-ins."""

import hashlib
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import resnet50
from safetensors.torch import save_file

from brain_ldm.errors import InputError
from brain_ldm.evaluation.features import brain_age_features, medicalnet, segmenter_features
from brain_ldm.models import (
    BrainAge,
    GridConfig,
    SavedBrainAge,
    Segmenter,
    open_model,
    save_model,
)
from brain_ldm.networks import medicalnet as networks
from brain_ldm.networks.config import BrainAgeConfig

WIDTH = 1 / 16  # of the true network's, which has 2048 features


@pytest.fixture
def tensors(monkeypatch):
    """A state dict of a narrow network with random weights and batch statistics."""
    monkeypatch.setattr(networks, "resnet50", partial(resnet50, widen_factor=WIDTH))
    torch.manual_seed(0)
    found = networks._network().state_dict()
    for name, value in found.items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2)
    return found


@pytest.fixture
def images():
    return torch.rand(2, 1, 24, 32, 28, generator=torch.Generator().manual_seed(1))


def literal_medicalnet(w, x):
    """The forward pass of MedicalNet's ResNet-50, layer by layer as its authors wrote it."""

    def norm(x, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(w[f"{name}.{key}"] for key in keys))

    x = F.relu(norm(F.conv3d(x, w["conv1.weight"], stride=2, padding=3), "bn1"))
    x = F.max_pool3d(x, 3, 2, 1)
    layers = ((1, 3, 1, 1), (2, 4, 2, 1), (3, 6, 1, 2), (4, 3, 1, 4))
    for layer, blocks, first_stride, dilation in layers:
        for block in range(blocks):
            name, stride = f"layer{layer}.{block}", first_stride if block == 0 else 1
            y = F.relu(norm(F.conv3d(x, w[f"{name}.conv1.weight"]), f"{name}.bn1"))
            y = F.conv3d(y, w[f"{name}.conv2.weight"], None, stride, dilation, dilation)
            y = F.relu(norm(y, f"{name}.bn2"))
            y = norm(F.conv3d(y, w[f"{name}.conv3.weight"]), f"{name}.bn3")
            if block == 0:
                x = F.conv3d(x, w[f"{name}.downsample.0.weight"], stride=stride)
                x = norm(x, f"{name}.downsample.1")
            x = F.relu(x + y)
    return x.mean((2, 3, 4))


def test_medicalnets_features_are_its_authors_of_standardised_volumes(tensors, images, tmp_path):
    torch.save(tensors, tmp_path / "weights.pth")
    extractor = medicalnet(str(tmp_path / "weights.pth"))
    volumes = images.numpy()
    standard = [(v - v.mean()) / v.std() for v in volumes]
    literal = literal_medicalnet(tensors, torch.from_numpy(np.stack(standard)))
    found = extractor.features(images)
    assert found.shape == (2, 2048 * WIDTH) and found.dtype == torch.float32
    assert torch.allclose(found, literal, rtol=1e-3, atol=1e-4 * float(literal.abs().max()))
    assert torch.allclose(extractor.features(0.5 * images + 0.1), found, rtol=1e-2, atol=1e-3)
    assert torch.isfinite(extractor.features(torch.zeros_like(images))).all()
    assert extractor.name == "MedicalNet ResNet-50 (23 datasets)"
    assert not extractor.stand_in


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("kind", ["plain", "wrapped", "uncounted", "safetensors"])
def test_weights_in_every_sort_of_file(tensors, images, tmp_path, prefix, kind):
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    named = {prefix + name: value for name, value in tensors.items()}
    if kind == "safetensors":
        save_file(named, path)
    elif kind == "wrapped":
        torch.save({"epoch": 3, "state_dict": named}, path)
    elif kind == "uncounted":
        named = {k: v for k, v in named.items() if not k.endswith("num_batches_tracked")}
        torch.save(named, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(named, path)
    network, digest = networks.build_medicalnet(str(path))
    assert all(
        torch.equal(value, tensors[name])
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    )
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def spoilt(path, tensors, kind):
    """Write a file that is wrong in one way."""
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("404: Not Found\n")
    elif kind == "cut":
        torch.save(tensors, path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "code":
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "numbers":
        torch.save({"state_dict": {"conv1.weight": 3}}, path)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "other":
        torch.save({name: v for name, v in tensors.items() if "layer4.2" not in name}, path)
    elif kind == "shape":
        torch.save(tensors | {"conv1.weight": torch.zeros(3)}, path)
    elif kind == "more":
        torch.save(tensors | {"fc.weight": torch.zeros(3)}, path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "kind",
    [
        *("missing", "folder", "empty", "text", "cut"),
        *("code", "list", "numbers"),
        *("other", "shape", "more"),
    ],
)
def test_a_wrong_file_is_one_line(tensors, tmp_path, kind, suffix):
    path = tmp_path / f"weights{suffix}"
    spoilt(path, tensors, kind)
    with pytest.raises(InputError) as error:
        networks.build_medicalnet(str(path))
    line = str(error.value)
    assert "\n" not in line and line.startswith(f"{path}: ")
    assert networks.FILE in line
    if suffix == ".pth" and kind in ("other", "shape", "more"):
        name = {"other": "layer4.2.bn1.bias", "shape": "conv1.weight", "more": "fc.weight"}[kind]
        assert f"'{name}' does not fit" in line


def test_the_hubs_file_is_fetched_by_its_name(tensors, tmp_path, monkeypatch):
    import huggingface_hub

    torch.save({"state_dict": tensors}, tmp_path / "hub.pth")
    asked = []

    def download(*names):
        asked.append(names)
        return str(tmp_path / "hub.pth")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    _, digest = networks.build_medicalnet(None)
    assert asked == [("TencentMedicalNet/MedicalNet-Resnet50", "resnet_50_23dataset.pth")]
    assert digest == hashlib.sha256((tmp_path / "hub.pth").read_bytes()).hexdigest()


def test_no_net_is_one_line(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"^huggingface\.co/Tencent.*cannot be fetched") as error:
        networks.build_medicalnet(None)
    assert "\n" not in str(error.value)


def test_the_hub_without_its_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install -e '.\[engines\]'"):
        networks.build_medicalnet(None)


def pooled(activations):
    """Mean and standard deviation over space of each channel, by NumPy."""
    values = activations.numpy().reshape(*activations.shape[:2], -1)
    return values.mean(-1), values.std(-1)


def test_a_segmenter_stands_in(tiny_models, images):
    folder = str(tiny_models["segmenter"])
    extractor = segmenter_features(open_model(folder, Segmenter), folder)
    assert extractor.name == f"stand-in: encoder of the segmenter {folder}"
    assert extractor.stand_in
    weights = tiny_models["segmenter"] / "weights.safetensors"
    assert extractor.hash == hashlib.sha256(weights.read_bytes()).hexdigest()

    images = F.pad(images, (0, 4, 0, 0, 0, 8))  # 32³, as the segmenter wants it
    found = extractor.features(images)
    assert found.shape == (2, 2 * (4 + 4 + 8 + 8 + 8)) and found.dtype == torch.float32
    network, seen = open_model(folder, Segmenter).network, []
    for name in ("conv_0", "down_1", "down_2", "down_3", "down_4"):
        getattr(network, name).register_forward_hook(lambda *given: seen.append(given[-1]))
    network(images)
    sd_mean = [part for scale in seen for part in reversed(pooled(scale))]
    assert np.allclose(found.numpy(), np.concatenate(sd_mean, 1), atol=1e-5)
    alone = extractor.features(images[1:])
    assert torch.allclose(found[1:], alone, atol=1e-5)


def test_a_brain_age_network_stands_in(tmp_path, images):
    grid = GridConfig(shape=[24, 32, 28], affine=np.diag([4.0, 4, 4, 1]).tolist())
    torch.manual_seed(0)
    model = BrainAge(SavedBrainAge(grid=grid, network=BrainAgeConfig([3, 5])))
    save_model(model, tmp_path / "age", "")
    folder = str(tmp_path / "age")
    extractor = brain_age_features(open_model(folder, BrainAge), folder)
    assert extractor.name == f"stand-in: blocks of the brain-age network {tmp_path / 'age'}"
    assert extractor.stand_in
    blocks = model.eval().requires_grad_(False).network.blocks
    first = blocks[:6](images)
    literal = np.concatenate([pooled(first)[0], pooled(blocks[6:](first))[0]], 1)
    assert np.allclose(extractor.features(images).numpy(), literal, atol=1e-6)
