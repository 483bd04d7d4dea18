"""A model folder that is a Hugging Face repository too, ready for `hf upload`."""

from pathlib import Path

import yaml

from brain_ldm.conversion.cards import licence_section
from brain_ldm.conversion.config import ConvertConfig
from brain_ldm.conversion.folder import write_folder
from brain_ldm.conversion.reading import Found

# The hub's own names for what a model does; its list has none for a number from an image.
PIPELINES = {
    "diffusion": "unconditional-image-generation",
    "generator": "unconditional-image-generation",
    "segmenter": "image-segmentation",
    "autoencoder": "image-feature-extraction",
    "embedding": "image-feature-extraction",
}
TAGS = ["brain", "mri", "t1w", "medical-imaging"]

USE = {
    "diffusion": "python -m brain_ldm.sample model=FOLDER out=cohorts/synthetic n=16 batch_size=1",
    "generator": "python -m brain_ldm.sample model=FOLDER out=cohorts/synthetic n=16 batch_size=1",
    "segmenter": "python -m brain_ldm.measure cohort=COHORT segmenter=FOLDER",
    "autoencoder": "python -m brain_ldm.train experiment=ldm_cond task.autoencoder=FOLDER",
    "brain_age": "python -m brain_ldm.evaluate … brain_age=FOLDER",
    "embedding": "python -m brain_ldm.evaluate … embedding=FOLDER",
}


def write_hub(found: Found, folder: Path, options: ConvertConfig) -> None:
    """Write a new folder: the model folder, README.md with the hub's fields, .gitattributes."""
    write_folder(found, folder)
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    kind = found.model.config.kind
    fields = {
        "license": options.licence.lower() if options.licence else None,  # the hub's ids are so
        "library_name": "brain_ldm",
        "pipeline_tag": PIPELINES.get(kind),
        "tags": [*TAGS, *(["latent-diffusion"] if kind == "diffusion" else [])],
    }
    head = yaml.safe_dump({k: v for k, v in fields.items() if v is not None}, sort_keys=False)
    authors = f"Authors: {options.authors}\n\n" if options.authors else ""
    (folder / "README.md").write_text(
        f"---\n{head}---\n\n{found.card.rstrip()}\n\n"
        f"## Use\n\n```sh\n{USE[kind]}\n```\n\n"
        "FOLDER is this repository's. Opening it runs no code from it: its config is data, its "
        f"weights are safetensors.\n\n{authors}{licence_section(options.licence)}"
    )
