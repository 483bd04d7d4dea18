"""What the training tests share."""

import lightning as L
import pytest
from torch.utils.data import DataLoader

from brain_ldm.training.data import Rows, StepBatches


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


@pytest.fixture
def loader():
    """Make loaders of all steps of a training, as `CohortData` does, from arrays."""

    def make(arrays, size, steps, first=0):
        rows = Rows(arrays)
        batches = StepBatches(len(rows), size, 1, 0, 1, seed=0, first=first, last=steps)
        return DataLoader(rows, batch_sampler=batches)

    return make
