"""The order of rows is a function of seed and step, whatever the ranks and wherever it begins."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from brain_ldm.errors import InputError
from brain_ldm.training.config import BrainAgeTask, DataConfig, TrainConfig, TrainerConfig
from brain_ldm.training.data import (
    CohortData,
    Rows,
    StepBatches,
    WholeSteps,
    equal_shares,
    level_numbers,
)

ROWS = 23


def batches(size, parts=1, rank=0, world=1, first=0, last=12, seed=5, shares=None):
    return StepBatches(ROWS, size, parts, rank, world, seed, first, last, shares)


# Twenty of one level, two of another, and one without.
LEVELS = np.array([0] * 20 + [1] * 2 + [-1])


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


@pytest.mark.parametrize("shares", [None, equal_shares(LEVELS)])
@pytest.mark.parametrize(("size", "parts", "world"), [(2, 1, 2), (1, 2, 2), (1, 4, 1), (1, 1, 4)])
def test_ranks_and_parts_together_read_what_one_process_reads(size, parts, world, shares):
    whole = [sorted(batch) for batch in batches(4, shares=shares)]
    ranks = [list(batches(size, parts, rank, world, shares=shares)) for rank in range(world)]
    for step, expected in enumerate(whole):
        mine = [r[step * parts : (step + 1) * parts] for r in ranks]
        assert sorted(pair for rank in mine for part in rank for pair in part) == expected


@pytest.mark.parametrize("shares", [None, equal_shares(LEVELS)])
def test_it_goes_on_where_it_was_stopped(shares):
    whole = list(batches(3, parts=2, shares=shares))
    for first in (0, 7, 11):
        assert list(batches(3, parts=2, first=first, shares=shares)) == whole[2 * first :]
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


def test_levels_come_equally_often():
    drawn = batches(5, last=4000, shares=equal_shares(LEVELS))
    counts = np.bincount([place % ROWS for batch in drawn for _, place in batch], minlength=ROWS)
    # By hand: the row without a level comes once in 23, and each level half as often as the rest.
    expected = np.array([11 / 20] * 20 + [11 / 2] * 2 + [1]) / ROWS
    n = counts.sum()
    assert n == 20_000
    deviation = (counts / n - expected) / np.sqrt(expected * (1 - expected) / n)
    assert np.abs(deviation).max() < 4.5
    # Chi-squared with 22 degrees of freedom: below 48.3 with probability .999.
    assert (np.square(counts - n * expected) / (n * expected)).sum() < 48.3


def test_what_is_drawn_again_in_a_step_has_draws_of_its_own():
    for batch in batches(12, last=40, shares=equal_shares(LEVELS)):
        places = [place for _, place in batch]
        assert len(set(places)) == 12
        rows = [place % ROWS for place in places]
        for row in set(rows):
            # The n-th time has n - 1 times the number of rows added.
            assert [p // ROWS for p in places if p % ROWS == row] == list(range(rows.count(row)))
    rows = Rows({"x": np.arange(10)}, lambda item, _, row: {**item, "key": row}, np.array([2, 4]))
    items = [rows[0, place] for place in (1, 3, 5)]
    assert [int(item["x"]) for item in items] == [4, 4, 4]
    assert [int(item["index"]) for item in items] == [item["key"] for item in items] == [4, 14, 24]


def cohort_of(**columns):
    table = pd.DataFrame({"participant_id": [f"sub-{i}" for i in range(8)], **columns})
    return SimpleNamespace(root=Path("c"), rows=lambda split: {"train": table}[split])


def test_levels_of_texts_and_of_numbers():
    texts = cohort_of(sex=["F", "M", None, "F", "F", "M", "F", "M"])
    assert level_numbers(texts, "sex").tolist() == [0, 1, -1, 0, 0, 1, 0, 1]
    numbers = cohort_of(age=[40, 43.9, 44.1, 80, np.nan, 76.1, 60.1, 79.9])
    # Bins of 4 years from 40 on: 0, 0, 1, 9, none, 9, 5, 9, numbered as they come.
    assert level_numbers(numbers, "age").tolist() == [0, 0, 1, 2, -1, 2, 3, 2]


@pytest.mark.parametrize("column", ["site", "age", "empty"])
def test_columns_that_cannot_be_balanced(column):
    cohort = cohort_of(age=[50.0] * 8, empty=[np.nan] * 8)
    with pytest.raises(InputError, match=rf"data\.balance: .*column {column}"):
        level_numbers(cohort, column)


def test_balance_counts_the_rows_in_use():
    data = CohortData(config(max_steps=2), 4, lambda *_: None)
    data.config.data.balance = "sex"
    data.balance(cohort_of(sex=["F"] * 5 + ["M"] * 3))
    data.rows["train"] = Rows({"x": np.arange(8)}, only=np.array([0, 1, 2, 7]))
    data.trainer = SimpleNamespace(
        global_rank=0,
        world_size=1,
        global_step=0,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    shares = data.train_dataloader().batch_sampler.shares
    assert shares.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2])


@pytest.mark.parametrize("workers", [1, 5])
def test_workers_read_what_one_process_reads(tmp_path, workers, recwarn):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((9, 4, 4)).astype(np.float16))
    arrays = {"x": np.load(tmp_path / "x.npy", mmap_mode="r")}

    def seen(count):
        data = CohortData(config(max_steps=7), 9, lambda *_: None)
        data.config.data.workers = count
        # A function within a function: what a forked process has and no other could be sent.
        data.rows["train"] = Rows(arrays, lambda item, step, row: {"x": item["x"] * step + row})
        data.trainer = SimpleNamespace(
            global_rank=0,
            world_size=1,
            global_step=2,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )
        loader = data.train_dataloader()
        assert loader.persistent_workers == (count > 0)
        return list(loader)

    for one, other in zip(seen(0), seen(workers), strict=True):
        assert torch.equal(one["x"], other["x"]) and torch.equal(one["index"], other["index"])
    assert not recwarn.list
