"""Train a model: `python -m brain_ldm.train experiment=ae_demo`."""

import dataclasses

from brain_ldm.command import command
from brain_ldm.training.config import (
    AutoencoderTask,
    BrainAgeTask,
    DiffusionTask,
    SegmenterTask,
    TrainConfig,
)

TASKS = {
    "autoencoder": AutoencoderTask,
    "diffusion": DiffusionTask,
    "segmenter": SegmenterTask,
    "brain_age": BrainAgeTask,
}


@command("train", TrainConfig, task=TASKS)
def main(config: TrainConfig) -> dict[str, float]:
    """Train the model of an experiment on its cohort."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from brain_ldm.training.fit import train

    job = HydraConfig.get()
    if job.mode is RunMode.MULTIRUN:
        config = dataclasses.replace(config, out=f"{config.out}/{job.job.num}")
    return train(config)


if __name__ == "__main__":
    main()
