"""MedicalNet's 3-D ResNet-50, trained on 23 data sets (Chen et al. 2019, arXiv 1904.00625)."""

import hashlib
from pathlib import Path
from pickle import UnpicklingError

import torch
from monai.networks.nets import ResNet, resnet50
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from brain_ldm.errors import InputError

REPOSITORY, FILE = "TencentMedicalNet/MedicalNet-Resnet50", "resnet_50_23dataset.pth"


def build_medicalnet(weights: str | None) -> tuple[ResNet, str]:
    """Return the network, in evaluation mode and without gradients, and its file's sha256.

    It gives features (B, 2048), the average over space of its last layer, for standardised
    volumes (B, 1, X, Y, Z).

    Args:
        weights: a file: safetensors, or a torch file that is opened without running its code;
            keys with or without `module.`, below `state_dict` or not. None: the file of the
            Hugging Face hub, fetched at the first use.

    Raises:
        InputError: the file is missing, damaged or another network's, or cannot be fetched.
    """
    path = Path(weights) if weights else _fetched()
    tensors = _read(path)
    network = _network()
    wanted = network.state_dict()
    # Old files do not count batches, which evaluation does not ask for.
    differing = {
        name
        for name in wanted.keys() | tensors.keys()
        if not name.endswith("num_batches_tracked")
        and getattr(wanted.get(name), "shape", None) != getattr(tensors.get(name), "shape", None)
    }
    if differing:
        raise InputError(
            f"{path}: '{min(differing)}' does not fit MedicalNet's ResNet-50; give {FILE} "
            f"of huggingface.co/{REPOSITORY}"
        )
    network.load_state_dict(tensors, strict=False)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return network.eval().requires_grad_(False), digest


def _network() -> ResNet:
    """MONAI's network with the strides that the weights were trained with.

    MONAI's own first convolution keeps the resolution and its last two layers halve it; in
    MedicalNet, and in the port of it that the paper's author measures FID with, the first one
    halves it and the last two widen their kernels instead.
    """
    network = resnet50(
        spatial_dims=3,
        n_input_channels=1,
        conv1_t_stride=2,
        feed_forward=False,
        shortcut_type="B",
        bias_downsample=False,
    )
    for layer, dilation in ((network.layer3, 2), (network.layer4, 4)):
        layer[0].downsample[0].stride = (1, 1, 1)
        for block in layer:
            block.conv2.stride = (1, 1, 1)
            block.conv2.dilation = block.conv2.padding = (dilation,) * 3
    return network


def _fetched() -> Path:
    """Return the hub's file. MONAI's own way there takes another file where this one fails."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise InputError(
            "MedicalNet's weights are fetched by huggingface-hub: pip install -e '.[engines]' in "
            "the checkout, or give the file itself"
        ) from None
    try:
        return Path(hf_hub_download(REPOSITORY, FILE))
    except OSError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"huggingface.co/{REPOSITORY}: {FILE} cannot be fetched ({reason}); "
            "bring it here and give the file itself"
        ) from None


def _read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by their names in the network."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give {FILE} of huggingface.co/{REPOSITORY}")
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, OSError):
        raise InputError(
            f"{path}: damaged, or no file of weights; copy {FILE} of huggingface.co/{REPOSITORY} "
            "again"
        ) from None
    if isinstance(found, dict):
        found = found.get("state_dict", found)
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise InputError(
            f"{path}: holds no state dict of tensors; give {FILE} of huggingface.co/{REPOSITORY}"
        )
    return {name.removeprefix("module."): value for name, value in found.items()}
