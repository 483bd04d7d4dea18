"""The device that networks compute on."""

import torch

from brain_ldm.errors import InputError


def open_device(name: str) -> torch.device:
    """A device by its name; `auto` is a GPU where there is one.

    Raises:
        InputError: it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "cuda":  # not touched yet: a context takes memory, and outlives forks
            if (device.index or 0) >= torch.cuda.device_count():
                raise RuntimeError(f"there are {torch.cuda.device_count()} GPUs")
        else:
            torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name}: {str(error).splitlines()[0]}") from None
    return device
