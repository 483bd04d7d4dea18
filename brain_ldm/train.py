"""Train a model: `python -m brain_ldm.train experiment=ae_demo`."""

import dataclasses

from brain_ldm.command import command
from brain_ldm.sweep import job_folder
from brain_ldm.training.config import (
    AutoencoderTask,
    BrainAgeTask,
    CSVConfig,
    DiffusionTask,
    EmbeddingTask,
    LSGANTask,
    SegmenterTask,
    TensorBoardConfig,
    TrainConfig,
    TrainerConfig,
    VAEGANTask,
    WandbConfig,
)

GROUPS = {
    "task": {
        "autoencoder": AutoencoderTask,
        "diffusion": DiffusionTask,
        "segmenter": SegmenterTask,
        "brain_age": BrainAgeTask,
        "embedding": EmbeddingTask,
        "lsgan": LSGANTask,
        "vae_gan": VAEGANTask,
    },
    "trainer": {"trainer": TrainerConfig},
    "logger": {"csv": CSVConfig, "tensorboard": TensorBoardConfig, "wandb": WandbConfig},
}


@command("train", TrainConfig, **GROUPS)
def main(config: TrainConfig) -> float | None:
    """Train the model of an experiment on its cohort."""
    from brain_ldm.training.fit import train

    return train(dataclasses.replace(config, out=job_folder(config.out)))


if __name__ == "__main__":
    main()
