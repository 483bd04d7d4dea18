"""Two processes on the CPU train as one does with twice the batch."""

from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from tests.journeys.runs import TWO_RANKS, differences, succeed

EACH_RANK = Path(__file__).parent / "each_rank.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(EACH_RANK))


def logged(model):
    """Return the training metrics of every step, and the validation metrics."""
    table = pd.read_csv(Path(model) / "run" / "logs" / "metrics.csv")
    numbers = [c for c in table if c.startswith(("train/", "val/", "gradient/"))]
    return table.groupby("step")[numbers].first()


@pytest.mark.parametrize("kind", ["autoencoder", "diffusion", "lsgan"])
def test_two_ranks_are_one_with_twice_the_batch(kind, trainings, start, run_command):
    options = [*trainings[kind], "trainer.max_steps=6"]
    each = {"autoencoder": 1, "diffusion": 2, "lsgan": 2}[kind]
    code, _, err = run_command("train", *options, f"data.batch_size={2 * each}", "out=one")
    assert code == 0, err
    succeed(start(*options, *TWO_RANKS, f"data.batch_size={each}", "out=two", program=TORCHRUN))
    first, second = (torch.load(f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first and not list(differences(first, second))
    one, two = logged("one"), logged("two")
    assert list(one.index) == list(two.index) == [1, 2, 3, 4, 5, 6]
    assert len(one.columns) >= 3 and set(one.columns) == set(two.columns)
    pd.testing.assert_frame_equal(one, two[one.columns], rtol=2e-3, atol=1e-5)
    assert one.iloc[0].to_dict() == pytest.approx(two.iloc[0].to_dict(), rel=1e-4, nan_ok=True)


@pytest.mark.parametrize("kind", ["autoencoder", "diffusion"])
def test_accumulation_is_a_larger_batch(kind, trainings, run_command, workplace):
    options = [*trainings[kind], "trainer.max_steps=4", "trainer.val_every=2"]
    for name, extra in {
        "one": ["data.batch_size=4"],
        "parts": ["data.batch_size=1", "trainer.accumulate=4"],
    }.items():
        code, _, err = run_command("train", *options, *extra, f"out={name}")
        assert code == 0, err
    one, parts = logged("one"), logged("parts")
    assert list(one.index) == list(parts.index) == [1, 2, 3, 4]  # optimiser steps, not batches
    pd.testing.assert_frame_equal(one, parts[one.columns], rtol=2e-3, atol=1e-5)


def test_a_sweep_of_two_ranks_gives_each_job_its_own_options(trainings, start):
    options = [*trainings["diffusion"], *TWO_RANKS, "trainer.max_steps=2", "out=swept"]
    out = succeed(start("-m", *options, "task.lr=1e-3,1e-4"))
    for job, lr in enumerate((1e-3, 1e-4)):
        run = Path("swept") / str(job) / "run"
        assert yaml.safe_load((run / "config.yaml").read_text())["task"]["lr"] == lr
        assert (run.parent / "weights.safetensors").is_file()
    assert "best: job" in out
