"""Options of `convert`."""

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class Target(Enum):
    """What is written."""

    model = "model"  # a model folder
    bundle = "bundle"  # of what draws brains: a MONAI bundle, which runs without this package
    hub = "hub"  # a model folder that is a Hugging Face repository too; nothing is uploaded


@dataclass
class ConvertConfig:
    """Which model becomes what."""

    source: str = MISSING  # a MONAI bundle (the published one, or one of ours) or a model folder
    out: str = MISSING  # a new folder
    to: Target = MISSING  # model, bundle or hub
    # For bundles and repositories; what is null is said to be not stated.
    licence: str | None = None  # of the weights, as its SPDX identifier: apache-2.0, cc-by-4.0
    authors: str | None = None
