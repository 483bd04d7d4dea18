"""Models from and to the formats of others: MONAI bundles and Hugging Face repositories."""

import os
import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError

from brain_ldm.cohorts.files import brief
from brain_ldm.conversion.bundle import write_bundle
from brain_ldm.conversion.config import ConvertConfig, Target
from brain_ldm.conversion.folder import write_folder
from brain_ldm.conversion.hub import write_hub
from brain_ldm.conversion.reading import DRAWING, read_model
from brain_ldm.errors import InputError
from brain_ldm.models import (
    Autoencoder,
    BrainAge,
    Diffusion,
    Embedding,
    Generator,
    Model,
    Segmenter,
)

KINDS = (Autoencoder, BrainAge, Diffusion, Embedding, Generator, Segmenter)


def convert(config: ConvertConfig) -> None:
    """Write the model in `config.source` to `config.out`, whole or not at all.

    What was written is read back and held against the model before it gets its name.

    Raises:
        InputError: the source is no model, the folder cannot be written, or what was read back
            differs.
    """
    out = Path(config.out).resolve()
    _check(config, out)
    kinds = DRAWING if config.to is Target.bundle else KINDS
    found = read_model(Path(config.source), *kinds)
    work = out.with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(work, ignore_errors=True)  # of a call that was killed
        try:
            work.parent.mkdir(parents=True, exist_ok=True)
            if config.to is Target.bundle:
                write_bundle(found, work, config)
            elif config.to is Target.hub:
                write_hub(found, work, config)
            else:
                write_folder(found, work)
        except (OSError, SafetensorError) as error:  # the latter of a disk that is full
            raise InputError(
                f"out={config.out}: cannot be written ({brief(error)}); is the disk full?"
            ) from None
        if not _same(read_model(work, *kinds).model, found.model):
            raise InputError(f"out={config.out}: reading back gave another model; try again")
        work.replace(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{found.model.config.kind} model as {config.to.value} in {config.out}")


def _check(config: ConvertConfig, out: Path) -> None:
    if not Path(config.source).is_dir():
        raise InputError(f"source={config.source}: no such folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out={config.out}: is there already; choose another out, or remove it")
    above = next(folder for folder in out.parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"out={config.out}: {above} is no folder that you may write to")
    for name in ("licence", "authors"):
        if config.to is Target.model and getattr(config, name) is not None:
            raise InputError(f"{name} is for to=bundle or to=hub; leave it out")
    if config.licence is not None and not re.fullmatch(r"[\w.+-]+", config.licence):
        raise InputError(
            f"licence={config.licence}: give its SPDX identifier, as apache-2.0 or cc-by-4.0"
        )


def _same(one: Model, other: Model) -> bool:
    """Whether two models have the same config and weights, to the bit."""
    mine, others = one.weights(), other.weights()
    same = (
        one.config == other.config
        and mine.keys() == others.keys()
        and all(torch.equal(value, others[name]) for name, value in mine.items())
    )
    return same and (not isinstance(one, Diffusion) or _same(one.autoencoder, other.autoencoder))
