"""Training that is stopped at any moment goes on as if it never was."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.journeys.runs import (
    TWO_RANKS,
    await_checkpoint,
    differences,
    end,
    last_checkpoint,
    succeed,
)

STATE = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "callbacks")


def same(one, other):
    """Both runs ended with the same weights, averages, optimisers, schedules and best step."""
    a, b = last_checkpoint(one), last_checkpoint(other)
    assert a["optimizer_states"] and a["global_step"] == 24
    assert not list(differences({k: a[k] for k in STATE}, {k: b[k] for k in STATE}))
    weights = [load_file(Path(m) / "weights.safetensors") for m in (one, other)]
    assert not list(differences(*weights))
    assert (Path(one) / "MODEL_CARD.md").read_text() == (Path(other) / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize("kind", ["autoencoder", "diffusion", "lsgan"])
def test_killed_and_gone_on_with(kind, trainings, start, run_command):
    options = trainings[kind]
    code, _, err = run_command("train", *options, "out=whole")
    assert code == 0, err
    process = start(*options, "out=killed")
    await_checkpoint(process, "killed", 4)
    time.sleep(random.uniform(0, 0.5))
    end(process, signal.SIGKILL)
    assert not Path("killed/weights.safetensors").exists()
    code, _, err = run_command("train", *options, "out=killed")
    assert code == 2 and "add resume=auto" in err
    code, out, err = run_command("train", *options, "out=killed", "resume=auto")
    assert code == 0, err
    assert "going on from step" in out
    same("whole", "killed")
    # Once more finds nothing to do.
    code, out, _ = run_command("train", *options, "out=killed", "resume=auto")
    assert code == 0 and "trained already" in out


@pytest.mark.parametrize("kind", ["autoencoder", "diffusion"])
def test_killed_with_two_processes(kind, trainings, start):
    options = [*trainings[kind], *TWO_RANKS]
    whole = start(*options, "out=whole")
    succeed(whole)
    process = start(*options, "out=killed")
    await_checkpoint(process, "killed", 4)
    time.sleep(random.uniform(0, 0.5))
    end(process, signal.SIGKILL)
    assert "going on from step" in succeed(start(*options, "out=killed", "resume=auto"))
    same("whole", "killed")


def test_asked_to_stop_it_saves_the_step_it_is_at(trainings, start, run_command):
    options = [*trainings["diffusion"], "trainer.checkpoint_every=100", "trainer.max_steps=2000"]
    process = start(*options, "out=stopped")
    await_checkpoint(process, "stopped", 100)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "Traceback" not in out and "resume=auto" in out
    stopped = last_checkpoint("stopped")["global_step"]
    assert f"stopped at step {stopped}" in out and 100 <= stopped < 2000


def test_a_damaged_checkpoint_falls_back_to_the_one_before(trainings, run_command, workplace):
    options = trainings["diffusion"]
    code, _, err = run_command("train", *options, "out=whole")
    assert code == 0, err
    shutil.copytree("whole", "damaged")
    for name in ("weights.safetensors", "config.yaml", "MODEL_CARD.md"):
        Path("damaged", name).unlink()
    newest = max(Path("damaged/run/checkpoints").glob("step-*.ckpt"))
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 0xFF  # one byte, somewhere in the weights
    newest.write_bytes(data)
    code, out, err = run_command("train", *options, "out=damaged", "resume=auto")
    assert code == 0, err
    assert f"{newest} is damaged" in out and "going on from step 20" in out
    same("whole", "damaged")
    for path in Path("damaged/run/checkpoints").glob("step-*.ckpt"):
        path.write_bytes(b"nothing")
    Path("damaged/weights.safetensors").unlink()
    code, _, err = run_command("train", *options, "out=damaged", "resume=auto")
    assert code == 2 and "every checkpoint is damaged" in err


def test_a_full_disk_is_one_line_and_nothing_half_written(
    trainings, run_command, workplace, monkeypatch
):
    save = torch.save

    def full(content, path, *rest):
        save(content, path, *rest)
        if "000000008" in str(path):
            path.write_bytes(path.read_bytes()[:1000])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    code, _, err = run_command("train", *trainings["diffusion"], "out=full")
    assert code == 2
    assert "No space left on device" in err and "resume=auto" in err
    assert len(err.strip().splitlines()) == 1
    assert {p.name for p in Path("full/run/checkpoints").iterdir()} == {
        "step-000000004.ckpt",
        "best-000000006.safetensors",
    }


def test_what_cannot_be_gone_on_with(trainings, run_command, one_line, workplace):
    options = trainings["diffusion"]
    few = ["trainer.max_steps=4", "out=models/few"]
    code, _, err = run_command("train", *options, *few)
    assert code == 0, err
    line = one_line("train", *options, *few)
    assert "models/few: holds a trained model" in line
    Path("models/few/weights.safetensors").unlink()
    Path("models/few/run/result.json").unlink()  # as if it had been killed before the model
    line = one_line("train", *options, *few, "resume=auto", "task.ema=0.5")
    assert "another experiment" in line and "task.ema was 0.99, now it is 0.5" in line
    line = one_line("train", *trainings["autoencoder"], "out=other", "resume=models/few/run")
    assert "another experiment" in line and not Path("other").exists()
    line = one_line("train", *options, "out=other", "resume=nowhere")
    assert "resume=nowhere: no checkpoints there" in line
    line = one_line("train", *options, *few[1:], "resume=auto", "trainer.max_steps=9")
    assert "trainer.max_steps was 4" in line
    line = one_line("train", *options, *few, "resume=auto", "data.batch_size=2")
    assert "rows per step was 4, now it is 2" in line


HOLD = """
import fcntl, pathlib
pathlib.Path("shared/run").mkdir(parents=True)
lock = open("shared/run/.lock", "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("held", flush=True)
input()
"""


def test_two_trainings_do_not_write_into_one_folder(trainings, one_line, workplace):
    other = subprocess.Popen([sys.executable, "-c", HOLD], stdin=-1, stdout=-1, text=True)
    assert other.stdout.readline() == "held\n"
    line = one_line("train", *trainings["diffusion"], "out=shared")
    assert "shared: another process trains there" in line
    assert Path("shared/run/.lock").exists()
    other.communicate("\n")


def test_stopped_before_the_first_step(trainings, start):
    process = start(*trainings["diffusion"], "out=models/early")
    folder = Path("models/early/run")
    while not folder.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75, out
    assert "resume=auto" in out and "Traceback" not in out


def test_going_on_in_other_parts(trainings, start, run_command):
    """A batch of four, then two of two, then one of four once more: the same steps and rows."""
    options = [*trainings["diffusion"], "trainer.checkpoint_every=5", "out=parts"]
    code, _, err = run_command("train", *options, "out=whole")
    assert code == 0, err
    halves = ["data.batch_size=2", "trainer.accumulate=2"]
    for parts, until in ([], 5), (halves, 10), ([], None):
        if until is None:
            code, _, err = run_command("train", *options, "resume=auto")
            assert code == 0, err
        else:
            process = start(*options, *parts, "resume=auto")
            await_checkpoint(process, "parts", until)
            end(process, signal.SIGKILL)
    one, other = last_checkpoint("whole"), last_checkpoint("parts")
    assert one["global_step"] == other["global_step"] == 24
    for name, weight in one["state_dict"].items():
        assert torch.allclose(weight, other["state_dict"][name], atol=2e-3), name
    losses = [
        pd.read_csv(f"{m}/run/logs/metrics.csv").dropna(subset="train/loss")
        for m in ("whole", "parts")
    ]
    whole, parts = (
        t.drop_duplicates("step", keep="last").set_index("step")["train/loss"] for t in losses
    )
    assert list(whole.index) == list(parts.sort_index().index) == list(range(1, 25))
    pd.testing.assert_series_equal(whole, parts.sort_index(), rtol=5e-3)
