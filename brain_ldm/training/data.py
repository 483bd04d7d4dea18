"""What training reads: rows of packed arrays, in an order that is a function of seed and step."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.errors import InputError
from brain_ldm.training.config import Strategy, TrainConfig
from brain_ldm.training.packed import Levels, Team
from brain_ldm.training.randomness import generator

BINS = 10  # that a column of numbers is balanced over
VALIDATION = -1  # the step of rows that are read outside training


class Rows(Dataset):
    """Rows of packed arrays; each item also carries its row number, which seeds its draws.

    A place counts the rows in use; n times their number more is the same row once more, and gives
    the row number as many times N more: its draws are others then.

    Args:
        arrays: (N, ...) each, by name.
        change: applied to an item with its step and row, e.g. an augmentation.
        only: row numbers of the arrays that are used; None for all.
    """

    def __init__(
        self,
        arrays: dict[str, np.ndarray | Levels],
        change: Callable[[dict[str, Tensor], int, int], dict[str, Tensor]] | None = None,
        only: np.ndarray | None = None,
    ) -> None:
        self.arrays = arrays
        self.change = change
        self.total = len(next(iter(arrays.values())))
        self.only = np.arange(self.total) if only is None else only

    def __len__(self) -> int:
        return len(self.only)

    def __getitem__(self, at: tuple[int, int]) -> dict[str, Tensor]:
        step, place = at
        again, place = divmod(place, len(self))
        row = int(self.only[place])
        item = {name: torch.from_numpy(np.array(a[row])) for name, a in self.arrays.items()}
        index = row + again * self.total
        if self.change is not None:
            item = self.change(item, step, index)
        return {**item, "index": torch.tensor(index)}


class StepBatches(Sampler[list[tuple[int, int]]]):
    """The (step, place) pairs that one rank reads, a batch at a time, from step `first` on.

    All ranks' batches of a step together are one global batch, cut from an order of the rows that
    depends on seed and epoch alone: so training that is stopped goes on with the very batch that it
    would have had, and two ranks read what one with twice the batch reads. Rows that do not fill a
    last global batch sit out the epoch. The order is a permutation or, with shares, drawn with
    replacement; what comes again in a step is told apart as `Rows` says.

    Args:
        rows: number of rows in the training split.
        size: rows in a batch.
        parts: batches a rank takes a step (gradient accumulation).
        rank, world: of this process.
        seed: of the permutations.
        first, last: steps to go through.
        shares: (rows,) how often each row comes, relative to the others; None for once an epoch.
    """

    def __init__(
        self,
        rows: int,
        size: int,
        parts: int,
        rank: int,
        world: int,
        seed: int,
        first: int,
        last: int,
        shares: Tensor | None = None,
    ) -> None:
        self.rows, self.size, self.parts = rows, size, parts
        self.rank, self.world, self.seed = rank, world, seed
        self.first, self.last = first, last
        self.shares = shares

    def __len__(self) -> int:
        """Batches of the whole training, those before `first` included, as Lightning counts."""
        return self.last * self.parts

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, shown = [], None
        whole = self.size * self.world * self.parts
        for step in range(self.first, self.last):
            epoch, place = divmod(step, self.rows // whole)
            if epoch != shown:
                order, shown = self.order(epoch), epoch
            step_rows = order[place * whole : (place + 1) * whole].tolist()
            if self.shares is not None:
                step_rows = repeats_apart(step_rows, self.rows)
            for part in range(self.parts):
                start = (part * self.world + self.rank) * self.size
                yield [(step, row) for row in step_rows[start : start + self.size]]

    def order(self, epoch: int) -> Tensor:
        """Return the rows of an epoch, in their order."""
        draw = generator(self.seed, "order", epoch)
        if self.shares is None:
            return torch.randperm(self.rows, generator=draw)
        # Not torch.multinomial, which takes no more than 2²⁴ rows and 32 bits.
        ends = self.shares.double().cumsum(0)
        at = torch.rand(self.rows, generator=draw, dtype=torch.float64) * ends[-1]
        return torch.searchsorted(ends, at, right=True).clamp(max=self.rows - 1)


def repeats_apart(places: list[int], count: int) -> list[int]:
    """Return places with `count` added to what comes a second time, twice that a third time, …"""
    seen: Counter[int] = Counter()
    apart = []
    for place in places:
        apart.append(place + seen[place] * count)
        seen[place] += 1
    return apart


class CohortData(L.LightningDataModule):
    """Training and validation rows of one cohort.

    Args:
        config: batch size, workers, devices, steps and seed.
        count: rows of the training split.
        rows: gives a split's rows, "train" or "val"; called in every process of a run at once.
        whole_steps: a step's batches arrive as one (for modules under manual optimisation, which
            cut them up themselves).

    Raises:
        InputError: the split is smaller than one step.
    """

    def __init__(
        self,
        config: TrainConfig,
        count: int,
        rows: Callable[[str, Team], Rows],
        whole_steps: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.make = rows
        self.whole_steps = whole_steps
        self.rows: dict[str, Rows] = {}
        self.levels: np.ndarray | None = None
        whole = rows_per_step(config)
        if count < whole:
            raise InputError(
                f"{config.data.cohort}: {count} training rows, fewer than one batch of {whole}: "
                "lower data.batch_size (or trainer.devices, trainer.accumulate) or use a larger "
                "cohort"
            )

    def balance(self, cohort: Cohort) -> None:
        """Let the levels of `data.balance` come equally often in training.

        Raises:
            InputError: there is no such column, or all training rows have one level.
        """
        if self.config.data.balance is not None:
            self.levels = level_numbers(cohort, self.config.data.balance)

    def setup(self, stage: str) -> None:
        """Pack what is not yet packed, every process its share."""
        trainer = self.trainer
        team = Team(
            trainer.global_rank,
            trainer.world_size,
            trainer.strategy.barrier,
            trainer.strategy.root_device,
        )
        self.rows = {split: self.make(split, team) for split in ("train", "val")}

    def train_dataloader(self) -> DataLoader:
        """One batch after the other, from the step that the trainer has reached to the last."""
        size, parts = self.config.data.batch_size, self.config.trainer.accumulate
        rows = self.rows["train"]
        batches = StepBatches(
            len(rows),
            size,
            parts,
            self.trainer.global_rank,
            self.trainer.world_size,
            self.config.seed,
            self.trainer.global_step,
            self.config.trainer.max_steps,
            None if self.levels is None else equal_shares(self.levels[rows.only]),
        )
        return self._loader("train", WholeSteps(batches) if self.whole_steps else batches)

    def val_dataloader(self) -> DataLoader:
        """This rank's share of the validation split, in order; empty where the cohort has none."""
        count, world = len(self.rows["val"]), self.trainer.world_size
        # Otherwise each rank takes all rows, and the mean is the same: where there are fewer rows
        # than ranks, and in shards, whose every forward pass is a matter of all ranks.
        sharded = self.config.trainer.strategy is Strategy.fsdp
        shared = count % world == 0 if sharded else count >= world
        share = range(self.trainer.global_rank, count, world) if shared else range(count)
        size = self.config.data.batch_size
        batches = [
            [(VALIDATION, row) for row in share[i : i + size]] for i in range(0, len(share), size)
        ]
        return self._loader("val", batches)

    def transfer_batch_to_device(
        self, batch: dict[str, Tensor], device: torch.device, dataloader_idx: int
    ) -> dict[str, Tensor]:
        """Leave row numbers on the CPU, where they seed draws."""
        rest = {name: value for name, value in batch.items() if name != "index"}
        moved = super().transfer_batch_to_device(rest, device, dataloader_idx)
        return {**moved, "index": batch["index"]}

    def _loader(self, split: str, batches: Sampler | list) -> DataLoader:
        workers = self.config.data.workers
        # More workers than cores are the user's choice: they wait for disks too.
        warnings.filterwarnings("ignore", ".*worker processes in total.*")
        return DataLoader(
            self.rows[split],
            batch_sampler=batches,
            num_workers=workers,
            # A fork shares the memory maps; any other start would copy them whole.
            multiprocessing_context="fork" if workers else None,
            persistent_workers=workers > 0,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
            generator=torch.Generator(),  # leave torch's own alone
        )


