"""Trainings as small as they come, as command lines, and runs of them in processes of their own."""

import subprocess
import sys

import pytest

from tests.journeys.runs import end


@pytest.fixture(scope="session")
def trainings(tiny_cohort, tiny_models):
    """Options of `train` for a GAN and for a diffusion model on `tiny_cohort`."""
    common = [
        f"data.cohort={tiny_cohort.root}",
        "trainer.precision=32-true",
        "trainer.log_every=1",
        "trainer.checkpoint_every=4",
        "trainer.val_every=6",
        "trainer.max_steps=24",
        "pictures.count=0",
    ]
    return {
        "autoencoder": [
            "experiment=ae_demo",
            f"task.perceptual.weights={tiny_models['segmenter']}",
            "task.network.channels=[4,8]",
            "task.network.norm_groups=4",
            "task.discriminator.channels=4",
            "task.loss.adversarial_start=3",
            "task.augmentation.affine=0.5",
            *common,
        ],
        "diffusion": [
            "experiment=ldm_demo",
            f"task.autoencoder={tiny_models['autoencoder']}",
            "task.network.channels=[16]",
            "task.network.norm_groups=8",
            "task.network.head_channels=[16]",
            "task.encodings=2",
            "data.batch_size=4",
            *common,
        ],
    }


@pytest.fixture
def start(workplace):
    """Start `python -m brain_ldm.train …` in its own process group."""
    started = []

    def run(*options, program=("-m", "brain_ldm.train")):
        process = subprocess.Popen(
            [sys.executable, *program, *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        end(process)
