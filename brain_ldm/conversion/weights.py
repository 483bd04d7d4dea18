"""Weights in PyTorch's files: read as tensors alone, and fitted to a network strictly by name."""

import pickle
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from brain_ldm.errors import InputError


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a file of torch.save, on the CPU; nothing in the file is executed.

    Raises:
        InputError: it cannot be read, or holds anything but tensors by name.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what damaged files raise is no closed list
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and forbidden:
            raise InputError(
                f"{path}: refused, since it asks for {forbidden[1]} and not for tensors alone: "
                "opening it could run code"
            ) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: damaged, or no file of PyTorch's ({reason})") from None
    if not isinstance(state, dict):
        raise InputError(f"{path}: holds a {type(state).__name__}; expected weights by name")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{path}: '{name}' is no tensor; expected a plain state dict")
    return state


def load_weights(network: nn.Module, path: Path) -> bool:
    """Copy a file's weights into a network; every name and shape must fit.

    Args:
        network: an AutoencoderKL without attention, a DiffusionModelUNet, or one of ours.
        path: weights named as MONAI's or as those of MONAI Generative Models, where the networks
            came from and in whose names the model was published.

    Returns:
        Whether the names were the older ones.

    Raises:
        InputError: the file cannot be read, or its weights are not those of the network.
    """
    state = read_weights(path)
    wanted = network.state_dict()
    current, older = {name: name for name in wanted}, {older_name(name): name for name in wanted}
    is_older = len(older.keys() & state.keys()) > len(current.keys() & state.keys())
    names = older if is_older else current
    if 2 * len(names.keys() & state.keys()) < len(names):
        raise InputError(
            f"{path}: its names, as '{next(iter(state), '')}', are neither those of "
            f"{type(network).__name__} nor those of MONAI Generative Models"
        )
    network_says = "the network that the bundle describes"
    for name in names:
        if name not in state:
            raise InputError(f"{path}: lacks '{name}', which {network_says} has")
    for name, value in state.items():
        if name not in names:
            raise InputError(f"{path}: '{name}' is no weight of {network_says}")
        shape = wanted[names[name]].shape
        if value.shape != shape:
            raise InputError(
                f"{path}: '{name}' is {_by(value.shape)}, in {network_says} {_by(shape)}"
            )
        if not value.isfinite().all():
            raise InputError(f"{path}: '{name}' holds NaN or infinite numbers")
    network.load_state_dict({names[name]: value for name, value in state.items()})
    return is_older


def older_name(name: str) -> str:
    """The name that MONAI Generative Models had for a weight of MONAI's networks."""
    name = name.replace(".postconv.", ".conv.")
    if ".transformer_blocks." in name:
        name = name.replace(".out_proj.", ".to_out.0.")
    return name


def _by(shape: torch.Size) -> str:
    return "×".join(map(str, shape)) or "one number"
