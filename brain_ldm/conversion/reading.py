"""Models where they come from: a MONAI bundle, or a model folder."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from brain_ldm.conversion.cards import published_cards
from brain_ldm.conversion.published import INFERENCE, read_published
from brain_ldm.conversion.weights import load_weights, read_weights
from brain_ldm.errors import InputError
from brain_ldm.models import (
    CARD,
    CONFIG,
    Autoencoder,
    Diffusion,
    Generator,
    Model,
    SavedGenerator,
    open_model,
    read_config,
)

ORIGIN = "origin"  # in a bundle of ours: the model folder that it was made of, without weights
AUTOENCODER = "autoencoder"  # in a diffusion model's folder
WEIGHTS = ("model.pt", "diffusion_model.pth", "model.pth")  # the second is the first release's name
AUTOENCODER_WEIGHTS = ("autoencoder.pt", "autoencoder.pth")
LATENT = "latent.pt"  # in a bundle of ours: what MONAI's U-Net has no place for

DRAWING = (Diffusion, Generator)  # what can be a bundle


@dataclass
class Found:
    """A model and the text of its card; of a diffusion model, the autoencoder's card too."""

    model: Model
    card: str
    autoencoder_card: str = ""


def read_model(source: Path, *kinds: type[Model]) -> Found:
    """Read a MONAI bundle or a model folder as one of `kinds`.

    Raises:
        InputError: it is neither, or damaged, or holds another kind of model.
    """
    if (source / INFERENCE).is_file():
        return read_bundle(source)
    if (source / CONFIG).is_file():
        model = open_model(source, *kinds)
        return Found(model, _text(source / CARD), _text(source / AUTOENCODER / CARD))
    raise InputError(
        f"{source}: neither a MONAI bundle ({INFERENCE} is missing) nor a model folder ({CONFIG} "
        "is missing)"
    )


def read_bundle(folder: Path) -> Found:
    """Read the published model's MONAI bundle, or one that `convert` has written.

    Raises:
        InputError: a file is missing, damaged or unsafe, or weights do not fit.
    """
    origin = folder / ORIGIN
    ours, unsaid = (origin / CONFIG).is_file(), []
    if ours:
        kind, saved = read_config(origin, DRAWING)
        if kind is Generator:
            return _read_generator(folder, saved)
        _, saved_autoencoder = read_config(origin / AUTOENCODER, (Autoencoder,))
    else:
        saved_autoencoder, saved, unsaid = read_published(folder)
    paths = [_weights_file(folder, names) for names in (AUTOENCODER_WEIGHTS, WEIGHTS)]
    try:
        autoencoder = Autoencoder(saved_autoencoder)
        model = Diffusion(saved, autoencoder)
    except ValueError as error:  # MONAI's networks check their arguments
        raise InputError(f"{folder / INFERENCE}: {str(error).splitlines()[0]}") from None
    older = [
        load_weights(network, path)
        for network, path in zip((autoencoder.network, model.network.unet), paths, strict=True)
    ]
    if ours:
        _load_latent(model, folder / "models" / LATENT)
        cards = _text(origin / CARD), _text(origin / AUTOENCODER / CARD)
    else:
        for config in (saved_autoencoder, saved):
            config.trained_on["sha256"] = {path.name: _sha256(path) for path in paths}
        cards = published_cards(model, any(older), unsaid)
    return Found(model.eval().requires_grad_(False), *cards)


def _read_generator(folder: Path, saved: SavedGenerator) -> Found:
    """Read a generator from a bundle that `convert` has written."""
    model = Generator(saved)
    load_weights(model.network, _weights_file(folder, WEIGHTS))
    return Found(model.eval().requires_grad_(False), _text(folder / ORIGIN / CARD))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _weights_file(folder: Path, names: tuple[str, ...]) -> Path:
    paths = [folder / "models" / name for name in names]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        fetch = "copy the whole bundle"
        if list(folder.glob("large_files.*")):
            fetch = f"fetch it: python -m monai.bundle download_large_files --bundle_path {folder}"
        raise InputError(f"{paths[0]}: no such file; {fetch}")
    return path


def _load_latent(model: Diffusion, path: Path) -> None:
    """Copy into a model what lies outside of its U-Net."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; copy the whole bundle")
    found, wanted = read_weights(path), latent_weights(model)
    differing = wanted.keys() ^ found.keys() | {
        name for name in wanted.keys() & found.keys() if wanted[name].shape != found[name].shape
    }
    if differing:
        raise InputError(
            f"{path}: '{min(differing)}' does not fit the model that {ORIGIN} describes"
        )
    for name, value in found.items():
        wanted[name].copy_(value)


def latent_weights(model: Diffusion) -> dict:
    """The weights of a diffusion model outside of its U-Net, by the names that a bundle has."""
    return {
        name.removeprefix("network."): value
        for name, value in model.weights().items()
        if not name.startswith("network.unet.")
    }


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
