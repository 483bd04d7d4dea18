"""Write a model folder, its autoencoder's card with it."""

from pathlib import Path

from brain_ldm.conversion.reading import AUTOENCODER, Found
from brain_ldm.models import Diffusion, save_model


def write_folder(found: Found, folder: Path) -> None:
    """Write the model folder of `found`."""
    if isinstance(found.model, Diffusion):
        # save_model keeps the card that it finds there.
        save_model(found.model.autoencoder, folder / AUTOENCODER, found.autoencoder_card)
    save_model(found.model, folder, found.card)