class WholeSteps(Sampler[list[tuple[int, int]]]):
    """The batches of a step joined to one."""

    def __init__(self, batches: StepBatches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return self.batches.last

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batches = iter(self.batches)
        for first in batches:
            yield sum((next(batches) for _ in range(self.batches.parts - 1)), first)


def rows_per_step(config: TrainConfig) -> int:
    """Return how many rows one optimiser step sees, over all devices."""
    trainer = config.trainer
    return config.data.batch_size * trainer.devices * trainer.nodes * trainer.accumulate


def level_numbers(cohort: Cohort, column: str) -> np.ndarray:
    """Return the level of each training row in a column, numbered from 0; −1 where it has none.

    Each text is a level, and each of ten bins of equal width over the numbers that there are.

    Raises:
        InputError: there is no such column, or the rows have fewer than two levels.
    """
    table = cohort.rows("train")
    path = cohort.root / "participants.tsv"
    if column not in table.columns:
        there = ", ".join(name for name in table.columns if name not in ("participant_id", "split"))
        raise InputError(f"data.balance: {path} has no column {column}; give one of {there}")
    values = table[column]
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > 1:
        bins = np.linspace(values.min(), values.max(), BINS + 1)
        values = values.map(lambda value: np.searchsorted(bins[1:-1], value, "right"), "ignore")
    numbers, levels = pd.factorize(values)
    if len(levels) < 2:
        raise InputError(
            f"data.balance: column {column} of {path} has {len(levels)} levels in the training "
            "rows, and nothing to balance; give another column, or null"
        )
    return numbers


def equal_shares(levels: np.ndarray) -> Tensor:
    """Return how often each row is to come, so that all levels come equally often.

    Rows without a level (−1) come as often as if nothing was balanced: as a level of their own a
    few of them would fill a large part of each epoch.

    Args:
        levels: (N,) integers.

    Returns:
        float64 (N,) that sum to N.
    """
    known = levels >= 0
    shares = np.ones(len(levels))
    found, counts = np.unique(levels[known], return_counts=True)
    share = known.sum() / len(found) / counts
    shares[known] = share[np.searchsorted(found, levels[known])]
    return torch.from_numpy(shares)
