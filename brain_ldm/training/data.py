"""What training reads: packed images, labels or latents with the row's number and age."""

from collections.abc import Callable

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from brain_ldm.errors import InputError
from brain_ldm.training.config import DataConfig


class Rows(Dataset):
    """Rows of packed arrays; each item also carries its row number, which seeds its draws."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = {name: torch.from_numpy(np.array(a[index])) for name, a in self.arrays.items()}
        return {**item, "index": torch.tensor(index)}


class CohortData(L.LightningDataModule):
    """Training and validation rows of one cohort.

    Args:
        config: batch size and workers.
        arrays: gives the packed arrays of a split, "train" or "val".
    """

    def __init__(self, config: DataConfig, arrays: Callable[[str], dict[str, np.ndarray]]) -> None:
        super().__init__()
        self.config = config
        self.rows = {split: Rows(arrays(split)) for split in ("train", "val")}
        if len(self.rows["train"]) < config.batch_size:
            raise InputError(
                f"{config.cohort}: {len(self.rows['train'])} training rows, fewer than one batch "
                f"of {config.batch_size}: lower data.batch_size or use a larger cohort"
            )

    def train_dataloader(self) -> DataLoader:
        """Whole batches of the training split, shuffled."""
        return self._loader("train", shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """The validation split in order; empty where the cohort has none."""
        return self._loader("val")

    def _loader(self, split: str, **options: bool) -> DataLoader:
        return DataLoader(
            self.rows[split],
            self.config.batch_size,
            num_workers=self.config.workers,
            persistent_workers=self.config.workers > 0,
            **options,
        )
