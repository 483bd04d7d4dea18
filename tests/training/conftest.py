"""What the training tests share."""

import lightning as L
import pytest


@pytest.fixture
def quiet_trainer():
    """Make Lightning trainers that write and print nothing."""

    def make(max_steps, **options):
        return L.Trainer(
            max_steps=max_steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )

    return make
