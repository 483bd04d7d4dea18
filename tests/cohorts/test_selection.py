"""Parts of cohorts, and cohorts joined."""

from dataclasses import replace

import numpy as np
import pytest

from brain_ldm.cohorts.cohort import Cohort, open_cohort
from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.cohorts.selection import joined, limited
from brain_ldm.cohorts.writer import CohortWriter
from brain_ldm.errors import InputError

SIX = [f"sub-made{index}" for index in range(6)]


@pytest.fixture
def made(tiny_cohort, tmp_path) -> Cohort:
    """Six brains that never lived, of an age beyond all others and with columns of their own."""
    writer = CohortWriter(
        tmp_path / "made",
        "Made",
        {"Name": "tests"},
        tiny_cohort.grid,
        synthetic=True,
        extra_columns={"seed": {"Description": "seed"}},
    )
    image = tiny_cohort.read("sub-000")
    for index, pid in enumerate(SIX):
        writer.add({"participant_id": pid, "age": 90.0 + index, "seed": index}, image * 0.5)
    writer.finish()
    return open_cohort(tmp_path / "made")


def ids(cohort: Cohort, split: str) -> list[str]:
    return cohort.rows(split)["participant_id"].tolist()


def test_a_larger_part_holds_the_smaller_one_and_other_splits_stay(tiny_cohort):
    few, many = limited(tiny_cohort, 4), limited(tiny_cohort, 9)
    assert len(ids(few, "train")) == 4
    assert set(ids(few, "train")) < set(ids(many, "train")) < set(ids(tiny_cohort, "train"))
    assert ids(many, "train") == sorted(ids(many, "train"))
    assert ids(few, "test") == ids(tiny_cohort, "test")
    assert ids(few, "val") == ids(tiny_cohort, "val")
    assert len({c.content_hash() for c in (tiny_cohort, few, many)}) == 3
    assert limited(tiny_cohort, 16).content_hash() == tiny_cohort.content_hash()
    with pytest.raises(InputError, match="17 of its 16 training rows"):
        limited(tiny_cohort, 17)


def test_all_rows_of_joined_cohorts_train_and_none_validates(tiny_cohort, made):
    both = joined(tiny_cohort, [made])
    assert ids(both, "train") == ids(tiny_cohort, "train") + SIX
    assert ids(both, "val") == ids(tiny_cohort, "val")
    assert ids(both, "test") == ids(tiny_cohort, "test")
    assert both.table.columns.tolist() == tiny_cohort.table.columns.tolist()
    assert np.array_equal(both.read("sub-made3"), made.read("sub-made3"))
    assert np.array_equal(both.read("sub-003"), tiny_cohort.read("sub-003"))
    assert both.content_hash() not in (tiny_cohort.content_hash(), made.content_hash())
    alone = joined(limited(tiny_cohort, 0), [made], 2)
    assert len(ids(alone, "train")) == 2 and set(ids(alone, "train")) < set(SIX)


def test_cohorts_that_do_not_fit_together_are_refused(tiny_cohort, made):
    with pytest.raises(InputError, match=r"sub-000 is in .*tiny too"):
        joined(tiny_cohort, [tiny_cohort])
    other = VoxelGrid(tiny_cohort.grid.shape, np.diag([2.0, 2.0, 2.0, 1.0]))
    with pytest.raises(InputError, match="one grid"):
        joined(tiny_cohort, [replace(made, grid=other)])
    with pytest.raises(InputError, match="7 of its 6"):
        joined(tiny_cohort, [made], 7)


def test_an_age_network_learns_from_synthetic_brains_alone(
    tiny_cohort, made, run_command, workplace
):
    code, _, err = run_command(
        "train",
        "experiment=brain_age_demo",
        f"data.cohort={tiny_cohort.root}",
        "data.rows=0",
        f"data.extra=[{made.root}]",
        "data.extra_rows=4",
        "data.batch_size=2",
        "trainer.max_steps=2",
        "out=age",
    )
    assert code == 0, err
    config = (workplace / "age" / "config.yaml").read_text()
    assert tiny_cohort.content_hash() in config and made.content_hash() in config
    assert "training_rows: 4" in config
