"""The order of rows is a function of seed and step, whatever the ranks and wherever it begins."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from brain_ldm.errors import InputError
from brain_ldm.training.config import BrainAgeTask, DataConfig, TrainConfig, TrainerConfig
from brain_ldm.training.data import CohortData, Rows, StepBatches, WholeSteps

ROWS = 23


def batches(size, parts=1, rank=0, world=1, first=0, last=12, seed=5):
    return StepBatches(ROWS, size, parts, rank, world, seed, first, last)


def test_an_epoch_shows_each_row_once_and_the_next_in_another_order():
    rows = np.array([[row for _, row in batch] for batch in batches(5, last=8)])
    epochs = [rows[:4].ravel().tolist(), rows[4:].ravel().tolist()]
    for epoch in epochs:
        assert len(set(epoch)) == 20  # the last three of 23 do not fill a batch
    assert epochs[0] != epochs[1]
    assert [row for _, row in next(iter(batches(5, seed=6)))] != epochs[0][:5]


def test_every_pair_names_its_step():
    for step, batch in enumerate(batches(4)):
        assert {s for s, _ in batch} == {step}


@pytest.mark.parametrize(("size", "parts", "world"), [(2, 1, 2), (1, 2, 2), (1, 4, 1), (1, 1, 4)])
def test_ranks_and_parts_together_read_what_one_process_reads(size, parts, world):
    whole = [sorted(batch) for batch in batches(4)]
    ranks = [list(batches(size, parts, rank, world)) for rank in range(world)]
    for step, expected in enumerate(whole):
        mine = [r[step * parts : (step + 1) * parts] for r in ranks]
        assert sorted(pair for rank in mine for part in rank for pair in part) == expected


def test_it_goes_on_where_it_was_stopped():
    assert list(batches(3, parts=2, first=7)) == list(batches(3, parts=2))[14:]
    assert len(batches(3, parts=2, first=7)) == len(batches(3, parts=2)) == 24


def test_whole_steps_join_the_parts_of_a_step():
    parts = list(batches(2, parts=3))
    whole = list(WholeSteps(batches(2, parts=3)))
    assert len(whole) == len(WholeSteps(batches(2, parts=3))) == 12
    assert whole[1] == parts[3] + parts[4] + parts[5]


def config(**trainer):
    return TrainConfig(
        task=BrainAgeTask(),
        data=DataConfig(cohort="cohorts/few", batch_size=2),
        trainer=TrainerConfig(**trainer),
    )


def test_fewer_rows_than_a_step_are_refused():
    CohortData(config(devices=2, accumulate=2), 8, lambda *_: None)
    with pytest.raises(
        InputError, match=r"cohorts/few: 7 training rows, fewer than one batch of 8"
    ):
        CohortData(config(devices=2, accumulate=2), 7, lambda *_: None)


@pytest.mark.parametrize(("count", "world"), [(7, 1), (7, 2), (7, 3), (2, 4)])
def test_validation_rows_are_shared_out(count, world):
    seen = []
    for rank in range(world):
        data = CohortData(config(), 9, lambda *_: None)
        data.trainer = SimpleNamespace(
            global_rank=rank,
            world_size=world,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )
        data.rows["val"] = Rows({"x": np.arange(count)})
        seen += [int(i) for batch in data.val_dataloader() for i in batch["index"]]
    # Fewer rows than ranks: each rank sees all of them.
    assert sorted(seen) == (
        list(range(count)) if count >= world else sorted([*range(count)] * world)
    )


def test_items_carry_their_row_and_are_changed_by_step_and_row():
    arrays = {"x": np.arange(10) * 10}
    rows = Rows(arrays, lambda item, step, row: {"x": item["x"] + step + row}, np.array([2, 4, 6]))
    assert len(rows) == 3
    assert {name: int(value) for name, value in rows[100, 1].items()} == {"x": 144, "index": 4}
